//! From the text of a file to its documents as JSON values. Each document stands alone: a broken one spoils no other.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What is in a file may be at most this long.
pub(crate) const MAX_FILE_BYTES: u64 = 16 << 20;
/// One file may hold at most this many documents.
const MAX_DOCUMENTS: usize = 10_000;

/// One document: its number, from 1, and its value or what is wrong with its text.
#[derive(Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) number: usize,
    pub(crate) value: Result<Value, String>,
}

/// The documents of a file, empty ones left out.
pub(crate) fn documents(path: &Path, text: &str) -> Vec<Document> {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let values = if is_json { json(text) } else { yaml(text) };
    let mut documents: Vec<Document> =
        values.into_iter().enumerate().map(|(index, value)| Document { number: index + 1, value }).collect();
    if documents.len() > MAX_DOCUMENTS {
        documents.truncate(MAX_DOCUMENTS);
        let message = format!("too many documents: the limit is {MAX_DOCUMENTS}");
        documents.push(Document { number: MAX_DOCUMENTS + 1, value: Err(message) });
    }
    documents
}

fn yaml(text: &str) -> Vec<Result<Value, String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut values = Vec::new();
    for part in split(text) {
        if part.text.lines().all(is_blank) {
            continue;
        }
        values.push(parse_yaml(&part));
        if values.len() > MAX_DOCUMENTS {
            break;
        }
    }
    values
}

/// A comment, an empty line, a directive or a document's end.
fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line.starts_with("%YAML") || line == "..."
}

struct Part<'a> {
    text: &'a str,
    /// The line of the file before its first.
    offset: u64,
}

/// `---` at the beginning of a line begins a document, whatever stands around it (YAML 1.2 §9.1.2).
fn split(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut start, mut offset, mut position) = (0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        let marker = line.strip_prefix("---");
        if let Some(rest) = marker.filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            parts.push(Part { text: &text[start..position], offset });
            // What follows the marker on its line belongs to the document.
            start = position + line.len() - rest.len();
            offset = number;
        }
        position += line.len();
    }
    parts.push(Part { text: &text[start..], offset });
    parts
}

fn parse_yaml(part: &Part<'_>) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        // As Kubernetes' own parser: `0644` is a file mode.
        legacy_octal_numbers: true,
        merge_keys: serde_saphyr::MergeKeyPolicy::Merge,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        with_snippet: false
    };
    serde_saphyr::from_str_with_options::<Value>(part.text, options).map_err(|error| {
        let message = first_line(&error.without_snippet().to_string());
        match error.location() {
            Some(place) => {
                let message = without_place(&message);
                format!(
                    "not valid YAML: line {}, column {}: {message}",
                    part.offset + place.line(),
                    place.column()
                )
            }
            None => format!("not valid YAML: {message}"),
        }
    })
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim().to_owned()
}

/// The parser counts lines in the document; ours are of the file.
fn without_place(message: &str) -> &str {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    let text = &message[..end];
    match text.strip_prefix("line ") {
        Some(rest) => rest.split_once(": ").map_or(text, |(_, rest)| rest),
        None => text,
    }
}

fn json(text: &str) -> Vec<Result<Value, String>> {
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Strict>() {
        match value {
            Ok(Strict(value)) => values.push(Ok(value)),
            // What follows a syntax error cannot be told apart from it.
            Err(error) => {
                values.push(Err(format!("not valid JSON: {error}")));
                break;
            }
        }
        if values.len() > MAX_DOCUMENTS {
            break;
        }
    }
    values
}

/// A JSON value without duplicate keys, which `serde_json` alone would drop.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Strict(value))) = fields.next_entry::<String, Strict>()? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format!("duplicate key {key:?}")));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(name: &str, text: &str) -> Vec<Result<Value, String>> {
        documents(Path::new(name), text).into_iter().map(|document| document.value).collect()
    }

    #[test]
    fn yaml_documents_are_told_apart_and_empty_ones_do_not_count() {
        let text =
            "# head\n---\na: 1\n---\n# only a comment\n---  \nb: |\n  x\n  ---\n  y\n--- {c: 3}\n...\n---\n";
        let found = read("x.yaml", text);
        assert_eq!(found, [Ok(json!({"a": 1})), Ok(json!({"b": "x\n---\ny\n"})), Ok(json!({"c": 3}))]);
    }

    #[test]
    fn a_broken_document_spoils_no_other_and_its_line_is_of_the_file() {
        let found = read("x.yaml", "a: 1\n---\nb: [1\nc: {\n---\nd: 4\n");
        assert_eq!(found.len(), 3);
        assert_eq!((&found[0], &found[2]), (&Ok(json!({"a": 1})), &Ok(json!({"d": 4}))));
        let message = found[1].as_ref().expect_err("broken");
        assert!(message.starts_with("not valid YAML: line 4, column "), "{message}");
    }

    #[test]
    fn scalars_are_what_kubernetes_takes_them_for() {
        let text =
            "mode: 0644\nquoted: \"0644\"\nyes: 'yes'\nn: ~\nf: 1.5\nt: 2026-01-01\nv: 1.2.3\nbig: 1e3\n";
        let expect = json!({"mode": 420, "quoted": "0644", "yes": "yes", "n": null, "f": 1.5, "t": "2026-01-01",
            "v": "1.2.3", "big": 1000.0});
        assert_eq!(read("x.yaml", text), [Ok(expect)]);
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        let text = "a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\n";
        assert_eq!(read("x.yaml", text), [Ok(json!({"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}}))]);
    }

    #[test]
    fn duplicate_keys_are_refused_in_both_languages() {
        for (name, text) in [("x.yaml", "a: 1\na: 2\n"), ("x.json", "{\"a\": 1, \"a\": 2}")] {
            let found = read(name, text);
            let message = found[0].as_ref().expect_err("refused");
            assert!(message.contains("duplicate"), "{message}");
        }
    }

    #[test]
    fn json_files_may_hold_several_values_and_tabs() {
        assert_eq!(
            read("x.json", "{\n\t\"a\": 1}\n{\"b\": [2]}"),
            [Ok(json!({"a": 1})), Ok(json!({"b": [2]}))]
        );
        let broken = read("x.json", "{\"a\": 1} {\"b\"");
        assert_eq!(broken[0], Ok(json!({"a": 1})));
        assert!(broken[1].as_ref().is_err_and(|message| message.contains("line 1")), "{broken:?}");
    }

    #[test]
    fn alias_bombs_and_deep_nesting_end_in_an_error() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        for text in [bomb, "[".repeat(100_000), "- ".repeat(100_000)] {
            let found = read("x.yaml", &text);
            assert!(found[0].is_err());
        }
        assert!(read("x.json", &"[".repeat(100_000))[0].is_err());
    }
}

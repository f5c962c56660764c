//! From a JSON value to a typed object, strictly: every unknown field and every value of a wrong type is reported with
//! its path, not only the first. Knows nothing of what the types mean.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

/// Whether messages may quote what stands in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    Shown,
    /// Secrets: messages go to logs.
    Hidden,
}

/// What is wrong with a field: its path and a sentence.
pub(crate) type Fault = (String, String);

/// A document with more mistakes than this is not a manifest.
const MAX_FAULTS: usize = 100;

/// Decodes `value`; what cannot be read is left out of the object and reported.
pub(crate) fn decode<T: DeserializeOwned>(mut value: Value, values: Values) -> (Option<T>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut tried = BTreeMap::new();
    loop {
        let tracker = Tracker::default();
        let root = Place { value: &value, path: &Path::Root, tracker: &tracker };
        match T::deserialize(root) {
            Ok(object) => {
                let unknown = tracker.unknown.into_inner().into_iter();
                faults.extend(unknown.map(|path| (path, "unknown field".to_owned())));
                return (Some(object), faults);
            }
            Err(fault) => {
                let steps = tracker.failed.into_inner().unwrap_or_default();
                let path = render(&steps);
                if !faults.iter().any(|(known, _)| *known == path) {
                    faults.push((path, fault.text(values)));
                }
                let given_up = steps.is_empty() || faults.len() >= MAX_FAULTS;
                if given_up || !leave_out(&mut value, &steps, &mut tried) {
                    return (None, faults);
                }
            }
        }
    }
}

/// Makes the value at `steps` harmless, so that the next pass finds the next mistake: a field is removed; an item, whose
/// neighbours must keep their places, becomes empty in one of the ways that its type may take.
fn leave_out(value: &mut Value, steps: &[Step], tried: &mut BTreeMap<Vec<Step>, usize>) -> bool {
    let stand_ins =
        [Value::Object(Map::new()), Value::String(String::new()), Value::from(0), Value::Bool(false)];
    let Some((last, parents)) = steps.split_last() else { return false };
    let parent = parents.iter().try_fold(&mut *value, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(index) => value.get_mut(index),
    });
    match (parent, last) {
        (Some(Value::Object(fields)), Step::Key(key)) => fields.remove(key).is_some(),
        (Some(Value::Array(items)), Step::Index(index)) => {
            let attempt = tried.entry(steps.to_vec()).or_default();
            let stand_in = stand_ins.get(*attempt).cloned();
            *attempt += 1;
            match (items.get_mut(*index), stand_in) {
                (Some(item), Some(stand_in)) => {
                    *item = stand_in;
                    true
                }
                _ => leave_out(value, parents, tried),
            }
        }
        _ => false,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

/// The way from the root to a value, kept on the stack.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn steps(&self) -> Vec<Step> {
        let (parent, step) = match self {
            Self::Root => return Vec::new(),
            Self::Key(parent, key) => (parent, Step::Key((*key).to_owned())),
            Self::Index(parent, index) => (parent, Step::Index(*index)),
        };
        let mut steps = parent.steps();
        steps.push(step);
        steps
    }
}

/// `spec.containers[0].ports`; a key that is no plain word stands in brackets, as in `metadata.labels[a/b]`.
fn render(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Key(key) if key.is_empty() || key.contains(|c: char| !c.is_ascii_alphanumeric()) => {
                text.push_str(&format!("[{key}]"));
            }
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
        }
    }
    text
}

#[derive(Default)]
struct Tracker {
    unknown: RefCell<Vec<String>>,
    failed: RefCell<Option<Vec<Step>>>,
}

impl Tracker {
    /// The innermost place is where the mistake is; the error then passes through all that are around it.
    fn fail(&self, path: &Path<'_>) {
        let mut failed = self.failed.borrow_mut();
        if failed.is_none() {
            *failed = Some(path.steps());
        }
    }
}

#[derive(Clone, Copy)]
struct Place<'a, 'de> {
    value: &'de Value,
    path: &'a Path<'a>,
    tracker: &'a Tracker,
}

impl<'de> Place<'_, 'de> {
    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let result = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), _, _) => visitor.visit_u64(number),
                (_, Some(number), _) => visitor.visit_i64(number),
                (_, _, number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
            },
            Value::Array(items) => visitor.visit_seq(Items {
                items: items.iter(),
                next: 0,
                path: self.path,
                tracker: self.tracker,
            }),
            Value::Object(fields) => visitor.visit_map(Fields {
                fields: fields.iter(),
                current: None,
                path: self.path,
                tracker: self.tracker,
            }),
        };
        result.inspect_err(|_| self.tracker.fail(self.path))
    }
}

impl<'de> Deserializer<'de> for Place<'_, 'de> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self).inspect_err(|_| self.tracker.fail(self.path)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        // `cpu: 1` is as good as `cpu: "1"`.
        if let ("Quantity", Value::Number(number)) = (name, self.value) {
            return visitor.visit_newtype_struct(StringDeserializer::new(number.to_string()));
        }
        visitor.visit_newtype_struct(self).inspect_err(|_| self.tracker.fail(self.path))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.tracker.unknown.borrow_mut().push(render(&self.path.steps()));
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct enum identifier
    }
}

struct Items<'a, 'de> {
    items: std::slice::Iter<'de, Value>,
    next: usize,
    path: &'a Path<'a>,
    tracker: &'a Tracker,
}

impl<'de> de::SeqAccess<'de> for Items<'_, 'de> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        let Some(value) = self.items.next() else { return Ok(None) };
        let path = Path::Index(self.path, self.next);
        self.next += 1;
        seed.deserialize(Place { value, path: &path, tracker: self.tracker }).map(Some)
    }
}

struct Fields<'a, 'de> {
    fields: serde_json::map::Iter<'de>,
    current: Option<(&'de str, &'de Value)>,
    path: &'a Path<'a>,
    tracker: &'a Tracker,
}

impl<'de> de::MapAccess<'de> for Fields<'_, 'de> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        let Some((key, value)) = self.fields.next() else { return Ok(None) };
        self.current = Some((key, value));
        let path = Path::Key(self.path, key);
        let key = StrDeserializer::<Mistake>::new(key);
        seed.deserialize(key).inspect_err(|_| self.tracker.fail(&path)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let (key, value) =
            self.current.ok_or_else(|| <Mistake as de::Error>::custom("a value without key"))?;
        let path = Path::Key(self.path, key);
        seed.deserialize(Place { value, path: &path, tracker: self.tracker })
    }
}

/// A value that its field cannot take.
#[derive(Debug)]
enum Mistake {
    Type { found: String, kind: &'static str, expected: String },
    Other(String),
}

impl Mistake {
    fn text(&self, values: Values) -> String {
        match self {
            Self::Type { found, kind, expected } => {
                let found = if values == Values::Shown { found } else { *kind };
                let hint = match (*kind, expected.as_str()) {
                    ("a number" | "a boolean", "a string") => ": put it in quotes",
                    ("a string", "an integer") => ": write a number without quotes",
                    ("a string", "true or false") => ": write it without quotes",
                    _ => "",
                };
                format!("expected {expected}, found {found}{hint}")
            }
            Self::Other(message) => message.clone(),
        }
    }
}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Other(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let (kind, found) = match found {
            Unexpected::Bool(value) => ("a boolean", format!("the boolean {value}")),
            Unexpected::Unsigned(number) => ("a number", format!("the number {number}")),
            Unexpected::Signed(number) => ("a number", format!("the number {number}")),
            Unexpected::Float(number) => ("a number", format!("the number {number}")),
            Unexpected::Str(text) => ("a string", format!("the string {:?}", shortened(text))),
            Unexpected::Seq => ("a list", "a list".to_owned()),
            Unexpected::Map => ("an object", "an object".to_owned()),
            Unexpected::Unit => ("nothing", "nothing".to_owned()),
            _ => ("another value", "another value".to_owned()),
        };
        Self::Type { found, kind, expected: wording(&expected.to_string()) }
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
}

impl std::error::Error for Mistake {}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(Values::Hidden))
    }
}

/// Rust's names for types, as a person who writes manifests says them.
fn wording(expected: &str) -> String {
    match expected {
        "i32" | "i64" | "u32" | "u64" => "an integer".to_owned(),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        "Quantity" => "a quantity".to_owned(),
        "Time" => "a time".to_owned(),
        "IntOrString" => "an integer or a string".to_owned(),
        name if name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.contains(' ') => {
            format!("an object ({name})")
        }
        other => other.to_owned(),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;

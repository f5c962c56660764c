//! The forms of names: RFC 1123 and 1035, and what Kubernetes makes of them.

use super::tell;
use crate::decode::Fault;

/// What a name has to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// RFC 1123: labels joined by dots.
    Subdomain,
    /// The same with underscores: what a resolver appends.
    Search,
    /// RFC 1123.
    Label,
    /// RFC 1035: does not begin with a digit.
    Label1035,
    /// RFC 6335: what a port may be called.
    PortName,
    /// A file of a volume.
    DataKey,
    /// Printable ASCII without `=`.
    Variable,
    /// `example.com/name`.
    LabelKey,
    /// May be empty.
    LabelValue,
}

/// Tells what is wrong with a name.
pub(super) fn check(faults: &mut Vec<Fault>, path: &str, name: &str, form: Form) {
    if name.is_empty() && form != Form::LabelValue {
        return tell(faults, path, "required");
    }
    if let Some(rule) = broken_rule(name, form) {
        tell(faults, path, format!("{name:?} {rule}"));
    }
}

fn broken_rule(name: &str, form: Form) -> Option<&'static str> {
    match form {
        Form::Subdomain => (name.len() > 253 || !name.split('.').all(|part| is_label(part, usize::MAX))).then_some(
            "is not a DNS subdomain: at most 253 lower case letters, digits, '-' or '.', a letter or digit at both ends",
        ),
        Form::Search => broken_rule(&name.replace('_', "a"), Form::Subdomain),
        Form::Label => (!is_label(name, 63)).then_some(
            "is not a DNS label: at most 63 lower case letters, digits or '-', a letter or digit at both ends",
        ),
        Form::Label1035 => (!is_label(name, 63) || name.starts_with(|c: char| c.is_ascii_digit())).then_some(
            "is not a DNS label: at most 63 lower case letters, digits or '-', a letter first, a letter or digit last",
        ),
        Form::PortName => (!is_port_name(name)).then_some(
            "is not a port name: at most 15 lower case letters, digits or single '-', one letter at least, none of '-' at an end",
        ),
        Form::DataKey => (name.len() > 253 || matches!(name, "." | "..") || name.starts_with("..") || !name.bytes().all(is_name_byte))
            .then_some("is not a key: at most 253 letters, digits, '-', '_' or '.', and not '..' first"),
        Form::Variable => (!name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'='))
            .then_some("is not the name of an environment variable: printable ASCII without '='"),
        Form::LabelKey => (!is_label_key(name)).then_some(
            "is not a key: an optional DNS subdomain and '/', then at most 63 letters, digits, '-', '_' or '.', a letter or digit at both ends",
        ),
        Form::LabelValue => (!name.is_empty() && !is_qualified(name)).then_some(
            "is not a label's value: at most 63 letters, digits, '-', '_' or '.', a letter or digit at both ends",
        ),
    }
}

fn is_label(name: &str, max: usize) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !name.is_empty()
        && name.len() <= max
        && name.bytes().all(|b| plain(b) || b == b'-')
        && name.bytes().next().is_some_and(plain)
        && name.bytes().last().is_some_and(plain)
}

fn is_port_name(name: &str) -> bool {
    is_label(name, 15) && name.bytes().any(|b| b.is_ascii_lowercase()) && !name.contains("--")
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')
}

fn is_qualified(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(is_name_byte)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn is_label_key(name: &str) -> bool {
    match name.split_once('/') {
        Some((prefix, name)) => {
            broken_rule(prefix, Form::Subdomain).is_none() && !prefix.is_empty() && is_qualified(name)
        }
        None => is_qualified(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_forms_of_the_api() {
        let long = "a".repeat(64);
        for (form, good, bad) in [
            (Form::Subdomain, vec!["a", "a.b-c.1"], vec!["A", "a_b", "-a", "a-", "a..b", ".a", "ä"]),
            (Form::Search, vec!["a.b", "_sip._tcp"], vec!["A", "a..b"]),
            (Form::Label, vec!["a", "1", "a-b"], vec!["a.b", "a-", long.as_str()]),
            (Form::Label1035, vec!["a", "a1"], vec!["1a", "a."]),
            (Form::PortName, vec!["http", "a1", "1a"], vec!["80", "a--b", "Http", "much-too-long-a-name"]),
            (Form::DataKey, vec!["a.b", "_A", ".dockerconfigjson"], vec!["a/b", "..", ".", "..data", "a b"]),
            (Form::Variable, vec!["A", "a.b", "1", "a b"], vec!["A=B", "ä", "a\nb"]),
            (Form::LabelKey, vec!["a", "A_b", "x.example/a"], vec!["/a", "x/", "X/a", "a/b/c", "-a"]),
            (Form::LabelValue, vec!["", "a", "1.2"], vec!["-", "a b", long.as_str()]),
        ] {
            for name in good {
                assert_eq!(broken_rule(name, form), None, "{form:?} {name}");
            }
            for name in bad {
                assert!(broken_rule(name, form).is_some(), "{form:?} {name}");
            }
        }
    }
}

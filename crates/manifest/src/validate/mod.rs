//! What an API server would refuse, field by field. Pure; it sees objects after their defaults were filled in.

mod container;
mod downward;
mod metadata;
mod names;
mod pod;
mod probe;
mod service;
mod volume;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::decode::Fault;
use names::Form;

pub(crate) use pod::pod;
pub(crate) use service::service;

/// The data of a ConfigMap or a Secret may be this long.
const MAX_DATA: usize = 1 << 20;

/// Collects what is wrong.
fn tell(faults: &mut Vec<Fault>, path: impl Into<String>, message: impl Into<String>) {
    faults.push((path.into(), message.into()));
}

/// Tells of a value that is not one of a few words.
fn one_of(faults: &mut Vec<Fault>, path: &str, value: Option<&str>, words: &[&str]) {
    if let Some(value) = value.filter(|value| !words.contains(value)) {
        tell(faults, path, format!("{value:?} is not supported: it is one of {}", words.join(", ")));
    }
}

/// Tells of a missing or malformed name, and of one that is there twice.
fn unique_name<'a>(
    faults: &mut Vec<Fault>,
    path: &str,
    name: &'a str,
    form: Form,
    seen: &mut BTreeSet<&'a str>,
) {
    names::check(faults, path, name, form);
    if !name.is_empty() && !seen.insert(name) {
        tell(faults, path, format!("{name:?} is there twice"));
    }
}

/// Refuses what no ConfigMap can be.
pub(crate) fn config_map(map: &ConfigMap, faults: &mut Vec<Fault>) {
    metadata::check(&map.metadata, Form::Subdomain, faults);
    let texts = map.data.iter().flatten().map(|(key, text)| ("data", key, text.len()));
    let bytes = map.binary_data.iter().flatten().map(|(key, bytes)| ("binaryData", key, bytes.0.len()));
    data(texts.chain(bytes), faults);
    for key in map.binary_data.iter().flat_map(|data| data.keys()) {
        if map.data.as_ref().is_some_and(|data| data.contains_key(key)) {
            tell(faults, format!("binaryData[{key}]"), "is also in data");
        }
    }
}

/// Refuses what no Secret can be.
pub(crate) fn secret(secret: &Secret, faults: &mut Vec<Fault>) {
    metadata::check(&secret.metadata, Form::Subdomain, faults);
    let bytes = secret.data.iter().flatten().map(|(key, bytes)| ("data", key, bytes.0.len()));
    let texts = secret.string_data.iter().flatten().map(|(key, text)| ("stringData", key, text.len()));
    data(bytes.chain(texts), faults);
}

fn data<'a>(entries: impl Iterator<Item = (&'static str, &'a String, usize)>, faults: &mut Vec<Fault>) {
    let mut total = 0;
    for (field, key, len) in entries {
        names::check(faults, &format!("{field}[{key}]"), key, Form::DataKey);
        total += len;
    }
    if total > MAX_DATA {
        tell(faults, "data", format!("{total} bytes in all: the limit is {MAX_DATA}"));
    }
}

#[cfg(test)]
mod tests;

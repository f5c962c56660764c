//! Names, labels and annotations.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::names::{self, Form};
use super::tell;
use crate::decode::Fault;

/// All annotations of an object may be this long together.
const MAX_ANNOTATIONS: usize = 256 << 10;

pub(super) fn check(metadata: &ObjectMeta, name: Form, faults: &mut Vec<Fault>) {
    match (&metadata.name, &metadata.generate_name) {
        (None, Some(_)) => tell(faults, "metadata.generateName", "not supported: give metadata.name"),
        (own, _) => names::check(faults, "metadata.name", own.as_deref().unwrap_or_default(), name),
    }
    names::check(
        faults,
        "metadata.namespace",
        metadata.namespace.as_deref().unwrap_or_default(),
        Form::Label,
    );
    for (key, value) in metadata.labels.iter().flatten() {
        let path = format!("metadata.labels[{key}]");
        names::check(faults, &path, key, Form::LabelKey);
        names::check(faults, &path, value, Form::LabelValue);
    }
    let mut total = 0;
    for (key, value) in metadata.annotations.iter().flatten() {
        names::check(
            faults,
            &format!("metadata.annotations[{key}]"),
            &key.to_ascii_lowercase(),
            Form::LabelKey,
        );
        total += key.len() + value.len();
    }
    if total > MAX_ANNOTATIONS {
        tell(faults, "metadata.annotations", format!("{total} bytes in all: the limit is {MAX_ANNOTATIONS}"));
    }
}

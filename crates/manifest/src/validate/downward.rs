//! Which fields and resources of a pod its containers may be told, and in which units.

use k8s_openapi::api::core::v1::{ObjectFieldSelector, ResourceFieldSelector};

use super::names::{self, Form};
use super::tell;
use crate::decode::Fault;
use crate::quantity;
use crate::resource;

/// Where the value goes: a file may hold whole maps, and knows no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Variable,
    File,
}

const EVERYWHERE: [&str; 3] = ["metadata.name", "metadata.namespace", "metadata.uid"];
const VARIABLES: [&str; 6] = [
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const FILES: [&str; 2] = ["metadata.labels", "metadata.annotations"];
const SIZES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Checks a `fieldRef`.
pub(super) fn field(field: &ObjectFieldSelector, place: Place, at: &str, faults: &mut Vec<Fault>) {
    if let Some(version) = field.api_version.as_deref().filter(|version| !matches!(*version, "" | "v1")) {
        tell(faults, format!("{at}.apiVersion"), format!("{version:?} is not v1"));
    }
    let path = field.field_path.as_str();
    let named = format!("{at}.fieldPath");
    if path.is_empty() {
        return tell(faults, named, "required");
    }
    if let Some(key) = subscript(path) {
        return names::check(faults, &named, &key, Form::LabelKey);
    }
    let also: &[&str] = if place == Place::Variable { &VARIABLES } else { &FILES };
    if !EVERYWHERE.contains(&path) && !also.contains(&path) {
        let all = [&EVERYWHERE[..], also].concat().join(", ");
        let told = format!(
            "{path:?} is not supported: it is one of {all}, metadata.labels['KEY'], metadata.annotations['KEY']"
        );
        tell(faults, named, told);
    }
}

/// The key of `metadata.labels['KEY']`; an annotation's may have capitals.
fn subscript(path: &str) -> Option<String> {
    let inside = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']").map(str::to_owned);
    inside("metadata.labels['")
        .or_else(|| inside("metadata.annotations['").map(|key| key.to_ascii_lowercase()))
}

/// Checks a `resourceFieldRef`.
pub(super) fn resource(resource: &ResourceFieldSelector, place: Place, at: &str, faults: &mut Vec<Fault>) {
    let named = resource.container_name.as_ref().is_some_and(|name| !name.is_empty());
    if place == Place::File && !named {
        tell(faults, format!("{at}.containerName"), "required");
    }
    let path = format!("{at}.resource");
    let name = match resource.resource.split_once('.') {
        Some(("limits" | "requests", name)) if resource::is_told(name) => name,
        _ if resource.resource.is_empty() => return tell(faults, path, "required"),
        _ => {
            let told = format!(
                "{:?} is not supported: it is limits or requests, then .cpu, .memory, .ephemeral-storage or .hugepages-SIZE",
                resource.resource
            );
            return tell(faults, path, told);
        }
    };
    let Some(divisor) = resource.divisor.as_ref() else { return };
    let path = format!("{at}.divisor");
    let units: &[&str] = if name == "cpu" { &["1m", "1"] } else { &SIZES };
    match quantity::parse(&divisor.0) {
        Err(error) => tell(faults, path, format!("{:?} {error}", divisor.0)),
        Ok(amount) if amount.is_zero() || units.iter().any(|unit| quantity::parse(unit) == Ok(amount)) => {}
        Ok(_) => {
            tell(faults, path, format!("{:?} is not a unit of {name}: {}", divisor.0, units.join(", ")));
        }
    }
}

//! A container's environment: values, references, `$(VAR)`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use manifest::{ObjectKey, Objects};

use crate::downward::{self, PodFacts};
use crate::env_files;
use crate::pod::model::Pod;
use crate::services;
use crate::static_pod::is_static;

/// The variables in order, those of Services first. A reference to something that is missing is an error unless it is
/// optional.
///
/// # Errors
/// What is missing: the container waits with CreateContainerConfigError.
pub(crate) fn render(
    pod: &Pod,
    container: &v1::Container,
    objects: &Objects,
    services: Option<&[v1::Service]>,
    facts: &PodFacts,
    files: &env_files::Texts,
) -> Result<Vec<(String, String)>, String> {
    let mut variables = of_services(pod, services)?;
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        for (key, value) in from_object(pod, source, objects)? {
            set(&mut variables, prefix.clone() + &key, value);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &variables)),
            (None, Some(from)) => referenced(pod, container, from, objects, facts, files)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut variables, variable.name.clone(), value);
        }
    }
    Ok(variables)
}

/// Services must have been read: a container keeps the variables with which it started. A static pod may be what brings
/// the API server up, and does not wait.
fn of_services(pod: &Pod, services: Option<&[v1::Service]>) -> Result<Vec<(String, String)>, String> {
    let links = pod.source.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    match services {
        Some(services) => Ok(services::variables(services, &pod.namespace, links)),
        None if is_static(pod) => Ok(Vec::new()),
        None => Err("services have not yet been read at least once, cannot construct envvars".into()),
    }
}

fn set(variables: &mut Vec<(String, String)>, name: String, value: String) {
    match variables.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => *known = value,
        None => variables.push((name, value)),
    }
}

fn from_object(
    pod: &Pod,
    source: &v1::EnvFromSource,
    objects: &Objects,
) -> Result<BTreeMap<String, String>, String> {
    if let Some(reference) = &source.config_map_ref {
        let found = objects.config_maps.get(&ObjectKey::new(&pod.namespace, &reference.name));
        return match (found, reference.optional) {
            (Some(map), _) => Ok(map.data.clone().unwrap_or_default()),
            (None, Some(true)) => Ok(BTreeMap::new()),
            (None, _) => Err(format!("configmap {:?} not found", reference.name)),
        };
    }
    if let Some(reference) = &source.secret_ref {
        let found = objects.secrets.get(&ObjectKey::new(&pod.namespace, &reference.name));
        return match (found, reference.optional) {
            (Some(secret), _) => {
                Ok(secret.data.iter().flatten().map(|(key, value)| (key.clone(), text(&value.0))).collect())
            }
            (None, Some(true)) => Ok(BTreeMap::new()),
            (None, _) => Err(format!("secret {:?} not found", reference.name)),
        };
    }
    Ok(BTreeMap::new())
}

fn referenced(
    pod: &Pod,
    container: &v1::Container,
    from: &v1::EnvVarSource,
    objects: &Objects,
    facts: &PodFacts,
    files: &env_files::Texts,
) -> Result<Option<String>, String> {
    if let Some(reference) = &from.config_map_key_ref {
        let map = objects.config_maps.get(&ObjectKey::new(&pod.namespace, &reference.name));
        let value = map.and_then(|map| map.data.as_ref()?.get(&reference.key).cloned());
        return or_missing(
            "configmap",
            &reference.name,
            &reference.key,
            map.is_some(),
            value,
            reference.optional,
        );
    }
    if let Some(reference) = &from.secret_key_ref {
        let secret = objects.secrets.get(&ObjectKey::new(&pod.namespace, &reference.name));
        let value =
            secret.and_then(|secret| secret.data.as_ref()?.get(&reference.key).map(|value| text(&value.0)));
        return or_missing(
            "secret",
            &reference.name,
            &reference.key,
            secret.is_some(),
            value,
            reference.optional,
        );
    }
    if let Some(reference) = &from.field_ref {
        return downward::field(pod, &reference.field_path, facts).map(Some);
    }
    if let Some(reference) = &from.resource_field_ref {
        let of = reference.container_name.as_deref().filter(|name| !name.is_empty());
        let of = of.unwrap_or(&container.name);
        return downward::resource(pod, of, reference, facts.capacity).map(Some);
    }
    if let Some(reference) = &from.file_key_ref {
        return of_file(reference, files);
    }
    Err("valueFrom names no source".into())
}

/// Only a key may be missing where it is optional, not the file.
fn of_file(reference: &v1::FileKeySelector, files: &env_files::Texts) -> Result<Option<String>, String> {
    let v1::FileKeySelector { key, path, volume_name, optional } = reference;
    let place = format!("{path:?} of the volume {volume_name:?}");
    let failed = |error: &str| format!("couldn't parse env file {place}: {error}");
    let text = files.get(&(volume_name.clone(), path.clone()));
    let text =
        text.map_or(Err(failed("it was not read")), |text| text.as_ref().map_err(|error| failed(error)))?;
    match (env_files::find(text, key).map_err(|error| failed(&error))?, optional) {
        (None, Some(true)) => Ok(None),
        (None, _) => Err(format!("environment variable key {key:?} not found in file {place}")),
        (found, _) => Ok(found),
    }
}

fn or_missing(
    kind: &str,
    name: &str,
    key: &str,
    found: bool,
    value: Option<String>,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    match (value, optional) {
        (Some(value), _) => Ok(Some(value)),
        (None, Some(true)) => Ok(None),
        (None, _) if found => Err(format!("couldn't find key {key} in {kind} {name}")),
        (None, _) => Err(format!("{kind} {name:?} not found")),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Replaces `$(NAME)` by the variable's value; `$$` is one `$`, and an unknown name stays as it is.
/// Upstream: third_party/forked/golang/expansion.
pub(crate) fn expand(text: &str, variables: &[(String, String)]) -> String {
    expand_by(text, |name| value_of(name, variables).unwrap_or_else(|| format!("$({name})")))
}

/// The same, but a name that is unknown is an error.
///
/// # Errors
/// With the name, as upstream tells it.
pub(crate) fn expand_strictly(text: &str, variables: &[(String, String)]) -> Result<String, String> {
    let mut missing = Vec::new();
    let expanded = expand_by(text, |name| {
        value_of(name, variables).unwrap_or_else(|| {
            missing.push(format!("missing value for {name:?}"));
            String::new()
        })
    });
    if missing.is_empty() { Ok(expanded) } else { Err(missing.join(", ")) }
}

fn value_of(name: &str, variables: &[(String, String)]) -> Option<String> {
    variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

fn expand_by(text: &str, mut value: impl FnMut(&str) -> String) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inside| inside.split_once(')')) {
            expanded.push_str(&value(name));
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_upstream_does_it() {
        let variables = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, expect) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$(NO)", "$(NO)"),
            ("$A ${A} $(A", "$A ${A} $(A"),
            ("$", "$"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, &variables), expect, "{text}");
        }
    }
}

//! Which files a volume has, and what is in them: pure.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1;
use manifest::{ObjectKey, Objects, quantity};

use super::Contents;
use crate::downward::{self, Capacity, PodFacts};
use crate::pod::model::Pod;
use crate::tokens::TokenKey;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    /// Root's where nobody is named.
    pub(super) owner: Option<u32>,
}

/// Files by their path in the volume.
pub(super) type Payload = BTreeMap<String, File>;

type Data = BTreeMap<String, Vec<u8>>;

/// The files of a volume that the kubelet writes; nothing for the other kinds.
///
/// # Errors
/// What is missing, and is not optional.
pub(super) fn of_volume(
    pod: &Pod,
    volume: &v1::Volume,
    contents: Contents<'_>,
) -> Result<Option<Payload>, String> {
    let Contents { objects, facts, .. } = contents;
    if let Some(source) = &volume.config_map {
        let map = Reference::new(&source.name, source.optional, source.items.as_deref(), source.default_mode);
        return map.config_map(pod, objects).map(Some);
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let secret = Reference::new(name, source.optional, source.items.as_deref(), source.default_mode);
        return secret.secret(pod, objects).map(Some);
    }
    if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        return downward_files(pod, items, source.default_mode, facts).map(Some);
    }
    let Some(source) = &volume.projected else { return Ok(None) };
    let mut payload = Payload::new();
    for part in source.sources.iter().flatten() {
        // Later sources win, as upstream merges them.
        payload.extend(projected(pod, part, source.default_mode, contents)?);
    }
    Ok(Some(payload))
}

fn projected(
    pod: &Pod,
    part: &v1::VolumeProjection,
    mode: Option<i32>,
    contents: Contents<'_>,
) -> Result<Payload, String> {
    let Contents { objects, facts, tokens } = contents;
    if let Some(map) = &part.config_map {
        return Reference::new(&map.name, map.optional, map.items.as_deref(), mode).config_map(pod, objects);
    }
    if let Some(secret) = &part.secret {
        let reference = Reference::new(&secret.name, secret.optional, secret.items.as_deref(), mode);
        return reference.secret(pod, objects);
    }
    if let Some(downward) = &part.downward_api {
        return downward_files(pod, downward.items.as_deref().unwrap_or_default(), mode, facts);
    }
    if let Some(token) = &part.service_account_token {
        check_path(&token.path)?;
        let text = tokens.get(&TokenKey::of(token))?;
        return Ok([(token.path.clone(), token_file(pod, text, mode))].into());
    }
    Err("this kind of projection is not supported".into())
}

/// A token is for the one user that all containers run as, or for the pod's group, and for nobody else; for everybody
/// where neither is known. Upstream: pkg/volume/projected.
fn token_file(pod: &Pod, text: &str, mode: Option<i32>) -> File {
    let owner = only_user(pod);
    let security = pod.source.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let has_group = security.is_some_and(|security| security.fs_group.is_some());
    let mode = if owner.is_some() || has_group { 0o600 } else { mode_of(None, mode) };
    File { content: text.as_bytes().to_vec(), mode, owner }
}

/// The user of every container, where that is one and the manifest says so.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.source.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|security| security.run_as_user);
    let mut users = pod.all_containers().map(|container| {
        let own = container.spec.security_context.as_ref().and_then(|security| security.run_as_user);
        own.or(of_pod)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

/// An object and what is taken of it.
struct Reference<'a> {
    name: &'a str,
    optional: bool,
    items: &'a [v1::KeyToPath],
    mode: Option<i32>,
}

impl<'a> Reference<'a> {
    fn new(
        name: &'a str,
        optional: Option<bool>,
        items: Option<&'a [v1::KeyToPath]>,
        mode: Option<i32>,
    ) -> Self {
        Self { name, optional: optional.unwrap_or(false), items: items.unwrap_or_default(), mode }
    }

    fn config_map(&self, pod: &Pod, objects: &Objects) -> Result<Payload, String> {
        let found = objects.config_maps.get(&ObjectKey::new(&pod.namespace, self.name));
        let missing = || format!("configmap {:?} not found", self.name);
        self.take(
            found.map(|map| config_map_data(map)),
            missing,
            "configmap references non-existent config key",
        )
    }

    fn secret(&self, pod: &Pod, objects: &Objects) -> Result<Payload, String> {
        let found = objects.secrets.get(&ObjectKey::new(&pod.namespace, self.name));
        let data = found.map(|secret| {
            secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
        });
        let missing = || format!("secret {:?} not found", self.name);
        self.take(data, missing, "references non-existent secret key")
    }

    fn take(
        &self,
        data: Option<Data>,
        missing: impl Fn() -> String,
        no_key: &str,
    ) -> Result<Payload, String> {
        let data = match data {
            Some(data) => data,
            None if self.optional => Data::new(),
            None => return Err(missing()),
        };
        if self.items.is_empty() {
            let file = |content| File { content, mode: mode_of(None, self.mode), owner: None };
            return Ok(data.into_iter().map(|(key, content)| (key, file(content))).collect());
        }
        let mut payload = Payload::new();
        for item in self.items {
            check_path(&item.path)?;
            match data.get(&item.key) {
                Some(content) => {
                    let mode = mode_of(item.mode, self.mode);
                    let file = File { content: content.clone(), mode, owner: None };
                    payload.insert(item.path.clone(), file);
                }
                None if self.optional => {}
                None => return Err(format!("{no_key}: {}", item.key)),
            }
        }
        Ok(payload)
    }
}

fn downward_files(
    pod: &Pod,
    items: &[v1::DownwardAPIVolumeFile],
    mode: Option<i32>,
    facts: &PodFacts,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items {
        check_path(&item.path)?;
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(pod, &field.field_path, facts)?,
            (None, Some(resource)) => {
                let container = resource.container_name.as_deref().unwrap_or_default();
                downward::resource(pod, container, resource, facts.capacity)?
            }
            (None, None) => return Err(format!("{} says nothing", item.path)),
        };
        let file = File { content: text.into_bytes(), mode: mode_of(item.mode, mode), owner: None };
        payload.insert(item.path.clone(), file);
    }
    Ok(payload)
}

fn mode_of(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(0o644)).unwrap_or(0o644) & 0o777
}

fn check_path(path: &str) -> Result<(), String> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !path.is_empty() && !path.starts_with("..") {
        return Ok(());
    }
    Err(format!("path {path:?} must stay below the volume"))
}

fn config_map_data(map: &v1::ConfigMap) -> Data {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

/// How large a volume in memory may become: what the node has, what the pod's containers may have together where they have
/// limits, and the volume's own limit; the smallest of them.
pub(super) fn memory_size(pod: &Pod, source: &v1::EmptyDirVolumeSource, capacity: Capacity) -> u64 {
    let bytes = |quantity: &str| {
        let amount = quantity::parse(quantity).ok().map(quantity::Amount::ceil);
        amount.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
    };
    let limits = pod.containers.iter().filter_map(|container| {
        container.spec.resources.as_ref()?.limits.as_ref()?.get("memory").map(|limit| bytes(&limit.0))
    });
    let of_pod: u64 = limits.sum();
    let own = source.size_limit.as_ref().map_or(0, |limit| bytes(&limit.0));
    [capacity.memory, of_pod, own].into_iter().filter(|size| *size > 0).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::model::tests::pod_of;
    use crate::tokens::Tokens;

    fn objects() -> Objects {
        let map: v1::ConfigMap =
            serde_json::from_value(json!({ "data": { "k": "v" }, "binaryData": { "b": "AAE=" } }))
                .expect("a map");
        let secret: v1::Secret =
            serde_json::from_value(json!({ "data": { "s": "eA==" } })).expect("a secret");
        let mut objects = Objects::default();
        objects.config_maps.insert(ObjectKey::new("default", "map"), map.into());
        objects.secrets.insert(ObjectKey::new("default", "secret"), secret.into());
        objects
    }

    fn files(volume: Value) -> Result<Vec<(String, String, u32)>, String> {
        let pod = pod_of(json!({ "containers": [{ "name": "a", "image": "i" }] }));
        let mut volume: v1::Volume = serde_json::from_value(volume).expect("a volume");
        volume.name = "v".into();
        let (objects, facts, tokens) = (objects(), PodFacts::default(), Tokens::default());
        let contents = Contents { objects: &objects, facts: &facts, tokens: &tokens };
        let made = of_volume(&pod, &volume, contents)?.unwrap_or_default();
        let text = |content: Vec<u8>| String::from_utf8(content).expect("text");
        Ok(made.into_iter().map(|(path, file)| (path, text(file.content), file.mode)).collect())
    }

    fn check(volume: Value, expect: &[(&str, &str, u32)]) {
        let expect: Vec<_> =
            expect.iter().map(|(path, text, mode)| ((*path).to_owned(), (*text).to_owned(), *mode)).collect();
        assert_eq!(files(volume.clone()), Ok(expect), "{volume}");
    }

    #[test]
    fn keys_become_files_with_the_modes_that_are_asked_for() {
        check(json!({ "configMap": { "name": "map" } }), &[("b", "\0\u{1}", 0o644), ("k", "v", 0o644)]);
        check(json!({ "secret": { "secretName": "secret", "defaultMode": 256 } }), &[("s", "x", 0o400)]);
        check(
            json!({ "configMap": { "name": "map", "items": [{ "key": "k", "path": "x/y", "mode": 384 }] } }),
            &[("x/y", "v", 0o600)],
        );
        check(
            json!({ "projected": { "defaultMode": 288, "sources": [
                { "configMap": { "name": "map", "items": [{ "key": "k", "path": "c/k" }] } },
                { "secret": { "name": "secret", "items": [{ "key": "s", "path": "s", "mode": 256 }] } },
                { "downwardAPI": { "items": [{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
                { "configMap": { "name": "none", "optional": true } },
            ] } }),
            &[("c/k", "v", 0o440), ("name", "p", 0o440), ("s", "x", 0o400)],
        );
        check(
            json!({ "downwardAPI": { "items": [
                { "path": "cpu", "resourceFieldRef": { "containerName": "a", "resource": "requests.cpu" } },
            ] } }),
            &[("cpu", "0", 0o644)],
        );
    }

    #[test]
    fn what_is_missing_is_told_unless_it_is_optional() {
        let item = json!([{ "key": "no", "path": "x" }]);
        for (volume, expect) in [
            (json!({ "configMap": { "name": "no" } }), "configmap \"no\" not found"),
            (json!({ "secret": { "secretName": "no" } }), "secret \"no\" not found"),
            (
                json!({ "configMap": { "name": "map", "items": item } }),
                "configmap references non-existent config key: no",
            ),
            (
                json!({ "secret": { "secretName": "secret", "items": item } }),
                "references non-existent secret key: no",
            ),
            (
                json!({ "configMap": { "name": "map", "items": [{ "key": "k", "path": "a/../../x" }] } }),
                "must stay below the volume",
            ),
        ] {
            let error = files(volume).expect_err(expect);
            assert!(error.contains(expect), "{error}");
        }
        check(json!({ "configMap": { "name": "no", "optional": true } }), &[]);
        check(json!({ "secret": { "secretName": "secret", "optional": true, "items": item } }), &[]);
    }

    #[test]
    fn a_token_is_for_the_one_who_runs_the_pod() {
        for (of_pod, own, expect) in [
            (json!({}), json!({}), (0o644, None)),
            (json!({ "runAsUser": 7 }), json!({}), (0o600, Some(7))),
            (json!({ "runAsUser": 7 }), json!({ "runAsUser": 8 }), (0o644, None)),
            (json!({}), json!({ "runAsUser": 8 }), (0o644, None)),
            (json!({ "fsGroup": 9 }), json!({}), (0o600, None)),
        ] {
            let pod = pod_of(json!({ "securityContext": of_pod, "containers": [
                { "name": "a", "image": "i" }, { "name": "b", "image": "i", "securityContext": own },
            ] }));
            let file = token_file(&pod, "t", Some(0o644));
            assert_eq!((file.mode, file.owner), expect, "{of_pod} {own}");
        }
    }

    #[test]
    fn a_token_that_nobody_gave_is_missed_by_name() {
        let source = json!({ "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } });
        assert_eq!(files(source), Err("failed to fetch token: nobody gives tokens here".into()));
    }

    #[test]
    fn a_volume_in_memory_is_as_large_as_the_smallest_limit() {
        let capacity = Capacity { memory: 1 << 30, ..Capacity::default() };
        for (limit, own, expect) in [
            (None, None, 1 << 30),
            (None, Some("64Mi"), 64 << 20),
            (Some("32Mi"), Some("64Mi"), 32 << 20),
            (Some("128Mi"), Some("64Mi"), 64 << 20),
            (Some("8Gi"), Some("4Gi"), 1 << 30),
            (Some("32Mi"), None, 32 << 20),
        ] {
            let limits = limit.map_or(json!({}), |limit| json!({ "memory": limit }));
            let pod = pod_of(
                json!({ "containers": [{ "name": "a", "image": "i", "resources": { "limits": limits } }] }),
            );
            let source: v1::EmptyDirVolumeSource =
                serde_json::from_value(json!({ "medium": "Memory", "sizeLimit": own })).expect("a source");
            assert_eq!(memory_size(&pod, &source, capacity), expect, "{limit:?} {own:?}");
        }
    }
}

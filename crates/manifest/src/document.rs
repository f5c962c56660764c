//! From a document to the objects in it: kind, strict decoding, defaults, validation. Pure.

use std::sync::Arc;

use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::decode::{Fault, Values, decode};
use crate::defaults::{default_metadata, default_pod, default_service};
use crate::objects::ObjectKey;
use crate::validate;

/// The kinds that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Pod,
    Service,
    ConfigMap,
    Secret,
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "Pod" => Self::Pod,
            "Service" => Self::Service,
            "ConfigMap" => Self::ConfigMap,
            "Secret" => Self::Secret,
            _ => return None,
        })
    }
}

/// What there may be only one of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectId {
    pub(crate) kind: Kind,
    pub(crate) key: ObjectKey,
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.kind, self.key)
    }
}

/// An object of one of the kinds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
}

impl Object {
    /// Its metadata, to be written to before anyone else holds it.
    pub(crate) fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Pod(pod) => &mut Arc::make_mut(pod).metadata,
            Self::Service(service) => &mut Arc::make_mut(service).metadata,
            Self::ConfigMap(map) => &mut Arc::make_mut(map).metadata,
            Self::Secret(secret) => &mut Arc::make_mut(secret).metadata,
        }
    }

    pub(crate) fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Pod(pod) => &pod.metadata,
            Self::Service(service) => &service.metadata,
            Self::ConfigMap(map) => &map.metadata,
            Self::Secret(secret) => &secret.metadata,
        }
    }
}

/// What cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// This object.
    Object(ObjectId),
    /// It cannot be told what it is about.
    Unknown,
    /// An object of a kind that no node takes.
    Foreign,
}

impl Broken {
    /// Whether it could be a pod.
    pub(crate) fn may_be_pod(&self) -> bool {
        match self {
            Self::Object(id) => id.kind == Kind::Pod,
            Self::Unknown => true,
            Self::Foreign => false,
        }
    }
}

/// Kinds of v1 that often stand beside pods: no pod that was misspelt.
const FOREIGN: [&str; 8] = [
    "Endpoints",
    "LimitRange",
    "Namespace",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "ReplicationController",
    "ResourceQuota",
    "ServiceAccount",
];

/// What a document gives.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) objects: Vec<Good>,
    pub(crate) broken: Vec<Broken>,
    /// Empty path: the document as a whole.
    pub(crate) faults: Vec<Fault>,
}

/// An object, and a hash of all that its manifest says.
#[derive(Clone, Debug)]
pub(crate) struct Good {
    pub(crate) id: ObjectId,
    pub(crate) object: Object,
    pub(crate) digest: String,
}

/// Reads one document.
pub(crate) fn read(value: Value) -> Content {
    let mut content = Content::default();
    read_value(value, "", &mut content);
    content
}

fn read_value(mut value: Value, at: &str, content: &mut Content) {
    let broken = |content: &mut Content, what: Broken, field: &str, message: String| {
        content.broken.push(what);
        let path = if message.is_empty() { at.to_owned() } else { join(at, field) };
        content.faults.push((path, message));
    };
    if !value.is_object() {
        return broken(
            content,
            Broken::Unknown,
            "",
            "expected an object with apiVersion and kind".to_owned(),
        );
    }
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    for (field, found) in [("apiVersion", &api_version), ("kind", &kind)] {
        if found.is_empty() {
            let message = "required, for example apiVersion: v1, kind: Pod".to_owned();
            return broken(content, Broken::Unknown, field, message);
        }
    }
    match (api_version.as_str(), kind.as_str(), Kind::named(&kind)) {
        ("v1", "List", _) => read_list(&mut value, at, content),
        ("v1", _, Some(kind)) => {
            let mut faults = Vec::new();
            let id = identify(kind, &value);
            let unidentified = if kind == Kind::Pod { Broken::Unknown } else { Broken::Foreign };
            match read_object(kind, value, &mut faults) {
                Some(good) => content.objects.push(good),
                None => content.broken.push(id.map_or(unidentified, Broken::Object)),
            }
            let prefixed = faults.into_iter().map(|(path, message)| (join(at, &path), message));
            content.faults.extend(prefixed);
        }
        _ => {
            let message = format!(
                "{kind} of {api_version} is not supported: a standalone node takes Pod, Service, ConfigMap, Secret and List of v1"
            );
            let is_foreign = api_version != "v1" || FOREIGN.contains(&kind.as_str());
            broken(content, if is_foreign { Broken::Foreign } else { Broken::Unknown }, "kind", message);
        }
    }
}

fn read_list(list: &mut Value, at: &str, content: &mut Content) {
    for field in list.as_object().into_iter().flat_map(serde_json::Map::keys) {
        if !matches!(field.as_str(), "apiVersion" | "kind" | "metadata" | "items") {
            content.faults.push((join(at, field), "unknown field".to_owned()));
            content.broken.push(Broken::Unknown);
        }
    }
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => {
            for (index, item) in items.into_iter().enumerate() {
                read_value(item, &join(at, &format!("items[{index}]")), content);
            }
        }
        None | Some(Value::Null) => {}
        Some(_) => {
            content.faults.push((join(at, "items"), "expected a list".to_owned()));
            content.broken.push(Broken::Unknown);
        }
    }
}

/// Which object a document is about, even when the rest of it cannot be used.
fn identify(kind: Kind, value: &Value) -> Option<ObjectId> {
    let metadata = value.get("metadata")?;
    let namespace = match metadata.get("namespace") {
        None | Some(Value::Null) => "default",
        Some(namespace) => namespace.as_str()?,
    };
    let name = metadata.get("name")?.as_str()?;
    Some(ObjectId { kind, key: ObjectKey::new(namespace, name) })
}

fn read_object(kind: Kind, value: Value, faults: &mut Vec<Fault>) -> Option<Good> {
    match kind {
        Kind::Pod => finish(kind, value, Values::Shown, faults, |mut pod: Pod, faults| {
            pod.status = None;
            default_pod(&mut pod);
            validate::pod(&pod, faults);
            (pod, Object::Pod)
        }),
        Kind::Service => finish(kind, value, Values::Shown, faults, |mut service: Service, faults| {
            service.status = None;
            default_service(&mut service);
            validate::service(&service, faults);
            (service, Object::Service)
        }),
        Kind::ConfigMap => finish(kind, value, Values::Shown, faults, |mut map: ConfigMap, faults| {
            default_metadata(&mut map.metadata);
            validate::config_map(&map, faults);
            (map, Object::ConfigMap)
        }),
        Kind::Secret => {
            finish(kind, without_line_ends(value), Values::Hidden, faults, |mut secret: Secret, faults| {
                default_metadata(&mut secret.metadata);
                validate::secret(&secret, faults);
                merge_string_data(&mut secret);
                (secret, Object::Secret)
            })
        }
    }
}

/// Decodes, lets `check` complete and validate, and gives the object when nothing is wrong with it.
fn finish<T, F>(kind: Kind, value: Value, values: Values, faults: &mut Vec<Fault>, check: F) -> Option<Good>
where
    T: DeserializeOwned + Serialize + Metadata<Ty = ObjectMeta>,
    F: FnOnce(T, &mut Vec<Fault>) -> (T, fn(Arc<T>) -> Object),
{
    let (decoded, found) = decode::<T>(value, values);
    let undecoded: Vec<String> = found.iter().map(|(path, _)| path.clone()).collect();
    faults.extend(found);
    let mut checked = Vec::new();
    let (mut object, wrap) = check(decoded?, &mut checked);
    // What could not be read is missing now: that is not another mistake.
    checked.retain(|(path, _)| !undecoded.iter().any(|known| within(path, known)));
    faults.extend(checked);
    let metadata = object.metadata_mut();
    *metadata = ObjectMeta {
        uid: None,
        resource_version: None,
        generation: None,
        creation_timestamp: None,
        deletion_timestamp: None,
        deletion_grace_period_seconds: None,
        managed_fields: None,
        self_link: None,
        ..std::mem::take(metadata)
    };
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let id = ObjectId { kind, key: ObjectKey::new(namespace, metadata.name.clone().unwrap_or_default()) };
    let text = serde_json::to_string(&object).unwrap_or_default();
    let good = Good { digest: hash(&format!("{kind:?}\n{text}")), object: wrap(Arc::new(object)), id };
    faults.is_empty().then_some(good)
}

/// Whether one of the two is the other, or inside it.
fn within(one: &str, other: &str) -> bool {
    let inside = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    inside(one, other) || inside(other, one)
}

/// 32 hex digits, as a static pod's UID has.
pub(crate) fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Base64 in block scalars ends with, or is broken by, line ends: the API server's decoder skips them.
fn without_line_ends(mut secret: Value) -> Value {
    for data in
        secret.get_mut("data").and_then(Value::as_object_mut).into_iter().flat_map(|data| data.values_mut())
    {
        if let Value::String(text) = data {
            text.retain(|c| c != '\n' && c != '\r');
        }
    }
    secret
}

/// `stringData` is for writing only, and wins over `data`.
fn merge_string_data(secret: &mut Secret) {
    let Some(strings) = secret.string_data.take() else { return };
    let data = secret.data.get_or_insert_default();
    for (key, text) in strings {
        data.insert(key, k8s_openapi::ByteString(text.into_bytes()));
    }
}

fn join(at: &str, field: &str) -> String {
    match (at, field) {
        ("", field) => field.to_owned(),
        (at, "") => at.to_owned(),
        (at, field) if field.starts_with('[') => format!("{at}{field}"),
        (at, field) => format!("{at}.{field}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(value: Value) -> Vec<String> {
        read(value).faults.into_iter().map(|(path, message)| format!("{path}: {message}")).collect()
    }

    #[test]
    fn what_is_no_supported_object_is_refused_by_name() {
        let starts = |value: Value, expect: &str| {
            let found = faults(value);
            assert!(found.len() == 1 && found[0].starts_with(expect), "{found:?} / {expect}");
        };
        starts(json!("hello"), ": expected an object with apiVersion and kind");
        starts(json!({"kind": "Pod"}), "apiVersion: required");
        starts(json!({"apiVersion": "v1"}), "kind: required");
        starts(
            json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            "kind: Deployment of apps/v1 is not supported",
        );
        starts(json!({"apiVersion": "v2", "kind": "Pod"}), "kind: Pod of v2 is not supported");
        starts(json!({"apiVersion": "v1", "kind": "List", "items": {}}), "items: expected a list");
    }

    #[test]
    fn a_broken_item_of_a_list_spoils_no_other() {
        let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let mut bad = map("bad");
        bad["data"] = json!({"a": 1});
        let content = read(json!({"apiVersion": "v1", "kind": "List", "items": [map("a"), bad, map("b")]}));
        let names: Vec<_> = content.objects.iter().map(|good| good.id.to_string()).collect();
        assert_eq!(names, ["ConfigMap default/a", "ConfigMap default/b"]);
        assert_eq!(content.faults[0].0, "items[1].data.a");
        let Broken::Object(id) = &content.broken[0] else { panic!("{:?}", content.broken) };
        assert_eq!(id.to_string(), "ConfigMap default/bad");
    }

    #[test]
    fn string_data_wins_over_data_and_block_scalars_are_base64() {
        let content = read(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
            "data": {"a": "aGVs\nbG8=\n", "b": "eA=="}, "stringData": {"b": "new"}}));
        assert!(content.faults.is_empty(), "{:?}", content.faults);
        let Object::Secret(secret) = &content.objects[0].object else { panic!("a secret") };
        let data = secret.data.as_ref().unwrap();
        assert_eq!(
            (data["a"].0.as_slice(), data["b"].0.as_slice()),
            (b"hello".as_slice(), b"new".as_slice())
        );
        assert_eq!(secret.string_data, None);
    }

    #[test]
    fn data_that_is_not_base64_is_refused_without_being_quoted() {
        let found = faults(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
            "data": {"key": "hunter2!"}}));
        assert!(found.len() == 1 && found[0].starts_with("data.key: "), "{found:?}");
        assert!(!found[0].contains("hunter2"), "{found:?}");
    }

    #[test]
    fn what_a_server_wrote_does_not_make_another_object() {
        let pod = |extra: Value| {
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                "spec": {"containers": [{"name": "a", "image": "a:1"}]}});
            for (key, value) in extra.as_object().unwrap() {
                pod["metadata"][key] = value.clone();
            }
            read(pod).objects.remove(0).digest
        };
        let plain = pod(json!({}));
        assert_eq!(
            plain,
            pod(json!({"uid": "x", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}))
        );
        assert_eq!(plain, pod(json!({"namespace": "default"})));
        assert_ne!(plain, pod(json!({"labels": {"a": "b"}})));
        assert_eq!(plain.len(), 32);
    }
}

//! Pods of manifest files on a node of a cluster: who they are, and how the API server shows them. Pure. Upstream:
//! pkg/kubelet/config/common.go and pkg/kubelet/types.

use k8s_openapi::api::core::v1;
use sha2::{Digest, Sha256};

use crate::pod::model::Pod;

/// Where a pod comes from: `file`, `http` or `api`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// What a static pod's uid was made of.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// The mark of a mirror pod: the hash of the static pod that it shows.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod of a manifest as a node of a cluster runs it: named after the node, with a uid that is another one for another
/// manifest or node, and tolerating whatever is wrong with the node.
#[must_use]
pub fn static_pod(source: &v1::Pod, node_name: &str) -> v1::Pod {
    let mut pod = source.clone();
    let uid = uid_of(source, node_name);
    let meta = &mut pod.metadata;
    meta.name = meta.name.as_ref().map(|name| format!("{name}-{}", node_name.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), uid.clone());
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    meta.uid = Some(uid);
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node_name.into());
    let everything = v1::Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..v1::Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&everything) {
        tolerations.push(everything);
    }
    pod
}

/// What the API server is given to show a static pod. Its uid and owner are the API's to set.
#[must_use]
pub fn mirror_pod(of: &v1::Pod) -> v1::Pod {
    let mut pod = of.clone();
    let annotations = pod.metadata.annotations.get_or_insert_default();
    let hash = annotations.get(CONFIG_HASH).cloned().unwrap_or_default();
    annotations.insert(CONFIG_MIRROR.into(), hash);
    pod.metadata.uid = None;
    pod.metadata.resource_version = None;
    pod.status = None;
    pod
}

/// Whether a pod of the API server shows that static pod, and not a former one of its name.
#[must_use]
pub fn is_mirror_of(mirror: &v1::Pod, of: &v1::Pod) -> bool {
    let annotation = |pod: &v1::Pod, key: &str| pod.metadata.annotations.as_ref()?.get(key).cloned();
    annotation(mirror, CONFIG_MIRROR).is_some_and(|hash| annotation(of, CONFIG_HASH) == Some(hash))
}

/// Whether a pod of the API server is a mirror: no kubelet runs those.
#[must_use]
pub fn is_mirror(pod: &v1::Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(CONFIG_MIRROR))
}

/// Whether a pod comes from a manifest of a node of a cluster, not from its API server.
pub(crate) fn is_static(pod: &Pod) -> bool {
    is_static_source(&pod.source)
}

/// The same of an object.
pub(crate) fn is_static_source(pod: &v1::Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|all| all.get(CONFIG_SOURCE));
    source.is_some_and(|source| source != "api")
}

fn uid_of(source: &v1::Pod, node_name: &str) -> String {
    // When the file was read is not what the pod is.
    let mut source = source.clone();
    source.metadata.creation_timestamp = None;
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&source).unwrap_or_default());
    hash.update(format!("host:{node_name}"));
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(image: &str) -> v1::Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": "web", "uid": "of-the-file" },
            "spec": { "containers": [{ "name": "a", "image": image }] },
        }))
        .expect("a pod")
    }

    #[test]
    fn a_static_pod_is_the_node_s_and_another_for_another_manifest() {
        let pod = static_pod(&source("i"), "Box-1");
        assert_eq!(pod.metadata.name.as_deref(), Some("web-box-1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let spec = pod.spec.clone().unwrap_or_default();
        assert_eq!(
            (spec.node_name.as_deref(), spec.tolerations.map(|all| all.len())),
            (Some("Box-1"), Some(1))
        );
        let uid = |image: &str, node: &str| static_pod(&source(image), node).metadata.uid;
        assert_eq!(uid("i", "a"), uid("i", "a"));
        let mut read_later = source("i");
        read_later.metadata.creation_timestamp = crate::time::api_time(9_000_000_000);
        assert_eq!(
            static_pod(&read_later, "a").metadata.uid,
            uid("i", "a"),
            "after a restart it is the same"
        );
        assert!(uid("i", "a") != uid("j", "a") && uid("i", "a") != uid("i", "b"));
        assert_eq!(uid("i", "a").map(|uid| uid.len()), Some(32));
    }

    #[test]
    fn a_mirror_shows_one_static_pod() {
        let (one, other) = (static_pod(&source("i"), "n"), static_pod(&source("j"), "n"));
        let mirror = mirror_pod(&one);
        assert!(is_mirror(&mirror) && !is_mirror(&one));
        assert!(is_mirror_of(&mirror, &one) && !is_mirror_of(&mirror, &other));
        assert_eq!(mirror.metadata.uid, None);
    }
}

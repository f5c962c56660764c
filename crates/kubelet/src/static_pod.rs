//! Pods of manifest files on a node of a cluster: who they are. Pure.

use crate::pod::model::Pod;

/// Where a pod comes from: `file`, `http` or `api`.
pub(crate) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// Whether a pod comes from a manifest of a node of a cluster, not from its API server.
pub(crate) fn is_static(pod: &Pod) -> bool {
    let source = pod.source.metadata.annotations.as_ref().and_then(|all| all.get(CONFIG_SOURCE));
    source.is_some_and(|source| source != "api")
}

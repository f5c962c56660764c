//! Pods of a former agent that no manifest names while manifests cannot all be read: the one that cannot may be theirs, so they
//! go on. Pure, but for one line in the log for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use manifest::ObjectKey;

type Pods = BTreeMap<ObjectKey, Arc<v1::Pod>>;

/// The pods that may be wanted, and whether that was told.
#[derive(Debug, Default)]
pub(crate) struct Kept(BTreeMap<ObjectKey, (Arc<v1::Pod>, Told)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    NotYet,
    Yes,
}

impl Kept {
    /// Of the pods that a former agent ran and was not about to end.
    pub(crate) fn new(pods: impl IntoIterator<Item = Arc<v1::Pod>>) -> Self {
        let key = |pod: &v1::Pod| {
            let namespace = pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
            ObjectKey::new(namespace, pod.metadata.name.clone().unwrap_or_default())
        };
        Self(pods.into_iter().map(|pod| (key(&pod), (pod, Told::NotYet))).collect())
    }

    /// Adds those that no manifest has named yet, while that is in doubt. What was named once is the manifests' to ask for.
    pub(crate) fn join(&mut self, incomplete: bool, pods: &mut Pods) {
        self.0.retain(|key, _| incomplete && !pods.contains_key(key));
        for (key, (pod, told)) in &mut self.0 {
            pods.insert(key.clone(), Arc::clone(pod));
            if std::mem::replace(told, Told::Yes) == Told::NotYet {
                tracing::warn!(pod = %key, "no manifest asks for this pod, but one cannot be read: it goes on until all can");
            }
        }
    }
}

/// Whether a pod of which nothing is known but its uid may be one of a manifest: an API server's uids have dashes.
pub(crate) fn may_be_of_manifest(uid: &str) -> bool {
    !uid.contains('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str) -> Arc<v1::Pod> {
        let pod = serde_json::json!({ "metadata": { "name": name, "namespace": "default", "uid": uid } });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_goes_on_until_its_manifest_is_heard_of_or_all_are() {
        let mut kept = Kept::new([pod("a", "1"), pod("b", "1"), pod("c", "1")]);
        let mut uids = |incomplete, named: &[(&str, &str)]| {
            let named = named.iter().map(|(name, uid)| (ObjectKey::new("default", *name), pod(name, uid)));
            let mut pods: Pods = named.collect();
            kept.join(incomplete, &mut pods);
            let uid = |pod: &v1::Pod| pod.metadata.uid.clone().unwrap_or_default();
            pods.iter().map(|(key, pod)| format!("{}{}", key.name, uid(pod))).collect::<Vec<_>>()
        };
        assert_eq!(uids(true, &[("a", "2")]), ["a2", "b1", "c1"], "a was changed");
        assert_eq!(uids(true, &[]), ["b1", "c1"], "and is not what it was any more");
        assert_eq!(uids(true, &[("b", "1")]), ["b1", "c1"]);
        assert_eq!(uids(false, &[("b", "1")]), ["b1"]);
        assert_eq!(uids(true, &[]), Vec::<String>::new(), "what was over does not come back");
    }
}

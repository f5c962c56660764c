//! Which objects a pod takes data from, as they are now: whether something changed that concerns it.

use std::sync::Arc;

use k8s_openapi::api::core::v1;
use manifest::{Loaded, ObjectKey};

use crate::api::references::{self, Kind};

/// The objects that a pod refers to, in a fixed order; nothing for one that is not there. Held, so that no other object can have
/// its address.
#[derive(Clone, Debug, Default)]
pub(super) struct Used {
    objects: Vec<Option<Object>>,
    /// Whether what is not there is known not to be there.
    pub(super) is_known: bool,
}

#[derive(Clone, Debug)]
enum Object {
    ConfigMap(Arc<v1::ConfigMap>),
    Secret(Arc<v1::Secret>),
}

impl Used {
    pub(super) fn of(pod: &v1::Pod, loaded: &Loaded) -> Self {
        let objects = &loaded.objects;
        let find = |reference: references::Reference| {
            let key = ObjectKey::new(reference.namespace, reference.name);
            match reference.kind {
                Kind::ConfigMap => objects.config_maps.get(&key).cloned().map(Object::ConfigMap),
                Kind::Secret => objects.secrets.get(&key).cloned().map(Object::Secret),
            }
        };
        let is_known = pod.metadata.uid.as_ref().is_none_or(|uid| !loaded.pending.contains(uid));
        Self { objects: references::of_pod(pod).into_iter().map(find).collect(), is_known }
    }
}

/// The same objects, not ones that say the same: looking into them would cost more than it saves.
impl PartialEq for Used {
    fn eq(&self, other: &Self) -> bool {
        let same = |pair: (&Option<Object>, &Option<Object>)| match pair {
            (None, None) => true,
            (Some(Object::ConfigMap(one)), Some(Object::ConfigMap(other))) => Arc::ptr_eq(one, other),
            (Some(Object::Secret(one)), Some(Object::Secret(other))) => Arc::ptr_eq(one, other),
            _ => false,
        };
        self.is_known == other.is_known
            && self.objects.len() == other.objects.len()
            && self.objects.iter().zip(&other.objects).all(same)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_concerned_by_what_it_refers_to() {
        let pod: v1::Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "n", "uid": "u" },
            "spec": { "containers": [], "volumes": [{ "name": "v", "configMap": { "name": "mine" } }] },
        }))
        .expect("a pod");
        let mut loaded = Loaded::default();
        let none = Used::of(&pod, &loaded);
        let put = |loaded: &mut Loaded, name: &str| {
            drop(loaded.objects.config_maps.insert(ObjectKey::new("n", name), Arc::default()));
        };
        put(&mut loaded, "another");
        assert!(Used::of(&pod, &loaded) == none);
        put(&mut loaded, "mine");
        let some = Used::of(&pod, &loaded);
        assert!(some != none && Used::of(&pod, &loaded.clone()) == some);
        put(&mut loaded, "mine");
        assert!(Used::of(&pod, &loaded) != some);
        let known = Used::of(&pod, &loaded);
        loaded.pending.insert("u".into());
        assert!(known.is_known && known != Used::of(&pod, &loaded), "then it is to be looked at again");
    }
}

//! What a watch has told so far. A list that begins again replaces what is known only when it is complete.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::runtime::watcher::Event;
use manifest::ObjectKey;

/// Whether an event made a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Some,
    Nothing,
}

/// Objects by name, each reduced to a `V`.
#[derive(Debug)]
pub(crate) struct Store<V> {
    known: BTreeMap<ObjectKey, V>,
    /// A list that is being read.
    listing: Option<BTreeMap<ObjectKey, V>>,
    complete: bool,
}

impl<V> Default for Store<V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), listing: None, complete: false }
    }
}

impl<V: PartialEq> Store<V> {
    /// Whether everything there was has been told once.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What is known.
    pub(crate) fn known(&self) -> &BTreeMap<ObjectKey, V> {
        &self.known
    }

    /// Takes an event in; `reduce` says what is kept of an object, or that it is none of ours.
    pub(crate) fn take<K: ResourceExt>(
        &mut self,
        event: Event<K>,
        reduce: impl FnOnce(&K) -> Option<V>,
    ) -> Change {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                Change::Nothing
            }
            Event::InitApply(object) => {
                let listing = self.listing.get_or_insert_default();
                listing.extend(reduce(&object).map(|value| (key(&object), value)));
                Change::Nothing
            }
            Event::InitDone => self.replace(),
            Event::Apply(object) => self.put(key(&object), reduce(&object)),
            Event::Delete(object) => self.put(key(&object), None),
        }
    }

    fn replace(&mut self) -> Change {
        let listed = self.listing.take().unwrap_or_default();
        let same = self.complete && listed == self.known;
        (self.known, self.complete) = (listed, true);
        if same { Change::Nothing } else { Change::Some }
    }

    fn put(&mut self, key: ObjectKey, value: Option<V>) -> Change {
        let same = self.known.get(&key) == value.as_ref();
        match value {
            Some(value) => drop(self.known.insert(key, value)),
            None => drop(self.known.remove(&key)),
        }
        if same { Change::Nothing } else { Change::Some }
    }
}

fn key<K: ResourceExt>(object: &K) -> ObjectKey {
    ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    fn object(name: &str, version: &str) -> Service {
        let value = json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": version}});
        serde_json::from_value(value).unwrap()
    }

    /// Gives each event to a store; says after which something is different, and what is known in the end.
    fn check(store: &mut Store<String>, events: Vec<Event<Service>>, changes: &[Change], known: &[&str]) {
        let reduce = |object: &Service| object.resource_version().filter(|version| version != "0");
        let found: Vec<Change> = events.into_iter().map(|event| store.take(event, reduce)).collect();
        assert_eq!(found, changes);
        let names: Vec<String> =
            store.known().iter().map(|(key, version)| format!("{} {version}", key.name)).collect();
        assert_eq!(names, known);
    }

    #[test]
    fn a_list_counts_when_it_is_complete_and_what_was_known_stays_till_then() {
        use Change::{Nothing, Some as Changed};
        let mut store = Store::default();
        let first = vec![Event::Init, Event::InitApply(object("a", "1")), Event::InitApply(object("b", "1"))];
        check(&mut store, first, &[Nothing, Nothing, Nothing], &[]);
        assert!(!store.is_complete());
        check(&mut store, vec![Event::InitDone], &[Changed], &["a 1", "b 1"]);
        assert!(store.is_complete());
        // The watch expired (410): it lists again, and is cut off, and lists again.
        let again = vec![Event::Init, Event::InitApply(object("a", "2")), Event::Init];
        check(&mut store, again, &[Nothing; 3], &["a 1", "b 1"]);
        assert!(store.is_complete());
        let rest = vec![Event::InitApply(object("b", "1")), Event::InitDone];
        check(&mut store, rest, &[Nothing, Changed], &["b 1"]);
        let same = vec![Event::Init, Event::InitApply(object("b", "1")), Event::InitDone];
        check(&mut store, same, &[Nothing; 3], &["b 1"]);
    }

    #[test]
    fn events_that_change_nothing_of_ours_are_told_apart() {
        use Change::{Nothing, Some as Changed};
        let mut store = Store::default();
        let apply = |name, version| Event::Apply(object(name, version));
        let events = vec![Event::Init, Event::InitDone, apply("a", "1"), apply("a", "1"), apply("a", "2")];
        check(&mut store, events, &[Nothing, Changed, Changed, Nothing, Changed], &["a 2"]);
        // It is none of ours any more, or never was.
        let events = vec![apply("a", "0"), apply("b", "0"), Event::Delete(object("c", "1"))];
        check(&mut store, events, &[Changed, Nothing, Nothing], &[]);
    }
}

//! A watch of one kind and what is known by it.

use std::fmt::Debug;

use apiserver::{Heard, Trouble, Watch};
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::de::DeserializeOwned;

use crate::source::cluster::{Change, SELECTOR, Store};

/// So many objects are asked for at once: each page is reduced before the next one comes.
const PAGE: u32 = 500;

/// See the module.
pub(super) struct Watched<K, V> {
    pub(super) watch: Watch<K>,
    pub(super) store: Store<V>,
    what: &'static str,
}

impl<K, V> Watched<K, V>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
    V: PartialEq,
{
    pub(super) fn new(client: &Client, what: &'static str) -> Self {
        let config = watcher::Config::default().labels(SELECTOR).page_size(PAGE);
        Self { watch: Watch::new(Api::all(client.clone()), config, what), store: Store::default(), what }
    }

    /// Takes in what the watch has come to.
    pub(super) fn take(&mut self, heard: Heard<K>, reduce: impl FnOnce(&K) -> Option<V>) -> Change {
        match heard {
            Heard::Event(event) => self.store.take(event, reduce),
            Heard::State => Change::Nothing,
        }
    }

    /// Whether nothing comes because the API server is away.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.watch.trouble(), Some(Trouble::Silent { .. }))
    }

    /// What an administrator has to do, for a report.
    pub(super) fn forbidden(&self) -> Option<String> {
        let what = self.what;
        (self.watch.trouble() == Some(&Trouble::Forbidden)).then(|| format!(
            "Services are not served: this node may not list and watch {what}; an administrator grants it with: kubectl apply -f deploy/rbac.yaml"
        ))
    }
}

//! The node's pods from the API server, with the ConfigMaps and Secrets they refer to, each watched by name as a node may.
//!
//! A pod is handed on when everything it refers to was asked for once: whatever is missing then is missing. While the API
//! server is away, what was last heard stands.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::{Backoff, StreamBackoff};
use kube::runtime::watcher::{self, Event, watch_object, watcher};
use kube::{Api, Client};
use manifest::{Loaded, ObjectKey};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::mirror::Pods;
use super::references::{self, Kind, Reference};
use super::trouble::Trouble;
use crate::kept::Kept;
use crate::pod::model::UNREADABLE;
use crate::static_pod::{is_mirror, is_static_source, static_pod};

/// How soon a watch that broke is begun again, at first and at last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What an object that pods refer to is now; nothing where there is none.
enum Found {
    ConfigMap(Option<v1::ConfigMap>),
    Secret(Option<v1::Secret>),
}

/// Where what is wanted of this node is told.
pub(super) struct Outputs {
    /// Pods, and what they refer to.
    pub(super) desired: watch::Sender<Arc<Loaded>>,
    /// Becomes true when the first list of the API server's pods is complete.
    pub(super) synced: watch::Sender<bool>,
    /// The static pods among them.
    pub(super) statics: watch::Sender<Arc<Pods>>,
    /// The API server's mirrors of those; nothing before the first list.
    pub(super) mirrors: watch::Sender<Option<Arc<Pods>>>,
}

/// The pods of a former agent.
pub(super) struct Former {
    /// All.
    pub(super) remembered: Vec<Arc<v1::Pod>>,
    /// Those that it was not about to end.
    pub(super) wanted: Vec<Arc<v1::Pod>>,
}

/// Follows the pods of node `name`, and of its `manifests`, for ever.
pub(super) async fn follow(
    client: Client,
    name: String,
    former: Former,
    mut manifests: watch::Receiver<Arc<Loaded>>,
    outputs: Outputs,
) {
    let (sender, mut found) = mpsc::channel(64);
    // Their files tell of static ones.
    let remembered: Pods = former
        .remembered
        .into_iter()
        .filter(|pod| !is_static_source(pod))
        .map(|pod| (key_of(&*pod), pod))
        .collect();
    let mut source = Source {
        running: remembered.values().filter_map(|pod| pod.metadata.uid.clone()).collect(),
        client: client.clone(),
        found: sender,
        pods: remembered,
        statics: Arc::default(),
        kept: Kept::new(former.wanted.into_iter().filter(|pod| is_static_source(pod))),
        listing: None,
        is_listed: false,
        followed: BTreeMap::new(),
        known: Loaded::default(),
        answered: BTreeSet::new(),
    };
    source.read(&manifests.borrow_and_update(), &name, &outputs);
    let selector = watcher::Config::default().fields(&format!("spec.nodeName={name}"));
    let api = Api::<DynamicObject>::all_with(client, &ApiResource::erase::<v1::Pod>(&()));
    let pods = watcher(api, selector).modify(|pod| pod.metadata.managed_fields = None);
    let mut pods = std::pin::pin!(again(pods).map_ok(understood));
    let mut trouble = Trouble::new("the API server does not tell of pods; trying again");
    loop {
        // What pods of before refer to counts from the start, too.
        source.publish(&outputs);
        tokio::select! {
            Ok(()) = manifests.changed() => source.read(&manifests.borrow_and_update(), &name, &outputs),
            Some(event) = pods.next() => match event {
                Ok(event) => {
                    trouble.is_over();
                    source.hear(event);
                }
                Err(error) => trouble.meet(&error),
            },
            Some((reference, object)) = found.recv() => source.take(reference, object),
            else => return,
        }
        // One publication for all that has come meanwhile.
        while let Ok((reference, object)) = found.try_recv() {
            source.take(reference, object);
        }
    }
}

/// An event of pods as we know them. One that cannot be read is a pod without a spec that says why: it must not hide the others.
fn understood(event: Event<DynamicObject>) -> Event<v1::Pod> {
    match event {
        Event::Init => Event::Init,
        Event::InitApply(pod) => Event::InitApply(read(pod)),
        Event::InitDone => Event::InitDone,
        Event::Apply(pod) => Event::Apply(read(pod)),
        Event::Delete(pod) => Event::Delete(read(pod)),
    }
}

fn read(object: DynamicObject) -> v1::Pod {
    let mut metadata = object.metadata.clone();
    let read = serde_json::to_value(object).and_then(serde_json::from_value);
    read.unwrap_or_else(|error: serde_json::Error| {
        metadata.annotations.get_or_insert_default().insert(UNREADABLE.to_owned(), error.to_string());
        v1::Pod { metadata, ..v1::Pod::default() }
    })
}

/// Follows every Service, for ever.
pub(super) async fn follow_services(client: Client, services: watch::Sender<Option<Arc<Vec<v1::Service>>>>) {
    let all = watcher(Api::<v1::Service>::all(client), watcher::Config::default())
        .modify(|service| *service = addresses_of(service));
    let trouble = Trouble::new("the API server does not tell of Services; trying again");
    let entry = |service: v1::Service| (key_of(&service), service);
    follow_all(all, trouble, entry, |known| {
        drop(services.send_replace(Some(Arc::new(known.values().cloned().collect()))));
    })
    .await;
}

/// Keeps what `entry` makes of each object, and tells it all whenever something changed; nothing before the first list is complete.
/// For ever.
pub(super) async fn follow_all<K, Key: Ord, V>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    mut trouble: Trouble,
    entry: impl Fn(K) -> (Key, V),
    mut tell: impl FnMut(&BTreeMap<Key, V>),
) {
    let mut events = std::pin::pin!(again(events));
    let mut known = BTreeMap::new();
    let mut listing = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listing = Some(BTreeMap::new()),
            Ok(Event::InitApply(object)) => listing.get_or_insert_default().extend([entry(object)]),
            Ok(Event::InitDone) => known = listing.take().unwrap_or_default(),
            Ok(Event::Apply(object)) => known.extend([entry(object)]),
            Ok(Event::Delete(object)) => drop(known.remove(&entry(object).0)),
            Err(error) => {
                trouble.meet(&error);
                continue;
            }
        }
        trouble.is_over();
        if listing.is_none() {
            tell(&known);
        }
    }
}

/// What variables are made of; the rest is not kept.
fn addresses_of(service: &v1::Service) -> v1::Service {
    let spec = service.spec.as_ref().map(|spec| v1::ServiceSpec {
        cluster_ip: spec.cluster_ip.clone(),
        cluster_ips: spec.cluster_ips.clone(),
        ports: spec.ports.clone(),
        type_: spec.type_.clone(),
        ..v1::ServiceSpec::default()
    });
    let metadata = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        uid: service.metadata.uid.clone(),
        // By these a watch goes on.
        resource_version: service.metadata.resource_version.clone(),
        ..ObjectMeta::default()
    };
    v1::Service { metadata, spec, status: None }
}

struct Source {
    client: Client,
    found: mpsc::Sender<(Reference, Found)>,
    /// The API server's, mirrors among them.
    pods: Pods,
    /// Uids of those that a former agent ran.
    running: BTreeSet<String>,
    /// Those of files.
    statics: Arc<Pods>,
    /// Static ones of a former agent that may be wanted.
    kept: Kept,
    /// A list that is not complete yet.
    listing: Option<Pods>,
    /// Whether one ever was.
    is_listed: bool,
    followed: BTreeMap<Reference, AbortHandle>,
    /// What was found of what is followed; `pods` is filled when it is published.
    known: Loaded,
    answered: BTreeSet<Reference>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.followed.values().for_each(AbortHandle::abort);
    }
}

impl Source {
    /// Takes the pods of files; one that did not change stays the same.
    fn read(&mut self, manifests: &Loaded, node_name: &str, outputs: &Outputs) {
        let pods = manifests.objects.pods.values().map(|pod| static_pod(pod, node_name));
        let mut pods: Pods = pods
            .map(|pod| {
                let key = key_of(&pod);
                let known = self.statics.get(&key).filter(|known| known.metadata.uid == pod.metadata.uid);
                (key, known.cloned().unwrap_or_else(|| Arc::new(pod)))
            })
            .collect();
        self.kept.join(manifests.incomplete, &mut pods);
        self.known.incomplete = manifests.incomplete;
        self.statics = Arc::new(pods);
        outputs.statics.send_replace(Arc::clone(&self.statics));
    }

    fn hear(&mut self, event: Event<v1::Pod>) {
        match event {
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(pod) => {
                self.listing.get_or_insert_default().insert(key_of(&pod), Arc::new(pod));
            }
            Event::InitDone => {
                self.pods = self.listing.take().unwrap_or_default();
                self.is_listed = true;
            }
            Event::Apply(pod) => drop(self.pods.insert(key_of(&pod), Arc::new(pod))),
            Event::Delete(pod) => {
                let key = key_of(&pod);
                // Another pod may have the name already.
                if self.pods.get(&key).is_some_and(|known| known.metadata.uid == pod.metadata.uid) {
                    self.pods.remove(&key);
                }
            }
        }
    }

    fn take(&mut self, reference: Reference, object: Found) {
        if !self.followed.contains_key(&reference) {
            return;
        }
        let key = ObjectKey::new(&reference.namespace, &reference.name);
        let objects = &mut self.known.objects;
        match object {
            Found::ConfigMap(Some(map)) => drop(objects.config_maps.insert(key, Arc::new(map))),
            Found::ConfigMap(None) => drop(objects.config_maps.remove(&key)),
            Found::Secret(Some(secret)) => drop(objects.secrets.insert(key, Arc::new(secret))),
            Found::Secret(None) => drop(objects.secrets.remove(&key)),
        }
        self.answered.insert(reference);
    }

    /// Follows what the pods refer to, and hands on the pods of which everything was asked for.
    fn publish(&mut self, outputs: &Outputs) {
        let (mirrors, pods): (Pods, Pods) = self
            .pods
            .iter()
            .map(|(key, pod)| (key.clone(), pod.clone()))
            .partition(|(_, pod)| is_mirror(pod));
        if self.is_listed {
            outputs.mirrors.send_if_modified(|known| {
                let changed = known.as_deref() != Some(&mirrors);
                *known = Some(Arc::new(mirrors));
                changed
            });
        }
        let of_pods: BTreeMap<&ObjectKey, BTreeSet<Reference>> =
            pods.iter().map(|(key, pod)| (key, references::of_pod(pod))).collect();
        let wanted: BTreeSet<&Reference> = of_pods.values().flatten().collect();
        self.followed.retain(|reference, task| {
            let keep = wanted.contains(reference);
            if !keep {
                task.abort();
            }
            keep
        });
        for reference in wanted {
            if !self.followed.contains_key(reference) {
                let task = follow_one(&self.client, reference.clone(), self.found.clone());
                self.followed.insert(reference.clone(), task);
            }
        }
        self.answered.retain(|reference| self.followed.contains_key(reference));
        let is_wanted = |kind, key: &ObjectKey| {
            self.answered.contains(&Reference {
                kind,
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            })
        };
        self.known.objects.config_maps.retain(|key, _| is_wanted(Kind::ConfigMap, key));
        self.known.objects.secrets.retain(|key, _| is_wanted(Kind::Secret, key));
        let before = outputs.desired.borrow().clone();
        let is_answered =
            |key: &ObjectKey| of_pods[key].iter().all(|reference| self.answered.contains(reference));
        let uid_of = |pod: &v1::Pod| pod.metadata.uid.clone().unwrap_or_default();
        // Nothing waits that is to go, or that runs already.
        let ready = |(key, pod): &(&ObjectKey, &Arc<v1::Pod>)| {
            pod.metadata.deletion_timestamp.is_some()
                || before.objects.pods.get(*key).is_some_and(|known| known.metadata.uid == pod.metadata.uid)
                || self.running.contains(&uid_of(pod))
                || is_answered(key)
        };
        let (ready, awaited): (Vec<(&ObjectKey, &Arc<v1::Pod>)>, Vec<_>) = pods.iter().partition(ready);
        self.known.awaited = awaited.into_iter().map(|(_, pod)| uid_of(pod)).collect();
        let pending = ready.iter().filter(|(key, _)| !is_answered(key)).map(|(_, pod)| uid_of(pod));
        self.known.pending = pending.collect();
        // What static pods refer to is not the API server's to give.
        let all = ready.into_iter().chain(self.statics.iter());
        self.known.objects.pods = all.map(|(key, pod)| (key.clone(), pod.clone())).collect();
        if *before != self.known {
            outputs.desired.send_replace(Arc::new(self.known.clone()));
        }
        // Last: who hears it finds every pod that it was heard with.
        outputs.synced.send_if_modified(|synced| self.is_listed && !std::mem::replace(synced, true));
    }
}

/// Watches one object by its name.
fn follow_one(client: &Client, reference: Reference, found: mpsc::Sender<(Reference, Found)>) -> AbortHandle {
    let (client, Reference { namespace, name, .. }) = (client.clone(), reference.clone());
    let task = match reference.kind {
        Kind::ConfigMap => {
            let api = Api::<v1::ConfigMap>::namespaced(client, &namespace);
            tokio::spawn(tell(api, name, reference, found, Found::ConfigMap))
        }
        Kind::Secret => {
            let api = Api::<v1::Secret>::namespaced(client, &namespace);
            tokio::spawn(tell(api, name, reference, found, Found::Secret))
        }
    };
    task.abort_handle()
}

async fn tell<K>(
    api: Api<K>,
    name: String,
    reference: Reference,
    found: mpsc::Sender<(Reference, Found)>,
    as_found: impl Fn(Option<K>) -> Found,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut object = std::pin::pin!(again(watch_object(api, &name)));
    // At first it may be refused: the node's rights follow the pod that was just bound to it.
    let mut trouble = Trouble::new("an object that a pod refers to cannot be watched; trying again");
    while let Some(object) = object.next().await {
        match object {
            Ok(object) => {
                trouble.is_over();
                if found.send((reference.clone(), as_found(object))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let Reference { kind, namespace, .. } = &reference;
                trouble.meet_text(&format!("{kind:?} {namespace}/{name}: {}", chain(&error)));
            }
        }
    }
}

/// A watch that is begun again when it broke, soon at first.
pub(super) fn again<S>(stream: S) -> StreamBackoff<S, Again>
where
    S: futures::TryStream,
{
    StreamBackoff::new(stream, Again(AGAIN.0))
}

/// Waits that double; kube's own begin with a second, which is long where a node's rights follow a pod by milliseconds.
#[derive(Debug)]
pub(super) struct Again(Duration);

impl Iterator for Again {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = self.0;
        self.0 = (now * 2).min(AGAIN.1);
        Some(now)
    }
}

impl Backoff for Again {
    fn reset(&mut self) {
        self.0 = AGAIN.0;
    }
}

pub(super) fn key_of<K: kube::ResourceExt>(object: &K) -> ObjectKey {
    ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// Versions of one object grow.
pub(super) fn version_of<K: kube::ResourceExt>(object: &K) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_cannot_be_read_is_a_pod_that_says_why() {
        let object = |spec: serde_json::Value| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "uid": "u" }, "spec": spec,
            }))
            .expect("an object")
        };
        let good = read(object(json!({ "containers": [{ "name": "a" }] })));
        assert_eq!(good.spec.map(|spec| spec.containers.len()), Some(1));
        let bad = read(object(json!({ "containers": "none" })));
        assert_eq!((bad.metadata.uid.as_deref(), &bad.spec), (Some("u"), &None));
        let problems = crate::pod::model::admit(&Arc::new(bad)).expect_err("refused");
        assert!(problems[0].starts_with("the pod cannot be read: "), "{problems:?}");
    }

    /// An API server that gives one pod, which refers to a ConfigMap, and says nothing of that.
    async fn silent_about_config_maps(
        request: hyper::Request<kube::client::Body>,
    ) -> Result<hyper::Response<kube::client::Body>, std::convert::Infallible> {
        let uri = request.uri();
        if !uri.path().ends_with("/pods") || uri.query().is_some_and(|query| query.contains("watch=true")) {
            return std::future::pending().await;
        }
        let source = json!({ "configMapRef": { "name": "m" } });
        let pod = json!({
            "metadata": { "name": "p", "namespace": "n", "uid": "u" },
            "spec": { "containers": [{ "name": "c", "envFrom": [source] }] },
        });
        let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "7" }, "items": [pod] });
        Ok(hyper::Response::new(kube::client::Body::from(list.to_string().into_bytes())))
    }

    #[tokio::test]
    async fn a_pod_that_waits_for_what_it_refers_to_is_known_to_be_wanted() {
        let (desired, loaded) = watch::channel(Arc::default());
        let (synced, mut is_synced) = watch::channel(false);
        let outputs = Outputs {
            desired,
            synced,
            statics: watch::channel(Arc::default()).0,
            mirrors: watch::channel(None).0,
        };
        let client = Client::new(tower::service_fn(silent_about_config_maps), "default");
        let (_manifests, manifests) = watch::channel(Arc::default());
        let former = Former { remembered: Vec::new(), wanted: Vec::new() };
        let following = tokio::spawn(follow(client, "node".to_owned(), former, manifests, outputs));
        is_synced.wait_for(|synced| *synced).await.unwrap();
        let loaded = loaded.borrow().clone();
        assert!(loaded.objects.pods.is_empty());
        assert_eq!(loaded.awaited, BTreeSet::from(["u".to_owned()]));
        following.abort();
    }
}

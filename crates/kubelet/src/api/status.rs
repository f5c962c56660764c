//! The kubelet's report as patches of pod statuses, and the end of pods of which nothing is left.
//!
//! One request at a time for each pod, the newest status wins, several pods at once. Nothing is read before it is written: a patch
//! carries the pod's uid, so it never reaches a pod that took the name. What others write into a status (a controller that
//! has not heard of the node for a while) is set right again. A static pod's status is its mirror's.
//!
//! How far a start has come is told only when it takes long: each patch costs the API server and all who watch pods more than
//! the node's own work for it, and a pod that is up in no time is told of once, as running.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use manifest::Loaded;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::mirror::Pods;
use super::source::{chain, key_of, version_of};
use super::trouble::Trouble;
use crate::report::NodeReport;
use crate::static_pod::{is_mirror_of, is_static_source};

/// Requests at once.
const AT_ONCE: usize = 16;

/// After a request failed.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits to be told that a pod is on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Lists whose entries are replaced together, not merged by their key.
const WHOLE_LISTS: [&str; 2] = ["podIPs", "hostIPs"];

/// Keeps the API server's pods as the kubelet tells them, for ever.
pub(super) async fn keep(
    client: Client,
    mut reports: watch::Receiver<Arc<NodeReport>>,
    mut desired: watch::Receiver<Arc<Loaded>>,
    mut mirrors: watch::Receiver<Option<Arc<Pods>>>,
) {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    let mut running = FuturesUnordered::new();
    let mut busy = BTreeSet::new();
    let mut trouble = Trouble::new("pods' statuses are not told; trying again");
    loop {
        let report = reports.borrow_and_update().clone();
        let (pods, mirrored) = (desired.borrow_and_update().clone(), mirrors.borrow_and_update().clone());
        let targets: Vec<Target> = report
            .pods
            .iter()
            .filter_map(|pod| Target::of(pod, &pods.objects.pods, mirrored.as_deref()))
            .collect();
        let alive: BTreeSet<&str> = targets.iter().map(|target| target.uid.as_str()).collect();
        known.retain(|uid, _| alive.contains(uid.as_str()) || busy.contains(uid));
        let (now, mut wake) = (Instant::now(), None);
        for Target { pod, uid, theirs } in targets {
            if running.len() >= AT_ONCE {
                break;
            }
            if busy.contains(&uid) {
                continue;
            }
            let told = known.entry(uid.clone()).or_default();
            told.hear(theirs);
            let is_finished = report.finished.contains(&uid);
            // First, as it is asked again with every news of any pod, and a step takes long to compare.
            let due = told.due(pod, is_finished, now);
            if due > now {
                wake = Some(wake.map_or(due, |wake| due.min(wake)));
                continue;
            }
            if let Some(step) = told.next(pod, &uid, is_finished) {
                busy.insert(uid.clone());
                running.push(carry_out(client.clone(), pod.clone(), uid, step));
            }
        }
        tokio::select! {
            Ok(()) = reports.changed() => {}
            Ok(()) = desired.changed() => {}
            Ok(()) = mirrors.changed() => {}
            () = tokio::time::sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            Some((uid, outcome)) = running.next() => {
                busy.remove(&uid);
                match &outcome {
                    Outcome::Failed(error) => trouble.meet_text(error),
                    Outcome::Told { .. } => trouble.is_over(),
                    Outcome::Gone => {}
                }
                if let Some(told) = known.get_mut(&uid) {
                    told.learn(outcome);
                }
            }
        }
    }
}

/// A pod of this node, and the API server's object that shows it.
struct Target<'a> {
    pod: &'a Arc<v1::Pod>,
    uid: String,
    /// As it was last heard of.
    theirs: Option<&'a v1::Pod>,
}

impl<'a> Target<'a> {
    /// Nothing for a static pod that has no mirror yet.
    fn of(pod: &'a Arc<v1::Pod>, desired: &'a Pods, mirrors: Option<&'a Pods>) -> Option<Self> {
        let key = key_of(&**pod);
        if is_static_source(pod) {
            let mirror = mirrors?.get(&key).filter(|mirror| is_mirror_of(mirror, pod))?;
            let uid = mirror.metadata.uid.clone().unwrap_or_default();
            return Some(Self { pod, uid, theirs: Some(mirror) });
        }
        let theirs = desired.get(&key).filter(|known| known.metadata.uid == pod.metadata.uid);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Some(Self { pod, uid, theirs: theirs.map(AsRef::as_ref) })
    }
}

/// What the API server knows of a pod.
#[derive(Default)]
struct Known {
    status: v1::PodStatus,
    /// Its object's version when it knew that, and the status that it gave back.
    version: u64,
    returned: v1::PodStatus,
    is_deleted: bool,
    /// When the news that wait began to.
    waits_since: Option<Instant>,
}

/// One request.
enum Step {
    Patch { status: Box<v1::PodStatus>, body: Value },
    Delete,
}

/// How a request went.
enum Outcome {
    Told {
        status: Box<v1::PodStatus>,
        version: u64,
        returned: Box<v1::PodStatus>,
    },
    Gone,
    /// To be tried again now.
    Failed(String),
}

impl Known {
    /// Takes over what somebody else has written since.
    fn hear(&mut self, theirs: Option<&v1::Pod>) {
        let Some(theirs) = theirs else { return };
        let version = version_of(theirs);
        if version <= self.version {
            return;
        }
        self.version = version;
        let status = theirs.status.clone().unwrap_or_default();
        // What it made of our own words is not news.
        if status != self.returned {
            self.status.clone_from(&status);
            self.returned = status;
        }
    }

    fn next(&self, pod: &v1::Pod, uid: &str, is_finished: bool) -> Option<Step> {
        if self.is_deleted {
            return None;
        }
        let unknown = pod.status.as_ref().filter(|status| **status != self.status);
        match unknown.and_then(|status| Some((status, difference(&self.status, status)?))) {
            Some((status, difference)) => {
                let body = json!({ "metadata": { "uid": uid }, "status": difference });
                Some(Step::Patch { status: Box::new(status.clone()), body })
            }
            None => is_finished.then_some(Step::Delete),
        }
    }

    /// When a step is to be taken: at once, but for the news that a pod is on its way.
    fn due(&mut self, pod: &v1::Pod, is_finished: bool, now: Instant) -> Instant {
        let news = pod.status.as_ref().filter(|status| **status != self.status);
        match news {
            Some(status) if !is_finished && is_on_its_way(status) => {
                *self.waits_since.get_or_insert(now) + ON_ITS_WAY
            }
            _ => now,
        }
    }

    fn learn(&mut self, outcome: Outcome) {
        self.waits_since = None;
        match outcome {
            Outcome::Told { status, version, returned } => {
                (self.status, self.version, self.returned) = (*status, version, *returned);
            }
            Outcome::Gone => self.is_deleted = true,
            Outcome::Failed(_) => {}
        }
    }
}

async fn carry_out(client: Client, pod: Arc<v1::Pod>, uid: String, step: Step) -> (String, Outcome) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let api = Api::<v1::Pod>::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or("default"));
    let request = async {
        match step {
            Step::Patch { status, body } => {
                let patched =
                    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await?;
                let version = version_of(&patched);
                let returned = Box::new(patched.status.unwrap_or_default());
                Ok(Outcome::Told { status, version, returned })
            }
            Step::Delete => {
                let preconditions = Some(Preconditions { uid: Some(uid.clone()), resource_version: None });
                let parameters = DeleteParams { preconditions, ..DeleteParams::default().grace_period(0) };
                api.delete(&name, &parameters).await.map(|_| Outcome::Gone)
            }
        }
    };
    let failure = match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(outcome)) => return (uid, outcome),
        // Nobody, or another pod, has the name.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || is_another(&status) => {
            return (uid, Outcome::Gone);
        }
        Ok(Err(error)) => {
            tokio::time::sleep(AGAIN).await;
            chain(&error)
        }
        Err(_) => "the API server does not answer".to_owned(),
    };
    (uid, Outcome::Failed(format!("pod {name}: {failure}")))
}

/// A conflict about the uid; others pass.
fn is_another(status: &kube::core::Status) -> bool {
    status.code == 409 && status.message.to_lowercase().contains("uid")
}

/// Whether a pod is being started and nothing stands in its way so far.
pub(super) fn is_on_its_way(status: &v1::PodStatus) -> bool {
    let is_quiet = |container: &v1::ContainerStatus| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        container.restart_count == 0 && matches!(reason, Some("ContainerCreating" | "PodInitializing"))
    };
    let containers = [&status.init_container_statuses, &status.container_statuses];
    status.phase.as_deref() == Some("Pending")
        && status.reason.is_none()
        && containers.into_iter().flatten().flatten().all(is_quiet)
}

/// What of a status changed, as a strategic merge patch; conditions of others stay as they are.
fn difference(known: &v1::PodStatus, new: &v1::PodStatus) -> Option<Value> {
    let fields = |status: &v1::PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (old, new) = (fields(known), fields(new));
    let mut changed = Map::new();
    for (name, value) in &new {
        let before = old.get(name);
        if name == "conditions" {
            let conditions = changed_conditions(before, value);
            if !conditions.is_empty() {
                changed.insert(name.clone(), conditions.into());
            }
        } else if before != Some(value) {
            changed.insert(name.clone(), whole(name, value.clone()));
        }
    }
    // What others write there is theirs.
    for name in ["message", "reason", "podIP", "podIPs", "ephemeralContainerStatuses"] {
        if old.contains_key(name) && !new.contains_key(name) {
            changed.insert(name.to_owned(), Value::Null);
        }
    }
    (!changed.is_empty()).then_some(Value::Object(changed))
}

fn changed_conditions(before: Option<&Value>, new: &Value) -> Vec<Value> {
    let before = before.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    // The scheduler's, once it has said it.
    let is_theirs = |one: &Value| {
        one["type"] == "PodScheduled" && before.iter().any(|known| known["type"] == one["type"])
    };
    let changed = |one: &&Value| !before.contains(one) && !is_theirs(one);
    let cleared = |one: &Value| {
        let mut one = one.clone();
        let had = before.iter().find(|known| known["type"] == one["type"]);
        // A merge keeps what is not named.
        for field in ["reason", "message"] {
            if one.get(field).is_none() && had.is_some_and(|had| had.get(field).is_some()) {
                one[field] = Value::Null;
            }
        }
        one
    };
    new.as_array().into_iter().flatten().filter(changed).map(cleared).collect()
}

fn whole(name: &str, value: Value) -> Value {
    match value {
        Value::Array(mut entries) if WHOLE_LISTS.contains(&name) => {
            entries.insert(0, json!({ "$patch": "replace" }));
            Value::Array(entries)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(known: Value, new: Value, expect: Option<Value>) {
        let parse = |value: Value| serde_json::from_value::<v1::PodStatus>(value).expect("a status");
        assert_eq!(difference(&parse(known.clone()), &parse(new.clone())), expect, "{known} → {new}");
    }

    #[test]
    fn only_the_news_that_a_pod_is_on_its_way_waits() {
        let waiting = |reason: &str| {
            json!({ "name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": { "waiting": { "reason": reason } } })
        };
        let again = |mut container: Value| {
            container["restartCount"] = 1.into();
            container
        };
        let running = json!({ "name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": { "running": {} } });
        for (waits, status) in [
            (true, json!({ "phase": "Pending" })),
            (true, json!({ "phase": "Pending", "containerStatuses": [waiting("ContainerCreating")] })),
            (
                true,
                json!({ "phase": "Pending", "containerStatuses": [waiting("PodInitializing")],
                "initContainerStatuses": [waiting("PodInitializing")] }),
            ),
            (false, json!({ "phase": "Pending", "containerStatuses": [waiting("ErrImagePull")] })),
            (
                false,
                json!({ "phase": "Pending", "containerStatuses": [waiting("PodInitializing")],
                "initContainerStatuses": [running] }),
            ),
            (
                false,
                json!({ "phase": "Pending", "containerStatuses": [again(waiting("ContainerCreating"))] }),
            ),
            (false, json!({ "phase": "Pending", "reason": "OutOfcpu" })),
            (false, json!({ "phase": "Running", "containerStatuses": [running] })),
        ] {
            let pod = json!({ "metadata": { "uid": "u" }, "status": status });
            let pod: v1::Pod = serde_json::from_value(pod).expect("a pod");
            let (mut known, start) = (Known::default(), Instant::now());
            assert!(known.next(&pod, "u", false).is_some(), "news: {status}");
            let due = known.due(&pod, false, start);
            assert_eq!(due > start, waits, "{status}");
            let later = start + Duration::from_millis(150);
            assert_eq!(
                known.due(&pod, false, later),
                if waits { due } else { later },
                "it began to wait before: {status}"
            );
            assert_eq!(known.due(&pod, true, later), later, "what has ended is told: {status}");
            known.status = pod.status.clone().expect("a status");
            assert_eq!(known.due(&pod, false, later), later, "no news: {status}");
        }
    }

    #[test]
    fn what_somebody_else_wrote_since_is_set_right_and_nothing_else() {
        let pod = |version: &str, status: Value| -> v1::Pod {
            serde_json::from_value(json!({ "metadata": { "resourceVersion": version }, "status": status }))
                .expect("a pod")
        };
        let ready = |status: &str| json!({ "conditions": [{ "type": "Ready", "status": status }] });
        let own = pod("0", ready("True"));
        let is_told = |known: &Known| known.next(&own, "u", false).is_some();
        let mut known = Known::default();
        known.hear(Some(&pod("5", json!({ "phase": "Pending" }))));
        assert!(is_told(&known));
        let returned = Box::new(pod("6", ready("True")).status.unwrap_or_default());
        let status = Box::new(own.status.clone().unwrap_or_default());
        known.learn(Outcome::Told { status, version: 6, returned });
        known.hear(Some(&pod("6", ready("True"))));
        known.hear(Some(&pod("5", ready("False"))));
        known.hear(Some(&pod("7", ready("True"))));
        assert!(!is_told(&known), "nobody has changed it");
        known.hear(Some(&pod("8", ready("False"))));
        assert!(is_told(&known), "the cluster thought that the node was gone");
    }

    #[test]
    fn a_static_pod_is_told_of_by_its_mirror() {
        let source = v1::Pod {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some("a".into()),
                ..Default::default()
            },
            ..v1::Pod::default()
        };
        let pod = Arc::new(crate::static_pod::static_pod(&source, "n"));
        let mut mirror = crate::static_pod::mirror_pod(&pod);
        mirror.metadata.uid = Some("m".into());
        let mirrors = Pods::from([(key_of(&mirror), Arc::new(mirror))]);
        let uid = |mirrors: Option<&Pods>| Target::of(&pod, &Pods::new(), mirrors).map(|target| target.uid);
        assert_eq!(
            (uid(None), uid(Some(&Pods::new())), uid(Some(&mirrors))),
            (None, None, Some("m".to_owned()))
        );
    }

    #[test]
    fn only_what_changed_is_told() {
        let ready =
            json!({ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let unready =
            json!({ "type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m" });
        let scheduled =
            json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        check(json!({ "phase": "Running" }), json!({ "phase": "Running" }), None);
        check(
            json!({ "phase": "Pending", "conditions": [scheduled] }),
            json!({ "phase": "Running", "conditions": [ready, { "type": "PodScheduled", "status": "True" }] }),
            Some(json!({ "phase": "Running", "conditions": [ready] })),
        );
        check(
            json!({ "conditions": [unready] }),
            json!({ "conditions": [ready] }),
            Some(json!({ "conditions": [{ "type": "Ready", "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": null, "message": null }] })),
        );
    }

    #[test]
    fn addresses_are_replaced_and_conditions_of_others_stay() {
        let gate = json!({ "type": "example.com/gate", "status": "True" });
        check(
            json!({ "podIP": "10.0.0.2", "podIPs": [{ "ip": "10.0.0.2" }], "conditions": [gate] }),
            json!({ "podIP": "10.0.0.3", "podIPs": [{ "ip": "10.0.0.3" }] }),
            Some(json!({ "podIP": "10.0.0.3", "podIPs": [{ "$patch": "replace" }, { "ip": "10.0.0.3" }] })),
        );
        check(
            json!({ "podIP": "10.0.0.2", "podIPs": [{ "ip": "10.0.0.2" }], "nominatedNodeName": "other" }),
            json!({}),
            Some(json!({ "podIP": null, "podIPs": null })),
        );
    }
}

//! The kubelet's report as patches of pod statuses, and the end of pods of which nothing is left.
//!
//! One request at a time for each pod, the newest status wins, several pods at once. Nothing is read before it is written: a patch
//! carries the pod's uid, so it never reaches a pod that took the name.

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

use super::source::chain;
use crate::report::NodeReport;

/// Requests at once.
const AT_ONCE: usize = 16;

/// After a request failed.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lists whose entries are replaced together, not merged by their key.
const WHOLE_LISTS: [&str; 2] = ["podIPs", "hostIPs"];

/// Keeps the API server's pods as the kubelet tells them, for ever.
pub(super) async fn keep(
    client: Client,
    mut reports: watch::Receiver<Arc<NodeReport>>,
    desired: watch::Receiver<Arc<Loaded>>,
) {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    let mut running = FuturesUnordered::new();
    let mut busy = BTreeSet::new();
    loop {
        let report = reports.borrow_and_update().clone();
        let alive: BTreeSet<&str> =
            report.pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        known.retain(|uid, _| alive.contains(uid.as_str()) || busy.contains(uid));
        for pod in &report.pods {
            if running.len() >= AT_ONCE {
                break;
            }
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let told = known.entry(uid.clone()).or_insert_with(|| Known::of(&desired.borrow(), pod));
            if busy.contains(&uid) || told.held {
                continue;
            }
            let is_finished = report.finished.contains(&uid);
            if let Some(step) = told.next(pod, is_finished) {
                busy.insert(uid.clone());
                running.push(carry_out(client.clone(), pod.clone(), uid, step));
            }
        }
        tokio::select! {
            Ok(()) = reports.changed() => {}
            Some((uid, outcome)) = running.next() => {
                busy.remove(&uid);
                if let Some(told) = known.get_mut(&uid) {
                    told.learn(outcome);
                }
            }
        }
    }
}

/// What the API server knows of a pod.
struct Known {
    status: v1::PodStatus,
    is_deleted: bool,
    /// A request failed a moment ago.
    held: bool,
}

/// One request.
enum Step {
    Patch { status: Box<v1::PodStatus>, body: Value },
    Delete,
}

/// How a request went.
enum Outcome {
    Told(Box<v1::PodStatus>),
    Gone,
    /// To be tried again now.
    Again,
}

impl Known {
    /// Begins with what the API server said itself.
    fn of(desired: &Loaded, pod: &v1::Pod) -> Self {
        let mut all = desired.objects.pods.values();
        let theirs = all.find(|known| known.metadata.uid == pod.metadata.uid);
        let status = theirs.and_then(|theirs| theirs.status.clone()).unwrap_or_default();
        Self { status, is_deleted: false, held: false }
    }

    fn next(&self, pod: &v1::Pod, is_finished: bool) -> Option<Step> {
        if self.is_deleted {
            return None;
        }
        let status = pod.status.clone().unwrap_or_default();
        match difference(&self.status, &status) {
            Some(difference) => {
                let body = json!({ "metadata": { "uid": pod.metadata.uid }, "status": difference });
                Some(Step::Patch { status: Box::new(status), body })
            }
            None => is_finished.then_some(Step::Delete),
        }
    }

    fn learn(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Told(status) => self.status = *status,
            Outcome::Gone => self.is_deleted = true,
            Outcome::Again => {}
        }
    }
}

async fn carry_out(client: Client, pod: Arc<v1::Pod>, uid: String, step: Step) -> (String, Outcome) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let api = Api::<v1::Pod>::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or("default"));
    let request = async {
        match step {
            Step::Patch { status, body } => api
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(body))
                .await
                .map(|_| Outcome::Told(status)),
            Step::Delete => {
                let preconditions = Some(Preconditions { uid: Some(uid.clone()), resource_version: None });
                let parameters = DeleteParams { preconditions, ..DeleteParams::default().grace_period(0) };
                api.delete(&name, &parameters).await.map(|_| Outcome::Gone)
            }
        }
    };
    let outcome = match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(outcome)) => outcome,
        // Nobody, or another pod, has the name.
        Ok(Err(kube::Error::Api(status))) if [404, 409].contains(&status.code) => Outcome::Gone,
        Ok(Err(error)) => {
            tracing::warn!(pod = name, error = %chain(&error), "the pod's status is not told; trying again");
            tokio::time::sleep(AGAIN).await;
            Outcome::Again
        }
        Err(_) => {
            tracing::warn!(pod = name, "the API server does not answer; telling the pod's status again");
            Outcome::Again
        }
    };
    (uid, outcome)
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

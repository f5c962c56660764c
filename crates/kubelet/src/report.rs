//! What the kubelet tells: pods with their status, events, how long each start took.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1;
use tokio::sync::{mpsc, watch};

use crate::events::{Kind, Recorder};
use crate::pod::model::Pod;
use crate::probe_counts::ProbeCounts;

/// The state of the node's pods.
#[derive(Clone, Debug, Default)]
pub struct NodeReport {
    /// Spec and status, as a kubelet reports them; by namespace and name.
    pub pods: Vec<Arc<v1::Pod>>,
    /// Uids of pods of which nothing is left on this node, as long as they are desired: their objects can go.
    pub finished: BTreeSet<String>,
    /// The last 1000, oldest first.
    pub events: Vec<Arc<v1::Event>>,
    /// How the pods came up.
    pub starts: Vec<StartTimes>,
    /// Whether every pod that there was at the start has been told of: before, a missing pod may be one that still runs.
    pub complete: bool,
}

/// How long the steps of one pod's start took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartTimes {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// Each step with its milliseconds, in order: `volumes`, `sandbox`, `image`, `create`, `start`, `ready`.
    pub steps: Vec<(String, f64)>,
    /// From the moment the kubelet saw the pod to Ready, in milliseconds; 0 while it is not ready.
    pub total: f64,
}

/// Collects what the pod workers tell, and publishes it.
#[derive(Debug)]
pub(crate) struct Reporter {
    node_name: String,
    state: Mutex<State>,
    sender: watch::Sender<Arc<NodeReport>>,
    events: Option<mpsc::Sender<Arc<v1::Event>>>,
    /// How probes went.
    pub(crate) probes: ProbeCounts,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Arc<v1::Pod>>,
    finished: BTreeSet<String>,
    starts: BTreeMap<String, StartTimes>,
    events: Recorder,
    /// Pods that are not told of yet, once it is known which there are.
    awaited: Option<BTreeSet<String>>,
}

impl Reporter {
    /// `events` gets each event as it happens; without room there it is only reported.
    pub(crate) fn new(
        node_name: String,
        sender: watch::Sender<Arc<NodeReport>>,
        events: Option<mpsc::Sender<Arc<v1::Event>>>,
        probes: ProbeCounts,
    ) -> Self {
        Self { node_name, state: Mutex::default(), sender, events, probes }
    }

    /// From now on the report is complete once these pods have been told of.
    pub(crate) fn expect<'a>(&self, uids: impl Iterator<Item = &'a String>) {
        self.change(|state| {
            state.awaited = Some(uids.filter(|uid| !state.pods.contains_key(*uid)).cloned().collect());
            true
        });
    }

    /// A pod as it is now.
    pub(crate) fn pod(&self, uid: &str, pod: v1::Pod, start: StartTimes) {
        self.change(|state| {
            if let Some(awaited) = &mut state.awaited {
                awaited.remove(uid);
            }
            let same = state.pods.get(uid).is_some_and(|known| **known == pod)
                && state.starts.get(uid) == Some(&start);
            if !same {
                state.pods.insert(uid.to_owned(), Arc::new(pod));
                state.starts.insert(uid.to_owned(), start);
            }
            !same
        });
    }

    /// A pod is gone.
    pub(crate) fn gone(&self, uid: &str) {
        self.probes.forget(uid);
        self.change(|state| {
            state.starts.remove(uid);
            if let Some(awaited) = &mut state.awaited {
                awaited.remove(uid);
            }
            state.pods.remove(uid);
            true
        });
    }

    /// Which of the desired pods have left nothing.
    pub(crate) fn finished(&self, uids: &BTreeSet<String>) {
        self.change(|state| {
            let changed = state.finished != *uids;
            state.finished.clone_from(uids);
            changed
        });
    }

    /// Something happened.
    pub(crate) fn event(&self, pod: &Pod, kind: Kind, reason: &str, message: &str) {
        match kind {
            Kind::Normal => tracing::debug!(pod = pod.name, reason, message, "event"),
            Kind::Warning => tracing::warn!(pod = pod.name, reason, message, "event"),
        }
        self.change(|state| {
            self.hand_on(state.events.note(&self.node_name, pod, kind, reason, message));
            true
        });
    }

    /// A pod is not taken.
    pub(crate) fn rejected(&self, pod: &v1::Pod, reason: &str, message: &str) {
        tracing::warn!(pod = pod.metadata.name, reason, message, "pod rejected");
        self.change(|state| {
            self.hand_on(state.events.note_object(&self.node_name, pod, Kind::Warning, reason, message));
            true
        });
    }

    /// Whether what was last told of a pod is that it has ended for good.
    pub(crate) fn has_ended(&self, uid: &str) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let phase = state.pods.get(uid).and_then(|pod| pod.status.as_ref()?.phase.clone());
        matches!(phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// What is told from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<NodeReport>> {
        self.sender.subscribe()
    }

    /// Something happened to the node.
    pub(crate) fn node_event(&self, kind: Kind, reason: &str, message: &str) {
        match kind {
            Kind::Normal => tracing::debug!(reason, message, "event of the node"),
            Kind::Warning => tracing::warn!(reason, message, "event of the node"),
        }
        self.change(|state| {
            self.hand_on(state.events.note_node(&self.node_name, kind, reason, message));
            true
        });
    }

    fn hand_on(&self, event: Arc<v1::Event>) {
        if let Some(events) = &self.events
            && events.try_send(event).is_err()
        {
            tracing::debug!("an event is not sent: too many at once");
        }
    }

    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut state) {
            return;
        }
        let mut pods: Vec<Arc<v1::Pod>> = state.pods.values().cloned().collect();
        pods.sort_by(|a, b| {
            (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
        });
        let starts = state.starts.values().cloned().collect();
        let complete = state.awaited.as_ref().is_some_and(BTreeSet::is_empty);
        self.sender.send_replace(Arc::new(NodeReport {
            pods,
            finished: state.finished.clone(),
            events: state.events.list(),
            starts,
            complete,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_complete_when_every_pod_that_was_there_has_been_told_of() {
        let (sender, reports) = watch::channel(Arc::default());
        let reporter = Reporter::new("n".into(), sender, None, ProbeCounts::default());
        let tell = |uid: &str| reporter.pod(uid, v1::Pod::default(), StartTimes::default());
        let complete = || reports.borrow().complete;
        tell("early");
        assert!(!complete(), "it is not known yet which pods there are");
        let uids = ["early", "late", "gone"].map(str::to_owned);
        reporter.expect(uids.iter());
        tell("late");
        assert!(!complete());
        reporter.gone("gone");
        assert!(complete());
        reporter.expect([].iter());
        assert!(complete(), "a node without pods has told of all");
    }
}

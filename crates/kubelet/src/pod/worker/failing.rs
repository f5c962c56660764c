//! Pods that end as a whole although they are wanted: evicted by the node, or longer active than they may be. Their objects
//! stay and say so.

use std::time::Duration;

use host::error::chain;

use super::{Wish, Worker};
use crate::events::Kind;
use crate::pod::plan::{Failure, ObservedPod, WorkerState, is_running};
use crate::time::BootTime;

/// Upstream: pkg/kubelet/active_deadline.go.
const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
const DEADLINE_MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

impl Worker {
    /// Takes over why the pod is to fail. The first reason stands.
    pub(super) fn follow_failure(&mut self, wish: Wish) {
        if let Wish::Fail(failure) = wish
            && self.memory.failure.is_none()
            && self.state == WorkerState::Syncing
        {
            self.memory.failure = Some((*failure).clone());
        }
    }

    /// A pod that has failed, or that is longer active than it may be, is on its way to its end.
    pub(super) fn fail_if_due(&mut self) {
        let now = BootTime::now();
        if self.memory.failure.is_none() && self.active_until().is_some_and(|until| until <= now) {
            self.node.reporter.event(&self.pod, Kind::Normal, DEADLINE_EXCEEDED, DEADLINE_MESSAGE);
            self.memory.failure = Some(Failure {
                reason: DEADLINE_EXCEEDED.to_owned(),
                message: DEADLINE_MESSAGE.to_owned(),
                grace: None,
                disruption: None,
            });
        }
        if let (Some(failure), WorkerState::Syncing) = (&self.memory.failure, self.state) {
            let grace = failure.grace.unwrap_or(self.pod.grace).max(Duration::from_secs(1));
            self.state = self.state.failed(now.after(grace));
        }
    }

    /// Gives back the volumes and the cgroup of a pod that has ended for good, once: a file in memory is memory. Upstream: the
    /// kubelet's SyncTerminatedPod.
    pub(super) fn release_if_over(&mut self, seen: &ObservedPod) {
        let is_over = matches!(self.state, WorkerState::Completing { .. })
            && !seen.containers.values().flatten().any(is_running);
        if !is_over || self.is_released {
            return;
        }
        self.is_released = true;
        let volumes = self.node.volumes.release(&self.pod.uid).map_err(|error| error.to_string());
        let cgroup = self.node.cgroups.remove(&self.pod.uid).map_err(|error| chain(&error));
        for (what, result) in [("volumes", volumes), ("cgroup", cgroup)] {
            if let Err(error) = result {
                tracing::debug!(
                    pod = self.pod.name,
                    what,
                    error,
                    "an ended pod's rest stays until it is deleted"
                );
            }
        }
    }

    /// When the pod's `activeDeadlineSeconds` are over, while it is active.
    pub(super) fn active_until(&self) -> Option<BootTime> {
        let allowed = self.pod.source.spec.as_ref()?.active_deadline_seconds?;
        if self.state != WorkerState::Syncing {
            return None;
        }
        Some(self.began.after(Duration::from_secs(u64::try_from(allowed).unwrap_or(0))))
    }
}

//! What one round must do so that a pod gets closer to what is wanted: a function of values.
//!
//! ```text
//!             wanted                   manifest gone, or another in its place
//!   Syncing ───────────► Syncing ────────────────────────────────────► Terminating
//!      │ every main container has ended for good                      ▲      │ nothing runs any more
//!      ▼                                                              │      ▼
//!   Completing (sidecars are stopped, then the sandbox; records stay) ┘   Finished (nothing is left)
//! ```
//!
//! Nothing is remembered between rounds but the state, the back-offs, what probes decided and hooks did: what is there is
//! observed. `start` plans what is to run, `stop` what is to end.

mod start;
mod stop;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pod::back_off::BackOff;
use crate::pod::container_details::Details;
use crate::pod::model::{Container, Pod, RestartPolicy};
use crate::time::BootTime;

pub use start::is_initialized;

/// Where a pod is on its way. The phases go one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// It is wanted.
    #[default]
    Syncing,
    /// Its main containers have ended for good: what else runs has time until the deadline.
    Completing {
        /// When what still runs is killed.
        deadline: BootTime,
    },
    /// It is not wanted any more: its containers have time until the deadline.
    Terminating {
        /// When what still runs is killed.
        deadline: BootTime,
    },
    /// Nothing of it is left.
    Finished,
}

impl WorkerState {
    /// The state of this round. A deadline is never moved into the future.
    #[must_use]
    pub fn next(
        self,
        pod: &Pod,
        seen: &ObservedPod,
        memory: &Memory,
        is_wanted: bool,
        now: BootTime,
    ) -> Self {
        // Upstream: a grace of 0 is one of a second.
        let deadline = now.after(pod.grace.max(Duration::from_secs(1)));
        match (self, is_wanted) {
            (Self::Syncing, false) => Self::Terminating { deadline },
            (Self::Completing { deadline }, false) => Self::Terminating { deadline },
            // A shorter grace that is told later counts from then on.
            (Self::Terminating { deadline: known }, _) => Self::Terminating { deadline: known.min(deadline) },
            (Self::Syncing, true) if outcome(pod, seen, memory).is_some() => Self::Completing { deadline },
            (Self::Syncing | Self::Completing { .. }, true) | (Self::Finished, _) => self,
        }
    }

    /// The state of a pod that has failed as a whole: what runs of it has time until the deadline.
    #[must_use]
    pub fn failed(self, by: BootTime) -> Self {
        match self {
            Self::Syncing => Self::Completing { deadline: by },
            Self::Completing { deadline } => Self::Completing { deadline: deadline.min(by) },
            Self::Terminating { .. } | Self::Finished => self,
        }
    }
}

/// What is there, as CRI tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPod {
    /// Its sandboxes, the newest first.
    pub sandboxes: Vec<ObservedSandbox>,
    /// Its containers by name, each the newest first.
    pub containers: BTreeMap<String, Vec<ObservedContainer>>,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSandbox {
    /// Its id.
    pub id: String,
    /// Whether containers can run in it.
    pub ready: bool,
    /// Counts the sandboxes of the pod.
    pub attempt: u32,
    /// Its addresses; none on the host's network.
    pub ips: Vec<String>,
    /// Nanoseconds since 1970.
    pub created_at: i64,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Its id.
    pub id: String,
    /// Its sandbox's id.
    pub sandbox: String,
    /// Counts restarts.
    pub attempt: u32,
    /// The image's id.
    pub image_id: String,
    /// The image's name as the pod said it when the container was made; empty where the runtime does not tell.
    pub image: String,
    /// What is told of it and decides nothing.
    pub details: Details,
    /// What it is doing.
    pub state: ObservedState,
}

/// What a container is doing. Times in nanoseconds since 1970, ends on the planner's clock too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObservedState {
    /// Made, not started: left over from a crash between the two calls.
    Created,
    /// Running.
    Running {
        /// Since when.
        started_at: i64,
    },
    /// Ended.
    Exited {
        /// As a shell tells it.
        code: i32,
        /// CRI's reason.
        reason: String,
        /// CRI's message.
        message: String,
        /// When it started; 0 when it never did.
        started_at: i64,
        /// When it ended.
        finished_at: i64,
        /// The same on the planner's clock.
        ended: BootTime,
    },
}

/// What the round remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Back-offs by container name.
    pub back_offs: BTreeMap<String, BackOff>,
    /// Ids of containers whose startup probe succeeded.
    pub started: BTreeSet<String>,
    /// Ids of containers whose readiness probe succeeded.
    pub ready: BTreeSet<String>,
    /// Ids of containers whose postStart hook has not run to its end.
    pub post_start: BTreeSet<String>,
    /// Containers that are to end, by id.
    pub kills: BTreeMap<String, Kill>,
    /// Ids of containers that ended because they had changed: they start again, whatever their restart policy says.
    pub changed: BTreeSet<String>,
    /// Ids of containers whose preStop hook is over.
    pub pre_stopped: BTreeSet<String>,
    /// When containers ended, by id, as it was first seen: the wall clock by which CRI tells it may be set later.
    pub ends: BTreeMap<String, BootTime>,
    /// Why the pod as a whole has failed, whatever its containers do.
    pub failure: Option<Failure>,
    /// Ids of containers whose preStop hook runs, or that are being stopped, by this process; and until when they may.
    #[serde(skip)]
    pub busy: BTreeMap<String, BootTime>,
    /// Until when a container's image or creation is not tried again, by container name.
    #[serde(skip)]
    pub held: BTreeMap<String, BootTime>,
    /// Until when no sandbox is tried again.
    #[serde(skip)]
    pub sandbox_held: Option<BootTime>,
}

impl Memory {
    /// Takes the end of each container for what it was when it was first seen.
    pub fn settle_ends(&mut self, seen: &mut ObservedPod) {
        let mut known = BTreeMap::new();
        for container in seen.containers.values_mut().flatten() {
            if let ObservedState::Exited { ended, .. } = &mut container.state {
                *ended = self.ends.get(&container.id).copied().unwrap_or(*ended);
                known.insert(container.id.clone(), *ended);
            }
        }
        self.ends = known;
    }

    /// Forgets containers that do not run any more, but for what follows from how they ended.
    pub fn keep(&mut self, seen: &ObservedPod) {
        let changed = self.kills.iter().filter(|(_, kill)| kill.why == StopReason::Changed);
        self.changed.extend(changed.map(|(id, _)| id.clone()));
        self.changed.retain(|id| seen.containers.values().flatten().any(|one| one.id == *id));
        let running: BTreeSet<&str> = seen
            .containers
            .values()
            .flatten()
            .filter(|one| is_running(one))
            .map(|one| one.id.as_str())
            .collect();
        for ids in [&mut self.started, &mut self.ready, &mut self.post_start, &mut self.pre_stopped] {
            ids.retain(|id| running.contains(id.as_str()));
        }
        self.kills.retain(|id, _| running.contains(id.as_str()));
    }
}

/// Why a pod ends although it is wanted: its status says so, with phase Failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// From the stop signal to SIGKILL, if it is not the pod's own.
    pub grace: Option<Duration>,
    /// What the condition DisruptionTarget says, if it was the node that ended the pod.
    pub disruption: Option<String>,
}

/// That a container is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// When its grace is over.
    pub deadline: BootTime,
    /// For the event.
    pub why: StopReason,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodAction {
    /// RunPodSandbox.
    CreateSandbox {
        /// The new one's attempt.
        attempt: u32,
    },
    /// Pull if needed, CreateContainer, StartContainer, the postStart hook.
    StartContainer {
        /// Which.
        name: String,
        /// The new one's attempt: the restart count.
        attempt: u32,
    },
    /// The postStart hook alone: its container was started by an agent that is no more.
    PostStart {
        /// Which.
        id: String,
        /// Its name.
        name: String,
    },
    /// The preStop hook.
    PreStop {
        /// Which.
        id: String,
        /// Its name.
        name: String,
        /// What the hook may take, and why.
        kill: Kill,
    },
    /// StopContainer.
    StopContainer {
        /// Which.
        id: String,
        /// Its name.
        name: String,
        /// When it is killed, and why it is stopped.
        kill: Kill,
    },
    /// RemoveContainer: a leftover, or an old attempt.
    RemoveContainer {
        /// Which.
        id: String,
        /// Its name.
        name: String,
        /// Its attempt.
        attempt: u32,
    },
    /// StopPodSandbox.
    StopSandbox {
        /// Which.
        id: String,
    },
    /// RemovePodSandbox, with the containers in it.
    RemoveSandbox {
        /// Which.
        id: String,
    },
    /// Nothing is left: volumes, cgroups and records go.
    Finish,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The pod goes.
    PodDeleted,
    /// It failed its startup probe.
    FailedStartup,
    /// It failed its liveness probe.
    FailedLiveness,
    /// Its postStart hook failed.
    FailedPostStart,
    /// Its sandbox is gone.
    SandboxChanged,
    /// The pod asks for another image by now.
    Changed,
}

/// The outcome of a round. The plan of a pod that is as wanted is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPlan {
    /// What to do, in order.
    pub actions: Vec<PodAction>,
    /// When to look again, if nothing happens before.
    pub wake_at: Option<BootTime>,
    /// Containers that wait for their back-off.
    pub backing_off: BTreeSet<String>,
}

impl PodPlan {
    fn of(actions: Vec<PodAction>) -> Self {
        Self { actions, ..Self::default() }
    }

    fn wake(&mut self, at: BootTime) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Decides what one round must do so that `seen` gets closer to `pod`.
#[must_use]
pub fn plan_pod(
    pod: &Pod,
    state: WorkerState,
    seen: &ObservedPod,
    memory: &Memory,
    now: BootTime,
) -> PodPlan {
    let round = Round { pod, seen, memory, now };
    match state {
        WorkerState::Finished => PodPlan::default(),
        WorkerState::Terminating { deadline } => round.terminate(deadline),
        WorkerState::Completing { deadline } => round.complete(deadline),
        WorkerState::Syncing => round.sync(),
    }
}

/// What a round knows.
struct Round<'a> {
    pod: &'a Pod,
    seen: &'a ObservedPod,
    memory: &'a Memory,
    now: BootTime,
}

/// How a pod ended for good, if it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every main container exited with 0.
    Succeeded,
    /// A main container, or an init container, failed and is not started again.
    Failed,
}

/// Whether every main container has ended and none will be started again. Sidecars do not count.
#[must_use]
pub fn outcome(pod: &Pod, seen: &ObservedPod, memory: &Memory) -> Option<Outcome> {
    let code = |container: &Container| {
        let newest = newest(seen, &container.name)?;
        match newest.state {
            ObservedState::Exited { code, .. } if !restarts(container, newest, code, memory) => Some(code),
            _ => None,
        }
    };
    let init_failed = pod.init_containers.iter().any(|init| code(init).is_some_and(|code| code != 0));
    if init_failed {
        return Some(Outcome::Failed);
    }
    let mut outcome = Outcome::Succeeded;
    for container in &pod.containers {
        if code(container)? != 0 {
            outcome = Outcome::Failed;
        }
    }
    Some(outcome)
}

/// Whether a container that ended with that code is started again.
fn restarts(container: &Container, ended: &ObservedContainer, code: i32, memory: &Memory) -> bool {
    match container.restart_policy {
        _ if memory.changed.contains(&ended.id) => true,
        RestartPolicy::Never => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
    }
}

/// Whether a running container counts as started: its hook is over and its startup probe, if any, has succeeded.
#[must_use]
pub fn is_started(container: &Container, observed: &ObservedContainer, memory: &Memory) -> bool {
    let probed = container.spec.startup_probe.is_none() || memory.started.contains(&observed.id);
    is_running(observed) && !memory.post_start.contains(&observed.id) && probed
}

/// Whether it is running.
#[must_use]
pub fn is_running(container: &ObservedContainer) -> bool {
    matches!(container.state, ObservedState::Running { .. })
}

/// The newest container of that name.
#[must_use]
pub fn newest<'a>(seen: &'a ObservedPod, name: &str) -> Option<&'a ObservedContainer> {
    seen.containers.get(name)?.first()
}

//! What one round must do so that a pod gets closer to what is wanted: a function of values.
//!
//! ```text
//!             wanted                 manifest gone, or another in its place
//!   Syncing ───────────► Syncing ──────────────────────────────────► Terminating
//!      │ every container has ended for good                               │ nothing runs any more
//!      ▼                                                                  ▼
//!   Terminated (its sandbox is stopped, its records stay) ──────────► Finished (nothing is left)
//! ```
//!
//! Nothing is remembered between rounds but the state, the back-offs and the probes' verdicts: what is there is observed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::pod::back_off::BackOff;
use crate::pod::model::{Container, Pod, RestartPolicy};
use crate::time::BootTime;

/// Where a pod is on its way. The phases go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// It is wanted.
    Syncing,
    /// It is not wanted any more: its containers are stopped with this grace.
    Terminating {
        /// Seconds from SIGTERM to SIGKILL.
        grace: Duration,
    },
    /// Nothing of it is left.
    Finished,
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
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Back-offs by container name.
    pub back_offs: BTreeMap<String, BackOff>,
    /// Ids of running containers that failed their liveness probe.
    pub failed_liveness: BTreeSet<String>,
    /// Until when a container's image or creation is not tried again, by container name.
    pub held: BTreeMap<String, BootTime>,
    /// Until when no sandbox is tried again.
    pub sandbox_held: Option<BootTime>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodAction {
    /// RunPodSandbox.
    CreateSandbox {
        /// The new one's attempt.
        attempt: u32,
    },
    /// Pull if needed, CreateContainer, StartContainer.
    StartContainer {
        /// Which.
        name: String,
        /// The new one's attempt: the restart count.
        attempt: u32,
    },
    /// StopContainer.
    StopContainer {
        /// Which.
        id: String,
        /// Its name.
        name: String,
        /// From the stop signal to SIGKILL.
        grace: Duration,
        /// For the event.
        why: StopReason,
    },
    /// RemoveContainer: a leftover, or an old attempt.
    RemoveContainer {
        /// Which.
        id: String,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The pod goes.
    PodDeleted,
    /// It failed its liveness probe.
    FailedLiveness,
    /// Its sandbox is gone.
    SandboxChanged,
}

/// The outcome of a round. The plan of a pod that is as wanted is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPlan {
    /// What to do, in order; then the world is observed again.
    pub actions: Vec<PodAction>,
    /// When to look again although nothing happened.
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

/// How many ended containers of a name are kept, for `kubectl logs --previous`.
const KEPT: usize = 2;

/// Decides what one round must do so that `seen` gets closer to `pod`.
#[must_use]
pub fn plan_pod(
    pod: &Pod,
    state: WorkerState,
    seen: &ObservedPod,
    memory: &Memory,
    now: BootTime,
) -> PodPlan {
    match state {
        WorkerState::Finished => PodPlan::default(),
        WorkerState::Terminating { grace } => plan_termination(seen, grace),
        WorkerState::Syncing => plan_sync(pod, seen, memory, now),
    }
}

/// Everything is stopped at once, then removed.
fn plan_termination(seen: &ObservedPod, grace: Duration) -> PodPlan {
    let stops = stop_running(seen, |_| true, grace, StopReason::PodDeleted);
    if !stops.is_empty() {
        return PodPlan::of(stops);
    }
    let mut actions: Vec<PodAction> = Vec::new();
    for sandbox in &seen.sandboxes {
        actions.extend(sandbox.ready.then(|| PodAction::StopSandbox { id: sandbox.id.clone() }));
        actions.push(PodAction::RemoveSandbox { id: sandbox.id.clone() });
    }
    if actions.is_empty() {
        actions.push(PodAction::Finish);
    }
    PodPlan::of(actions)
}

fn plan_sync(pod: &Pod, seen: &ObservedPod, memory: &Memory, now: BootTime) -> PodPlan {
    if let Some(reason) = outcome(pod, seen) {
        return plan_ended(seen, reason);
    }
    let current = seen.sandboxes.first();
    let Some(sandbox) = current.filter(|sandbox| sandbox.ready) else {
        return plan_new_sandbox(seen, memory, now);
    };
    // What runs in a former sandbox has no network.
    let elsewhere = stop_running(
        seen,
        |container| container.sandbox != sandbox.id,
        pod.grace,
        StopReason::SandboxChanged,
    );
    if !elsewhere.is_empty() {
        return PodPlan::of(elsewhere);
    }
    let mut plan = PodPlan::of(old_attempts(seen));
    for init in &pod.init_containers {
        match newest(seen, &init.name).map(|container| &container.state) {
            Some(ObservedState::Exited { code: 0, .. }) => {}
            Some(ObservedState::Running { .. }) => return plan,
            _ => {
                plan_container(pod, init, seen, memory, now, &mut plan);
                return plan;
            }
        }
    }
    for container in &pod.containers {
        plan_container(pod, container, seen, memory, now, &mut plan);
    }
    plan
}

/// A sandbox that is not ready is left with its ended containers until the new one is there: their exits count.
fn plan_new_sandbox(seen: &ObservedPod, memory: &Memory, now: BootTime) -> PodPlan {
    let running = stop_running(seen, |_| true, Duration::from_secs(0), StopReason::SandboxChanged);
    if !running.is_empty() {
        return PodPlan::of(running);
    }
    if let Some(until) = memory.sandbox_held.filter(|until| *until > now) {
        return PodPlan { wake_at: Some(until), ..PodPlan::default() };
    }
    let attempt = seen.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
    PodPlan::of(vec![PodAction::CreateSandbox { attempt }])
}

fn plan_container(
    pod: &Pod,
    container: &Container,
    seen: &ObservedPod,
    memory: &Memory,
    now: BootTime,
    plan: &mut PodPlan,
) {
    let name = &container.name;
    let start = |attempt| PodAction::StartContainer { name: name.clone(), attempt };
    let held = memory.held.get(name).filter(|until| **until > now);
    match newest(seen, name) {
        None => match held {
            Some(until) => plan.wake(*until),
            None => plan.actions.push(start(0)),
        },
        Some(ObservedContainer { id, attempt, state: ObservedState::Created, .. }) => {
            plan.actions.push(PodAction::RemoveContainer { id: id.clone() });
            plan.actions.push(start(*attempt));
        }
        Some(ObservedContainer { id, state: ObservedState::Running { .. }, .. }) => {
            if memory.failed_liveness.contains(id) {
                let why = StopReason::FailedLiveness;
                plan.actions.push(PodAction::StopContainer {
                    id: id.clone(),
                    name: name.clone(),
                    grace: pod.grace,
                    why,
                });
            }
        }
        Some(ObservedContainer { attempt, state: ObservedState::Exited { code, ended, .. }, .. }) => {
            if !restarts(pod, container, *code) {
                return;
            }
            let back_off = memory.back_offs.get(name).copied().unwrap_or_default();
            match (back_off.until(*ended, now), held) {
                (Some(until), _) => {
                    plan.wake(until);
                    plan.backing_off.insert(name.clone());
                }
                (None, Some(until)) => plan.wake(*until),
                (None, None) => plan.actions.push(start(attempt + 1)),
            }
        }
    }
}

/// Whether a container that ended with that code is started again. An init container that succeeded never is.
fn restarts(pod: &Pod, container: &Container, code: i32) -> bool {
    let is_init = pod.init_containers.iter().any(|init| init.name == container.name);
    match (pod.restart_policy, is_init) {
        (RestartPolicy::Never, _) => false,
        (RestartPolicy::Always, false) => true,
        (RestartPolicy::OnFailure, _) | (RestartPolicy::Always, true) => code != 0,
    }
}

/// How a pod ended for good, if it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every container exited with 0.
    Succeeded,
    /// A container, or an init container, failed and is not started again.
    Failed,
}

/// Whether every container has ended and none will be started again.
#[must_use]
pub fn outcome(pod: &Pod, seen: &ObservedPod) -> Option<Outcome> {
    let code = |name: &str| match newest(seen, name)?.state {
        ObservedState::Exited { code, .. } => Some(code),
        ObservedState::Created | ObservedState::Running { .. } => None,
    };
    let init_failed = pod
        .init_containers
        .iter()
        .any(|init| code(&init.name).is_some_and(|code| code != 0 && !restarts(pod, init, code)));
    if init_failed {
        return Some(Outcome::Failed);
    }
    let mut outcome = Outcome::Succeeded;
    for container in &pod.containers {
        match code(&container.name) {
            Some(code) if !restarts(pod, container, code) => {
                if code != 0 {
                    outcome = Outcome::Failed;
                }
            }
            _ => return None,
        }
    }
    Some(outcome)
}

/// A pod that has ended gives its network back; its containers stay for their logs and statuses.
fn plan_ended(seen: &ObservedPod, _outcome: Outcome) -> PodPlan {
    let ready = seen.sandboxes.iter().filter(|sandbox| sandbox.ready);
    PodPlan::of(ready.map(|sandbox| PodAction::StopSandbox { id: sandbox.id.clone() }).collect())
}

fn old_attempts(seen: &ObservedPod) -> Vec<PodAction> {
    let old = seen.containers.values().flat_map(|attempts| attempts.iter().skip(KEPT));
    let ended = old.filter(|container| matches!(container.state, ObservedState::Exited { .. }));
    ended.map(|container| PodAction::RemoveContainer { id: container.id.clone() }).collect()
}

fn stop_running(
    seen: &ObservedPod,
    which: impl Fn(&ObservedContainer) -> bool,
    grace: Duration,
    why: StopReason,
) -> Vec<PodAction> {
    let mut actions = Vec::new();
    for (name, attempts) in &seen.containers {
        for container in attempts {
            if matches!(container.state, ObservedState::Running { .. }) && which(container) {
                actions.push(PodAction::StopContainer {
                    id: container.id.clone(),
                    name: name.clone(),
                    grace,
                    why,
                });
            }
        }
    }
    actions
}

/// The newest container of that name.
#[must_use]
pub fn newest<'a>(seen: &'a ObservedPod, name: &str) -> Option<&'a ObservedContainer> {
    seen.containers.get(name)?.first()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::model::tests::pod;

    const NOW: BootTime = BootTime(1_000_000);

    fn sandbox(ready: bool) -> ObservedSandbox {
        ObservedSandbox { id: "s".into(), ready, attempt: 0, ips: vec!["10.85.0.2".into()], created_at: 1 }
    }

    fn running() -> ObservedState {
        ObservedState::Running { started_at: 1 }
    }

    fn exited(code: i32) -> ObservedState {
        let (reason, message) = (String::new(), String::new());
        ObservedState::Exited { code, reason, message, started_at: 1, finished_at: 2, ended: NOW }
    }

    fn container(attempt: u32, state: ObservedState) -> ObservedContainer {
        ObservedContainer {
            id: format!("c{attempt}"),
            sandbox: "s".into(),
            attempt,
            image_id: "i".into(),
            state,
        }
    }

    fn seen(ready: bool, containers: &[(&str, ObservedState)]) -> ObservedPod {
        let containers = containers
            .iter()
            .map(|(name, state)| ((*name).to_owned(), vec![container(0, state.clone())]))
            .collect();
        ObservedPod { sandboxes: vec![sandbox(ready)], containers }
    }

    fn start(name: &str, attempt: u32) -> PodAction {
        PodAction::StartContainer { name: name.into(), attempt }
    }

    fn check(policy: RestartPolicy, seen: &ObservedPod, expect: &[PodAction]) {
        let mut pod = pod(&["a"]);
        pod.restart_policy = policy;
        let plan = plan_pod(&pod, WorkerState::Syncing, seen, &Memory::default(), NOW);
        assert_eq!(plan.actions, expect, "{policy:?} {seen:?}");
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_then_its_containers() {
        check(RestartPolicy::Always, &ObservedPod::default(), &[PodAction::CreateSandbox { attempt: 0 }]);
        check(RestartPolicy::Always, &seen(true, &[]), &[start("a", 0)]);
    }

    #[test]
    fn the_plan_of_a_converged_pod_is_empty() {
        check(RestartPolicy::Always, &seen(true, &[("a", running())]), &[]);
        check(RestartPolicy::Never, &seen(false, &[("a", exited(1))]), &[]);
    }

    #[test]
    fn the_restart_policy_decides_what_is_started_again() {
        let stop = PodAction::StopSandbox { id: "s".into() };
        for (policy, code, expect) in [
            (RestartPolicy::Always, 0, start("a", 1)),
            (RestartPolicy::Always, 1, start("a", 1)),
            (RestartPolicy::OnFailure, 1, start("a", 1)),
            (RestartPolicy::OnFailure, 0, stop.clone()),
            (RestartPolicy::Never, 1, stop.clone()),
        ] {
            check(policy, &seen(true, &[("a", exited(code))]), &[expect]);
        }
    }

    #[test]
    fn restarts_container_only_after_back_off_expires() {
        let pod = pod(&["a"]);
        let back_off = BackOff::default().next(NOW, NOW);
        let memory = Memory { back_offs: [("a".to_owned(), back_off)].into(), ..Memory::default() };
        let seen = seen(true, &[("a", exited(1))]);
        let plan = plan_pod(&pod, WorkerState::Syncing, &seen, &memory, NOW);
        let until = NOW.after(Duration::from_secs(10));
        assert_eq!((plan.actions.as_slice(), plan.wake_at), ([].as_slice(), Some(until)));
        assert!(plan.backing_off.contains("a"));
        let plan = plan_pod(&pod, WorkerState::Syncing, &seen, &memory, until);
        assert_eq!(plan.actions, [start("a", 1)]);
    }

    #[test]
    fn init_containers_run_one_after_the_other() {
        let mut pod = pod(&["a"]);
        pod.init_containers = crate::pod::model::tests::pod(&["i", "j"]).containers;
        let plan = |containers: &[(&str, ObservedState)]| {
            plan_pod(&pod, WorkerState::Syncing, &seen(true, containers), &Memory::default(), NOW).actions
        };
        assert_eq!(plan(&[]), [start("i", 0)]);
        assert_eq!(plan(&[("i", running())]), []);
        assert_eq!(plan(&[("i", exited(1))]), [start("i", 1)]);
        assert_eq!(plan(&[("i", exited(0))]), [start("j", 0)]);
        assert_eq!(plan(&[("i", exited(0)), ("j", exited(0))]), [start("a", 0)]);
    }

    #[test]
    fn a_failed_liveness_probe_stops_the_container() {
        let pod = pod(&["a"]);
        let memory = Memory { failed_liveness: ["c0".to_owned()].into(), ..Memory::default() };
        let plan = plan_pod(&pod, WorkerState::Syncing, &seen(true, &[("a", running())]), &memory, NOW);
        assert!(matches!(
            &plan.actions[..],
            [PodAction::StopContainer { why: StopReason::FailedLiveness, .. }]
        ));
    }

    #[test]
    fn a_leftover_of_a_crash_between_create_and_start_is_made_anew() {
        let plan = seen(true, &[("a", ObservedState::Created)]);
        check(RestartPolicy::Always, &plan, &[PodAction::RemoveContainer { id: "c0".into() }, start("a", 0)]);
    }

    #[test]
    fn a_lost_sandbox_is_replaced_after_its_containers_are_stopped() {
        let lost = seen(false, &[("a", running())]);
        let pod = pod(&["a"]);
        let plan = plan_pod(&pod, WorkerState::Syncing, &lost, &Memory::default(), NOW);
        assert!(matches!(
            &plan.actions[..],
            [PodAction::StopContainer { why: StopReason::SandboxChanged, .. }]
        ));
        check(
            RestartPolicy::Always,
            &seen(false, &[("a", exited(255))]),
            &[PodAction::CreateSandbox { attempt: 1 }],
        );
    }

    #[test]
    fn termination_stops_then_removes_then_finishes() {
        let pod = pod(&["a"]);
        let state = WorkerState::Terminating { grace: Duration::from_secs(3) };
        let plan = |seen: &ObservedPod| plan_pod(&pod, state, seen, &Memory::default(), NOW).actions;
        assert!(matches!(
            &plan(&seen(true, &[("a", running())]))[..],
            [PodAction::StopContainer { grace: Duration { .. }, why: StopReason::PodDeleted, .. }]
        ));
        let (stop, remove) =
            (PodAction::StopSandbox { id: "s".into() }, PodAction::RemoveSandbox { id: "s".into() });
        assert_eq!(plan(&seen(true, &[("a", exited(0))])), [stop, remove.clone()]);
        assert_eq!(plan(&seen(false, &[])), [remove]);
        assert_eq!(plan(&ObservedPod::default()), [PodAction::Finish]);
    }

    #[test]
    fn old_attempts_are_removed_but_the_last_two() {
        let attempts = vec![container(3, running()), container(2, exited(1)), container(1, exited(1))];
        let seen =
            ObservedPod { sandboxes: vec![sandbox(true)], containers: [("a".to_owned(), attempts)].into() };
        check(RestartPolicy::Always, &seen, &[PodAction::RemoveContainer { id: "c1".into() }]);
    }
}

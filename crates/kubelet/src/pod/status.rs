//! The status of a pod as a kubelet reports it: from what is observed, pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodIP, PodStatus,
};

use crate::admission::Rejection;
use crate::cri_requests::on_host_network;
use crate::pod::container_details;
use crate::pod::model::{Container, Pod, Role, qos_of};
use crate::pod::plan::{
    Memory, ObservedContainer, ObservedPod, ObservedState, Outcome, is_initialized, is_running, is_started,
    newest, outcome,
};
use crate::pod::readiness_gates;
use crate::time::api_time as time;

/// Bytes of all messages of ended containers of one pod together.
const MAX_MESSAGES: usize = 12 << 10;

/// What a status needs beside what is observed.
#[derive(Clone, Debug, Default)]
pub struct StatusFacts {
    /// Nanoseconds since 1970 at which the kubelet first saw the pod.
    pub start_time: i64,
    /// The node's addresses: one, or one of each family.
    pub host_ips: Vec<String>,
    /// Why a container waits: reason and message by name.
    pub waiting: BTreeMap<String, (String, String)>,
    /// Containers in their back-off.
    pub backing_off: BTreeSet<String>,
    /// What probes decided, hooks did and back-offs are.
    pub memory: Memory,
    /// What ended containers left behind as their last words, by id.
    pub last_words: BTreeMap<String, String>,
    /// Whether the pod is to go: what is not there any more has ended.
    pub ending: bool,
    /// Whether the runtime makes mounts read-only with all below them.
    pub recursive_read_only: bool,
    /// What the runtime calls itself: `containerd://ID` is a container of containerd's.
    pub runtime_name: String,
}

/// Renders the status; conditions keep the transition times of `former` where they did not change.
#[must_use]
pub fn render_status(
    pod: &Pod,
    seen: &ObservedPod,
    facts: &StatusFacts,
    former: Option<&PodStatus>,
    now: i64,
) -> PodStatus {
    let statuses = |containers: &[Container]| -> Vec<ContainerStatus> {
        containers.iter().map(|container| container_status(pod, container, seen, facts)).collect()
    };
    let (mut init, mut main) = (statuses(&pod.init_containers), statuses(&pod.containers));
    let mut ephemeral = statuses(&pod.ephemeral_containers);
    let mut phase = phase(pod, seen, &facts.memory);
    for (statuses, role) in
        [(&mut init, Role::Init), (&mut main, Role::Main), (&mut ephemeral, Role::Ephemeral)]
    {
        container_details::keep_mounts(statuses, role, former);
        if facts.ending {
            last_known(statuses, seen, container_details::former_statuses(role, former));
        }
    }
    if facts.ending && !seen.containers.values().flatten().any(is_running) {
        phase = final_phase(&main);
    }
    let failure = facts.memory.failure.as_ref();
    let runs = seen.containers.values().flatten().any(is_running);
    if failure.is_some() && !runs {
        phase = "Failed";
    }
    let why = unready(pod, phase, &init, &main);
    let not_ready = why.clone().or_else(|| readiness_gates::unready(pod));
    let has_sandbox = seen.sandboxes.first().is_some_and(|sandbox| sandbox.ready);
    let not_initialized = uninitialized(pod, phase, seen, &facts.memory);
    let initialized = not_initialized.as_ref().is_none_or(|(reason, _)| *reason == "PodCompleted");
    let conditions = [
        ("PodReadyToStartContainers", has_sandbox, None),
        ("Initialized", initialized, not_initialized),
        ("Ready", not_ready.is_none(), not_ready),
        ("ContainersReady", why.is_none(), why),
        ("PodScheduled", true, None),
    ];
    let generation = pod.source.metadata.generation;
    let disruption = failure.and_then(|failure| failure.disruption.clone());
    let disruption =
        disruption.map(|message| ("DisruptionTarget", true, Some(("TerminationByKubelet", message))));
    let conditions = conditions.into_iter().chain(disruption).map(|(kind, status, why)| PodCondition {
        observed_generation: generation,
        ..condition(kind, status, why, former, now)
    });
    let ips = match seen.sandboxes.first().filter(|sandbox| sandbox.ready) {
        Some(sandbox) if sandbox.ips.is_empty() && on_host_network(pod) => facts.host_ips.clone(),
        Some(sandbox) => sandbox.ips.clone(),
        // What it had to the last: who looks later wants to know which address was whose.
        None => {
            former.iter().flat_map(|former| former.pod_ips.iter().flatten()).map(|ip| ip.ip.clone()).collect()
        }
    };
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions.collect()),
        reason: failure.filter(|_| !runs).map(|failure| failure.reason.clone()),
        message: failure.filter(|_| !runs).map(|failure| failure.message.clone()),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        observed_generation: generation,
        host_ip: facts.host_ips.first().cloned(),
        host_ips: (!facts.host_ips.is_empty())
            .then(|| facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(pod.qos.name().to_owned()),
        start_time: time(facts.start_time),
        ..PodStatus::default()
    }
}

/// The status of a pod that this kubelet does not take.
#[must_use]
pub fn render_rejected(pod: &v1::Pod, rejection: &Rejection, now: i64) -> PodStatus {
    let qos = pod.spec.as_ref().map(|spec| qos_of(spec).name().to_owned());
    PodStatus {
        phase: Some("Failed".into()),
        reason: Some(rejection.reason.clone()),
        message: Some(format!("Pod was rejected: {}", rejection.message)),
        observed_generation: pod.metadata.generation,
        qos_class: qos,
        start_time: time(now),
        ..PodStatus::default()
    }
}

/// Why a pod is not ready: with a phase that is an end, or the containers that are not. Sidecars count.
fn unready(
    pod: &Pod,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Option<(&'static str, String)> {
    match phase {
        "Succeeded" => return Some(("PodCompleted", String::new())),
        "Failed" => return Some(("PodFailed", String::new())),
        _ => {}
    }
    let sidecars =
        pod.init_containers.iter().zip(init).filter(|(container, _)| container.role == Role::Sidecar);
    let counting = sidecars.map(|(_, status)| status).chain(main);
    let unready: Vec<&str> =
        counting.filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    let message = || format!("containers with unready status: [{}]", unready.join(" "));
    (!unready.is_empty()).then(|| ("ContainersNotReady", message()))
}

/// Why a pod is not initialized; once it has succeeded it is, with that reason.
fn uninitialized(
    pod: &Pod,
    phase: &str,
    seen: &ObservedPod,
    memory: &Memory,
) -> Option<(&'static str, String)> {
    if phase == "Succeeded" {
        return Some(("PodCompleted", String::new()));
    }
    if is_initialized(pod, seen, memory) {
        return None;
    }
    let incomplete = pod.init_containers.iter().filter(|init| {
        newest(seen, &init.name).is_none_or(|one| match init.role {
            Role::Sidecar => !is_started(init, one, memory),
            Role::Init | Role::Main | Role::Ephemeral => {
                !matches!(one.state, ObservedState::Exited { code: 0, .. })
            }
        })
    });
    let names: Vec<&str> = incomplete.map(|init| init.name.as_str()).collect();
    Some(("ContainersNotInitialized", format!("containers with incomplete status: [{}]", names.join(" "))))
}

/// A pod has ended when nothing of it runs any more, its sidecars included.
fn phase(pod: &Pod, seen: &ObservedPod, memory: &Memory) -> &'static str {
    let runs = seen.containers.values().flatten().any(is_running);
    match outcome(pod, seen, memory) {
        Some(Outcome::Succeeded) if !runs => "Succeeded",
        Some(Outcome::Failed) if !runs => "Failed",
        _ => {
            // Running once every container was started, whatever it does now.
            let started = pod.containers.iter().all(|container| {
                newest(seen, &container.name).is_some_and(|one| {
                    !matches!(one.state, ObservedState::Created) && !memory.post_start.contains(&one.id)
                })
            });
            if started { "Running" } else { "Pending" }
        }
    }
}

/// Containers of a pod that goes, once they are removed: as they were last told, and ended where they were not.
fn last_known(statuses: &mut [ContainerStatus], seen: &ObservedPod, former: &[ContainerStatus]) {
    let is_there = |name: &str| seen.containers.get(name).is_some_and(|all| !all.is_empty());
    for status in statuses.iter_mut().filter(|status| !is_there(&status.name)) {
        if let Some(known) = former.iter().find(|known| known.name == status.name) {
            status.clone_from(known);
        }
        status.ready = false;
        status.started = Some(false);
        if status.state.as_ref().is_none_or(|state| state.terminated.is_none()) {
            // Upstream: the kubelet's words for a container of which nothing can be learned any more.
            let terminated = ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                container_id: status.container_id.clone(),
                ..ContainerStateTerminated::default()
            };
            status.state = Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() });
        }
    }
}

/// The phase of a pod of which nothing runs any more and nothing will. Upstream: a pod reaches its end before its object goes.
fn final_phase(main: &[ContainerStatus]) -> &'static str {
    let succeeded = main.iter().all(|status| {
        let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        terminated.is_some_and(|terminated| terminated.exit_code == 0)
    });
    if succeeded { "Succeeded" } else { "Failed" }
}

fn container_status(
    pod: &Pod,
    container: &Container,
    seen: &ObservedPod,
    facts: &StatusFacts,
) -> ContainerStatus {
    let attempts = seen.containers.get(&container.name).map(Vec::as_slice).unwrap_or_default();
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let told = facts.waiting.get(&container.name);
    let first = if pod.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.spec.image.clone().unwrap_or_default(),
        last_state: Some(ContainerState::default()),
        started: (container.role != Role::Ephemeral).then_some(false),
        volume_mounts: container_details::mounts(container, facts.recursive_read_only),
        ..ContainerStatus::default()
    };
    let Some(current) = attempts.first() else {
        let (reason, message) = match told {
            Some((reason, message)) => (reason.as_str(), Some(message.clone())),
            None => (first, None),
        };
        status.state = Some(waiting(reason, message));
        return status;
    };
    status.restart_count = i32::try_from(current.attempt).unwrap_or(i32::MAX);
    status.container_id = Some(format!("{}://{}", facts.runtime_name, current.id));
    status.image_id.clone_from(&current.image_id);
    container_details::add(&mut status, container, &current.details);
    let longest = MAX_MESSAGES / pod.all_containers().count().max(1);
    let ended = |container| terminated(container, facts, longest);
    let previous = attempts.get(1).and_then(ended);
    match &current.state {
        ObservedState::Created => status.state = Some(waiting(first, None)),
        // Upstream tells of a container only when its hook is over.
        ObservedState::Running { .. } if facts.memory.post_start.contains(&current.id) => {
            status.state = Some(waiting(first, None));
            status.last_state = Some(previous.unwrap_or_default());
        }
        ObservedState::Running { started_at } => {
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: time(*started_at) }),
                ..ContainerState::default()
            });
            let started = is_started(container, current, &facts.memory);
            let gated = container.spec.readiness_probe.is_some();
            status.started = (container.role != Role::Ephemeral).then_some(started);
            status.ready = started
                && !matches!(container.role, Role::Init | Role::Ephemeral)
                && (!gated || facts.memory.ready.contains(&current.id));
            status.last_state = Some(previous.unwrap_or_default());
        }
        ObservedState::Exited { code, .. } => {
            let now = ended(current).unwrap_or_default();
            if let Some((reason, message)) = told {
                status.state = Some(waiting(reason, Some(message.clone())));
                status.last_state = Some(now);
            } else if facts.backing_off.contains(&container.name) {
                let delay = facts.memory.back_offs.get(&container.name).copied().unwrap_or_default().delay();
                let message = format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    go_duration(delay),
                    container.name,
                    pod.name,
                    pod.namespace,
                    pod.uid
                );
                status.state = Some(waiting("CrashLoopBackOff", Some(message)));
                status.last_state = Some(now);
            } else if facts.memory.changed.contains(&current.id) {
                // Said to have ended, one that is never restarted could not run again: the API server would refuse it.
                status.state = Some(waiting(first, None));
                status.last_state = Some(now);
            } else {
                status.state = Some(now);
                status.last_state = Some(previous.unwrap_or_default());
            }
            // An init container that has done its work is ready.
            status.ready = container.role == Role::Init && *code == 0;
        }
    }
    status
}

fn terminated(container: &ObservedContainer, facts: &StatusFacts, longest: usize) -> Option<ContainerState> {
    let ObservedState::Exited { code, reason, message, started_at, finished_at, .. } = &container.state
    else {
        return None;
    };
    let said = facts.last_words.get(&container.id).filter(|said| !said.is_empty());
    let parts: Vec<&str> = [Some(message), said]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    let mut message = parts.join(": ");
    message.truncate(message.floor_char_boundary(longest));
    let terminated = ContainerStateTerminated {
        exit_code: *code,
        reason: Some(reason.clone()).filter(|reason| !reason.is_empty()),
        message: Some(message).filter(|message| !message.is_empty()),
        started_at: time(*started_at),
        finished_at: time(*finished_at),
        container_id: Some(format!("{}://{}", facts.runtime_name, container.id)),
        signal: None,
    };
    Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() })
}

fn condition(
    kind: &str,
    status: bool,
    why: Option<(&str, String)>,
    former: Option<&PodStatus>,
    now: i64,
) -> PodCondition {
    let status = if status { "True" } else { "False" };
    let known = former.and_then(|former| former.conditions.as_ref()?.iter().find(|one| one.type_ == kind));
    let since =
        known.filter(|known| known.status == status).and_then(|known| known.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: why.as_ref().map(|(reason, _)| (*reason).to_owned()),
        message: why.map(|(_, message)| message).filter(|message| !message.is_empty()),
        last_transition_time: since.or_else(|| time(now)),
        ..PodCondition::default()
    }
}

/// As Go prints durations: `10s`, `1m20s`, `5m0s`.
fn go_duration(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Probe;
    use serde_json::json;

    use super::*;
    use crate::pod::back_off::BackOff;
    use crate::pod::container_details::Details;
    use crate::pod::model::tests::{pod, pod_of};
    use crate::pod::plan::ObservedSandbox;
    use crate::time::BootTime;

    fn seen(state: Option<ObservedState>) -> ObservedPod {
        let sandbox = ObservedSandbox {
            id: "s".into(),
            ready: true,
            attempt: 0,
            ips: vec!["10.85.0.2".into()],
            created_at: 1,
        };
        let container = |state| ObservedContainer {
            id: "c".into(),
            sandbox: "s".into(),
            attempt: 2,
            image_id: "i".into(),
            image: String::new(),
            details: Details::default(),
            state,
        };
        ObservedPod {
            sandboxes: vec![sandbox],
            containers: state.map(|state| ("a".to_owned(), vec![container(state)])).into_iter().collect(),
        }
    }

    fn exited(code: i32) -> ObservedState {
        ObservedState::Exited {
            code,
            reason: "Error".into(),
            message: String::new(),
            started_at: 1,
            finished_at: 2,
            ended: BootTime(1),
        }
    }

    fn is_true(status: &PodStatus, kind: &str) -> bool {
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == kind && condition.status == "True")
    }

    #[test]
    fn a_running_container_is_ready_when_its_probe_says_so() {
        let running = seen(Some(ObservedState::Running { started_at: 1 }));
        let mut facts = StatusFacts::default();
        let status = render_status(&pod(&["a"]), &running, &facts, None, 1);
        assert!(is_true(&status, "Ready"), "without a probe it is ready as it is");
        let mut probed = pod(&["a"]);
        probed.containers[0].spec.readiness_probe = Some(Probe::default());
        let status = render_status(&probed, &running, &facts, None, 1);
        assert_eq!((status.phase.as_deref(), is_true(&status, "Ready")), (Some("Running"), false));
        facts.memory.ready.insert("c".into());
        let status = render_status(&probed, &running, &facts, None, 1);
        assert!(
            is_true(&status, "Ready")
                && is_true(&status, "ContainersReady")
                && is_true(&status, "Initialized")
        );
        assert_eq!(status.pod_ip.as_deref(), Some("10.85.0.2"));
    }

    #[test]
    fn a_crash_loop_waits_with_the_exit_as_last_state() {
        let mut facts = StatusFacts::default();
        facts.backing_off.insert("a".into());
        facts.memory.back_offs.insert("a".into(), BackOff::default().next(BootTime(1), BootTime(1)));
        let status = render_status(&pod(&["a"]), &seen(Some(exited(3))), &facts, None, 1);
        let container = &status.container_statuses.as_ref().expect("statuses")[0];
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref()).expect("it waits");
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(
            waiting.message.as_deref(),
            Some("back-off 10s restarting failed container=a pod=p_default(u)")
        );
        let last =
            container.last_state.as_ref().and_then(|state| state.terminated.as_ref()).expect("an exit");
        assert_eq!((last.exit_code, container.restart_count), (3, 2));
        assert_eq!(status.phase.as_deref(), Some("Running"));
    }

    #[test]
    fn last_words_follow_the_runtimes_message_and_share_twelve_kib() {
        let facts = StatusFacts {
            last_words: [("c".to_owned(), "ä".repeat(5000))].into(),
            ..StatusFacts::default()
        };
        let mut ended = exited(1);
        if let ObservedState::Exited { message, .. } = &mut ended {
            *message = "OOM".into();
        }
        let status = render_status(&pod(&["a", "b", "c"]), &seen(Some(ended)), &facts, None, 1);
        let state = status.container_statuses.expect("statuses")[0].state.clone();
        let message = state.and_then(|state| state.terminated?.message).expect("a message");
        assert!(message.starts_with("OOM: ää"), "{message}");
        assert_eq!(message.len(), 4095, "4096 would cut a letter");
    }

    #[test]
    fn a_waiting_container_tells_why() {
        let mut facts = StatusFacts::default();
        let reason = |facts: &StatusFacts| {
            let status = render_status(&pod(&["a"]), &seen(None), facts, None, 1);
            assert_eq!(status.phase.as_deref(), Some("Pending"));
            status.container_statuses.expect("statuses")[0]
                .state
                .clone()
                .and_then(|state| state.waiting?.reason)
        };
        assert_eq!(reason(&facts).as_deref(), Some("ContainerCreating"));
        facts.waiting.insert("a".into(), ("ErrImagePull".into(), "no".into()));
        assert_eq!(reason(&facts).as_deref(), Some("ErrImagePull"));
    }

    #[test]
    fn a_container_that_is_replaced_waits_and_a_pod_keeps_its_address_to_the_last() {
        let running = seen(Some(ObservedState::Running { started_at: 1 }));
        let former = render_status(&pod(&["a"]), &running, &StatusFacts::default(), None, 1);
        let mut over = seen(Some(exited(143)));
        over.sandboxes[0].ready = false;
        let mut facts = StatusFacts::default();
        let ended = render_status(&pod(&["a"]), &over, &facts, Some(&former), 2);
        assert_eq!((ended.phase.as_deref(), ended.pod_ip.as_deref()), (Some("Running"), Some("10.85.0.2")));
        assert_eq!(ended.pod_ips, former.pod_ips);
        facts.memory.changed.insert("c".into());
        let status = render_status(&pod(&["a"]), &over, &facts, Some(&former), 2)
            .container_statuses
            .unwrap()
            .remove(0);
        assert_eq!(status.state.unwrap().waiting.unwrap().reason.as_deref(), Some("ContainerCreating"));
        assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 143);
    }

    #[test]
    fn transition_times_stay_where_nothing_changed() {
        let running = seen(Some(ObservedState::Running { started_at: 1 }));
        let mut pod = pod(&["a"]);
        pod.containers[0].spec.readiness_probe = Some(Probe::default());
        let mut facts = StatusFacts::default();
        let former = render_status(&pod, &running, &facts, None, 5_000_000_000);
        facts.memory.ready.insert("c".into());
        let next = render_status(&pod, &running, &facts, Some(&former), 9_000_000_000);
        let since = |kind: &str| {
            let mut conditions = next.conditions.iter().flatten();
            conditions
                .find(|one| one.type_ == kind)
                .and_then(|one| one.last_transition_time.as_ref())
                .map(|time| time.0.as_second())
        };
        assert_eq!((since("Ready"), since("PodScheduled")), (Some(9), Some(5)));
    }

    /// Reason of waiting, `started` and `ready` of each container, init containers first; phase and the two conditions.
    fn summary(pod: &Pod, seen: &ObservedPod, memory: &Memory) -> (Vec<String>, String) {
        let facts = StatusFacts { memory: memory.clone(), ..StatusFacts::default() };
        let status = render_status(pod, seen, &facts, None, 1);
        let reason = |kind: &str| {
            let found = status.conditions.iter().flatten().find(|one| one.type_ == kind).expect(kind).clone();
            let message = found.message.unwrap_or_default();
            format!("{kind}={} {} {message}", found.status, found.reason.unwrap_or_default())
                .trim_end()
                .to_owned()
        };
        let told = format!(
            "{}; {}; {}",
            status.phase.clone().unwrap_or_default(),
            reason("Initialized").replace(" ContainersNotInitialized", ""),
            reason("Ready").replace(" ContainersNotReady", ""),
        );
        let all =
            status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
        let one = |status: &ContainerStatus| {
            let waiting = status.state.as_ref().and_then(|state| state.waiting.clone());
            let reason = waiting.and_then(|waiting| waiting.reason).unwrap_or_default();
            format!("{} {reason} {} {}", status.name, status.started == Some(true), status.ready)
        };
        (all.map(one).collect(), told)
    }

    #[test]
    fn a_pod_that_goes_keeps_what_was_told_of_its_containers() {
        let pod = pod(&["a"]);
        let running = ObservedState::Running { started_at: 1_000_000_000 };
        let first = render_status(&pod, &seen(Some(running)), &StatusFacts::default(), None, 0);
        let ending = StatusFacts { ending: true, ..StatusFacts::default() };
        let ended = render_status(&pod, &seen(Some(exited(0))), &ending, Some(&first), 0);
        assert_eq!(ended.phase.as_deref(), Some("Succeeded"));
        let removed = render_status(&pod, &ObservedPod::default(), &ending, Some(&ended), 0);
        assert_eq!(removed.phase.as_deref(), Some("Succeeded"));
        assert_eq!(
            removed.container_statuses.as_ref().map(|all| all[0].state.clone()),
            ended.container_statuses.map(|all| all[0].state.clone())
        );
        let lost = render_status(&pod, &ObservedPod::default(), &ending, Some(&first), 0);
        assert_eq!(lost.phase.as_deref(), Some("Failed"));
        let state = lost.container_statuses.and_then(|all| all[0].state.clone()).unwrap_or_default();
        assert_eq!(state.terminated.and_then(|one| one.reason).as_deref(), Some("ContainerStatusUnknown"));
    }

    #[test]
    fn sidecars_count_for_readiness_and_the_others_wait_for_them() {
        let pod = pod_of(json!({ "restartPolicy": "OnFailure", "initContainers": [
            { "name": "s", "image": "i", "restartPolicy": "Always", "startupProbe": { "exec": { "command": ["x"] } },
              "readinessProbe": { "exec": { "command": ["x"] } } },
            { "name": "i", "image": "i" },
        ], "containers": [{ "name": "a", "image": "i" }] }));
        let (run, done) = (ObservedState::Running { started_at: 1 }, exited(0));
        let seen = |containers: &[(&str, &ObservedState)]| {
            let mut all = seen(None);
            for (name, state) in containers {
                let one = ObservedContainer {
                    id: (*name).to_owned(),
                    sandbox: "s".into(),
                    attempt: 0,
                    image_id: "i".into(),
                    image: String::new(),
                    details: Details::default(),
                    state: (*state).clone(),
                };
                all.containers.insert((*name).to_owned(), vec![one]);
            }
            all
        };
        let mut memory = Memory::default();
        let check = |containers: &[(&str, &ObservedState)], memory: &Memory, each: [&str; 3], whole: &str| {
            assert_eq!(
                summary(&pod, &seen(containers), memory),
                (each.map(str::to_owned).into(), whole.to_owned())
            );
        };
        check(
            &[("s", &run)],
            &memory,
            ["s  false false", "i PodInitializing false false", "a PodInitializing false false"],
            "Pending; Initialized=False containers with incomplete status: [s i]; \
             Ready=False containers with unready status: [s a]",
        );
        memory.started.insert("s".into());
        check(
            &[("s", &run), ("i", &run)],
            &memory,
            ["s  true false", "i  true false", "a PodInitializing false false"],
            "Pending; Initialized=False containers with incomplete status: [i]; \
             Ready=False containers with unready status: [s a]",
        );
        check(
            &[("s", &run), ("i", &done), ("a", &run)],
            &memory,
            ["s  true false", "i  false true", "a  true true"],
            "Running; Initialized=True; Ready=False containers with unready status: [s]",
        );
        memory.ready.insert("s".into());
        check(
            &[("s", &run), ("i", &done), ("a", &run)],
            &memory,
            ["s  true true", "i  false true", "a  true true"],
            "Running; Initialized=True; Ready=True",
        );
        check(
            &[("s", &run), ("i", &done), ("a", &done)],
            &memory,
            ["s  true true", "i  false true", "a  false false"],
            "Running; Initialized=True; Ready=False containers with unready status: [a]",
        );
        check(
            &[("s", &exited(143)), ("i", &done), ("a", &done)],
            &memory,
            ["s  false false", "i  false true", "a  false false"],
            "Succeeded; Initialized=True PodCompleted; Ready=False PodCompleted",
        );
    }

    #[test]
    fn an_ephemeral_container_has_a_status_of_its_own() {
        let pod = pod_of(json!({
            "containers": [{ "name": "a", "image": "i" }],
            "ephemeralContainers": [{ "name": "debug", "image": "i" }],
        }));
        let running = seen(Some(ObservedState::Running { started_at: 1 }));
        let status = render_status(&pod, &running, &StatusFacts::default(), None, 1);
        assert!(is_true(&status, "Ready"), "nobody waits for it");
        let debug = &status.ephemeral_container_statuses.expect("told")[0];
        assert_eq!((debug.name.as_str(), debug.ready, debug.started), ("debug", false, None));
    }

    #[test]
    fn a_pod_waits_for_the_conditions_that_it_names() {
        let gated = |conditions: serde_json::Value| {
            let mut pod = pod_of(json!({
                "containers": [{ "name": "a", "image": "i" }], "readinessGates": [{ "conditionType": "x/y" }],
            }));
            let mut source = (*pod.source).clone();
            source.metadata.generation = Some(3);
            source.status = serde_json::from_value(json!({ "conditions": conditions })).expect("a status");
            pod.source = source.into();
            let running = seen(Some(ObservedState::Running { started_at: 1 }));
            let status = render_status(&pod, &running, &StatusFacts::default(), None, 1);
            assert!(is_true(&status, "ContainersReady"));
            assert_eq!(status.observed_generation, Some(3));
            status.conditions.unwrap_or_default().into_iter().find(|one| one.type_ == "Ready").expect("told")
        };
        assert_eq!(gated(json!([{ "type": "x/y", "status": "True" }])).status, "True");
        for (conditions, expect) in [
            (json!([]), "corresponding condition of pod readiness gate \"x/y\" does not exist."),
            (
                json!([{ "type": "x/y", "status": "False" }]),
                "the status of pod readiness gate \"x/y\" is not \"True\", but False",
            ),
        ] {
            let ready = gated(conditions);
            assert_eq!(ready.reason.as_deref(), Some("ReadinessGatesNotReady"));
            assert_eq!(ready.message.as_deref(), Some(expect));
        }
    }

    #[test]
    fn a_container_tells_its_resources_its_user_and_its_mounts() {
        let pod = pod_of(json!({
            "volumes": [{ "name": "v", "emptyDir": {} }],
            "containers": [{
                "name": "a", "image": "i", "resources": { "requests": { "cpu": "1" } },
                "volumeMounts": [{ "name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "IfPossible" }],
            }],
        }));
        let mut running = seen(Some(ObservedState::Running { started_at: 1 }));
        let details = Details { user: Some((5, 6, vec![7])), stop_signal: "SIGUSR1".into() };
        running.containers.get_mut("a").expect("there")[0].details = details;
        let facts = StatusFacts { recursive_read_only: true, ..StatusFacts::default() };
        let first = render_status(&pod, &running, &facts, None, 1);
        let told = &first.container_statuses.as_ref().expect("told")[0];
        assert_eq!(told.allocated_resources.as_ref().map(|all| all["cpu"].0.as_str()), Some("1"));
        assert_eq!(told.user.as_ref().and_then(|user| user.linux.as_ref()).map(|linux| linux.uid), Some(5));
        assert_eq!(told.stop_signal.as_deref(), Some("SIGUSR1"));
        let mode = |status: &PodStatus| {
            let mounts = status.container_statuses.as_ref()?[0].volume_mounts.as_ref()?;
            mounts[0].recursive_read_only.clone()
        };
        assert_eq!(mode(&first).as_deref(), Some("Enabled"));
        let later = render_status(&pod, &running, &StatusFacts::default(), Some(&first), 1);
        assert_eq!(
            mode(&later).as_deref(),
            Some("Enabled"),
            "a kubelet that begins again keeps what was told"
        );
    }
}

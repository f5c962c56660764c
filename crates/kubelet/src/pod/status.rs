//! The status of a pod as a kubelet reports it: from what is observed, pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodIP, PodStatus,
};

use crate::pod::back_off::BackOff;
use crate::pod::model::{Container, Pod};
use crate::pod::plan::{ObservedContainer, ObservedPod, ObservedState, Outcome, newest, outcome};
use crate::time::api_time as time;

/// What a status needs beside what is observed.
#[derive(Clone, Debug, Default)]
pub struct StatusFacts {
    /// Nanoseconds since 1970 at which the kubelet first saw the pod.
    pub start_time: i64,
    /// The node's address.
    pub host_ip: Option<String>,
    /// Why a container waits: reason and message by name.
    pub waiting: BTreeMap<String, (String, String)>,
    /// Containers in their back-off.
    pub backing_off: BTreeSet<String>,
    /// Back-offs by container name, for the message.
    pub back_offs: BTreeMap<String, BackOff>,
    /// Ids of containers whose readiness probe succeeded, or that have none.
    pub ready: BTreeSet<String>,
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
    let (init, main) = (statuses(&pod.init_containers), statuses(&pod.containers));
    let phase = phase(pod, seen);
    let ended = matches!(phase, "Succeeded" | "Failed");
    let initialized = pod.init_containers.iter().all(|container| {
        matches!(
            newest(seen, &container.name).map(|one| &one.state),
            Some(ObservedState::Exited { code: 0, .. })
        )
    });
    let unready: Vec<&str> =
        main.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    let ready = unready.is_empty() && !ended;
    let reason = if ended && phase == "Succeeded" { "PodCompleted" } else { "ContainersNotReady" };
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    let why = (!ready).then_some((reason, if reason == "PodCompleted" { String::new() } else { message }));
    let has_sandbox = seen.sandboxes.first().is_some_and(|sandbox| sandbox.ready);
    let not_initialized =
        (!initialized).then(|| ("ContainersNotInitialized", "init containers have not succeeded".to_owned()));
    let conditions = [
        ("PodReadyToStartContainers", has_sandbox, None),
        ("Initialized", initialized || ended, not_initialized.filter(|_| !ended)),
        ("Ready", ready, why.clone()),
        ("ContainersReady", ready, why),
        ("PodScheduled", true, None),
    ];
    let conditions = conditions.map(|(kind, status, why)| condition(kind, status, why, former, now));
    let newest_sandbox = seen.sandboxes.first().filter(|sandbox| sandbox.ready);
    let mut ips = newest_sandbox.map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
    if ips.is_empty() && newest_sandbox.is_some() && crate::cri_requests::on_host_network(pod) {
        ips.extend(facts.host_ip.clone());
    }
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions.into()),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        host_ip: facts.host_ip.clone(),
        host_ips: facts.host_ip.clone().map(|ip| vec![HostIP { ip }]),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(pod.qos.name().to_owned()),
        start_time: time(facts.start_time),
        ..PodStatus::default()
    }
}

/// The status of a pod that this kubelet does not admit.
#[must_use]
pub fn render_rejected(message: &str, now: i64) -> PodStatus {
    PodStatus {
        phase: Some("Failed".into()),
        reason: Some("UnsupportedPodSpec".into()),
        message: Some(format!("Pod was rejected: {message}")),
        start_time: time(now),
        ..PodStatus::default()
    }
}

fn phase(pod: &Pod, seen: &ObservedPod) -> &'static str {
    match outcome(pod, seen) {
        Some(Outcome::Succeeded) => "Succeeded",
        Some(Outcome::Failed) => "Failed",
        None => {
            // Running once every container was started, whatever it does now.
            let started = pod.containers.iter().all(|container| {
                newest(seen, &container.name).is_some_and(|one| !matches!(one.state, ObservedState::Created))
            });
            if started { "Running" } else { "Pending" }
        }
    }
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
    let is_init = pod.init_containers.iter().any(|init| init.name == container.name);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.spec.image.clone().unwrap_or_default(),
        last_state: Some(ContainerState::default()),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let Some(current) = attempts.first() else {
        let initializing = !is_init
            && !pod.init_containers.is_empty()
            && !pod.init_containers.iter().all(|init| {
                newest(seen, &init.name)
                    .is_some_and(|one| matches!(one.state, ObservedState::Exited { code: 0, .. }))
            });
        let (reason, message) = match told {
            Some((reason, message)) => (reason.as_str(), Some(message.clone())),
            None if initializing => ("PodInitializing", None),
            None => ("ContainerCreating", None),
        };
        status.state = Some(waiting(reason, message));
        return status;
    };
    status.restart_count = i32::try_from(current.attempt).unwrap_or(i32::MAX);
    status.container_id = Some(format!("podwright://{}", current.id));
    status.image_id.clone_from(&current.image_id);
    let previous = attempts.get(1).and_then(terminated);
    match &current.state {
        ObservedState::Created => status.state = Some(waiting("ContainerCreating", None)),
        ObservedState::Running { started_at } => {
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: time(*started_at) }),
                ..ContainerState::default()
            });
            status.started = Some(true);
            status.ready = facts.ready.contains(&current.id);
            status.last_state = Some(previous.unwrap_or_default());
        }
        ObservedState::Exited { code, .. } => {
            let now = terminated(current).unwrap_or_default();
            if let Some((reason, message)) = told {
                status.state = Some(waiting(reason, Some(message.clone())));
                status.last_state = Some(now);
            } else if facts.backing_off.contains(&container.name) {
                let delay = facts.back_offs.get(&container.name).copied().unwrap_or_default().delay();
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
            } else {
                status.state = Some(now);
                status.last_state = Some(previous.unwrap_or_default());
            }
            // An init container that has done its work is ready.
            status.ready = is_init && *code == 0;
        }
    }
    status
}

fn terminated(container: &ObservedContainer) -> Option<ContainerState> {
    let ObservedState::Exited { code, reason, message, started_at, finished_at, .. } = &container.state
    else {
        return None;
    };
    let terminated = ContainerStateTerminated {
        exit_code: *code,
        reason: Some(reason.clone()).filter(|reason| !reason.is_empty()),
        message: Some(message.clone()).filter(|message| !message.is_empty()),
        started_at: time(*started_at),
        finished_at: time(*finished_at),
        container_id: Some(format!("podwright://{}", container.id)),
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
    use super::*;
    use crate::pod::model::tests::pod;
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
        assert_eq!((status.phase.as_deref(), is_true(&status, "Ready")), (Some("Running"), false));
        facts.ready.insert("c".into());
        let status = render_status(&pod(&["a"]), &running, &facts, None, 1);
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
        facts.back_offs.insert("a".into(), BackOff::default().next(BootTime(1), BootTime(1)));
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
    fn transition_times_stay_where_nothing_changed() {
        let running = seen(Some(ObservedState::Running { started_at: 1 }));
        let former = render_status(&pod(&["a"]), &running, &StatusFacts::default(), None, 5_000_000_000);
        let ready = StatusFacts { ready: ["c".to_owned()].into(), ..StatusFacts::default() };
        let next = render_status(&pod(&["a"]), &running, &ready, Some(&former), 9_000_000_000);
        let since = |kind: &str| {
            let mut conditions = next.conditions.iter().flatten();
            conditions
                .find(|one| one.type_ == kind)
                .and_then(|one| one.last_transition_time.as_ref())
                .map(|time| time.0.as_second())
        };
        assert_eq!((since("Ready"), since("PodScheduled")), (Some(9), Some(5)));
    }
}

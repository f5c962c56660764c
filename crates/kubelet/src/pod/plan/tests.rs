use serde_json::json;

use super::*;
use crate::pod::model::tests::pod_of;

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

/// Its id is its name and attempt.
fn container(name: &str, attempt: u32, state: ObservedState) -> ObservedContainer {
    ObservedContainer {
        id: format!("{name}{attempt}"),
        sandbox: "s".into(),
        attempt,
        image_id: "i".into(),
        image: "i".into(),
        details: Details::default(),
        state,
    }
}

fn seen(ready: bool, containers: &[(&str, ObservedState)]) -> ObservedPod {
    let containers = containers
        .iter()
        .map(|(name, state)| ((*name).to_owned(), vec![container(name, 0, state.clone())]))
        .collect();
    ObservedPod { sandboxes: vec![sandbox(ready)], containers }
}

fn start(name: &str, attempt: u32) -> PodAction {
    PodAction::StartContainer { name: name.into(), attempt }
}

fn remove(name: &str, attempt: u32) -> PodAction {
    PodAction::RemoveContainer { id: format!("{name}{attempt}"), name: name.into(), attempt }
}

/// The names of what is stopped, `+` before those whose hook runs first; other actions as they are.
fn told(plan: &PodPlan) -> Vec<String> {
    let one = |action: &PodAction| match action {
        PodAction::StopContainer { name, .. } => name.clone(),
        PodAction::PreStop { name, .. } => format!("+{name}"),
        other => format!("{other:?}"),
    };
    plan.actions.iter().map(one).collect()
}

fn simple(policy: &str) -> Pod {
    pod_of(json!({ "restartPolicy": policy, "containers": [{ "name": "a", "image": "i" }] }))
}

/// Sidecars `s` and `t` around the init container `i`, then `a` and `b`.
fn with_sidecars(policy: &str) -> Pod {
    pod_of(json!({
        "restartPolicy": policy, "terminationGracePeriodSeconds": 10,
        "initContainers": [
            { "name": "s", "image": "i", "restartPolicy": "Always",
              "startupProbe": { "exec": { "command": ["x"] } } },
            { "name": "i", "image": "i" },
            { "name": "t", "image": "i", "restartPolicy": "Always",
              "lifecycle": { "preStop": { "exec": { "command": ["x"] } } } },
        ],
        "containers": [{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }],
    }))
}

fn sync(pod: &Pod, seen: &ObservedPod, memory: &Memory) -> Vec<PodAction> {
    plan_pod(pod, WorkerState::Syncing, seen, memory, NOW).actions
}

fn check(policy: &str, seen: &ObservedPod, expect: &[PodAction]) {
    let pod = simple(policy);
    let state = WorkerState::Syncing.next(&pod, seen, &Memory::default(), true, NOW);
    let plan = plan_pod(&pod, state, seen, &Memory::default(), NOW);
    assert_eq!(plan.actions, expect, "{policy} {seen:?}");
}

#[test]
fn a_new_pod_gets_a_sandbox_then_its_containers() {
    check("Always", &ObservedPod::default(), &[PodAction::CreateSandbox { attempt: 0 }]);
    check("Always", &seen(true, &[]), &[start("a", 0)]);
}

#[test]
fn the_plan_of_a_converged_pod_is_empty() {
    check("Always", &seen(true, &[("a", running())]), &[]);
    check("Never", &seen(false, &[("a", exited(1))]), &[]);
}

#[test]
fn the_restart_policy_decides_what_is_started_again() {
    let stop = PodAction::StopSandbox { id: "s".into() };
    for (policy, code, expect) in [
        ("Always", 0, start("a", 1)),
        ("Always", 1, start("a", 1)),
        ("OnFailure", 1, start("a", 1)),
        ("OnFailure", 0, stop.clone()),
        ("Never", 1, stop.clone()),
    ] {
        check(policy, &seen(true, &[("a", exited(code))]), &[expect]);
    }
}

#[test]
fn restarts_container_only_after_back_off_expires() {
    let pod = simple("Always");
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
fn a_changed_image_replaces_what_runs_whatever_the_restart_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let pod = pod_of(json!({ "restartPolicy": policy, "containers": [{ "name": "a", "image": "new" }] }));
        let mut now_seen = seen(true, &[("a", running())]);
        let mut memory = Memory::default();
        let plan = plan_pod(&pod, WorkerState::Syncing, &now_seen, &memory, NOW);
        let kill = Kill { deadline: NOW.after(pod.grace), why: StopReason::Changed };
        let stop = PodAction::StopContainer { id: "a0".into(), name: "a".into(), kill };
        assert_eq!(plan.actions, [stop], "{policy}");
        // It ended by our signal; a back-off of its crashes is not the new image's.
        memory.kills.insert("a0".into(), kill);
        memory.back_offs.insert("a".into(), BackOff::default().next(NOW, NOW));
        now_seen.containers.get_mut("a").unwrap()[0].state = exited(0);
        memory.keep(&now_seen);
        assert_eq!(outcome(&pod, &now_seen, &memory), None, "{policy}");
        assert_eq!(
            plan_pod(&pod, WorkerState::Syncing, &now_seen, &memory, NOW).actions,
            [start("a", 1)],
            "{policy}"
        );
    }
    // What had ended before stays as its restart policy says.
    let pod = pod_of(json!({ "restartPolicy": "Never", "containers": [{ "name": "a", "image": "new" }] }));
    let over = seen(true, &[("a", exited(0))]);
    assert_eq!(outcome(&pod, &over, &Memory::default()), Some(Outcome::Succeeded));
    // A runtime that does not tell what was asked for changes nothing.
    let mut silent = seen(true, &[("a", running())]);
    silent.containers.get_mut("a").unwrap()[0].image.clear();
    assert_eq!(plan_pod(&pod, WorkerState::Syncing, &silent, &Memory::default(), NOW).actions, []);
}

#[test]
fn a_clock_that_is_set_keeps_no_container_waiting() {
    let pod = simple("Always");
    let back_off = BackOff::default().next(NOW, NOW);
    let mut memory = Memory { back_offs: [("a".to_owned(), back_off)].into(), ..Memory::default() };
    let later = NOW.after(Duration::from_secs(10));
    memory.settle_ends(&mut seen(true, &[("a", exited(1))]));
    // Set back by an hour, the end seems to be now in every round; set forward, long ago.
    for seems in [later, BootTime(0)] {
        let mut seen = seen(true, &[("a", exited(1))]);
        let containers = seen.containers.values_mut().flatten();
        for container in containers {
            if let ObservedState::Exited { ended, .. } = &mut container.state {
                *ended = seems;
            }
        }
        memory.settle_ends(&mut seen);
        assert_eq!(sync(&pod, &seen, &memory), [], "{seems:?}");
        assert_eq!(
            plan_pod(&pod, WorkerState::Syncing, &seen, &memory, later).actions,
            [start("a", 1)],
            "{seems:?}"
        );
    }
    memory.settle_ends(&mut seen(true, &[("a", running())]));
    assert!(memory.ends.is_empty());
}

#[test]
fn init_containers_run_in_order_and_a_sidecar_is_passed_when_it_has_started() {
    let pod = with_sidecars("Always");
    let mut memory = Memory::default();
    let plan =
        |memory: &Memory, containers: &[(&str, ObservedState)]| sync(&pod, &seen(true, containers), memory);
    assert_eq!(plan(&memory, &[]), [start("s", 0)]);
    assert_eq!(plan(&memory, &[("s", running())]), [], "its startup probe has not succeeded");
    memory.started.insert("s0".into());
    assert_eq!(plan(&memory, &[("s", running())]), [start("i", 0)]);
    assert_eq!(plan(&memory, &[("s", running()), ("i", running())]), []);
    assert_eq!(plan(&memory, &[("s", running()), ("i", exited(1))]), [start("i", 1)]);
    assert_eq!(
        plan(&memory, &[("s", exited(0)), ("i", running())]),
        [start("s", 1)],
        "a sidecar is kept running while others prepare"
    );
    assert_eq!(plan(&memory, &[("s", running()), ("i", exited(0))]), [start("t", 0)]);
    let prepared = [("s", running()), ("i", exited(0)), ("t", running())];
    assert_eq!(plan(&memory, &prepared), [start("a", 0), start("b", 0)]);
    memory.post_start.insert("t0".into());
    assert_eq!(
        plan(&memory, &prepared),
        [PodAction::PostStart { id: "t0".into(), name: "t".into() }],
        "an interrupted hook runs again, and the others wait for it"
    );
}

#[test]
fn what_prepared_the_pod_is_not_run_again_but_in_a_new_sandbox() {
    let pod = with_sidecars("Always");
    // The record of the init container was removed; the main containers were there.
    let begun = [("s", running()), ("t", running()), ("a", exited(1)), ("b", running())];
    assert_eq!(sync(&pod, &seen(true, &begun), &Memory::default()), [start("a", 1)]);
    let mut renewed = seen(true, &[("s", exited(255)), ("i", exited(0)), ("a", exited(255))]);
    renewed.sandboxes.insert(0, ObservedSandbox { id: "new".into(), attempt: 1, ..sandbox(true) });
    assert_eq!(sync(&pod, &renewed, &Memory::default()), [start("s", 1)], "everything from the beginning");
}

#[test]
fn a_pod_ends_with_its_main_containers_and_then_its_sidecars_end() {
    for (policy, init, expect) in [
        ("OnFailure", exited(0), Some(Outcome::Succeeded)),
        ("Never", exited(0), Some(Outcome::Succeeded)),
        ("Never", exited(1), Some(Outcome::Failed)),
        ("Always", exited(0), None),
    ] {
        let pod = with_sidecars(policy);
        let main = [("s", running()), ("i", init), ("t", running()), ("a", exited(0)), ("b", exited(0))];
        let seen = seen(true, &main);
        assert_eq!(outcome(&pod, &seen, &Memory::default()), expect, "{policy}");
        let state = WorkerState::Syncing.next(&pod, &seen, &Memory::default(), true, NOW);
        assert_eq!(matches!(state, WorkerState::Completing { .. }), expect.is_some());
        if expect.is_some() {
            let memory = Memory { pre_stopped: ["t0".to_owned()].into(), ..Memory::default() };
            assert_eq!(told(&plan_pod(&pod, state, &seen, &memory, NOW)), ["t"]);
        }
    }
}

#[test]
fn sidecars_end_after_the_main_containers_in_reverse_order() {
    let pod = with_sidecars("Always");
    let state = WorkerState::Syncing.next(&pod, &ObservedPod::default(), &Memory::default(), false, NOW);
    let deadline = NOW.after(Duration::from_secs(10));
    assert_eq!(state, WorkerState::Terminating { deadline });
    let all = [("s", running()), ("i", exited(0)), ("t", running()), ("a", running()), ("b", running())];
    let mut memory = Memory::default();
    let plan = plan_pod(&pod, state, &seen(true, &all), &memory, NOW);
    assert_eq!(told(&plan), ["a", "b", "+t"], "a hook runs at once");
    assert_eq!(plan.wake_at, Some(deadline));
    memory.busy.extend(["a0", "b0", "t0"].map(|id| (id.to_owned(), NOW)));
    assert!(plan_pod(&pod, state, &seen(true, &all), &memory, NOW).actions.is_empty(), "all is on its way");
    memory.busy.clear();
    memory.pre_stopped.insert("t0".into());
    let some = [("s", running()), ("t", running()), ("a", exited(0)), ("b", running())];
    memory.busy.insert("b0".into(), NOW);
    assert!(plan_pod(&pod, state, &seen(true, &some), &memory, NOW).actions.is_empty(), "b still runs");
    let late = plan_pod(&pod, state, &seen(true, &some), &memory, deadline);
    assert_eq!(told(&late), ["t", "s"], "nobody's turn matters once the time is over");
    assert_eq!(late.wake_at, None);
    let rest = [("s", running()), ("t", running()), ("a", exited(0)), ("b", exited(0))];
    assert_eq!(told(&plan_pod(&pod, state, &seen(true, &rest), &memory, NOW)), ["t"]);
    let last = [("s", running()), ("t", exited(0)), ("a", exited(0)), ("b", exited(0))];
    assert_eq!(told(&plan_pod(&pod, state, &seen(true, &last), &memory, NOW)), ["s"]);
}

#[test]
fn a_container_that_is_to_end_runs_its_hook_then_is_stopped_within_its_own_grace() {
    let pod = pod_of(json!({ "containers": [
        { "name": "a", "image": "i", "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } } },
    ] }));
    let kill = Kill { deadline: NOW.after(Duration::from_secs(3)), why: StopReason::FailedLiveness };
    let mut memory = Memory { kills: [("a0".to_owned(), kill)].into(), ..Memory::default() };
    let seen = seen(true, &[("a", running())]);
    let (id, name) = ("a0".to_owned(), "a".to_owned());
    let hook = PodAction::PreStop { id: id.clone(), name: name.clone(), kill };
    assert_eq!(sync(&pod, &seen, &memory), [hook]);
    memory.pre_stopped.insert("a0".into());
    let stop = PodAction::StopContainer { id, name, kill };
    assert_eq!(sync(&pod, &seen, &memory), std::slice::from_ref(&stop));
    let state = WorkerState::Terminating { deadline: NOW.after(Duration::from_secs(30)) };
    assert_eq!(
        plan_pod(&pod, state, &seen, &memory, NOW).actions,
        [stop],
        "a longer grace of the pod changes nothing"
    );
    memory.pre_stopped.clear();
    let late = plan_pod(&pod, state, &seen, &memory, kill.deadline);
    assert_eq!(told(&late), ["a"], "no hook once the grace is over");
}

#[test]
fn a_shorter_grace_that_is_told_later_reaches_the_runtime() {
    let pod = pod_of(json!({ "containers": [
        { "name": "a", "image": "i" },
        { "name": "b", "image": "i", "lifecycle": { "preStop": { "sleep": { "seconds": 20 } } } },
    ] }));
    let until = NOW.after(Duration::from_secs(30));
    let busy = ["a0", "b0"].map(|id| (id.to_owned(), until));
    let memory = Memory { busy: busy.into(), ..Memory::default() };
    let seen = seen(true, &[("a", running()), ("b", running())]);
    let plan = |seconds, now| {
        let deadline = NOW.after(Duration::from_secs(seconds));
        told(&plan_pod(&pod, WorkerState::Terminating { deadline }, &seen, &memory, now))
    };
    assert!(plan(30, NOW).is_empty() && plan(29, NOW).is_empty(), "it is as it was said");
    assert_eq!(plan(5, NOW), ["a"], "a hook has until then");
    assert_eq!(plan(5, NOW.after(Duration::from_secs(5))), ["a", "b"]);
}

#[test]
fn a_pod_that_has_failed_as_a_whole_ends_and_stays() {
    let (soon, later) = (NOW, NOW.after(Duration::from_secs(9)));
    let failed = WorkerState::Syncing.failed(later);
    assert_eq!(failed, WorkerState::Completing { deadline: later });
    assert_eq!(failed.failed(soon), WorkerState::Completing { deadline: soon });
    let ending = WorkerState::Terminating { deadline: later };
    assert_eq!(ending.failed(soon), ending);
    let plan = plan_pod(&simple("Always"), failed, &seen(true, &[("a", running())]), &Memory::default(), NOW);
    assert_eq!(told(&plan), ["a"]);
    let plan =
        plan_pod(&simple("Always"), failed, &seen(false, &[("a", exited(137))]), &Memory::default(), NOW);
    assert!(plan.actions.is_empty(), "nothing is started again: {plan:?}");
}

#[test]
fn a_leftover_of_a_crash_between_create_and_start_is_made_anew() {
    let plan = seen(true, &[("a", ObservedState::Created)]);
    check("Always", &plan, &[remove("a", 0), start("a", 0)]);
}

#[test]
fn a_lost_sandbox_is_replaced_after_its_containers_are_stopped() {
    let lost = seen(false, &[("a", running())]);
    let plan = plan_pod(&simple("Always"), WorkerState::Syncing, &lost, &Memory::default(), NOW);
    let kill = Kill { deadline: NOW, why: StopReason::SandboxChanged };
    assert_eq!(plan.actions, [PodAction::StopContainer { id: "a0".into(), name: "a".into(), kill }]);
    check("Always", &seen(false, &[("a", exited(255))]), &[PodAction::CreateSandbox { attempt: 1 }]);
}

#[test]
fn termination_stops_then_removes_then_finishes() {
    let pod = simple("Always");
    let state = WorkerState::Terminating { deadline: NOW.after(Duration::from_secs(3)) };
    let plan = |seen: &ObservedPod| plan_pod(&pod, state, seen, &Memory::default(), NOW);
    assert_eq!(told(&plan(&seen(true, &[("a", running())]))), ["a"]);
    let (stop, remove) =
        (PodAction::StopSandbox { id: "s".into() }, PodAction::RemoveSandbox { id: "s".into() });
    assert_eq!(plan(&seen(true, &[("a", exited(0))])).actions, [stop, remove.clone()]);
    assert_eq!(plan(&seen(false, &[])).actions, [remove]);
    assert_eq!(plan(&ObservedPod::default()).actions, [PodAction::Finish]);
}

#[test]
fn a_grace_of_nothing_is_a_second_and_none_grows() {
    let pod =
        pod_of(json!({ "terminationGracePeriodSeconds": 0, "containers": [{ "name": "a", "image": "i" }] }));
    let nothing = ObservedPod::default();
    let soon = NOW.after(Duration::from_secs(1));
    let state = WorkerState::Syncing.next(&pod, &nothing, &Memory::default(), false, NOW);
    assert_eq!(state, WorkerState::Terminating { deadline: soon });
    assert_eq!(state.next(&pod, &nothing, &Memory::default(), true, NOW), state, "phases go one way");
    let completing = WorkerState::Completing { deadline: NOW };
    assert_eq!(
        completing.next(&pod, &nothing, &Memory::default(), false, soon),
        WorkerState::Terminating { deadline: NOW }
    );
}

#[test]
fn old_attempts_are_removed_but_the_last_two() {
    let attempts =
        vec![container("a", 3, running()), container("a", 2, exited(1)), container("a", 1, exited(1))];
    let seen =
        ObservedPod { sandboxes: vec![sandbox(true)], containers: [("a".to_owned(), attempts)].into() };
    check("Always", &seen, &[remove("a", 1)]);
}

#[test]
fn what_does_not_run_any_more_is_forgotten() {
    let ids = || ["a0".to_owned(), "b0".to_owned()].into();
    let mut memory = Memory { started: ids(), ready: ids(), post_start: ids(), ..Memory::default() };
    memory.keep(&seen(true, &[("a", running()), ("b", exited(1))]));
    let kept = ["a0".to_owned()].into();
    assert_eq!(
        (memory.started, memory.ready, memory.post_start),
        (Clone::clone(&kept), Clone::clone(&kept), kept)
    );
}

#[test]
fn an_ephemeral_container_is_started_once_and_decides_nothing() {
    let pod = pod_of(json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "i", "image": "i" }],
        "containers": [{ "name": "a", "image": "i" }],
        "ephemeralContainers": [{ "name": "debug", "image": "i" }],
    }));
    let plan = |observed: &ObservedPod, state: WorkerState| {
        plan_pod(&pod, state, observed, &Memory::default(), NOW).actions
    };
    let start = |name: &str| PodAction::StartContainer { name: name.into(), attempt: 0 };
    let stuck = seen(true, &[("i", running())]);
    assert_eq!(plan(&stuck, WorkerState::Syncing), [start("debug")], "before the pod is initialized");
    let done = seen(true, &[("i", exited(0)), ("a", running()), ("debug", exited(1))]);
    assert_eq!(plan(&done, WorkerState::Syncing), [], "it is not started again");
    let left = seen(true, &[("i", exited(0)), ("a", exited(0)), ("debug", running())]);
    assert_eq!(outcome(&pod, &left, &Memory::default()), Some(Outcome::Succeeded));
    let completing = plan(&left, WorkerState::Completing { deadline: NOW.after(Duration::from_secs(9)) });
    assert!(
        matches!(&completing[..], [PodAction::StopContainer { name, .. }] if name == "debug"),
        "{completing:?}"
    );
}

//! What is to run: a sandbox, the init containers in order, then the main ones together.

use crate::pod::model::{Container, Pod, Role};
use crate::pod::plan::{
    Kill, Memory, ObservedContainer, ObservedPod, ObservedSandbox, ObservedState, PodAction, PodPlan, Round,
    StopReason, is_started, newest, restarts,
};

/// How many ended containers of a name are kept, for `kubectl logs --previous`.
const KEPT: usize = 2;

impl Round<'_> {
    pub(super) fn sync(&self) -> PodPlan {
        let Some(sandbox) = current_sandbox(self.seen) else {
            return self.new_sandbox();
        };
        // What runs in a former sandbox has no network.
        let deadline = self.now.after(self.pod.grace);
        let kill = Kill { deadline, why: StopReason::SandboxChanged };
        if let Some(stops) = self.stop_running(|container| container.sandbox != sandbox.id, kill) {
            return stops;
        }
        let mut plan = PodPlan::of(self.old_attempts());
        // Before all others: they are for looking at a pod that does not come up.
        for ephemeral in &self.pod.ephemeral_containers {
            self.container(ephemeral, newest(self.seen, &ephemeral.name), &mut plan);
        }
        if self.init_containers(sandbox, &mut plan) {
            for container in &self.pod.containers {
                self.container(container, newest(self.seen, &container.name), &mut plan);
            }
        }
        plan
    }

    /// A sandbox that is not ready is left with its ended containers until the new one is there: their exits count.
    fn new_sandbox(&self) -> PodPlan {
        let kill = Kill { deadline: self.now, why: StopReason::SandboxChanged };
        if let Some(stops) = self.stop_running(|_| true, kill) {
            return stops;
        }
        if let Some(until) = self.memory.sandbox_held.filter(|until| *until > self.now) {
            return PodPlan { wake_at: Some(until), ..PodPlan::default() };
        }
        let attempt = self.seen.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
        PodPlan::of(vec![PodAction::CreateSandbox { attempt }])
    }

    /// Plans the init containers; whether the main ones may run. Once a main container has run in this sandbox, or a later
    /// init container, what came before is not waited for again: sidecars are only kept running.
    fn init_containers(&self, sandbox: &ObservedSandbox, plan: &mut PodPlan) -> bool {
        let inits = &self.pod.init_containers;
        let reached = if has_begun(self.pod, self.seen, sandbox) {
            inits.len()
        } else {
            let began = |init: &Container| newest_in(self.seen, &init.name, sandbox).is_some();
            inits.iter().rposition(began).unwrap_or(0)
        };
        let (before, rest) = inits.split_at(reached);
        for sidecar in before.iter().filter(|init| init.role == Role::Sidecar) {
            self.container(sidecar, newest_in(self.seen, &sidecar.name, sandbox), plan);
        }
        for init in rest {
            let current = newest_in(self.seen, &init.name, sandbox);
            if is_done(init, current, self.memory) {
                continue;
            }
            self.container(init, current, plan);
            return false;
        }
        true
    }

    /// What is to be done about one container; `current` is its newest incarnation that counts.
    fn container(&self, container: &Container, current: Option<&ObservedContainer>, plan: &mut PodPlan) {
        let name = &container.name;
        let start = |attempt| PodAction::StartContainer { name: name.clone(), attempt };
        let held = self.memory.held.get(name).filter(|until| **until > self.now);
        let Some(current) = current else {
            // One of a former sandbox has its logs under its attempt.
            let attempt = newest(self.seen, name).map_or(0, |former| former.attempt + 1);
            return match held {
                Some(until) => plan.wake(*until),
                None => plan.actions.push(start(attempt)),
            };
        };
        let (id, attempt) = (current.id.clone(), current.attempt);
        match &current.state {
            ObservedState::Created => {
                plan.actions.push(PodAction::RemoveContainer { id, name: name.clone(), attempt });
                plan.actions.push(start(attempt));
            }
            ObservedState::Running { .. } => match self.memory.kills.get(&id) {
                Some(kill) => self.stop_one(container, current, *kill, true, plan),
                None if self.memory.post_start.contains(&id) => {
                    plan.actions.push(PodAction::PostStart { id, name: name.clone() });
                }
                None if is_changed(container, current) => {
                    let deadline = self.now.after(self.pod.grace);
                    self.stop_one(
                        container,
                        current,
                        Kill { deadline, why: StopReason::Changed },
                        true,
                        plan,
                    );
                }
                None => {}
            },
            ObservedState::Exited { code, ended, .. } => {
                if !restarts(container, current, *code, self.memory) {
                    return;
                }
                // What has changed since may do better.
                let waits = !is_changed(container, current);
                let back_off = self.memory.back_offs.get(name).copied().filter(|_| waits).unwrap_or_default();
                match (back_off.until(*ended, self.now), held) {
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

    fn old_attempts(&self) -> Vec<PodAction> {
        let mut actions = Vec::new();
        for (name, attempts) in &self.seen.containers {
            for container in attempts.iter().skip(KEPT) {
                if matches!(container.state, ObservedState::Exited { .. }) {
                    actions.push(PodAction::RemoveContainer {
                        id: container.id.clone(),
                        name: name.clone(),
                        attempt: container.attempt,
                    });
                }
            }
        }
        actions
    }
}

/// Whether the main containers may run, or have run, in the sandbox that there is.
#[must_use]
pub fn is_initialized(pod: &Pod, seen: &ObservedPod, memory: &Memory) -> bool {
    let Some(sandbox) = seen.sandboxes.first() else { return pod.init_containers.is_empty() };
    let done = |init: &Container| is_done(init, newest_in(seen, &init.name, sandbox), memory);
    has_begun(pod, seen, sandbox) || pod.init_containers.iter().all(done)
}

/// An init container has done its work when it has succeeded, a sidecar when it has started.
fn is_done(init: &Container, current: Option<&ObservedContainer>, memory: &Memory) -> bool {
    let Some(current) = current else { return false };
    match init.role {
        Role::Sidecar => is_started(init, current, memory),
        Role::Init | Role::Main | Role::Ephemeral => {
            matches!(current.state, ObservedState::Exited { code: 0, .. })
        }
    }
}

/// Whether the pod asks for another image than the container was made of. Upstream: kuberuntime's containerChanged.
fn is_changed(container: &Container, observed: &ObservedContainer) -> bool {
    let asked = container.spec.image.as_deref().unwrap_or_default();
    // Init containers that run their course are left alone.
    container.role != Role::Init && !observed.image.is_empty() && observed.image != asked
}

/// Whether a main container was made in that sandbox.
fn has_begun(pod: &Pod, seen: &ObservedPod, sandbox: &ObservedSandbox) -> bool {
    pod.containers.iter().any(|container| newest_in(seen, &container.name, sandbox).is_some())
}

/// What ran in a former sandbox has prepared nothing for this one.
fn newest_in<'a>(
    seen: &'a ObservedPod,
    name: &str,
    sandbox: &ObservedSandbox,
) -> Option<&'a ObservedContainer> {
    newest(seen, name).filter(|container| container.sandbox == sandbox.id)
}

fn current_sandbox(seen: &ObservedPod) -> Option<&ObservedSandbox> {
    seen.sandboxes.first().filter(|sandbox| sandbox.ready)
}

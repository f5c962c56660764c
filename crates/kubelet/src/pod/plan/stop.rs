//! What is to end, and in which order: main containers together, then sidecars, the last one first. A preStop hook runs as
//! soon as its container is to end, whoever's turn it is, and counts against the grace. Upstream: kuberuntime,
//! termination ordering.

use std::time::Duration;

use crate::pod::model::{Container, Role};
use crate::pod::plan::{Kill, ObservedContainer, PodAction, PodPlan, Round, StopReason, is_running};
use crate::time::BootTime;

/// Deadlines that are as good as the same: CRI counts seconds.
const SAME: Duration = Duration::from_secs(1);

impl Round<'_> {
    /// Everything is stopped, then removed.
    pub(super) fn terminate(&self, deadline: BootTime) -> PodPlan {
        let kill = Kill { deadline, why: StopReason::PodDeleted };
        if let Some(stops) = self.stop_running(|_| true, kill) {
            return stops;
        }
        let mut actions: Vec<PodAction> = Vec::new();
        for sandbox in &self.seen.sandboxes {
            actions.extend(sandbox.ready.then(|| PodAction::StopSandbox { id: sandbox.id.clone() }));
            actions.push(PodAction::RemoveSandbox { id: sandbox.id.clone() });
        }
        if actions.is_empty() {
            actions.push(PodAction::Finish);
        }
        PodPlan::of(actions)
    }

    /// A pod that has ended gives its network back; its containers stay for their logs and statuses.
    pub(super) fn complete(&self, deadline: BootTime) -> PodPlan {
        let kill = Kill { deadline, why: StopReason::PodDeleted };
        if let Some(stops) = self.stop_running(|_| true, kill) {
            return stops;
        }
        let ready = self.seen.sandboxes.iter().filter(|sandbox| sandbox.ready);
        PodPlan::of(ready.map(|sandbox| PodAction::StopSandbox { id: sandbox.id.clone() }).collect())
    }

    /// Stops what runs of these, each in its turn; nothing when none of them runs.
    pub(super) fn stop_running(
        &self,
        which: impl Fn(&ObservedContainer) -> bool,
        kill: Kill,
    ) -> Option<PodPlan> {
        let mut plan = PodPlan::default();
        let (mut runs, mut runs_later) = (false, false);
        // Main containers first: they are what sidecars wait for. Then from the last init container to the first. Nobody
        // waits for ephemeral ones.
        let all = self.pod.ephemeral_containers.iter().chain(&self.pod.containers);
        let all = all.chain(self.pod.init_containers.iter().rev());
        for container in all {
            let attempts = self.seen.containers.get(&container.name).map(Vec::as_slice).unwrap_or_default();
            for running in attempts.iter().filter(|one| is_running(one) && which(one)) {
                let known = self.memory.kills.get(&running.id).copied().unwrap_or(kill);
                // A grace that began earlier is not made longer.
                let kill = Kill { deadline: known.deadline.min(kill.deadline), ..known };
                let is_over = kill.deadline <= self.now;
                let turn = container.role != Role::Sidecar || !runs_later || is_over;
                self.stop_one(container, running, kill, turn, &mut plan);
                if !is_over {
                    plan.wake(kill.deadline);
                }
                runs = true;
                runs_later |= container.role != Role::Ephemeral;
            }
        }
        runs.then_some(plan)
    }

    /// The hook at once, the signal when it is the container's turn.
    pub(super) fn stop_one(
        &self,
        container: &Container,
        running: &ObservedContainer,
        kill: Kill,
        is_turn: bool,
        plan: &mut PodPlan,
    ) {
        let id = running.id.clone();
        let name = container.name.clone();
        if let Some(until) = self.memory.busy.get(&id) {
            // A shorter grace that was told meanwhile: the runtime is told too. A hook is left alone until it is over.
            let stopping = self.memory.pre_stopped.contains(&id) || !has_hook(container);
            if kill.deadline.after(SAME) < *until && (stopping || kill.deadline <= self.now) {
                plan.actions.push(PodAction::StopContainer { id, name, kill });
            }
            return;
        }
        // No hook once the grace is over.
        let pending =
            has_hook(container) && !self.memory.pre_stopped.contains(&id) && kill.deadline > self.now;
        if pending {
            plan.actions.push(PodAction::PreStop { id, name, kill });
        } else if is_turn {
            plan.actions.push(PodAction::StopContainer { id, name, kill });
        }
    }
}

fn has_hook(container: &Container) -> bool {
    container.spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
}

//! A task per probe of a running container; their verdicts come back to the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::transport::Channel;

use super::Worker;
use crate::events::Kind;
use crate::pod::plan::{ObservedPod, ObservedState};
use crate::probe::{ProbeKind, Streak, Target, Timing, ask};
use crate::time::boot_of_wall;

/// One answer, and the verdict when it changed something.
pub(super) struct Verdict {
    container: String,
    name: String,
    kind: ProbeKind,
    /// The sentence of a failed answer.
    failure: Option<String>,
    verdict: Option<bool>,
}

/// The probers of one pod, and what their probes decided.
pub(super) struct Probers {
    cri: Channel,
    verdicts: mpsc::Sender<Verdict>,
    tasks: BTreeMap<(String, ProbeKind), AbortHandle>,
    /// Containers whose readiness probe succeeded.
    pub(super) ready: BTreeSet<String>,
}

impl Probers {
    pub(super) fn new(cri: Channel, verdicts: mpsc::Sender<Verdict>) -> Self {
        Self { cri, verdicts, tasks: BTreeMap::new(), ready: BTreeSet::new() }
    }

    pub(super) fn is_ready(&self, container: &str) -> bool {
        self.ready.contains(container)
    }
}

impl Drop for Probers {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

impl Worker {
    /// Probes what runs, and nothing else.
    pub(super) fn follow_probes(&mut self, seen: &ObservedPod) {
        let ip = seen
            .sandboxes
            .first()
            .and_then(|sandbox| sandbox.ips.first()?.parse().ok())
            .or(self.node.config.node_ip);
        let mut wanted = BTreeSet::new();
        for container in &self.pod.containers {
            let Some(current) = seen.containers.get(&container.name).and_then(|attempts| attempts.first())
            else {
                continue;
            };
            let ObservedState::Running { started_at } = current.state else { continue };
            let probes = [
                (ProbeKind::Readiness, &container.spec.readiness_probe),
                (ProbeKind::Liveness, &container.spec.liveness_probe),
            ];
            for (kind, probe) in probes {
                let Some(probe) = probe else { continue };
                let key = (current.id.clone(), kind);
                wanted.insert(key.clone());
                if self.probers.tasks.contains_key(&key) {
                    continue;
                }
                let target = Target {
                    container_id: current.id.clone(),
                    ip,
                    ports: container.spec.ports.clone().unwrap_or_default(),
                };
                let prober = Prober {
                    name: container.name.clone(),
                    kind,
                    probe: probe.clone(),
                    target,
                    started_at,
                    cri: self.probers.cri.clone(),
                    verdicts: self.probers.verdicts.clone(),
                };
                self.probers.tasks.insert(key, tokio::spawn(prober.run()).abort_handle());
            }
        }
        self.probers.tasks.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        let running: BTreeSet<&String> = wanted.iter().map(|(id, _)| id).collect();
        self.probers.ready.retain(|id| running.contains(id));
        self.memory.failed_liveness.retain(|id| running.contains(id));
    }

    /// Takes a verdict, and tells of failures as upstream does.
    pub(super) fn judge(&mut self, verdict: Verdict) {
        if let Some(message) = &verdict.failure {
            let kind = if verdict.kind == ProbeKind::Readiness { "Readiness" } else { "Liveness" };
            let message = format!("{kind} probe failed: {message}");
            self.node.reporter.event(&self.pod, Kind::Warning, "Unhealthy", &message);
        }
        match (verdict.kind, verdict.verdict) {
            (_, None) | (ProbeKind::Liveness, Some(true)) => {}
            (ProbeKind::Readiness, Some(true)) => {
                self.probers.ready.insert(verdict.container);
            }
            (ProbeKind::Readiness, Some(false)) => {
                self.probers.ready.remove(&verdict.container);
            }
            (ProbeKind::Liveness, Some(false)) => {
                let message = format!("Container {} failed liveness probe, will be restarted", verdict.name);
                self.node.reporter.event(&self.pod, Kind::Normal, "Killing", &message);
                self.memory.failed_liveness.insert(verdict.container);
            }
        }
    }
}

/// Asks again and again.
struct Prober {
    name: String,
    kind: ProbeKind,
    probe: v1::Probe,
    target: Target,
    started_at: i64,
    cri: Channel,
    verdicts: mpsc::Sender<Verdict>,
}

impl Prober {
    async fn run(self) {
        let timing = Timing::of(&self.probe);
        let ready_at = boot_of_wall(self.started_at).after(timing.initial_delay);
        let wait = ready_at.since(crate::time::BootTime::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let mut streak = Streak::default();
        let mut ticks = tokio::time::interval(timing.period.max(Duration::from_secs(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            ticks.tick().await;
            let answer = ask(&self.probe, &self.target, &self.cri, timing.timeout).await;
            let verdict = streak.answer(answer.is_ok(), &timing);
            // A verdict that is known says nothing new.
            let news = verdict.filter(|verdict| told != Some(*verdict));
            if news.is_none() && answer.is_ok() {
                continue;
            }
            told = verdict.or(told);
            let verdict = Verdict {
                container: self.target.container_id.clone(),
                name: self.name.clone(),
                kind: self.kind,
                failure: answer.err(),
                verdict: news,
            };
            if self.verdicts.send(verdict).await.is_err() {
                return;
            }
        }
    }
}

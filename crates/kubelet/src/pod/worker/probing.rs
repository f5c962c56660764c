//! A task per probe of a running container; their verdicts come back to the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::transport::Channel;

use super::{News, Worker};
use crate::events::Kind;
use crate::pod::model::{Container, Role};
use crate::pod::plan::{
    Kill, ObservedContainer, ObservedPod, ObservedState, StopReason, WorkerState, is_started, newest,
};
use crate::probe::{Answer, ProbeKind, Streak, Target, Timing, ask};
use crate::time::{BootTime, boot_of_wall};

/// One answer, and the verdict when it changed something.
pub(super) struct Verdict {
    container: String,
    name: String,
    kind: ProbeKind,
    answer: Answer,
    verdict: Option<bool>,
}

/// The probers of one pod.
#[derive(Default)]
pub(super) struct Probers {
    tasks: BTreeMap<(String, ProbeKind), AbortHandle>,
}

impl Drop for Probers {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

impl Worker {
    /// Probes what runs, and nothing else: readiness and liveness once it has started, only readiness once it is to end.
    pub(super) fn follow_probes(&mut self, seen: &ObservedPod) {
        let ip = self.pod_ip(seen);
        let mut wanted = BTreeSet::new();
        let all = self.pod.init_containers.iter().chain(&self.pod.containers);
        for container in all.filter(|container| container.role != Role::Init) {
            let Some(current) = newest(seen, &container.name) else { continue };
            let ObservedState::Running { started_at } = current.state else { continue };
            for (kind, probe) in self.probes(container, current) {
                let key = (current.id.clone(), kind);
                wanted.insert(key.clone());
                self.probers.tasks.entry(key).or_insert_with(|| {
                    let prober = Prober {
                        name: container.name.clone(),
                        kind,
                        probe: probe.clone(),
                        target: target(container, &current.id, ip),
                        started_at,
                        cri: self.node.cri.clone(),
                        news: self.tasks.news.clone(),
                    };
                    tokio::spawn(prober.run()).abort_handle()
                });
            }
        }
        self.probers.tasks.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
    }

    /// Which probes of a running container are due.
    fn probes<'a>(
        &self,
        container: &'a Container,
        current: &ObservedContainer,
    ) -> Vec<(ProbeKind, &'a v1::Probe)> {
        let spec = &container.spec;
        let ends = self.state != WorkerState::Syncing || self.memory.kills.contains_key(&current.id);
        let started = is_started(container, current, &self.memory);
        let hooked = self.memory.post_start.contains(&current.id);
        [
            (ProbeKind::Startup, &spec.startup_probe, !started && !hooked && !ends),
            (ProbeKind::Readiness, &spec.readiness_probe, started),
            (ProbeKind::Liveness, &spec.liveness_probe, started && !ends),
        ]
        .into_iter()
        .filter_map(|(kind, probe, due)| Some((kind, probe.as_ref().filter(|_| due)?)))
        .collect()
    }

    /// The pod's first address; the node's where the pod is on its network.
    pub(super) fn pod_ip(&self, seen: &ObservedPod) -> Option<IpAddr> {
        let of_pod = seen.sandboxes.first().and_then(|sandbox| sandbox.ips.first()?.parse().ok());
        of_pod.or(self.node.config.node_ips.first().copied())
    }

    /// Takes a verdict, and tells of failures as upstream does.
    pub(super) fn judge(&mut self, verdict: Verdict) {
        self.node.reporter.probes.note(&self.pod, &verdict.name, verdict.kind, &verdict.answer);
        let kind = verdict.kind.name();
        let told = match &verdict.answer {
            Answer::Success => None,
            Answer::Warning(message) => Some(("ProbeWarning", format!("{kind} probe warning: {message}"))),
            Answer::Failure(message) => Some(("Unhealthy", format!("{kind} probe failed: {message}"))),
            Answer::Error(message) => {
                Some(("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {message}")))
            }
        };
        if let Some((reason, message)) = told {
            self.node.reporter.event(&self.pod, Kind::Warning, reason, &message);
        }
        let id = verdict.container.clone();
        match (verdict.kind, verdict.verdict) {
            (_, None) | (ProbeKind::Liveness, Some(true)) => {}
            (ProbeKind::Startup, Some(true)) => drop(self.memory.started.insert(id)),
            (ProbeKind::Readiness, Some(true)) => drop(self.memory.ready.insert(id)),
            (ProbeKind::Readiness, Some(false)) => drop(self.memory.ready.remove(&id)),
            (ProbeKind::Startup, Some(false)) => self.condemn(&verdict, StopReason::FailedStartup),
            (ProbeKind::Liveness, Some(false)) => self.condemn(&verdict, StopReason::FailedLiveness),
        }
    }

    /// A container that failed is to end, with the grace of its probe, else of its pod.
    fn condemn(&mut self, verdict: &Verdict, why: StopReason) {
        let all = self.pod.init_containers.iter().chain(&self.pod.containers);
        let container = all.into_iter().find(|container| container.name == verdict.name);
        let spec = container.map(|container| &container.spec);
        let probe = match why {
            StopReason::FailedStartup => spec.and_then(|spec| spec.startup_probe.as_ref()),
            _ => spec.and_then(|spec| spec.liveness_probe.as_ref()),
        };
        let own = probe.and_then(|probe| u64::try_from(probe.termination_grace_period_seconds?).ok());
        let grace = own.map_or(self.pod.grace, Duration::from_secs);
        let kill = Kill { deadline: BootTime::now().after(grace), why };
        self.memory.kills.entry(verdict.container.clone()).or_insert(kill);
    }
}

/// Whom probes and hooks of a container ask.
pub(super) fn target(container: &Container, id: &str, ip: Option<IpAddr>) -> Target {
    Target { container_id: id.to_owned(), ip, ports: container.spec.ports.clone().unwrap_or_default() }
}

/// Asks again and again.
struct Prober {
    name: String,
    kind: ProbeKind,
    probe: v1::Probe,
    target: Target,
    started_at: i64,
    cri: Channel,
    news: mpsc::Sender<News>,
}

impl Prober {
    async fn run(self) {
        let timing = Timing::of(&self.probe);
        let begin = boot_of_wall(self.started_at).after(timing.initial_delay);
        let wait = begin.since(BootTime::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let mut streak = Streak::default();
        let mut ticks = tokio::time::interval(timing.period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            ticks.tick().await;
            let answer = ask(&self.probe, &self.target, &self.cri, timing.timeout).await;
            let verdict = match &answer {
                // Nothing was said: neither threshold comes nearer.
                Answer::Error(_) => None,
                Answer::Success | Answer::Warning(_) => streak.answer(true, &timing),
                Answer::Failure(_) => streak.answer(false, &timing),
            };
            // A verdict that is known says nothing new.
            let news = verdict.filter(|verdict| told != Some(*verdict));
            if news.is_none() && answer == Answer::Success {
                continue;
            }
            told = verdict.or(told);
            let (container, name) = (self.target.container_id.clone(), self.name.clone());
            let verdict = Verdict { container, name, kind: self.kind, answer, verdict: news };
            if self.news.send(News::Probe(verdict)).await.is_err() {
                return;
            }
        }
    }
}

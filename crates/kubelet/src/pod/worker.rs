//! The task of one pod: observe, plan, execute, report, wait. It owns the pod's state; others send wishes and wake it.

mod execute;
mod observe;
mod probing;
mod remember;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_openapi::api::core::v1;
use manifest::Loaded;
use tokio::sync::{Notify, mpsc, watch};
use tonic::transport::Channel;

use crate::Config;
use crate::cgroups::PodCgroups;
use crate::pod::back_off::BackOff;
use crate::pod::model::Pod;
use crate::pod::plan::{Memory, ObservedPod, ObservedState, PodAction, PodPlan, WorkerState, plan_pod};
use crate::pod::status::{StatusFacts, render_status};
use crate::report::{Reporter, StartTimes};
use crate::time::{BootTime, api_time, wall_ns};
use crate::volumes::Volumes;
use probing::{Probers, Verdict};

/// What all workers share.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) cri: Channel,
    pub(crate) cgroups: PodCgroups,
    pub(crate) volumes: Volumes,
    pub(crate) reporter: Reporter,
    pub(crate) desired: watch::Receiver<Arc<Loaded>>,
}

/// Whether a pod is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    Stop,
}

/// One pod's task.
pub(crate) struct Worker {
    node: Arc<Node>,
    pod: Pod,
    state: WorkerState,
    memory: Memory,
    /// Why containers wait, by name: reason and message.
    waiting: BTreeMap<String, (String, String)>,
    image_back_offs: BTreeMap<String, BackOff>,
    probers: Probers,
    verdicts: mpsc::Receiver<Verdict>,
    start_time: i64,
    former: Option<v1::PodStatus>,
    wish: watch::Receiver<Wish>,
    wake: Arc<Notify>,
    times: StartTimes,
    seen_at: Instant,
}

impl Worker {
    #[expect(clippy::disallowed_methods, reason = "how long a start takes is measured")]
    pub(crate) fn new(node: Arc<Node>, pod: Pod, wish: watch::Receiver<Wish>, wake: Arc<Notify>) -> Self {
        let (sender, verdicts) = mpsc::channel(16);
        let times = StartTimes {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            ..StartTimes::default()
        };
        let mut worker = Self {
            probers: Probers::new(node.cri.clone(), sender),
            node,
            pod,
            state: WorkerState::Syncing,
            memory: Memory::default(),
            waiting: BTreeMap::new(),
            image_back_offs: BTreeMap::new(),
            verdicts,
            start_time: wall_ns(),
            former: None,
            wish,
            wake,
            times,
            seen_at: Instant::now(),
        };
        worker.recall();
        worker
    }

    /// Rounds until nothing of the pod is left.
    pub(crate) async fn run(mut self) {
        loop {
            if *self.wish.borrow_and_update() == Wish::Stop && self.state == WorkerState::Syncing {
                self.state = WorkerState::Terminating { grace: self.pod.grace };
            }
            let seen = match self.observe().await {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::warn!(
                        pod = self.pod.name,
                        error = error.message(),
                        "the runtime does not answer"
                    );
                    self.wait(Some(BootTime::now().after(Duration::from_secs(1)))).await;
                    continue;
                }
            };
            self.follow_probes(&seen);
            let plan = plan_pod(&self.pod, self.state, &seen, &self.memory, BootTime::now());
            self.tell(&seen, &plan);
            if plan.actions.is_empty() {
                self.wait(plan.wake_at).await;
            } else if plan.actions == [PodAction::Finish] {
                if self.clean_up() {
                    self.state = WorkerState::Finished;
                    self.node.reporter.gone(&self.pod.uid);
                    return;
                }
                self.wait(Some(BootTime::now().after(Duration::from_secs(1)))).await;
            } else {
                self.execute(plan, &seen).await;
            }
        }
    }

    /// Waits for whatever may change the plan.
    async fn wait(&mut self, until: Option<BootTime>) {
        let timer = async {
            match until {
                Some(until) => tokio::time::sleep(until.since(BootTime::now())).await,
                None => std::future::pending().await,
            }
        };
        let mut desired = self.node.desired.clone();
        desired.mark_unchanged();
        let wake = self.wake.clone();
        tokio::select! {
            () = timer => {}
            () = wake.notified() => {}
            _ = self.wish.changed() => {}
            Some(verdict) = self.verdicts.recv() => self.judge(verdict),
            Ok(()) = desired.changed() => self.objects_changed(),
        }
    }

    /// ConfigMaps and Secrets reach the files of running pods; what waited for one is tried again.
    fn objects_changed(&mut self) {
        self.memory.sandbox_held = None;
        self.memory.held.retain(|name, _| {
            self.waiting.get(name).is_none_or(|(reason, _)| reason != "CreateContainerConfigError")
        });
        if self.state == WorkerState::Syncing {
            let objects = self.node.desired.borrow().clone();
            if let Err(message) = self.node.volumes.set_up(&self.pod, &objects.objects) {
                tracing::warn!(pod = self.pod.name, message, "volumes could not be updated");
            }
        }
    }

    /// Publishes the status, and what must survive a restart.
    fn tell(&mut self, seen: &ObservedPod, plan: &PodPlan) {
        let now = BootTime::now();
        for (name, (reason, message)) in &mut self.waiting {
            // After the error itself was told once.
            if reason == "ErrImagePull"
                && plan.wake_at.is_some()
                && self.memory.held.get(name).is_some_and(|until| *until > now)
                && self.former.is_some()
            {
                *reason = "ImagePullBackOff".into();
                *message = format!("Back-off pulling image: {message}");
            }
        }
        let facts = StatusFacts {
            start_time: self.start_time,
            host_ip: self.node.config.node_ip.map(|ip| ip.to_string()),
            waiting: self.waiting.clone(),
            backing_off: plan.backing_off.clone(),
            back_offs: self.memory.back_offs.clone(),
            ready: self.ready(seen),
        };
        let status = render_status(&self.pod, seen, &facts, self.former.as_ref(), wall_ns());
        let is_ready =
            status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
        if is_ready && self.times.total == 0.0 {
            let total = self.seen_at.elapsed().as_secs_f64() * 1e3;
            let known: f64 = self.times.steps.iter().map(|(_, ms)| ms).sum();
            self.times.steps.push(("ready".into(), (total - known).max(0.0)));
            self.times.total = total;
        }
        let mut told = (*self.pod.source).clone();
        if let Some(spec) = &mut told.spec {
            spec.node_name.get_or_insert_with(|| self.node.config.node_name.clone());
        }
        if let WorkerState::Terminating { grace } = self.state {
            told.metadata.deletion_timestamp =
                told.metadata.deletion_timestamp.or_else(|| api_time(wall_ns()));
            told.metadata.deletion_grace_period_seconds = i64::try_from(grace.as_secs()).ok();
        }
        told.status = Some(status.clone());
        self.former = Some(status);
        self.node.reporter.pod(&self.pod.uid, told, self.times.clone());
        self.remember();
    }

    /// Gives back what is the kubelet's own: volumes, cgroup, records. False when something stays for now.
    fn clean_up(&self) -> bool {
        let uid = &self.pod.uid;
        let volumes = self.node.volumes.remove(uid).map_err(|error| error.to_string());
        let cgroups = self.node.cgroups.remove(uid).map_err(|error| error.to_string());
        self.node.cgroups.remove_empty_classes();
        let _ = std::fs::remove_file(self.record_path());
        let _ = std::fs::remove_dir_all(self.log_directory());
        for (what, result) in [("volumes", volumes), ("cgroup", cgroups)] {
            if let Err(error) = result {
                tracing::warn!(
                    pod = self.pod.name,
                    what,
                    error,
                    "cannot remove what is left of a pod; trying again"
                );
                return false;
            }
        }
        true
    }

    /// Upstream's directory for the pod's logs.
    fn log_directory(&self) -> std::path::PathBuf {
        let name = format!("{}_{}_{}", self.pod.namespace, self.pod.name, self.pod.uid);
        self.node.config.pod_logs_dir.join(name)
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.node.cri.clone()).max_decoding_message_size(cri::MAX_MESSAGE_SIZE)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.node.cri.clone()).max_decoding_message_size(cri::MAX_MESSAGE_SIZE)
    }

    /// Running containers that are ready: by their probe, or for want of one.
    fn ready(&self, seen: &ObservedPod) -> std::collections::BTreeSet<String> {
        let mut ready = std::collections::BTreeSet::new();
        for container in &self.pod.containers {
            let Some(current) = seen.containers.get(&container.name).and_then(|attempts| attempts.first())
            else {
                continue;
            };
            let running = matches!(current.state, ObservedState::Running { .. });
            let gated = container.spec.readiness_probe.is_some();
            if running && (!gated || self.probers.is_ready(&current.id)) {
                ready.insert(current.id.clone());
            }
        }
        ready
    }
}

//! The task of one pod: observe, plan, execute, report, wait. It owns the pod's state; others send wishes and wake it.

mod execute;
mod failing;
mod hooks;
mod observe;
mod probing;
mod remember;
mod stopping;
mod upkeep;
mod used;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use host::error::chain;
use k8s_openapi::api::core::v1;
use manifest::Loaded;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::cgroups::PodCgroups;
use crate::downward::Capacity;
use crate::events::Kind;
use crate::log_links::{LogLinks, Owner};
use crate::pod::back_off::BackOff;
use crate::pod::model::{Pod, admit};
use crate::pod::plan::{
    Failure, Memory, ObservedContainer, ObservedPod, ObservedState, PodAction, PodPlan, WorkerState, plan_pod,
};
use crate::pod::status::{StatusFacts, render_status};
use crate::pod::termination;
use crate::probe::http::HookAnswer;
use crate::report::{Reporter, StartTimes};
use crate::time::{BootTime, api_time, boot_of_wall, wall_ns};
use crate::tokens::{Answers, Tokens};
use crate::user_namespaces::UserNamespaces;
use crate::volumes::Volumes;
use crate::{Config, Inputs};
use probing::Probers;
use used::Used;

pub(crate) use remember::is_remembered;
pub use remember::{forget_other_boots, remembered_pods, wanted_pods};

/// What all workers share.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) inputs: Inputs,
    pub(crate) capacity: Capacity,
    pub(crate) cri: Channel,
    /// What the runtime calls itself.
    pub(crate) runtime_name: String,
    pub(crate) cgroups: PodCgroups,
    pub(crate) volumes: Volumes,
    pub(crate) user_namespaces: UserNamespaces,
    pub(crate) reporter: Reporter,
    pub(crate) desired: watch::Receiver<Arc<Loaded>>,
}

impl Node {
    /// Upstream's directory for a pod's logs.
    pub(crate) fn pod_logs(&self, pod: &Pod) -> std::path::PathBuf {
        self.config.pod_logs_dir.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }

    /// Gives back what a pod has of the kubelet but its logs, and forgets it: what, and why it stays where it does.
    pub(crate) fn give_back(&self, uid: &str) -> [(&'static str, Result<(), String>); 2] {
        let volumes = self.volumes.remove(uid).map_err(|error| error.to_string());
        let cgroup = self.cgroups.remove(uid).map_err(|error| chain(&error));
        self.cgroups.remove_empty_classes();
        let _ = std::fs::remove_file(self.record_path(uid));
        [("volumes", volumes), ("cgroup", cgroup)]
    }

    /// Where a pod is remembered.
    pub(crate) fn record_path(&self, uid: &str) -> std::path::PathBuf {
        self.config.state_dir.join(format!("{uid}.json"))
    }

    /// Where log collectors look for logs.
    pub(crate) fn log_links(&self) -> LogLinks {
        LogLinks {
            directory: self.config.container_logs_dir.clone(),
            pod_logs_dir: self.config.pod_logs_dir.clone(),
        }
    }
}

/// Whether a pod is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    /// Its object stays, and says why it failed; nothing of it is to run any more.
    Fail(Arc<Failure>),
    Stop,
}

/// What the manager tells a worker.
pub(crate) struct Orders {
    /// Whether the pod is wanted.
    pub(crate) wish: watch::Receiver<Wish>,
    /// The pod's object as its source has it now.
    pub(crate) latest: watch::Receiver<Arc<v1::Pod>>,
}

/// Waits until the objects that the pod refers to are others than `used`.
async fn changed(mut desired: watch::Receiver<Arc<Loaded>>, pod: &v1::Pod, used: Used) -> Used {
    loop {
        let now = Used::of(pod, &desired.borrow_and_update());
        if now != used {
            return now;
        }
        if desired.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What a task of a worker tells it.
enum News {
    /// A probe was answered.
    Probe(probing::Verdict),
    /// A preStop hook is over; why, if it failed.
    PreStop { id: String, name: String, done: Result<HookAnswer, String> },
    /// A container was stopped, or could not be.
    Stopped { id: String },
    /// What was said to requests for tokens.
    Tokens(Answers),
}

/// Where tasks tell their news, and those that end with the worker.
struct Tasks {
    news: mpsc::Sender<News>,
    running: JoinSet<()>,
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
    tokens: Tokens,
    /// What tasks of this worker tell: probes, hooks, stops.
    news: mpsc::Receiver<News>,
    tasks: Tasks,
    /// What ended containers left behind, by id: read once.
    last_words: BTreeMap<String, String>,
    /// Ids of containers whose end was announced.
    announced: BTreeSet<String>,
    /// The attempt whose back-off was told, by container name.
    told_back_off: BTreeMap<String, u32>,
    /// Whether a container was mounted read-only with all below.
    recursive_read_only: bool,
    start_time: i64,
    /// The same on the planner's clock.
    began: BootTime,
    /// Nanoseconds since 1970 when the pod is to be gone, once it is to go.
    deletion: Option<i64>,
    /// The record as it was last written.
    written: Vec<u8>,
    former: Option<v1::PodStatus>,
    orders: Orders,
    wake: Arc<Notify>,
    /// Whether what the pod will not use again was given back.
    is_released: bool,
    /// The objects that the pod's volumes were made of, at the latest.
    used: Used,
    times: StartTimes,
    seen_at: Instant,
}

impl Worker {
    #[expect(clippy::disallowed_methods, reason = "how long a start takes is measured")]
    pub(crate) fn new(node: Arc<Node>, pod: Pod, orders: Orders, wake: Arc<Notify>) -> Self {
        let (sender, news) = mpsc::channel(16);
        let times = StartTimes {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            ..StartTimes::default()
        };
        let used = Used::of(&pod.source, &node.desired.borrow());
        let mut worker = Self {
            used,
            is_released: false,
            probers: Probers::default(),
            tokens: Tokens::default(),
            node,
            pod,
            state: WorkerState::Syncing,
            memory: Memory::default(),
            waiting: BTreeMap::new(),
            image_back_offs: BTreeMap::new(),
            news,
            tasks: Tasks { news: sender, running: JoinSet::new() },
            last_words: BTreeMap::new(),
            announced: BTreeSet::new(),
            told_back_off: BTreeMap::new(),
            recursive_read_only: false,
            deletion: None,
            written: Vec::new(),
            start_time: wall_ns(),
            began: BootTime::now(),
            former: None,
            orders,
            wake,
            times,
            seen_at: Instant::now(),
        };
        worker.recall();
        worker.began = boot_of_wall(worker.start_time);
        worker
    }

    /// Rounds until nothing of the pod is left.
    pub(crate) async fn run(mut self) {
        loop {
            let wish = self.orders.wish.borrow_and_update().clone();
            let is_wanted = wish != Wish::Stop;
            self.follow_failure(wish);
            let mut seen = match self.observe().await {
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
            self.memory.settle_ends(&mut seen);
            self.memory.keep(&seen);
            self.state = self.state.next(&self.pod, &seen, &self.memory, is_wanted, BootTime::now());
            self.fail_if_due();
            self.follow_probes(&seen);
            self.follow_tokens(&seen);
            self.hear_last_words(&seen);
            let plan = plan_pod(&self.pod, self.state, &seen, &self.memory, BootTime::now());
            self.tell(&seen, &plan);
            if plan.actions.is_empty() {
                self.release_if_over(&seen);
                self.wait(plan.wake_at).await;
            } else if plan.actions == [PodAction::Finish] {
                if self.clean_up() {
                    self.state = WorkerState::Finished;
                    return;
                }
                self.wait(Some(BootTime::now().after(Duration::from_secs(1)))).await;
            } else {
                // Boxed, or each pod's task would be three times as large while nothing is done.
                Box::pin(self.execute(plan, &seen)).await;
            }
        }
    }

    /// Waits for whatever may change the plan.
    async fn wait(&mut self, until: Option<BootTime>) {
        let until = self.next_token().into_iter().chain(until).chain(self.active_until()).min();
        let timer = async {
            match until {
                Some(until) => tokio::time::sleep(until.since(BootTime::now())).await,
                None => std::future::pending().await,
            }
        };
        let (pod, used) = (Arc::clone(&self.pod.source), self.used.clone());
        let objects = changed(self.node.desired.clone(), &pod, used);
        let mut services = self.node.inputs.services.clone();
        let unread = services.borrow().is_none();
        let wake = self.wake.clone();
        tokio::select! {
            () = timer => {}
            () = wake.notified() => {}
            _ = self.orders.wish.changed() => {}
            Ok(()) = self.orders.latest.changed() => self.renew(),
            Some(news) = self.news.recv() => self.hear(news),
            used = objects => {
                self.used = used;
                self.objects_changed();
            }
            Ok(_) = services.wait_for(Option::is_some), if unread => self.objects_changed(),
        }
    }

    /// Takes over what changed of the pod's object while it runs: labels, annotations, ephemeral containers, images, its end.
    fn renew(&mut self) {
        let source = self.orders.latest.borrow_and_update().clone();
        match admit(&source) {
            Ok(pod) => self.pod = pod,
            Err(problems) => {
                let message = problems.join("; ");
                tracing::warn!(pod = self.pod.name, message, "a change of the pod is not taken over");
                return;
            }
        }
        self.objects_changed();
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Probe(verdict) => self.judge(verdict),
            News::PreStop { id, name, done } => self.pre_stopped(id, &name, done),
            News::Stopped { id } => drop(self.memory.busy.remove(&id)),
            News::Tokens(answers) => {
                self.tokens.take(answers);
                self.refresh_volumes();
            }
        }
    }

    /// Reads what containers that have ended left behind, once.
    fn hear_last_words(&mut self, seen: &ObservedPod) {
        let ended = |one: &&ObservedContainer| matches!(one.state, ObservedState::Exited { .. });
        let mut known = BTreeMap::new();
        for container in self.pod.all_containers() {
            for one in seen.containers.get(&container.name).into_iter().flatten().filter(ended) {
                let words = match self.last_words.remove(&one.id) {
                    Some(words) => words,
                    None => {
                        let places = self.places(&container.name, one.attempt);
                        termination::last_words(&places, &container.spec, &one.state)
                    }
                };
                known.insert(one.id.clone(), words);
            }
        }
        self.last_words = known;
        self.announced.retain(|id| seen.containers.values().flatten().any(|one| one.id == *id));
    }

    /// ConfigMaps and Secrets reach the files of running pods; what waited for one is tried again.
    fn objects_changed(&mut self) {
        self.memory.sandbox_held = None;
        self.memory.held.retain(|name, _| {
            self.waiting.get(name).is_none_or(|(reason, _)| reason != "CreateContainerConfigError")
        });
        self.refresh_volumes();
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
                let image = self.pod.container(name).and_then(|container| container.spec.image.clone());
                let back_off = format!("Back-off pulling image {:?}", image.unwrap_or_default());
                self.node.reporter.event(&self.pod, Kind::Normal, "BackOff", &back_off);
                self.node.reporter.event(&self.pod, Kind::Warning, "Failed", "Error: ImagePullBackOff");
                *message = format!("{back_off}: ErrImagePull: {message}");
                *reason = "ImagePullBackOff".into();
            }
        }
        self.tell_back_offs(seen, plan);
        let facts = StatusFacts {
            start_time: self.start_time,
            host_ips: self.node_ips(),
            waiting: self.waiting.clone(),
            backing_off: plan.backing_off.clone(),
            memory: self.memory.clone(),
            last_words: self.last_words.clone(),
            ending: matches!(self.state, WorkerState::Terminating { .. }),
            recursive_read_only: self.recursive_read_only,
            runtime_name: self.node.runtime_name.clone(),
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
        if let WorkerState::Terminating { deadline } = self.state {
            let left = i64::try_from(deadline.since(now).as_nanos()).unwrap_or(0);
            let deletion = *self.deletion.get_or_insert_with(|| wall_ns().saturating_add(left));
            told.metadata.deletion_timestamp = api_time(deletion);
            told.metadata.deletion_grace_period_seconds = i64::try_from(self.pod.grace.as_secs()).ok();
        }
        told.status = Some(status.clone());
        self.former = Some(status);
        self.node.reporter.pod(&self.pod.uid, told, self.times.clone());
        self.remember();
    }

    /// Gives back what is the kubelet's own: volumes, cgroup, records. False when something stays for now.
    fn clean_up(&self) -> bool {
        let given_back = self.node.give_back(&self.pod.uid);
        let _ = std::fs::remove_dir_all(self.log_directory());
        self.node.log_links().remove_all_of(&self.pod.namespace, &self.pod.name, &self.log_directory());
        for (what, result) in given_back {
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

    fn log_directory(&self) -> std::path::PathBuf {
        self.node.pod_logs(&self.pod)
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        cri::runtime_client(&self.node.cri)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        cri::image_client(&self.node.cri)
    }

    /// Where files of one container lie.
    fn places(&self, name: &str, attempt: u32) -> termination::Places {
        termination::Places {
            message: termination::message_file(
                &self.node.volumes.pod_directory(&self.pod.uid),
                name,
                attempt,
            ),
            logs: self.log_directory(),
            log: std::path::Path::new(name).join(format!("{attempt}.log")),
        }
    }

    /// For log collectors: what they miss does not stop the pod.
    fn link_log(&self, name: &str, attempt: u32, id: &str) {
        let places = self.places(name, attempt);
        let linked = self.node.log_links().make(self.owner(name, id), &places.logs.join(&places.log));
        if let Err(error) = linked {
            tracing::warn!(pod = self.pod.name, container = name, %error, "link to the container's log");
        }
    }

    fn owner<'a>(&'a self, container: &'a str, id: &'a str) -> Owner<'a> {
        Owner { namespace: &self.pod.namespace, pod: &self.pod.name, container, id }
    }

    /// Tells of each back-off once.
    fn tell_back_offs(&mut self, seen: &ObservedPod, plan: &PodPlan) {
        for name in &plan.backing_off {
            let attempt = seen.containers.get(name).and_then(|all| all.first()).map_or(0, |one| one.attempt);
            if self.told_back_off.insert(name.clone(), attempt) != Some(attempt) {
                let Pod { name: pod, namespace, uid, .. } = &self.pod;
                let message =
                    format!("Back-off restarting failed container {name} in pod {pod}_{namespace}({uid})");
                self.node.reporter.event(&self.pod, Kind::Warning, "BackOff", &message);
            }
        }
    }
}

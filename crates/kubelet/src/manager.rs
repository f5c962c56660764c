//! One worker per wanted pod; the CRI's events to whom they concern; what nobody wants any more is ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cri::v1 as crv1;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_openapi::api::core::v1;
use manifest::{Loaded, ObjectKey};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::admission::{self, NodeFacts, Rejection, preempt};
use crate::cgroups::{PodCgroups, hold_reserved};
use crate::cri_requests::POD_UID;
use crate::downward::Capacity;
use crate::events::Kind;
use crate::eviction::{Evictor, storage};
use crate::image_gc::Collector;
use crate::kept::{Kept, may_be_of_manifest};
use crate::log_rotation::Rotator;
use crate::orphans::{self, Orphans};
use crate::pod::model::{Pod, admit};
use crate::pod::plan::Failure;
use crate::pod::status::render_rejected;
use crate::pod::worker::{self, Node, Orders, Wish, Worker};
use crate::probe_counts::ProbeCounts;
use crate::report::{NodeReport, Reporter, StartTimes};
use crate::static_pod::is_static_source;
use crate::time::wall_ns;
use crate::user_namespaces::UserNamespaces;
use crate::volumes::Volumes;
use crate::{Config, Inputs, KubeletError};

/// The safety net under the event stream: with our own runtime nothing depends on it.
const RELIST: Duration = Duration::from_secs(10);

/// A running worker, from outside.
struct Handle {
    key: ObjectKey,
    /// The pod as it was taken: what it asks for does not change.
    pod: Pod,
    wish: watch::Sender<Wish>,
    latest: watch::Sender<Arc<v1::Pod>>,
    wake: Arc<Notify>,
}

impl Handle {
    /// Hands on what changed of the pod's object, and whether it is to go.
    fn follow(&self, pod: &Arc<v1::Pod>) {
        self.latest.send_if_modified(|known| {
            let changed = !Arc::ptr_eq(known, pod) && asks_for_more(known, pod);
            if changed {
                known.clone_from(pod);
            }
            changed
        });
        if pod.metadata.deletion_timestamp.is_some() {
            self.stop();
        }
    }

    fn stop(&self) {
        self.wish.send_if_modified(|wish| std::mem::replace(wish, Wish::Stop) != Wish::Stop);
    }

    fn fail(&self, failure: Failure) {
        self.wish.send_if_modified(|wish| {
            let runs = *wish == Wish::Run;
            if runs {
                *wish = Wish::Fail(Arc::new(failure));
            }
            runs
        });
    }
}

/// Whether the newer object says something else than the status that this node itself tells.
fn asks_for_more(known: &v1::Pod, newer: &v1::Pod) -> bool {
    let (old, new) = (&known.metadata, &newer.metadata);
    known.spec != newer.spec
        || old.labels != new.labels
        || old.annotations != new.annotations
        || old.deletion_timestamp != new.deletion_timestamp
        || old.deletion_grace_period_seconds != new.deletion_grace_period_seconds
        || gates(known) != gates(newer)
}

/// What others say of the conditions for which the pod waits.
fn gates(pod: &v1::Pod) -> Vec<Option<&str>> {
    let told = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let status = |kind: &str| told.iter().find(|one| one.type_ == kind).map(|one| one.status.as_str());
    gates.map(|gate| status(&gate.condition_type)).collect()
}

/// Whether the pod's own status says that it is over for good.
fn has_ended(pod: &v1::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a kubelet is joined to.
pub struct Parts {
    /// The runtime.
    pub cri: Channel,
    /// Pods, and what they refer to.
    pub desired: watch::Receiver<Arc<Loaded>>,
    /// Whether `desired` has been told by its source: before, a pod that is missing there may still be wanted, and is left alone.
    pub synced: watch::Receiver<bool>,
    /// Where it tells what there is.
    pub report: watch::Sender<Arc<NodeReport>>,
    /// Where it tells each event as it happens.
    pub events: Option<mpsc::Sender<Arc<v1::Event>>>,
    /// What the cluster gives beside pods.
    pub inputs: Inputs,
    /// Where it tells whether the node runs short of memory.
    pub pressure: watch::Sender<bool>,
    /// Where it counts how probes went.
    pub probes: ProbeCounts,
}

/// Makes the node's pods match what is desired until `stop` resolves; then the pods go on without a kubelet.
///
/// # Errors
/// When a directory cannot be made, the machine's cgroups are unknown, or the runtime does not answer at the start.
pub async fn run(config: Config, parts: Parts, stop: impl Future<Output = ()>) -> Result<(), KubeletError> {
    let Parts { cri, desired, synced, report, events, inputs, pressure, probes } = parts;
    for (path, mode) in [
        (&config.root_dir, 0o750),
        (&config.pod_logs_dir, 0o750),
        (&config.container_logs_dir, 0o755),
        (&config.state_dir, 0o700),
    ] {
        host::path::make_directory(path, mode)
            .map_err(|source| KubeletError::Directory { path: path.clone(), source })?;
    }
    let capacity = Capacity::of_node(&config.root_dir, &config.cgroup_root);
    for reserved in &config.reserved_cgroups {
        hold_reserved(reserved)?;
    }
    let held = config.sizing.filter(|sizing| sizing.enforce_pods).map(|sizing| sizing.pod_limits(capacity));
    let node = Arc::new(Node {
        // Whether it answers is known before anything is begun.
        runtime_name: runtime_name(&cri).await?,
        cgroups: PodCgroups::open(&config.cgroup_root, held, config.pod_pids_limit)?,
        volumes: Volumes::new(&config.root_dir),
        user_namespaces: UserNamespaces::new(&config.root_dir, config.sizing.map(|sizing| sizing.max_pods)),
        capacity,
        reporter: Reporter::new(config.node_name.clone(), report, events, probes),
        cri,
        desired,
        inputs,
        config,
    });
    // In a cluster the source of static pods does the same.
    let former =
        if node.inputs.is_cluster() { Vec::new() } else { worker::wanted_pods(&node.config.state_dir) };
    let allocatable = node.config.sizing.map(|sizing| sizing.allocatable(capacity).amounts());
    let mut manager = Manager {
        node,
        allocatable,
        memory_pressure: pressure.subscribe(),
        workers: BTreeMap::new(),
        running: JoinSet::new(),
        tasks: HashMap::new(),
        fallen: BTreeSet::new(),
        settled: BTreeSet::new(),
        finished: BTreeSet::new(),
        kept: Kept::new(former),
        orphans: Orphans::default(),
        synced,
        knows_node: false,
    };
    let begun = *manager.synced.borrow_and_update();
    if begun {
        manager.take_over();
        manager.orphans.look(&manager.node);
    }
    manager.reconcile();
    manager.node.reporter.expect(manager.workers.keys());
    let node = Arc::clone(&manager.node);
    let images = Collector {
        cri: node.cri.clone(),
        policy: node.config.image_gc,
        desired: node.desired.clone(),
        reporter: &node.reporter,
    };
    let logs = Rotator { cri: node.cri.clone(), policy: node.config.log_rotation, links: node.log_links() };
    let (orders, evictions) = mpsc::channel(1);
    let evictor = Evictor::new(&node, pressure, orders.clone());
    let storage = storage::watch(Arc::clone(&node), orders);
    tokio::select! {
        () = manager.follow(begun, evictions, stop) => {}
        never = evictor.run() => match never {},
        never = storage => match never {},
        never = images.run() => match never {},
        never = logs.run() => match never {},
    }
    Ok(())
}

struct Manager {
    node: Arc<Node>,
    /// What pods may ask for all together, by resource; anything on a node of its own.
    allocatable: Option<BTreeMap<String, i64>>,
    memory_pressure: watch::Receiver<bool>,
    /// By uid.
    workers: BTreeMap<String, Handle>,
    /// The tasks; each gives its uid at its end.
    running: JoinSet<String>,
    /// The uids of those tasks.
    tasks: HashMap<tokio::task::Id, String>,
    /// Uids whose task ended by a mistake of ours: taken up again at the next relist.
    fallen: BTreeSet<String>,
    /// Uids that have no worker, because they are not admitted or ended before this boot: their status stands.
    settled: BTreeSet<String>,
    /// Uids that are to go and have left nothing, while they are desired.
    finished: BTreeSet<String>,
    /// Pods of a former agent that may be wanted.
    kept: Kept,
    orphans: Orphans,
    synced: watch::Receiver<bool>,
    /// Whether the node's own object was heard of: before, no pod of the API server is taken.
    knows_node: bool,
}

impl Manager {
    async fn follow(
        &mut self,
        mut begun: bool,
        mut evictions: mpsc::Receiver<(String, Failure)>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut desired = self.node.desired.clone();
        let mut own_node = self.node.inputs.node.clone();
        let (sender, mut events) = tokio::sync::mpsc::channel(256);
        let listening = tokio::spawn(listen(self.node.cri.clone(), sender));
        let mut relist = tokio::time::interval(RELIST);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Ok(()) = desired.changed() => self.reconcile(),
                // Pods wait for it once.
                known = is_known(&mut own_node), if !self.knows_node => {
                    self.knows_node = true;
                    if known {
                        self.reconcile();
                    }
                }
                Some((uid, failure)) = evictions.recv() => {
                    self.workers.get(&uid).into_iter().for_each(|handle| handle.fail(failure.clone()));
                }
                Ok(()) = self.synced.changed(), if !begun => begun = self.begin(),
                news = self.orphans.news() => match news {
                    orphans::News::Here(uids) => self.end_orphans(uids),
                    orphans::News::Ended => self.reconcile(),
                },
                Some(ended) = self.running.join_next_with_id() => self.ended(ended),
                Some(event) = events.recv() => self.wake(event.as_deref()),
                _ = relist.tick() => {
                    self.wake(None);
                    if begun {
                        self.orphans.look(&self.node);
                    }
                    if !std::mem::take(&mut self.fallen).is_empty() {
                        self.reconcile();
                    }
                }
            }
        }
        listening.abort();
        // What a worker is at right now it still does: nobody is told that we have ended before.
        self.running.shutdown().await;
    }

    /// Nothing of a pod is left, or its task has broken.
    fn ended(&mut self, ended: Result<(tokio::task::Id, String), tokio::task::JoinError>) {
        match ended {
            Ok((id, uid)) => {
                self.tasks.remove(&id);
                self.workers.remove(&uid);
                self.finished.insert(uid);
            }
            Err(error) => {
                let Some(uid) = self.tasks.remove(&error.id()) else { return };
                tracing::error!(uid, %error, "a pod is not looked after for a moment: this is a bug");
                self.workers.remove(&uid);
                self.fallen.insert(uid);
            }
        }
        self.reconcile();
    }

    /// The source has told what is desired: what a former agent left and nobody wants can go.
    fn begin(&mut self) -> bool {
        if !*self.synced.borrow_and_update() {
            return false;
        }
        self.take_over();
        self.orphans.look(&self.node);
        self.reconcile();
        true
    }

    /// Wakes the worker of that pod, or all.
    fn wake(&self, uid: Option<&str>) {
        match uid {
            Some(uid) => self.workers.get(uid).into_iter().for_each(|handle| handle.wake.notify_one()),
            None => self.workers.values().for_each(|handle| handle.wake.notify_one()),
        }
    }

    /// What is wanted, with what may be.
    fn desired(&mut self) -> Arc<Loaded> {
        let mut desired = self.node.desired.borrow().clone();
        if desired.incomplete {
            self.kept.join(true, &mut Arc::make_mut(&mut desired).objects.pods);
        } else {
            self.kept = Kept::default();
        }
        desired
    }

    /// Starts what is wanted and not there, stops what is there and not wanted. A pod waits until another of its name is
    /// gone.
    fn reconcile(&mut self) {
        let desired = self.desired();
        let pods = &desired.objects.pods;
        let wanted: BTreeMap<&str, &Arc<v1::Pod>> =
            pods.values().filter_map(|pod| Some((pod.metadata.uid.as_deref()?, pod))).collect();
        for (uid, handle) in &self.workers {
            match wanted.get(uid.as_str()) {
                Some(pod) => handle.follow(pod),
                None => handle.stop(),
            }
        }
        let ends = |uid: &str| wanted.get(uid).is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
        let (stay, go): (BTreeSet<String>, BTreeSet<String>) = std::mem::take(&mut self.settled)
            .into_iter()
            .partition(|uid| wanted.contains_key(uid.as_str()) && !ends(uid));
        self.settled = stay;
        self.finished.extend(go);
        self.finished.retain(|uid| {
            let keep = ends(uid);
            if !keep {
                self.node.reporter.gone(uid);
            }
            keep
        });
        self.node.reporter.finished(&self.finished);
        // Who was there first is taken first.
        let mut pods: Vec<(&ObjectKey, &Arc<v1::Pod>)> = pods.iter().collect();
        pods.sort_by_key(|(_, pod)| pod.metadata.creation_timestamp.clone());
        for (key, pod) in pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let known = self.workers.contains_key(&uid)
                || self.settled.contains(&uid)
                || self.finished.contains(&uid)
                || self.fallen.contains(&uid)
                || self.orphans.is_ending(&uid);
            if !known && !self.workers.values().any(|handle| handle.key == *key) {
                self.start(key.clone(), uid, pod);
            }
        }
    }

    fn start(&mut self, key: ObjectKey, uid: String, source: &Arc<v1::Pod>) {
        let is_remembered = worker::is_remembered(&self.node.config.state_dir, &uid);
        if has_ended(source) && !is_remembered {
            self.node.reporter.pod(&uid, (**source).clone(), StartTimes::default());
            self.settled.insert(uid);
            return;
        }
        let is_going = source.metadata.deletion_timestamp.is_some();
        // What a former agent took, or nobody wants any more, is not asked again whether it fits.
        let taken = if is_remembered || is_going {
            admit(source).map_err(|problems| Rejection::unsupported(&problems))
        } else if self.waits_for_node(source) {
            return;
        } else {
            self.admit(source)
        };
        match taken {
            Ok(pod) => {
                let wish = if is_going { Wish::Stop } else { Wish::Run };
                self.spawn(key, pod, wish);
            }
            Err(rejection) => {
                self.node.reporter.rejected(source, &rejection.reason, &rejection.message);
                let mut told = (**source).clone();
                told.status = Some(render_rejected(source, &rejection, wall_ns()));
                self.node.reporter.pod(&uid, told, StartTimes::default());
                self.settled.insert(uid);
            }
        }
    }

    /// What is understood, and fits on this node.
    fn admit(&self, source: &Arc<v1::Pod>) -> Result<Pod, Rejection> {
        let pod = admit(source).map_err(|problems| Rejection::unsupported(&problems))?;
        let own_node = self.node.inputs.node.borrow().clone();
        let has_ended = |uid: &str| self.node.reporter.has_ended(uid);
        let others: Vec<&Pod> =
            self.workers.values().map(|handle| &handle.pod).filter(|pod| !has_ended(&pod.uid)).collect();
        let facts = NodeFacts {
            has_tokens: self.node.inputs.tokens.is_some(),
            node: own_node.as_deref(),
            allocatable: self.allocatable.as_ref(),
            others: &others,
            memory_pressure: *self.memory_pressure.borrow(),
            allowed_sysctls: &self.node.config.allowed_sysctls,
        };
        let Err(rejection) = admission::admit(&pod, &facts) else { return Ok(pod) };
        // What a pod that the node needs lacks is taken from others.
        let lacks = rejection.reason.starts_with("OutOf");
        let allocatable = self.allocatable.as_ref().filter(|_| lacks).ok_or_else(|| rejection.clone())?;
        let victims = preempt::victims(&pod, &others, allocatable).ok_or_else(|| rejection.clone())?;
        let is_victim = |other: &Pod| victims.iter().any(|victim| victim.uid == other.uid);
        let left: Vec<&Pod> = others.iter().copied().filter(|other| !is_victim(other)).collect();
        admission::admit(&pod, &NodeFacts { others: &left, ..facts })?;
        for victim in victims {
            let message = "Preempted in order to admit critical pod";
            self.node.reporter.event(victim, Kind::Warning, "Preempting", message);
            if let Some(handle) = self.workers.get(&victim.uid) {
                handle.fail(preempted(message));
            }
        }
        Ok(pod)
    }

    /// Pods of the API server are measured by its node; static ones run whether or not it is heard of.
    fn waits_for_node(&self, source: &v1::Pod) -> bool {
        let inputs = &self.node.inputs;
        inputs.is_cluster() && inputs.node.borrow().is_none() && !is_static_source(source)
    }

    fn spawn(&mut self, key: ObjectKey, pod: Pod, wish: Wish) {
        let uid = pod.uid.clone();
        let (wish, wished) = watch::channel(wish);
        let (latest, newer) = watch::channel(Arc::clone(&pod.source));
        let wake = Arc::new(Notify::new());
        self.node.cgroups.count(&pod);
        let orders = Orders { wish: wished, latest: newer };
        let worker = Worker::new(self.node.clone(), pod.clone(), orders, wake.clone());
        self.workers.insert(uid.clone(), Handle { key, pod, wish, latest, wake });
        let name = uid.clone();
        let task = self.running.spawn(async move {
            worker.run().await;
            uid
        });
        self.tasks.insert(task.id(), name);
    }

    /// Pods that a former agent ran and nobody wants any more, because their manifests went meanwhile: they end as they would
    /// have ended then, hooks, order and grace included.
    fn take_over(&mut self) {
        let desired = self.desired();
        for source in worker::remembered_pods(&self.node.config.state_dir) {
            let Ok(pod) = admit(&source) else { continue };
            let key = ObjectKey::new(&pod.namespace, &pod.name);
            let same = desired.objects.pods.get(&key).and_then(|wanted| wanted.metadata.uid.as_ref());
            if same != Some(&pod.uid) {
                tracing::info!(pod = %key, uid = pod.uid, "ending a pod that no manifest asks for any more");
                self.spawn(key, pod, Wish::Stop);
            }
        }
    }

    /// The same for pods of which there is no record that we understand, and for what came up after its pod was gone.
    fn end_orphans(&mut self, uids: BTreeSet<String>) {
        let desired = self.desired();
        let pods = desired.objects.pods.values();
        let wanted: BTreeSet<&String> =
            pods.filter_map(|pod| pod.metadata.uid.as_ref()).chain(&desired.awaited).collect();
        for uid in uids {
            let in_doubt = desired.incomplete && may_be_of_manifest(&uid);
            if !wanted.contains(&uid) && !self.workers.contains_key(&uid) && !in_doubt {
                self.orphans.end(&self.node, uid);
            }
        }
    }
}

/// Waits until there is something; false when there never will be.
async fn is_known<T>(receiver: &mut watch::Receiver<Option<T>>) -> bool {
    receiver.wait_for(Option::is_some).await.is_ok()
}

/// Upstream's words: pkg/kubelet/preemption.
fn preempted(message: &str) -> Failure {
    Failure {
        reason: "Preempting".to_owned(),
        message: message.to_owned(),
        grace: None,
        disruption: Some("Pod was preempted by Kubelet to accommodate a critical pod.".to_owned()),
    }
}

/// The runtime's events as uids of pods; `None`: anything may have happened. Begins again when the stream breaks.
async fn listen(cri: Channel, uids: tokio::sync::mpsc::Sender<Option<String>>) {
    loop {
        let mut client = cri::runtime_client(&cri);
        if let Ok(stream) = client.get_container_events(crv1::GetEventsRequest {}).await {
            let mut stream = stream.into_inner();
            // What happened before the stream began.
            if uids.send(None).await.is_err() {
                return;
            }
            while let Ok(Some(event)) = stream.message().await {
                let labels = event.pod_sandbox_status.map(|status| status.labels).unwrap_or_default();
                if uids.send(labels.get(POD_UID).cloned()).await.is_err() {
                    return;
                }
            }
        }
        tracing::debug!("the runtime's event stream ended; listening again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn runtime_name(cri: &Channel) -> Result<String, KubeletError> {
    let version = RuntimeServiceClient::new(cri.clone()).version(crv1::VersionRequest::default()).await;
    let failed =
        |status| KubeletError::Runtime { what: "ask the runtime who it is", source: Box::new(status) };
    Ok(version.map_err(failed)?.into_inner().runtime_name)
}

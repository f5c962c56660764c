//! The node's own object and lease: registered once, its status told when it changes and every five minutes, its lease renewed
//! every ten seconds. When its machine goes down it says so.

mod facts;
mod lease;
mod render;
mod shutdown;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cri::v1 as crv1;
use futures::StreamExt;
use k8s_openapi::api::core::v1;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::transport::Channel;

pub(crate) use self::render::KUBELET_VERSION;
pub(super) use self::shutdown::last_word;
use super::Places;
use super::event;
use super::source::{again, chain, version_of};
use super::trouble::Trouble;
use crate::events::{Kind, Recorder};
use crate::sizing::Sizing;
use crate::time::{BootTime, wall_ns};
use render::{Observed, labels, node_object, status_of};

/// How soon what failed is tried again. Upstream: the kubelet's retry of its registration.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the API server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon a node that is not ready looks again. Upstream: nodeReadyGracePeriod's fast status updates.
const NOT_READY: Duration = Duration::from_millis(100);

/// The node as it is registered.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// `metadata.name`.
    pub name: String,
    /// The node's addresses: one, or one of each family.
    pub ips: Vec<IpAddr>,
    /// Labels beside those that every node has (`--node-labels`).
    pub labels: Vec<(String, String)>,
    /// Taints that it is registered with (`registerWithTaints`).
    pub taints: Vec<v1::Taint>,
    /// Whether the object is made when there is none (`registerNode`).
    pub register: bool,
    /// How much of it pods may have.
    pub sizing: Sizing,
    /// Images in the status, at most (`nodeStatusMaxImages`); all of them without a number.
    pub max_images: Option<u32>,
    /// `spec.providerID` at registration.
    pub provider_id: Option<String>,
    /// Where the kubelet's API listens, in `status.daemonEndpoints`.
    pub port: u16,
    /// How often the status is looked at (`nodeStatusUpdateFrequency`).
    pub status_update: Duration,
    /// How often an unchanged status is told (`nodeStatusReportFrequency`).
    pub status_report: Duration,
    /// How long the lease holds (`nodeLeaseDurationSeconds`).
    pub lease: Duration,
}

/// Keeps the node's object and lease, for ever.
pub(super) async fn keep(
    client: Client,
    config: NodeConfig,
    places: Places,
    cri: Channel,
    mut pressure: watch::Receiver<bool>,
    mut own: watch::Receiver<Option<Arc<v1::Node>>>,
) {
    let nodes = Api::<v1::Node>::all(client.clone());
    let mut events = NodeEvents::new(client.clone(), &config.name);
    let machine = facts::machine(&places.root_dir, &places.cgroup_root);
    let mut known = register(&nodes, &config, &machine, &cri).await;
    let uid = known.metadata.uid.clone().unwrap_or_default();
    tokio::join!(lease::renew(client, config.name.clone(), uid, config.lease), async {
        let mut told = BootTime(0);
        // What the cluster has of us: what was told last, or what somebody else has made of it since.
        let mut theirs_of_us = known.status.clone();
        let mut was_ready = known.status.as_ref().is_some_and(render::is_ready);
        events.tell(Kind::Normal, "Starting", "Starting kubelet.");
        let mut trouble = Trouble::new("the node's status is not told; trying again");
        loop {
            let mut observed = observe(&cri).await;
            observed.memory_pressure = *pressure.borrow_and_update();
            // What the cluster thought of a node that was away for a while is set right.
            if let Some(theirs) = own.borrow_and_update().as_deref()
                && version_of(theirs) > version_of(&known)
            {
                // What it made of our own words is not news.
                if theirs.status.as_ref().is_some_and(|status| render::differs(known.status.as_ref(), status))
                {
                    theirs_of_us.clone_from(&theirs.status);
                }
                known = theirs.clone();
            }
            let status = status_of(&config, &machine, &observed, known.status.as_ref(), wall_ns());
            let due = BootTime::now() >= told.after(config.status_report);
            let is_ready = render::is_ready(&status);
            if std::mem::replace(&mut was_ready, is_ready) != is_ready {
                let reason = if is_ready { "NodeReady" } else { "NodeNotReady" };
                let message = format!("Node {} status is now: {reason}", config.name);
                events.tell(Kind::Normal, reason, &message);
            }
            if due || render::differs(theirs_of_us.as_ref(), &status) {
                match tell(&nodes, &config.name, &status).await {
                    Ok(node) => {
                        trouble.is_over();
                        known = node;
                        theirs_of_us = Some(status.clone());
                        told = BootTime::now();
                    }
                    Err(error) => {
                        trouble.meet_text(&error);
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                }
            }
            let wait = if is_ready { config.status_update } else { NOT_READY };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = pressure.changed() => {}
                Ok(()) = own.changed() => {}
            }
        }
    });
}

/// What happens to the node, as its cluster is told; what cannot be told is forgotten.
struct NodeEvents {
    client: Client,
    name: String,
    recorder: Recorder,
}

impl NodeEvents {
    fn new(client: Client, name: &str) -> Self {
        Self { client, name: name.to_owned(), recorder: Recorder::default() }
    }

    fn tell(&mut self, kind: Kind, reason: &str, message: &str) {
        tracing::info!(reason, "{message}");
        let event = self.recorder.note_node(&self.name, kind, reason, message);
        tokio::spawn(event::tell(self.client.clone(), event));
    }
}

/// Follows the node's own object, for ever.
pub(super) async fn follow(client: Client, name: String, node: watch::Sender<Option<Arc<v1::Node>>>) {
    let mut object = std::pin::pin!(again(watch_object(Api::<v1::Node>::all(client), &name)));
    let mut trouble = Trouble::new("the API server does not tell of this node; trying again");
    while let Some(object) = object.next().await {
        match object {
            Ok(object) => {
                trouble.is_over();
                node.send_replace(object.map(Arc::new));
            }
            Err(error) => trouble.meet(&error),
        }
    }
}

/// Makes the node's object, or brings its labels up to date where there is one.
async fn register(
    nodes: &Api<v1::Node>,
    config: &NodeConfig,
    machine: &facts::Machine,
    cri: &Channel,
) -> v1::Node {
    loop {
        match try_register(nodes, config, machine, cri).await {
            Ok(node) => {
                tracing::info!(node = config.name, "registered");
                return node;
            }
            Err(error) => {
                tracing::warn!(node = config.name, error, "the node is not registered; trying again")
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn try_register(
    nodes: &Api<v1::Node>,
    config: &NodeConfig,
    machine: &facts::Machine,
    cri: &Channel,
) -> Result<v1::Node, String> {
    let observed = observe(cri).await;
    let node = node_object(config, machine, &observed, wall_ns());
    if config.register {
        let parameters = PostParams::default();
        match bounded(nodes.create(&parameters, &node)).await? {
            Ok(node) => return Ok(node),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(chain(&error)),
        }
    }
    let own = json!({ "metadata": {
        "labels": labels(config),
        "annotations": node.metadata.annotations,
    } });
    let (parameters, patch) = (PatchParams::default(), Patch::Strategic(own));
    bounded(nodes.patch(&config.name, &parameters, &patch)).await?.map_err(|error| chain(&error))
}

async fn tell(nodes: &Api<v1::Node>, name: &str, status: &v1::NodeStatus) -> Result<v1::Node, String> {
    let mut status = serde_json::to_value(status).unwrap_or_default();
    if let Some(Value::Array(addresses)) = status.get_mut("addresses") {
        // Their merge key is the type, of which there may be several.
        addresses.insert(0, json!({ "$patch": "replace" }));
    }
    let body = json!({ "status": status });
    let (parameters, patch) = (PatchParams::default(), Patch::Strategic(body));
    bounded(nodes.patch_status(name, &parameters, &patch)).await?.map_err(|error| chain(&error))
}

async fn bounded<T>(request: impl Future<Output = T>) -> Result<T, String> {
    let answer = tokio::time::timeout(PATIENCE, request).await;
    answer.map_err(|_| "the API server does not answer".to_owned())
}

/// What the runtime says.
async fn observe(cri: &Channel) -> Observed {
    let mut runtime = cri::runtime_client(cri);
    let mut images = cri::image_client(cri);
    let version = runtime.version(crv1::VersionRequest::default()).await;
    let status = runtime.status(crv1::StatusRequest::default()).await;
    let listed = images.list_images(crv1::ListImagesRequest::default()).await;
    Observed {
        runtime: version.ok().map(tonic::Response::into_inner),
        status: status.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned()),
        images: listed.map(|listed| listed.into_inner().images).unwrap_or_default(),
        memory_pressure: false,
    }
}

//! The kubelet's side that speaks with an API server: the node's object and lease, the pods that are bound to it, what they refer
//! to, their status and events.
//!
//! It decides nothing about containers: it turns the API into the same [`manifest::Loaded`] that manifests give, and the
//! kubelet's report into patches. Everything here may be down for a while without a pod noticing.
//!
//! ```text
//!   Pods, ConfigMaps, Secrets ──watch──► source ──► Loaded ──► kubelet ──► NodeReport ──► status ──► PATCH, DELETE
//!   mirrors of static pods ◄── mirror
//!   Node, Lease ◄── node (facts, conditions of the runtime)           └── events ──► event ──► POST, PATCH
//! ```

pub(crate) mod client;
mod event;
mod mirror;
mod node;
pub(crate) mod references;
mod runtime_classes;
mod source;
mod status;
mod tokens;
mod trouble;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use manifest::Loaded;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

pub use client::{ClientError, Connection, Credentials, Reload, connect, connect_as};
pub use kube::Client;
pub(crate) use node::KUBELET_VERSION;
pub use node::NodeConfig;
pub(crate) use source::chain;
pub use tokens::ApiTokens;

use crate::report::NodeReport;

/// What the kubelet needs to serve a cluster.
#[derive(Debug)]
pub struct ApiConfig {
    /// The node as it is registered.
    pub node: NodeConfig,
    /// The manifests of the node's static pods (`staticPodPath`); they run whether or not the API server is there.
    pub static_pods: watch::Receiver<Arc<Loaded>>,
    /// The pods that a former agent of this boot ran: they go on until the API server has been heard.
    pub remembered: Vec<Arc<v1::Pod>>,
    /// Those of them that it was not about to end: static ones go on while a manifest cannot be read.
    pub wanted: Vec<Arc<v1::Pod>>,
    /// What the node's capacity is measured by.
    pub places: Places,
}

/// Where things lie that limit what a node has.
#[derive(Clone, Debug)]
pub struct Places {
    /// Where the kubelet's volumes lie: its file system is the node's storage.
    pub root_dir: PathBuf,
    /// The node's cgroup: its limit is the node's memory.
    pub cgroup_root: String,
}

/// The other ends of what a kubelet is joined to.
pub struct ApiParts {
    /// Pods, and what they refer to.
    pub desired: watch::Sender<Arc<Loaded>>,
    /// Becomes true when every pod of the API server is in `desired`.
    pub synced: watch::Sender<bool>,
    /// What the kubelet tells.
    pub report: watch::Receiver<Arc<NodeReport>>,
    /// The kubelet's events.
    pub events: mpsc::Receiver<Arc<v1::Event>>,
    /// The runtime, whose conditions are the node's.
    pub cri: Channel,
    /// The node's own object, as the API server has it.
    pub node: watch::Sender<Option<Arc<v1::Node>>>,
    /// Every Service, for environment variables; none before they were listed once.
    pub services: watch::Sender<Option<Arc<Vec<v1::Service>>>>,
    /// The handler that each RuntimeClass names; none before they were listed once.
    pub runtime_classes: watch::Sender<Option<Arc<BTreeMap<String, String>>>>,
    /// Whether the node runs short of memory.
    pub pressure: watch::Receiver<bool>,
}

/// How many events wait to be sent, at most; more are not sent.
pub const EVENT_QUEUE: usize = 1000;

/// Serves the cluster until `stop`. What fails is tried again, for ever. If the machine goes down, the node's last word is that it is
/// not ready.
pub async fn run(config: ApiConfig, client: Client, parts: ApiParts, stop: impl Future<Output = ()>) {
    let ApiParts { desired, synced, report, events, cri, node, services, runtime_classes, pressure } = parts;
    let name = config.node.name.clone();
    let pods = desired.subscribe();
    let (statics, static_pods) = watch::channel(Arc::default());
    let (mirrors, known_mirrors) = watch::channel(None);
    let mirroring = mirror::Inputs {
        node: node.subscribe(),
        statics: static_pods,
        mirrors: known_mirrors.clone(),
        reports: report.clone(),
    };
    let former = source::Former { remembered: config.remembered, wanted: config.wanted };
    let outputs = source::Outputs { desired, synced, statics, mirrors };
    let serving = async {
        tokio::join!(
            node::keep(client.clone(), config.node, config.places, cri, pressure, node.subscribe()),
            node::follow(client.clone(), name.clone(), node),
            source::follow(client.clone(), name.clone(), former, config.static_pods, outputs),
            mirror::keep(client.clone(), mirroring),
            source::follow_services(client.clone(), services),
            runtime_classes::follow(client.clone(), runtime_classes),
            status::keep(client.clone(), report.clone(), pods, known_mirrors),
            event::send(client.clone(), events, report),
        );
    };
    tokio::select! {
        () = serving => {}
        () = stop => {}
    }
    node::last_word(client, &name).await;
}

//! Wiring: which part of the node is given what, in which order they start and end. Nothing is decided here.
//!
//! ```text
//!  manifests ──watch──► kubelet ──CRI──► runtime ──► OCI core, supervisors
//!      │                   │                └──► CNI ──┐
//!      └──watch──► proxy ◄─┘ ready pods               ├──► netfilter writer
//!                    └────────────────────────────────┘
//!  admin socket: reads what kubelet and proxy report, orders work from the image store
//! ```
//!
//! Stopping the agent stops no pod: that is what supervisors are for.

mod cluster;
mod endpoints;
mod engine;
mod kubelet_config;
pub(crate) mod parts;
mod problems;
mod quiet;
mod server;
mod services;
mod sources;

use engine::Engine;
pub(crate) use sources::{Reports, Sources, node_object};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hostnet::netfilter::WriterHandle;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::cli::{AgentArgs, PodNetwork, RunArgs, RuntimeArgs};
use crate::config::KubeletFlags;
use crate::lock::NodeLock;
use crate::node::Node;
use crate::{admin, config, image, signals};

/// How long parts that were told to stop may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What an agent is made of.
#[derive(Debug)]
pub(crate) enum Role {
    /// The CRI socket alone.
    Runtime,
    /// A standalone node for these manifests.
    Node {
        /// Files and directories, watched.
        manifests: Vec<PathBuf>,
        /// What a KubeletConfiguration says, if there is one.
        settings: Option<Box<config::Settings>>,
    },
    /// A node of a cluster.
    Cluster(Box<cluster::Membership>),
}

/// `podwright run`: until a signal ends it; the pods stay.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let file = config::kubelet(args.config.as_deref(), &KubeletFlags::default())?;
    // Before anything is made: a name with a typo changes nothing.
    for path in &args.files {
        std::fs::metadata(path).with_context(|| format!("read manifests at {}", path.display()))?;
    }
    let mut node = Node::here(&file.complete(&args.node))?;
    file.apply(&mut node);
    file.tell();
    file.tell_of_cluster_keys();
    if args.config.is_some() {
        file.settings.refuse(&config::Machine::here()).map_err(config::ConfigError::Machine)?;
    }
    let settings = args.config.is_some().then(|| Box::new(file.settings));
    until_signal(node, Role::Node { manifests: args.files.clone(), settings })
}

/// `podwright agent`: until a signal ends it; the pods stay.
pub(crate) fn agent(args: &AgentArgs) -> anyhow::Result<()> {
    let file = config::kubelet(args.config.as_deref(), &args.kubelet)?;
    let mut node = Node::here(&file.complete(&args.node))?;
    file.apply(&mut node);
    if let Some(endpoint) = &args.container_runtime_endpoint {
        node.container_runtime_endpoint = Some(endpoint.clone());
    }
    if args.pod_network == PodNetwork::Cni && args.pod_network_backend != podnet::Backend::Auto {
        bail!("--pod-network-backend is how --pod-network=builtin works: give both, or neither");
    }
    if node.container_runtime_endpoint.is_some() && args.pod_network == PodNetwork::Builtin {
        bail!(
            "--pod-network=builtin is a network of our own runtime's pods: leave it out, or --container-runtime-endpoint"
        );
    }
    file.tell();
    file.settings.refuse(&config::Machine::here()).map_err(config::ConfigError::Machine)?;
    let membership = cluster::Membership::of(args, &node, &file.settings);
    until_signal(node, Role::Cluster(Box::new(membership)))
}

/// `podwright runtime`: until a signal ends it; the pods stay.
pub(crate) fn runtime(args: &RuntimeArgs) -> anyhow::Result<()> {
    let flags = config::runtime(&args.node, args.config.as_deref())?;
    until_signal(Node::here(&flags)?, Role::Runtime)
}

fn until_signal(node: Node, role: Role) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a node makes namespaces, cgroups and mounts: run podwright as root");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = signals::stop_token(signals::Again::EndAtOnce)?;
        let agent = Agent::start(node, role, stop).await?;
        tokio::select! {
            ended = agent.end() => ended,
            never = quiet::watch() => never,
        }
    })
}

/// A running node: its parts, and what they know.
pub(crate) struct Agent {
    sources: Arc<Sources>,
    /// Kubelet and proxy, which end first, because they call the runtime.
    callers: Parts,
    /// The CRI server and the admin socket.
    servers: Parts,
    stop: CancellationToken,
    servers_stop: CancellationToken,
    _lock: NodeLock,
}

type Parts = JoinSet<(&'static str, anyhow::Result<()>)>;

impl Agent {
    /// Starts every part. They end when `stop` is cancelled.
    pub(crate) async fn start(node: Node, role: Role, stop: CancellationToken) -> anyhow::Result<Self> {
        let lock = NodeLock::take(&node)?;
        if !matches!(role, Role::Runtime) {
            let boot_id = host::process::boot_id().context("read the boot's identity")?;
            kubelet::forget_other_boots(&node.kubelet_state(), &boot_id)
                .context("look at the kubelet's records")?;
        }
        let writer = parts::netfilter();
        let default = match &role {
            Role::Cluster(membership) => membership.remembered_network(&node).await,
            Role::Runtime | Role::Node { .. } => Some(parts::network(&node, node.pod_cidrs.clone(), None)),
        };
        let (network, networks) = watch::channel(default);
        let servers_stop = CancellationToken::new();
        let mut servers = Parts::new();
        let engine = match &node.container_runtime_endpoint {
            None => Engine::own(&node, networks, writer.clone(), &mut servers, &servers_stop).await?,
            Some(endpoint) => Engine::foreign(endpoint, &stop).await?,
        };
        if let Some(runtime) = &engine.own {
            // Before there is anybody who starts pods.
            image::preload::import(runtime.images(), &node.preloaded_images(), &stop).await;
        }
        let admin_listener = admin::server::bind(&node.admin_socket())?;
        let mut callers = Parts::new();
        let reports = match role {
            Role::Runtime => None,
            Role::Node { manifests, settings } => {
                // Pods that want it wait with the reason; the others need not.
                if let Some(runtime) = &engine.own
                    && let Err(error) = image::built_in::import(runtime.images()).await
                {
                    tracing::warn!(error = format!("{error:#}"), "no built-in image");
                }
                let kubelet = kubelet_config::of(&node, settings.as_deref());
                Some(start_node(&mut callers, &node, kubelet, manifests, engine.cri.clone(), writer, &stop)?)
            }
            Role::Cluster(membership) => {
                let cri = engine.cri.clone();
                Some(membership.start(&mut callers, &node, cri, network, writer, &stop).await?)
            }
        };
        let sources = Arc::new(Sources { node, runtime: engine.own, cri: engine.cri, reports });
        let admin =
            admin::server::serve(admin_listener, Arc::clone(&sources), stop.clone(), servers_stop.clone());
        servers.spawn(async move {
            admin.await;
            ("the admin socket", Ok(()))
        });
        tracing::info!(node = sources.node.name, cri = sources.node.cri_endpoint(), "ready");
        Ok(Self { sources, callers, servers, stop, servers_stop, _lock: lock })
    }

    /// What the parts know.
    pub(crate) fn sources(&self) -> Arc<Sources> {
        Arc::clone(&self.sources)
    }

    /// Waits until the agent is told to stop, or a part cannot go on; then ends them all, callers first.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let first = tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(()),
            Some(ended) = self.callers.join_next() => unexpected(ended),
            Some(ended) = self.servers.join_next() => unexpected(ended),
        };
        self.stop.cancel();
        let callers = drain(&mut self.callers).await;
        self.servers_stop.cancel();
        let servers = drain(&mut self.servers).await;
        first.and(callers).and(servers)
    }
}

/// Kubelet and proxy, joined by what they watch of each other.
fn start_node(
    callers: &mut Parts,
    node: &Node,
    kubelet: kubelet::Config,
    manifests: Vec<PathBuf>,
    cri: Channel,
    writer: WriterHandle,
    stop: &CancellationToken,
) -> anyhow::Result<Reports> {
    let desired = manifest::watch(manifests)?;
    let (kubelet_report, pods) = watch::channel(Arc::default());
    let (proxy_report, services) = watch::channel(Arc::default());
    let (local_pods, endpoints) = watch::channel(Arc::default());
    let stopped = || stop.clone().cancelled_owned();
    let (with_addresses, known_services) = watch::channel(services::first(&desired.borrow()));
    let inputs = kubelet::Inputs { services: known_services.clone(), ..kubelet::Inputs::none() };
    let telling = services::follow(services.clone(), with_addresses, stopped());
    callers.spawn(async move {
        telling.await;
        ("the addresses of Services", Ok(()))
    });
    // What files say is known as soon as they are read.
    let synced = watch::channel(true).1;
    let joined = kubelet::Parts {
        cri,
        desired: desired.clone(),
        synced,
        report: kubelet_report,
        events: None,
        inputs,
        pressure: watch::channel(false).0,
        probes: kubelet::ProbeCounts::default(),
    };
    let kubelet = kubelet::run(kubelet, joined, stopped());
    callers.spawn(async move { ("the kubelet", kubelet.await.map_err(Into::into)) });
    let (first, known) = oneshot::channel();
    let following = endpoints::follow(pods.clone(), local_pods, first, stopped());
    callers.spawn(async move {
        following.await;
        ("the endpoints", Ok(()))
    });
    let source = parts::manifests(node, desired.clone(), endpoints);
    let proxy = proxy::run(parts::proxy(node), source, writer, proxy_report, stopped());
    callers.spawn(async move {
        let ended = match known.await {
            Ok(()) => proxy.await.map_err(Into::into),
            // It was told to stop before it began.
            Err(_) => Ok(()),
        };
        ("the proxy", ended)
    });
    let telling = problems::tell(desired.clone(), services.clone(), stopped());
    callers.spawn(async move {
        telling.await;
        ("the log of problems", Ok(()))
    });
    Ok(Reports { manifests: desired, kubelet: pods, services: known_services, proxy: services })
}

/// A part that ended before it was told to.
fn unexpected(ended: Result<(&'static str, anyhow::Result<()>), JoinError>) -> anyhow::Result<()> {
    match ended.context("a part of the agent panicked")? {
        (part, Ok(())) => bail!("{part} ended by itself"),
        (part, Err(error)) => Err(error.context(format!("{part} ended"))),
    }
}

/// Lets parts that were told to stop come to their end; those that do not in time are dropped.
async fn drain(parts: &mut Parts) -> anyhow::Result<()> {
    let mut result = Ok(());
    let ended = tokio::time::timeout(PATIENCE, async {
        while let Some(ended) = parts.join_next().await {
            let (part, outcome) = ended.context("a part of the agent panicked")?;
            result =
                std::mem::replace(&mut result, Ok(())).and(outcome.with_context(|| format!("{part} ended")));
        }
        Ok(())
    });
    match ended.await {
        Ok(joined) => joined.and(result),
        Err(_) => {
            tracing::warn!("parts of the agent did not end in time");
            parts.abort_all();
            result
        }
    }
}

//! Wiring of a node that belongs to a cluster: the kubelet gets its pods from the API server and tells it of them.

mod credentials;
mod other_nodes;
mod service_proxy;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hostnet::link::Netlink;
use hostnet::netfilter::WriterHandle;
use ipnet::IpNet;
use k8s_openapi::api::core::v1;
use kubelet::api::{ApiConfig, ApiParts, ApiTokens, NodeConfig, Places};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use self::credentials::Credentials;
use self::service_proxy::{Duty, Surroundings};
use super::server::{Known, Serving};
use super::{Parts, Reports, kubelet_config, parts, problems};
use crate::cli::{AgentArgs, PodNetwork};
use crate::config::Settings;
use crate::node::Node;

/// Where the kubelet's API listens.
const KUBELET_PORT: u16 = 10_250;

/// What makes a node one of a cluster.
#[derive(Debug)]
pub(crate) struct Membership {
    credentials: Credentials,
    pod_network: PodNetwork,
    backend: podnet::Backend,
    proxy: proxy::Mode,
    external_ips: proxy::ExternalIps,
    node: NodeConfig,
    serving: Serving,
    static_pods: Option<PathBuf>,
    kubelet: kubelet::Config,
}

impl Membership {
    /// As the command line has it.
    pub(crate) fn of(args: &AgentArgs, node: &Node, settings: &Settings) -> Self {
        let status = settings.status;
        Self {
            credentials: Credentials::of(args, node, settings),
            pod_network: args.pod_network,
            backend: args.pod_network_backend,
            proxy: args.proxy,
            external_ips: match args.proxy_external_ips {
                true => proxy::ExternalIps::Served,
                false => proxy::ExternalIps::LeftOut,
            },
            serving: Serving::of(node, settings),
            node: NodeConfig {
                name: node.name.clone(),
                ips: node.addresses(),
                labels: args.node_labels.clone(),
                taints: match args.register_with_taints.is_empty() {
                    true => settings.registration.taints.clone(),
                    false => args.register_with_taints.clone(),
                },
                register: settings.registration.register,
                sizing: kubelet_config::sizing(settings),
                max_images: status.max_images,
                provider_id: settings.registration.provider_id.clone(),
                port: settings.server.as_ref().map_or(KUBELET_PORT, |server| server.address.port()),
                status_update: status.update_frequency,
                status_report: status.report_frequency,
                lease: Duration::from_secs(status.lease_duration_seconds.into()),
            },
            static_pods: settings.static_pod_path.clone(),
            kubelet: kubelet_config::of(node, Some(settings)),
        }
    }

    /// The built-in network with the range that the cluster gave when it was last heard.
    pub(crate) async fn remembered_network(&self, node: &Node) -> Option<cni::DefaultNetwork> {
        let cidrs = recall(&ranges_file(node)).filter(|_| self.pod_network == PodNetwork::Builtin)?;
        Some(parts::network(node, cidrs, pod_mtu(node, self.backend).await))
    }

    /// Starts the kubelet and what joins it to the API server.
    pub(crate) async fn start(
        self,
        callers: &mut Parts,
        node: &Node,
        cri: Channel,
        network: watch::Sender<Option<cni::DefaultNetwork>>,
        writer: WriterHandle,
        stop: &CancellationToken,
    ) -> anyhow::Result<Reports> {
        let client = self.credentials.connect(callers, stop).await?;
        let kubelet_config = self.kubelet;
        let remembered = kubelet::remembered_pods(&kubelet_config.state_dir);
        let wanted = kubelet::wanted_pods(&kubelet_config.state_dir);
        let (desired, pods) = watch::channel(Arc::default());
        let (synced, is_synced) = watch::channel(false);
        let (report, reports) = watch::channel(Arc::default());
        let (events, happened) = mpsc::channel(kubelet::api::EVENT_QUEUE);
        let (own, own_node) = watch::channel(None);
        let (services, known_services) = watch::channel(None);
        let tokens = Arc::new(ApiTokens::new(client.clone()));
        let (runtime_classes, known_classes) = watch::channel(None);
        let (pressure, is_pressed) = watch::channel(false);
        let inputs = kubelet::Inputs {
            tokens: Some(tokens),
            services: known_services.clone(),
            node: own_node.clone(),
            runtime_classes: known_classes,
        };
        let stopped = || stop.clone().cancelled_owned();
        let probes = kubelet::ProbeCounts::default();
        let joined = kubelet::Parts {
            cri: cri.clone(),
            desired: pods.clone(),
            synced: is_synced.clone(),
            report,
            events: Some(events),
            inputs,
            pressure,
            probes: probes.clone(),
        };
        let running = kubelet::run(kubelet_config.clone(), joined, stopped());
        callers.spawn(async move { ("the kubelet", running.await.map_err(Into::into)) });
        let known = Known {
            client: client.clone(),
            cri: cri.clone(),
            report: reports.clone(),
            desired: pods.clone(),
            probes,
            own: own_node.clone(),
        };
        self.serving.start(callers, known, stop)?;
        let places = Places { root_dir: kubelet_config.root_dir, cgroup_root: kubelet_config.cgroup_root };
        let static_pods = static_pods(self.static_pods)?;
        let (proxy_report, proxy) = watch::channel(Arc::default());
        let telling = problems::tell(static_pods.clone(), proxy.clone(), stopped());
        callers.spawn(async move {
            telling.await;
            ("the log of problems", Ok(()))
        });
        let config = ApiConfig { node: self.node, static_pods, remembered, wanted, places };
        let ends = ApiParts {
            desired,
            synced,
            report: reports.clone(),
            events: happened,
            cri,
            node: own,
            services,
            runtime_classes,
            pressure: is_pressed,
        };
        let serving = kubelet::api::run(config, client.clone(), ends, stopped());
        callers.spawn(async move {
            serving.await;
            ("the API server's client", Ok(()))
        });
        let around = Surroundings {
            own: own_node.clone(),
            desired: pods.clone(),
            synced: is_synced,
            reports: reports.clone(),
        };
        let programming = (writer.clone(), proxy_report);
        let duty = Duty {
            client: client.clone(),
            mode: self.proxy,
            external_ips: self.external_ips,
            mark: node.proxy_mark(),
        };
        let proxying = service_proxy::run(parts::proxy(node), duty, around, programming, stopped());
        callers.spawn(async move { ("the proxy", proxying.await) });
        let nodes = podnet::Config { node_name: node.name.clone(), backend: self.backend };
        let connecting = other_nodes::run(self.pod_network, nodes, client, writer, stopped());
        callers.spawn(async move { ("the network of nodes", connecting.await) });
        let backend = (self.pod_network == PodNetwork::Builtin).then_some(self.backend);
        let following = follow_ranges(node.clone(), backend, own_node, network, stopped());
        callers.spawn(async move {
            following.await;
            ("the pod network", Ok(()))
        });
        Ok(Reports { manifests: pods, kubelet: reports, services: known_services, proxy })
    }
}

/// The manifests of static pods; the directory is made where it is not there, so that what comes later is seen.
fn static_pods(path: Option<PathBuf>) -> anyhow::Result<watch::Receiver<Arc<manifest::Loaded>>> {
    let Some(path) = path else { return Ok(watch::channel(Arc::default()).1) };
    if !path.exists() {
        std::fs::create_dir_all(&path)
            .with_context(|| format!("make the directory of static pods {}", path.display()))?;
    }
    Ok(manifest::watch(vec![path])?)
}

/// Gives the built-in network, where there is one, the range that the cluster gives the node, and remembers it.
async fn follow_ranges(
    node: Node,
    builtin: Option<podnet::Backend>,
    mut own: watch::Receiver<Option<Arc<v1::Node>>>,
    network: watch::Sender<Option<cni::DefaultNetwork>>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    let mut known = recall(&ranges_file(&node)).unwrap_or_default();
    loop {
        let cidrs = own.borrow_and_update().as_deref().map(ranges_of).unwrap_or_default();
        if let Some(backend) = builtin
            && !cidrs.is_empty()
            && cidrs != known
        {
            remember(&ranges_file(&node), &cidrs);
            let mtu = pod_mtu(&node, backend).await;
            network.send_replace(Some(parts::network(&node, cidrs.clone(), mtu)));
            tracing::info!(?cidrs, "the cluster gives this node a range for its pods");
            known = cidrs;
        }
        tokio::select! {
            Ok(()) = own.changed() => {}
            () = &mut stop => return,
        }
    }
}

/// What pods may send at once, so that it fits through the ways to other nodes; the kernel's choice where the link with the
/// node's address is not known.
async fn pod_mtu(node: &Node, backend: podnet::Backend) -> Option<u32> {
    let local = node.address()?;
    let netlink = Netlink::open().ok()?;
    let addresses = netlink.all_addresses().await.ok()?;
    let (index, _) = addresses.into_iter().find(|(_, address)| address.addr() == local)?;
    let links = netlink.links().await.ok()?;
    let link = links.into_iter().find(|link| link.index == index)?;
    Some(podnet::pod_mtu(backend, link.mtu, local))
}

fn ranges_of(node: &v1::Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten();
    let all: Vec<IpNet> = all.filter_map(|cidr| cidr.parse().ok()).collect();
    if all.is_empty() { spec.pod_cidr.iter().filter_map(|cidr| cidr.parse().ok()).collect() } else { all }
}

/// What the cluster gave, one range a line.
fn ranges_file(node: &Node) -> PathBuf {
    node.root.join("pod-cidrs")
}

fn recall(file: &Path) -> Option<Vec<IpNet>> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().map(|line| line.parse().ok()).collect::<Option<Vec<IpNet>>>().filter(|all| !all.is_empty())
}

fn remember(file: &Path, cidrs: &[IpNet]) {
    let text: String = cidrs.iter().map(|cidr| format!("{cidr}\n")).collect();
    if let Err(error) = host::state_file::write_atomic(file, text.as_bytes(), 0o644) {
        tracing::warn!(%error, file = %file.display(), "the range of this node's pods is not remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_remembered_for_a_start_without_the_api_server() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pod-cidrs");
        assert_eq!(recall(&file), None);
        let cidrs: Vec<IpNet> = ["10.244.1.0/24", "fd00:1::/64"].map(|cidr| cidr.parse().unwrap()).into();
        remember(&file, &cidrs);
        assert_eq!(recall(&file), Some(cidrs));
        std::fs::write(&file, "torn").unwrap();
        assert_eq!(recall(&file), None);
    }

    #[test]
    fn a_node_with_one_range_names_it_in_one_place_or_two() {
        let node = |spec| v1::Node { spec: serde_json::from_value(spec).unwrap(), ..v1::Node::default() };
        let text = |node: &v1::Node| ranges_of(node).iter().map(IpNet::to_string).collect::<Vec<_>>();
        assert_eq!(text(&node(serde_json::json!({ "podCIDR": "10.1.0.0/24" }))), ["10.1.0.0/24"]);
        assert_eq!(
            text(&node(
                serde_json::json!({ "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"] })
            )),
            ["10.1.0.0/24", "fd00::/64"]
        );
        assert!(ranges_of(&v1::Node::default()).is_empty());
    }
}

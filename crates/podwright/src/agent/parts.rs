//! What each part of the agent is configured with: the node's paths and names, in each part's own words.

use std::sync::Arc;

use hostnet::netfilter::{Writer, WriterHandle};
use tokio::sync::watch;

use crate::image::auth_file;
use crate::node::Node;

/// The ports of NodePort Services, as upstream.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// How long a CNI plugin may take; a kubelet gives RunPodSandbox four minutes.
const CNI_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// The one writer of netfilter rules in this process.
pub(crate) fn netfilter() -> WriterHandle {
    Writer::spawn()
}

/// The service proxy.
pub(crate) fn proxy(node: &Node) -> proxy::Config {
    proxy::Config { node_port_range: NODE_PORTS, node_name: node.name.clone() }
}

/// The Services of a standalone node.
pub(crate) fn manifests(
    node: &Node,
    desired: watch::Receiver<Arc<manifest::Loaded>>,
    pods: watch::Receiver<Arc<Vec<proxy::LocalPod>>>,
) -> proxy::Source {
    proxy::Source::Manifests(proxy::Manifests {
        desired,
        pods,
        service_cidrs: node.service_cidrs.clone(),
        pod_cidrs: node.pod_cidrs.clone(),
        state_file: node.services_file(),
    })
}

/// The container runtime with its network: `default_network` is that of pods without a configuration file.
pub(crate) fn runtime(
    node: &Node,
    default_network: watch::Receiver<Option<cni::DefaultNetwork>>,
) -> runtime::Config {
    runtime::Config {
        root: node.root.clone(),
        state: node.state.clone(),
        cgroup_root: node.runtime_cgroup.clone(),
        registry_config_dir: node.registry_config_dir.clone(),
        node_logins: auth_file::for_runtime(node.registry_auth_files.clone()),
        streaming_address: (std::net::Ipv4Addr::LOCALHOST, 0).into(),
        cni: cni::ClientConfig {
            conf_dir: node.cni_conf_dir.clone(),
            bin_dirs: node.cni_bin_dirs.clone(),
            cache_dir: node.cni_cache_dir(),
            data_dir: node.leases_dir(),
            default_network,
            patience: CNI_PATIENCE,
            undeleted: cni::Undeleted::Kept,
        },
    }
}

/// Our bridge, for pods of these ranges.
pub(crate) fn network(node: &Node, pod_cidrs: Vec<ipnet::IpNet>, mtu: Option<u32>) -> cni::DefaultNetwork {
    cni::DefaultNetwork { bridge: node.bridge.clone(), pod_cidrs, mtu }
}

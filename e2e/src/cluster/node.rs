//! A node of a test cluster: ours, the field's, or a half of each.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use super::control_plane::member;
use super::podwright::Podwright;
use super::stock::Stock;
use crate::lab::Machine;

/// Of what a node is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeKind {
    /// `podwright agent`.
    Podwright,
    /// The stock kubelet on containerd, runc and upstream's CNI plugins, with kube-proxy: the reference, which tells
    /// whether a story itself is right.
    Stock,
}

/// A running node.
pub struct ClusterNode {
    /// Of what it is made.
    pub kind: NodeKind,
    parts: Parts,
    /// Its machine.
    pub machine: Machine,
}

enum Parts {
    Podwright(Podwright),
    Stock(Stock),
}

impl ClusterNode {
    pub(super) fn start(cluster: &Cluster, kind: NodeKind, machine: Machine) -> Result<Self> {
        write_credentials(cluster, &machine).context("write the node's credentials")?;
        let parts = match kind {
            NodeKind::Stock => Parts::Stock(Stock::start(cluster, &machine)?),
            NodeKind::Podwright => Parts::Podwright(Podwright::start(cluster, &machine)?),
        };
        let node = Self { kind, parts, machine };
        node.wait_ready(cluster)?;
        Ok(node)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// What its agent logged.
    #[must_use]
    pub fn log(&self) -> String {
        match &self.parts {
            Parts::Podwright(podwright) => podwright.log(),
            Parts::Stock(stock) => stock.log(),
        }
    }

    /// Waits until the node is Ready.
    ///
    /// # Errors
    /// When it is not within a minute: with the agent's log.
    pub fn wait_ready(&self, cluster: &Cluster) -> Result<()> {
        let node = format!("node/{}", self.name());
        let ready = cluster.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"]);
        ready.map(drop).with_context(|| format!("the agent of {} says\n{}", self.name(), self.log()))
    }

    /// The Node object.
    ///
    /// # Errors
    /// When there is none.
    pub fn object(&self, cluster: &Cluster) -> Result<Value> {
        cluster.get(&["node", self.name()])
    }
}

/// `kubelet.conf` with a client certificate, the cluster's CA and the directory of static pods, where kubeadm has them.
fn write_credentials(cluster: &Cluster, machine: &Machine) -> Result<()> {
    let directory = machine.host.path().join("kubernetes");
    for name in ["pki", "manifests"] {
        std::fs::create_dir_all(directory.join(name))?;
    }
    let user = format!("system:node:{}", machine.name);
    let kubeconfig = cluster.control_plane.kubeconfig(member(&user, "system:nodes"))?;
    std::fs::write(directory.join("kubelet.conf"), kubeconfig)?;
    let authority = cluster.control_plane.authority().identity().certificate;
    std::fs::write(directory.join("pki/ca.crt"), authority)?;
    machine.host.run("ln", &["-s", &directory.to_string_lossy(), "/etc/kubernetes"]).map(drop)
}

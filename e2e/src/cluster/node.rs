//! A node of a test cluster: ours, the field's, or a half of each.

use std::sync::{Mutex, MutexGuard, PoisonError};

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
    /// `podwright agent` on containerd and upstream's CNI plugins.
    PodwrightOnContainerd,
    /// The stock kubelet with kube-proxy on the CRI socket of `podwright runtime`.
    StockOnPodwright,
}

/// One of the two programs that a node of halves is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Who decides which pods run.
    Kubelet,
    /// Who runs them.
    Runtime,
}

/// A running node.
pub struct ClusterNode {
    /// Of what it is made.
    pub kind: NodeKind,
    parts: Mutex<Parts>,
    /// Its machine.
    pub machine: Machine,
}

/// Who runs a node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runtime {
    Containerd,
    Podwright,
}

enum Parts {
    Podwright(Podwright),
    Stock(Stock),
}

impl ClusterNode {
    pub(super) fn start(cluster: &Cluster, kind: NodeKind, machine: Machine) -> Result<Self> {
        write_credentials(cluster, &machine).context("write the node's credentials")?;
        let parts = match kind {
            NodeKind::Stock => Parts::Stock(Stock::start(cluster, &machine, Runtime::Containerd)?),
            NodeKind::StockOnPodwright => Parts::Stock(Stock::start(cluster, &machine, Runtime::Podwright)?),
            NodeKind::Podwright => {
                Parts::Podwright(Podwright::start(cluster, &machine, Runtime::Podwright, "builtin")?)
            }
            NodeKind::PodwrightOnContainerd => {
                Parts::Podwright(Podwright::start(cluster, &machine, Runtime::Containerd, "cni")?)
            }
        };
        let node = Self { kind, parts: Mutex::new(parts), machine };
        node.wait_ready(cluster)?;
        Ok(node)
    }

    /// Starts our agent where the cluster is to bring the network of pods: it does not get Ready before.
    pub(super) fn start_without_network(cluster: &Cluster, machine: Machine) -> Result<Self> {
        write_credentials(cluster, &machine).context("write the node's credentials")?;
        let podwright = Podwright::start(cluster, &machine, Runtime::Podwright, "cni")?;
        Ok(Self { kind: NodeKind::Podwright, parts: Mutex::new(Parts::Podwright(podwright)), machine })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// What its agent logged.
    #[must_use]
    pub fn log(&self) -> String {
        match &*self.lock() {
            Parts::Podwright(podwright) => podwright.log(),
            Parts::Stock(stock) => stock.log(),
        }
    }

    /// Kills one half as a crash would, and starts it again. A node that is one program has one half.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn crash(&self, half: Half) -> Result<()> {
        match &mut *self.lock() {
            Parts::Podwright(podwright) => podwright.crash_half(half, &self.machine),
            Parts::Stock(stock) => stock.crash(half, &self.machine),
        }
    }

    /// Kills the agent, or the stock kubelet, as a crash would; the pods stay.
    pub fn end_agent(&self) {
        match &mut *self.lock() {
            Parts::Podwright(podwright) => podwright.crash(),
            Parts::Stock(stock) => stock.end_kubelet(),
        }
    }

    /// Starts it again with the same flags.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self) -> Result<()> {
        match &mut *self.lock() {
            Parts::Podwright(podwright) => podwright.restart(&self.machine),
            Parts::Stock(stock) => stock.start_kubelet(&self.machine),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
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

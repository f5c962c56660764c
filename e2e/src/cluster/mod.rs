//! A real cluster in a lab: the control plane as kubeadm makes it, a registry with the public images' names, and nodes of
//! several kinds, all driven by kubectl.
//!
//! It ends with the value or with the test process, whichever is first: see [`crate::lab`].

pub mod certificates;
pub mod control_plane;
pub mod flags;
pub mod images;
pub mod kubeconfig;
pub mod kubectl;
pub mod node;
pub mod objects;
pub mod podwright;
mod settings;
pub mod stock;
pub mod story;

use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};

pub use control_plane::ControlPlane;
pub use flags::Component;
pub use node::{ClusterNode, Half, NodeKind};
pub use settings::NodeSettings;
pub use story::ClusterStory;

use crate::lab::{Lab, Machine, ROUTER};
use crate::registry::Registry;

/// The number of the control plane's machine in the lab; nodes have the next ones.
const CONTROL_PLANE: u8 = 10;

/// See the module.
pub struct Cluster {
    next: AtomicU8,
    /// The control plane: components can be killed and started again.
    pub control_plane: ControlPlane,
    _registry: Registry,
    /// The network: links can be cut and healed.
    pub lab: Lab,
}

impl Cluster {
    /// Starts the control plane and applies what kubeadm would. Takes about ten seconds; there is no node yet.
    ///
    /// # Errors
    /// When a part is missing (`hack/tools.sh` builds them) or does not come up.
    pub fn start() -> Result<Self> {
        Self::start_with(flags::Ranges::default())
    }

    /// The same with other addresses.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(ranges: flags::Ranges) -> Result<Self> {
        let images = images::storage().context("make the test images")?;
        let lab = Lab::new().context("make the lab")?;
        let registry = Registry::serve_at(lab.router(), &format!("{ROUTER}:{}", images::PORT), &images)?;
        let machine = lab.machine("control-plane", CONTROL_PLANE)?;
        let control_plane = ControlPlane::start(machine, ranges).context("start the control plane")?;
        let next = AtomicU8::new(CONTROL_PLANE + 1);
        let cluster = Self { next, control_plane, _registry: registry, lab };
        cluster.set_up().context("set the cluster up")?;
        Ok(cluster)
    }

    fn set_up(&self) -> Result<()> {
        self.control_plane.start_controllers()?;
        self.kubectl_as("super-admin", &["apply", "-f", "-"], Some(&objects::kubeadm(&self.control_plane)))?;
        self.apply(objects::NODE_RIGHTS)?;
        self.control_plane.wait(Component::ControllerManager)?;
        self.control_plane.wait(Component::Scheduler)?;
        // Without it no pod is admitted.
        self.kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=60s"]).map(drop)
    }

    /// Adds a machine that is no node. Its mirrors of registries are in `certs.d` of its directory.
    ///
    /// # Errors
    /// When its namespaces or its link cannot be made.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let machine = self.lab.machine(name, self.next.fetch_add(1, Ordering::Relaxed))?;
        images::write_mirrors(&machine.host.path().join("certs.d"))?;
        Ok(machine)
    }

    /// Adds a node, and waits until it is Ready.
    ///
    /// # Errors
    /// When it does not get Ready: with its log.
    pub fn node(&self, kind: NodeKind, name: &str) -> Result<ClusterNode> {
        ClusterNode::start(self, kind, self.machine(name)?)
    }

    /// Adds a node that is no neighbour of the others, and waits until it is Ready.
    ///
    /// # Errors
    /// When it does not get Ready: with its log.
    pub fn far_node(&self, kind: NodeKind, name: &str) -> Result<ClusterNode> {
        let machine = self.lab.far_machine(name, self.next.fetch_add(1, Ordering::Relaxed))?;
        images::write_mirrors(&machine.host.path().join("certs.d"))?;
        ClusterNode::start(self, kind, machine)
    }

    /// Adds one of our nodes, whose network of pods the cluster has to bring: it is not Ready.
    ///
    /// # Errors
    /// When it does not register: with its log.
    pub fn node_without_network(&self, name: &str) -> Result<ClusterNode> {
        ClusterNode::start_without_network(self, self.machine(name)?)
    }

    /// Adds a node that is not as the others, and waits until it is Ready.
    ///
    /// # Errors
    /// When it does not get Ready: with its log.
    pub fn node_with(&self, kind: NodeKind, name: &str, settings: &NodeSettings) -> Result<ClusterNode> {
        let machine = self.lab.machine(name, self.next.fetch_add(1, Ordering::Relaxed))?;
        settings.prepare(&machine).with_context(|| format!("prepare the machine {name}"))?;
        images::write_mirrors(&machine.host.path().join("certs.d"))?;
        ClusterNode::start(self, kind, machine)
    }

    /// Runs CoreDNS as pods and waits until it answers.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn run_dns(&self) -> Result<()> {
        self.apply(&objects::coredns())?;
        self.kubectl(&["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"])
            .map(drop)
    }

    /// Runs metrics-server as a pod and waits until the API server reaches it.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn run_metrics_server(&self) -> Result<()> {
        self.apply(&objects::metrics_server())?;
        let rollout = ["rollout", "status", "deployment/metrics-server", "--timeout=120s"];
        let in_system = |words: &[&str]| self.kubectl(&[&["-n", "kube-system"], words].concat());
        in_system(&rollout).with_context(|| {
            let log =
                in_system(&["logs", "deployment/metrics-server"]).unwrap_or_else(|error| error.to_string());
            format!("metrics-server says\n{log}")
        })?;
        let available = ["wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io"];
        self.kubectl(&[available.as_slice(), &["--timeout=120s"]].concat()).map(drop)
    }

    /// Makes a bootstrap token, as `kubeadm token create` does, and waits until cluster-info is signed with it.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn create_token(&self, id: &str, secret: &str) -> Result<String> {
        self.apply(&objects::bootstrap_token(id, secret, "2124-01-01T00:00:00Z"))?;
        let signed = format!("--for=jsonpath={{.data.jws-kubeconfig-{id}}}");
        self.kubectl(&["-n", "kube-public", "wait", &signed, "configmap/cluster-info", "--timeout=60s"])?;
        Ok(format!("{id}.{secret}"))
    }
}

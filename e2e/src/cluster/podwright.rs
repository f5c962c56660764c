//! Our node: `podwright agent` on a machine of its own, with the paths that it has on any machine.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::flags::{DNS_SERVICE, DOMAIN};
use super::node::{Half, Runtime};
use super::settings::{flags, special};
use super::stock;
use crate::containerd::{Containerd, write_network};
use crate::lab::Machine;
use crate::parts;
use crate::test_host::Daemon;

/// The CRI socket of a machine that has one of ours.
pub const SOCKET: &str = "/run/podwright/podwright.sock";

/// The running agent. It ends with its machine, as the pods do.
pub struct Podwright {
    agent: Daemon,
    arguments: Vec<String>,
    /// Where our own runtime does not run the pods.
    containerd: Option<Containerd>,
}

impl Podwright {
    /// Starts the agent, with `--pod-network=NETWORK` where our own runtime runs the pods; with `builtin` the node gets Ready
    /// a little later.
    ///
    /// # Errors
    /// When it does not register: with its log.
    pub(super) fn start(
        cluster: &Cluster,
        machine: &Machine,
        runtime: Runtime,
        network: &str,
    ) -> Result<Self> {
        let config = machine.host.path().join("kubelet.json");
        std::fs::write(&config, special(machine, kubelet_config()).to_string())
            .context("write the configuration")?;
        let arguments = [
            "agent".to_owned(),
            "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned(),
            format!("--config={}", config.display()),
            format!("--registry-config-dir={}", machine.host.path().join("certs.d").display()),
            format!("--cgroup-root={}", machine.cgroup),
            format!("--node-ip={}", machine.address),
        ];
        let (containerd, more) = match runtime {
            Runtime::Podwright => (None, format!("--pod-network={network}")),
            Runtime::Containerd => {
                let containerd = Containerd::start_without_network(&machine.host)?;
                let endpoint = format!("--container-runtime-endpoint=unix://{}", containerd.socket.display());
                (Some(containerd), endpoint)
            }
        };
        let arguments: Vec<String> = arguments.into_iter().chain([more]).chain(flags(machine)).collect();
        let mut node = Self { agent: spawn(machine, &arguments)?, arguments, containerd };
        let name = machine.name.clone();
        let cidr = node.agent.wait_within(Duration::from_secs(60), "given a podCIDR", || {
            cluster.get(&["node", &name]).ok()?["spec"]["podCIDR"].as_str().map(str::to_owned)
        })?;
        if node.containerd.is_some() {
            write_network(&machine.host, &stock::network(&cidr))?;
        }
        // For machines without a network of pods, as a cloud's routes: the control plane's, the reference's.
        if machine.is_near() {
            cluster.lab.route(&cidr, machine)?;
        }
        Ok(node)
    }

    /// What the agent logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.agent.log()
    }

    /// Kills a half as a crash would, and starts it again; without containerd there is one.
    pub(super) fn crash_half(&mut self, half: Half, machine: &Machine) -> Result<()> {
        match (half, &mut self.containerd) {
            (Half::Runtime, Some(containerd)) => containerd.crash(&machine.host),
            _ => {
                self.crash();
                self.restart(machine)
            }
        }
    }

    /// Kills the agent as a crash would.
    pub fn crash(&mut self) {
        self.agent.kill();
    }

    /// Starts it again with the same flags.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, machine: &Machine) -> Result<()> {
        self.agent = spawn(machine, &self.arguments)?;
        Ok(())
    }
}

/// Starts `podwright runtime`, with the network that CNI configuration files give.
///
/// # Errors
/// When it does not come up: with its log.
pub(super) fn start_runtime(machine: &Machine) -> Result<Daemon> {
    let mut command = machine.host.command(parts::podwright());
    command
        .arg("runtime")
        .arg(format!("--registry-config-dir={}", machine.host.path().join("certs.d").display()))
        .arg(format!("--cni-conf-dir={}", machine.host.path().join("net.d").display()))
        .arg(format!("--cgroup-root={}", machine.cgroup));
    let mut runtime = machine.host.spawn("podwright-runtime", &mut command)?;
    let crictl = parts::tool("crictl");
    let endpoint = format!("unix://{SOCKET}");
    runtime.wait_until("ready", || {
        machine.host.run(&crictl, &["--runtime-endpoint", &endpoint, "version"]).ok()
    })?;
    Ok(runtime)
}

fn spawn(machine: &Machine, arguments: &[String]) -> Result<Daemon> {
    machine.host.spawn("podwright", machine.host.command(parts::podwright()).args(arguments))
}

fn kubelet_config() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false }, "webhook": { "enabled": true, "cacheTTL": "5s" },
            "x509": { "clientCAFile": "/etc/kubernetes/pki/ca.crt" },
        },
        "authorization": { "mode": "Webhook", "webhook": { "cacheAuthorizedTTL": "5s" } },
        "clusterDNS": [DNS_SERVICE], "clusterDomain": DOMAIN,
        // The machine may be nearly full: that is not what stories are about.
        "imageGCHighThresholdPercent": 100,
        "staticPodPath": "/etc/kubernetes/manifests",
    })
}

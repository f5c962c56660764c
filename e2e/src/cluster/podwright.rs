//! Our node: `podwright agent` on a machine of its own, with the paths that it has on any machine.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::flags::{DNS_SERVICE, DOMAIN};
use crate::lab::Machine;
use crate::parts;
use crate::test_host::Daemon;

/// The running agent. It ends with its machine, as the pods do.
pub struct Podwright {
    agent: Daemon,
    arguments: Vec<String>,
}

impl Podwright {
    /// Starts the agent; the node gets Ready a little later.
    ///
    /// # Errors
    /// When it does not register: with its log.
    pub fn start(cluster: &Cluster, machine: &Machine) -> Result<Self> {
        let config = machine.host.path().join("kubelet.json");
        std::fs::write(&config, kubelet_config().to_string()).context("write the configuration")?;
        let arguments = [
            "agent".to_owned(),
            "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned(),
            format!("--config={}", config.display()),
            format!("--registry-config-dir={}", machine.host.path().join("certs.d").display()),
            format!("--cgroup-root={}", machine.cgroup),
            format!("--node-ip={}", machine.address),
            "--pod-network=builtin".to_owned(),
        ];
        let arguments = arguments.to_vec();
        let mut node = Self { agent: spawn(machine, &arguments)?, arguments };
        let name = machine.name.clone();
        let cidr = node.agent.wait_within(Duration::from_secs(60), "given a podCIDR", || {
            cluster.get(&["node", &name]).ok()?["spec"]["podCIDR"].as_str().map(str::to_owned)
        })?;
        cluster.lab.route(&cidr, machine)?;
        Ok(node)
    }

    /// What the agent logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.agent.log()
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

fn spawn(machine: &Machine, arguments: &[String]) -> Result<Daemon> {
    machine.host.spawn("podwright", machine.host.command(parts::podwright()).args(arguments))
}

fn kubelet_config() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false }, "webhook": { "enabled": true },
            "x509": { "clientCAFile": "/etc/kubernetes/pki/ca.crt" },
        },
        "authorization": { "mode": "Webhook" },
        "clusterDNS": [DNS_SERVICE], "clusterDomain": DOMAIN,
        // The machine may be nearly full: that is not what stories are about.
        "imageGCHighThresholdPercent": 100,
        "staticPodPath": "/etc/kubernetes/manifests",
    })
}

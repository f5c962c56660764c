//! The reference node: stock kubelet, containerd, runc, upstream's CNI plugins and kube-proxy; or the same with our CRI
//! socket instead of containerd's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::control_plane::user;
use super::flags::{DNS_SERVICE, DOMAIN, POD_CIDR};
use super::node::{Half, Runtime};
use super::podwright;
use super::settings::special;
use crate::containerd::{Containerd, write_network};
use crate::lab::Machine;
use crate::parts;
use crate::test_host::{Daemon, TestHost};

/// The running parts. They end with their machine.
pub struct Stock {
    kubelet: Daemon,
    proxy: Daemon,
    engine: Engine,
}

/// Who runs the pods.
enum Engine {
    Containerd(Containerd),
    Podwright(Daemon),
}

/// Kernel settings that the kubelet wants for the whole machine. It finds them as it wants them, and writes nothing.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

impl Stock {
    /// Starts them; the node gets Ready a little later.
    ///
    /// # Errors
    /// When one does not come up: with its log.
    pub(super) fn start(cluster: &Cluster, machine: &Machine, runtime: Runtime) -> Result<Self> {
        let host = &machine.host;
        hide_kernel_settings(host).context("hide the kernel's settings")?;
        make_cgroup(machine).context("make the node's cgroup")?;
        let engine = match runtime {
            Runtime::Containerd => Engine::Containerd(Containerd::start_without_network(host)?),
            Runtime::Podwright => Engine::Podwright(podwright::start_runtime(machine)?),
        };
        let mut kubelet = start_kubelet(machine, &engine.socket())?;
        let name = machine.name.clone();
        let cidr = kubelet.wait_within(Duration::from_secs(60), "given a podCIDR", || {
            cluster.get(&["node", &name]).ok()?["spec"]["podCIDR"].as_str().map(str::to_owned)
        })?;
        write_network(host, &network(&cidr))?;
        cluster.lab.route(&cidr, machine)?;
        let proxy = start_proxy(cluster, machine)?;
        Ok(Self { kubelet, proxy, engine })
    }

    /// What the kubelet logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.kubelet.log()
    }

    /// What kube-proxy logged.
    #[must_use]
    pub fn proxy_log(&self) -> String {
        self.proxy.log()
    }

    /// The runtime's CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.engine.socket()
    }

    /// Kills a half as a crash would, and starts it again.
    pub(super) fn crash(&mut self, half: Half, machine: &Machine) -> Result<()> {
        match (half, &mut self.engine) {
            (Half::Kubelet, _) => {
                self.end_kubelet();
                self.start_kubelet(machine)
            }
            (Half::Runtime, Engine::Containerd(containerd)) => containerd.crash(&machine.host),
            (Half::Runtime, Engine::Podwright(runtime)) => {
                runtime.kill();
                *runtime = podwright::start_runtime(machine)?;
                Ok(())
            }
        }
    }
}

impl Stock {
    /// Kills the kubelet as a crash would.
    pub(super) fn end_kubelet(&mut self) {
        self.kubelet.kill();
    }

    /// Starts it again with the same flags.
    pub(super) fn start_kubelet(&mut self, machine: &Machine) -> Result<()> {
        self.kubelet = start_kubelet(machine, &self.engine.socket())?;
        Ok(())
    }
}

impl Engine {
    fn socket(&self) -> PathBuf {
        match self {
            Self::Containerd(containerd) => containerd.socket.clone(),
            Self::Podwright(_) => podwright::SOCKET.into(),
        }
    }
}

fn hide_kernel_settings(host: &TestHost) -> Result<()> {
    for (name, value) in KERNEL_SETTINGS {
        let file = host.path().join(name.replace('/', "."));
        std::fs::write(&file, format!("{value}\n"))?;
        host.run("mount", &["--bind", &file.to_string_lossy(), &format!("/proc/sys/{name}")])?;
    }
    Ok(())
}

/// The kubelet does not make its `cgroupRoot`. A new cpuset is empty, and nothing can run in it.
fn make_cgroup(machine: &Machine) -> Result<()> {
    let script = format!(
        "set -e
         for hierarchy in /sys/fs/cgroup/*/; do mkdir -p \"$hierarchy\"{0}; done
         cd /sys/fs/cgroup/cpuset
         for file in cpuset.cpus cpuset.mems; do cat $file > .{0}/$file; done",
        machine.cgroup
    );
    machine.host.run("bash", &["-c", &script]).map(drop)
}

fn start_kubelet(machine: &Machine, containerd: &Path) -> Result<Daemon> {
    let host = &machine.host;
    let config = host.path().join("kubelet.json");
    std::fs::write(&config, special(machine, kubelet_config(machine, containerd)).to_string())?;
    let mut command = host.command(parts::tool("kubelet"));
    command
        .arg(format!("--config={}", config.display()))
        .arg("--kubeconfig=/etc/kubernetes/kubelet.conf")
        .arg(format!("--node-ip={}", machine.address))
        .arg(format!("--hostname-override={}", machine.name));
    host.spawn("kubelet", &mut command)
}

fn kubelet_config(machine: &Machine, containerd: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false }, "webhook": { "enabled": true, "cacheTTL": "5s" },
            "x509": { "clientCAFile": "/etc/kubernetes/pki/ca.crt" },
        },
        "authorization": { "mode": "Webhook", "webhook": { "cacheAuthorizedTTL": "5s" } },
        "cgroupDriver": "cgroupfs", "cgroupRoot": machine.cgroup,
        "clusterDNS": [DNS_SERVICE], "clusterDomain": DOMAIN,
        "containerRuntimeEndpoint": format!("unix://{}", containerd.display()),
        // The machine may be nearly full: that is not what stories are about.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "failCgroupV1": false, "failSwapOn": false, "oomScoreAdj": 0,
        "staticPodPath": "/etc/kubernetes/manifests",
        "volumePluginDir": machine.host.path().join("plugins"),
    })
}

/// Pods of other nodes are reached by the lab's routes, without NAT.
pub(super) fn network(cidr: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "ranges": [[{ "subnet": cidr }]], "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }, { "type": "portmap", "capabilities": { "portMappings": true } }],
    })
}

fn start_proxy(cluster: &Cluster, machine: &Machine) -> Result<Daemon> {
    let host = &machine.host;
    let kubeconfig = host.path().join("kube-proxy.conf");
    std::fs::write(&kubeconfig, cluster.control_plane.kubeconfig(user("system:kube-proxy"))?)?;
    // Limits of conntrack are the whole machine's: left alone.
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": kubeconfig },
        "clusterCIDR": POD_CIDR, "hostnameOverride": machine.name, "mode": "iptables",
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s" },
    });
    let file = host.path().join("kube-proxy.json");
    std::fs::write(&file, config.to_string())?;
    let mut command = host.command(parts::tool("kube-proxy"));
    command.arg(format!("--config={}", file.display()));
    host.spawn("kube-proxy", &mut command)
}

//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler on a machine of a lab, each its own process that a
//! story can end and start again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::certificates::{Authority, Period, Subject, write_key_pair};
use super::flags::{Component, ETCD, KUBERNETES_SERVICE, Place, Ranges};
use super::kubeconfig;
use crate::lab::Machine;
use crate::parts;
use crate::test_host::Daemon;

/// The API server as `future.lab`, whose certificate does not hold yet…
const FUTURE: (&str, Period) = ("future", Period { from: 4_828_000_000, to: 4_860_000_000 });
/// … and as `past.lab`, whose certificate has expired.
const PAST: (&str, Period) = ("past", Period { from: 1_700_000_000, to: 1_740_000_000 });

/// A running control plane.
pub struct ControlPlane {
    running: Mutex<BTreeMap<Component, Daemon>>,
    authority: Authority,
    machine: Machine,
    ranges: Ranges,
}

impl ControlPlane {
    /// Makes the certificates and starts etcd and the API server; gives when that is ready.
    ///
    /// # Errors
    /// When a part does not come up: with its log.
    pub fn start(machine: Machine, ranges: Ranges) -> Result<Self> {
        let authority = Authority::new("kubernetes")?;
        let control_plane = Self { running: Mutex::default(), authority, machine, ranges };
        control_plane.write_pki().context("write the cluster's certificates")?;
        control_plane.spawn(Component::Etcd)?;
        control_plane.start_component(Component::ApiServer)?;
        Ok(control_plane)
    }

    /// Starts what works for the cluster: the controllers and the scheduler. Does not wait for them.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_controllers(&self) -> Result<()> {
        self.spawn(Component::ControllerManager)?;
        self.spawn(Component::Scheduler)
    }

    /// The machine on which it runs.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The cluster's certificate authority.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The API server's URL.
    #[must_use]
    pub fn server(&self) -> String {
        format!("https://{}:6443", self.machine.address)
    }

    /// Where certificates and kubeconfig files are.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.machine.host.path().join("pki")
    }

    /// Kills a component as a crash would.
    pub fn kill(&self, component: Component) {
        self.lock().remove(&component);
    }

    /// Starts a component, and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn start_component(&self, component: Component) -> Result<()> {
        self.spawn(component)?;
        self.wait(component)
    }

    /// As [`start_component`](Self::start_component), with another value of one of its flags.
    ///
    /// # Errors
    /// As there.
    pub fn start_component_with(&self, component: Component, name: &str, value: &str) -> Result<()> {
        self.spawn_with(component, |flags| {
            let start = format!("--{name}=");
            flags.retain(|flag| !flag.starts_with(&start));
            flags.push(format!("{start}{value}"));
        })?;
        self.wait(component)
    }

    /// Lets etcd forget what was before now. The API server still has what it holds in memory.
    ///
    /// # Errors
    /// When etcd does not.
    pub fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: &str| {
            let url = format!("{ETCD}/v3/kv/{path}");
            let told = self.machine.host.run("curl", &["-sf", "--max-time", "30", "-d", body, &url])?;
            serde_json::from_str::<serde_json::Value>(&told).with_context(|| format!("read {told:?}"))
        };
        let now = ask("range", r#"{"key":"AA==","limit":1}"#)?["header"]["revision"].clone();
        ask("compaction", &serde_json::json!({ "revision": now, "physical": true }).to_string()).map(drop)
    }

    /// Waits until a component says that it is ready.
    ///
    /// # Errors
    /// When it ends, or takes more than two minutes: with its log.
    pub fn wait(&self, component: Component) -> Result<()> {
        let mut running = self.lock();
        let daemon = running.get_mut(&component).context("it was started")?;
        let url = component.readiness();
        daemon.wait_within(Duration::from_secs(120), &format!("ready ({url})"), || {
            self.machine.host.run("curl", &["-skf", "--max-time", "5", url]).ok().map(drop)
        })
    }

    fn spawn(&self, component: Component) -> Result<()> {
        self.spawn_with(component, |_| ())
    }

    fn spawn_with(&self, component: Component, change: impl FnOnce(&mut Vec<String>)) -> Result<()> {
        let data = self.machine.host.path().join("etcd");
        let place =
            Place { pki: &self.pki(), data: &data, address: &self.machine.address, ranges: self.ranges };
        let mut command = self.machine.host.command(parts::tool("controlplane"));
        let mut flags = component.flags(&place);
        change(&mut flags);
        command.arg(component.name()).args(flags);
        let daemon = self.machine.host.spawn(component.name(), &mut command)?;
        self.lock().insert(component, daemon);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Component, Daemon>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_pki(&self) -> Result<()> {
        let pki = self.pki();
        std::fs::create_dir_all(&pki)?;
        self.authority.identity().write(&pki, "ca")?;
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            &self.machine.name,
            &self.machine.address,
            "127.0.0.1",
            KUBERNETES_SERVICE,
        ];
        self.authority.server(user("kube-apiserver"), &names)?.write(&pki, "apiserver")?;
        for (name, period) in [FUTURE, PAST] {
            let names = [format!("{name}.lab")];
            let names = [names[0].as_str()];
            self.authority.server_within(user("kube-apiserver"), &names, period)?.write(&pki, name)?;
        }
        let kubelet_client = member("kube-apiserver-kubelet-client", "kubeadm:cluster-admins");
        self.authority.client(kubelet_client)?.write(&pki, "apiserver-kubelet-client")?;
        let front_proxy = Authority::new("front-proxy-ca")?;
        front_proxy.identity().write(&pki, "front-proxy-ca")?;
        front_proxy.client(user("front-proxy-client"))?.write(&pki, "front-proxy-client")?;
        write_key_pair(&pki, "sa")?;
        for (file, subject) in [
            ("super-admin", member("kubernetes-super-admin", "system:masters")),
            ("admin", member("kubernetes-admin", "kubeadm:cluster-admins")),
            ("controller-manager", user("system:kube-controller-manager")),
            ("scheduler", user("system:kube-scheduler")),
        ] {
            std::fs::write(pki.join(format!("{file}.conf")), self.kubeconfig(subject)?)?;
        }
        Ok(())
    }

    /// A kubeconfig file with a new client certificate of that subject.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn kubeconfig(&self, subject: Subject<'_>) -> Result<String> {
        let (identity, authority) = (self.authority.client(subject)?, self.authority.identity().certificate);
        let file = kubeconfig::with_certificate(&self.server(), &authority, subject.common_name, &identity);
        Ok(file.to_string())
    }
}

/// A user in no group.
#[must_use]
pub fn user(common_name: &str) -> Subject<'_> {
    Subject { common_name, organization: None }
}

/// A member of a group.
#[must_use]
pub fn member<'a>(common_name: &'a str, organization: &'a str) -> Subject<'a> {
    Subject { common_name, organization: Some(organization) }
}

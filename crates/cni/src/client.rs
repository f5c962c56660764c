//! The runtime's CNI client: which network pods get, ADD, DEL and CHECK through its plugins in order, what was added before a crash.
//!
//! A bundled plugin runs in process where it can do what its configuration asks for, else the program of that name does.
//! Each attachment is written down before it is acquired, with its configuration: DEL works when the file has changed.

mod check;

pub use check::Checked;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostnet::conntrack::{self, Flow};
use hostnet::link::{Netlink, write_sysctl};
use hostnet::monitor::{LinkEvent, LinkMonitor};
use hostnet::netfilter::{Family, Owner, PerFamily, Ruleset, WriterHandle};
use hostnet::route::anywhere;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell, RwLock, broadcast, watch};

use crate::bridge::{BridgeConfig, ContainerEnd, host_interface, open_namespace};
use crate::cache::{Cache, Entry};
use crate::config::NetworkConfig;
use crate::error::{CniError, Code};
use crate::exec;
use crate::host_local::{HostLocal, Lease};
use crate::portmap::{HostPort, Protocol};
use crate::result::AddResult;
use crate::rules::{self, Needs, Place};
use crate::steps::{Step, each_step, steps};

/// Where configurations and leases are.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Conflists: the lexically first one counts.
    pub conf_dir: PathBuf,
    /// Foreign plugin binaries: the first directory that has one counts.
    pub bin_dirs: Vec<PathBuf>,
    /// What was added, in libcni's layout.
    pub cache_dir: PathBuf,
    /// Leases of the default network.
    pub data_dir: PathBuf,
    /// The network without any configuration file; none: NetworkReady waits for a file, or until there is one here.
    pub default_network: watch::Receiver<Option<DefaultNetwork>>,
    /// How long a plugin binary may take.
    pub patience: Duration,
    /// What becomes of a connection that its plugins do not delete.
    pub undeleted: Undeleted,
}

/// What becomes of a connection that its plugins do not delete, as one is gone or fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undeleted {
    /// DEL fails, and what is written down stays: the next DEL tries again.
    Kept,
    /// It is told in the log, and forgotten: nobody will ask again.
    Forgotten,
}

/// The built-in network: our bridge, host-local, masquerade, host ports.
#[derive(Clone, Debug)]
pub struct DefaultNetwork {
    /// The bridge's name.
    pub bridge: String,
    /// The subnets of this node's pods: one, or one of each family.
    pub pod_cidrs: Vec<IpNet>,
    /// The MTU in bytes; the kernel's choice without.
    pub mtu: Option<u32>,
}

/// What is connected: a sandbox's network namespace.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The sandbox's id.
    pub container_id: String,
    /// Its network namespace; none when it is gone.
    pub netns: Option<PathBuf>,
    /// The interface inside: `eth0`.
    pub ifname: String,
    /// K8S_POD_NAMESPACE.
    pub pod_namespace: String,
    /// K8S_POD_NAME.
    pub pod_name: String,
    /// K8S_POD_UID.
    pub pod_uid: String,
    /// What plugins that declare the capability get as `runtimeConfig`: `portMappings`, `bandwidth`, `dns`, `ips`, `mac`.
    pub capabilities: BTreeMap<String, Value>,
}

impl Attachment {
    /// CNI_ARGS, as every Kubernetes runtime fills it.
    fn args(&self) -> Vec<(String, String)> {
        let pairs = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &self.pod_namespace),
            ("K8S_POD_NAME", &self.pod_name),
            ("K8S_POD_INFRA_CONTAINER_ID", &self.container_id),
            ("K8S_POD_UID", &self.pod_uid),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }
}

/// The key of an attachment: container and interface.
type Key = (String, String);

/// What is programmed for attachments.
#[derive(Debug, Default)]
struct Programmed {
    needs: BTreeMap<Key, Needs>,
    /// What the writer has; nothing is known before the first time.
    submitted: Option<PerFamily<Ruleset>>,
}

/// The client; one per runtime.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    cache: Cache,
    netfilter: WriterHandle,
    netlink: Netlink,
    monitor: LinkMonitor,
    /// Bridges that are set up, by name: their index.
    bridges: Mutex<BTreeMap<String, Arc<OnceCell<u32>>>>,
    programmed: Mutex<Programmed>,
    /// CNI 1.1 §4 "GC": never while something is added or deleted.
    collecting: RwLock<()>,
}

impl Client {
    /// Opens the client in the network namespace of the calling thread, inside a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink.
    pub async fn open(config: ClientConfig, netfilter: WriterHandle) -> Result<Self, CniError> {
        let cache = Cache::open(&config.cache_dir)?;
        let (netlink, monitor) = (Netlink::open()?, LinkMonitor::start()?);
        Ok(Self {
            config,
            cache,
            netfilter,
            netlink,
            monitor,
            bridges: Mutex::default(),
            programmed: Mutex::default(),
            collecting: RwLock::default(),
        })
    }

    /// Whether pods can be connected now: the plugins are there and, where the network speaks CNI 1.1, say so.
    ///
    /// # Errors
    /// When there is no network, or its configuration is not usable: with the reason.
    pub async fn status(&self) -> Result<(), CniError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let network = self.network()?;
        for step in steps(&network, &self.config.bin_dirs, &BTreeMap::new())? {
            if let Step::Foreign { program, config } = step
                && network.has_status_and_gc()
            {
                let call = exec::Call {
                    command: "STATUS",
                    bin_dirs: &self.config.bin_dirs,
                    ..exec::Call::default()
                };
                exec::run(&program, &call, &config, PATIENCE.min(self.config.patience)).await?;
            }
        }
        Ok(())
    }

    /// Which network pods get, for `crictl info`.
    #[must_use]
    pub fn config_dump(&self) -> Value {
        match self.network() {
            Ok(network) => network.to_json(),
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    /// Connects a sandbox.
    ///
    /// # Errors
    /// When it is connected already, no address is free, a port is taken, a plugin fails or hangs, or the kernel refuses:
    /// then what was done is undone.
    pub async fn add(&self, attachment: &Attachment) -> Result<AddResult, CniError> {
        let _shared = self.collecting.read().await;
        let network = self.network()?;
        if !self.cache.of(&attachment.container_id, &attachment.ifname).is_empty() {
            let message = format!(
                "sandbox {} is connected already; DEL comes before another ADD",
                attachment.container_id
            );
            return Err(CniError::new(Code::InvalidEnvironment, message));
        }
        let steps = steps(&network, &self.config.bin_dirs, &attachment.capabilities)?;
        let mut entry = Entry {
            network,
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            args: attachment.args(),
            capabilities: json!(attachment.capabilities),
            result: None,
        };
        // Recorded before it is acquired.
        self.cache.write(&entry)?;
        match self.add_steps(&steps, attachment, &entry).await {
            Ok(result) => {
                let parsed = AddResult::parse(&result)?;
                entry.result = Some(result);
                self.cache.write(&entry)?;
                Ok(parsed)
            }
            Err(error) => {
                if let Err(undone) = self.del_entry(&entry, attachment.netns.as_deref()).await {
                    tracing::warn!(sandbox = entry.container_id, error = %undone, "a failed ADD is not undone yet");
                }
                Err(error)
            }
        }
    }

    async fn add_steps(
        &self,
        steps: &[Step],
        attachment: &Attachment,
        entry: &Entry,
    ) -> Result<Value, CniError> {
        let netns = attachment.netns.as_deref().ok_or_else(|| {
            CniError::new(Code::InvalidEnvironment, "the sandbox's network namespace is gone")
        })?;
        let version = &entry.network.version;
        let mut previous: Option<Value> = None;
        for step in steps {
            previous = Some(match step {
                Step::Bridge(bridge) => {
                    let namespace = open_namespace(netns)?;
                    let index = self.bridge(bridge).await?;
                    let leased = bridge.ipam.add_first(&entry.container_id, &entry.ifname)?;
                    let end = ContainerEnd {
                        container_id: &entry.container_id,
                        interface: &entry.ifname,
                        namespace: &namespace,
                        path: netns,
                    };
                    let connected = bridge.connect(&self.netlink, index, &end, leased).await;
                    if connected.is_err() {
                        // Somebody may have removed the bridge: the next sandbox makes it anew.
                        self.bridges.lock().await.remove(&bridge.bridge);
                    }
                    let connected = connected?.to_json(version);
                    self.program(entry, step, None).await?;
                    connected
                }
                Step::Portmap(_) | Step::Firewall(_) => {
                    let previous = previous.take().ok_or_else(|| {
                        CniError::new(
                            Code::InvalidConfig,
                            "portmap and firewall come after a plugin that makes an interface",
                        )
                    })?;
                    self.program(entry, step, Some(&previous)).await?;
                    previous
                }
                Step::Foreign { program, config } => {
                    let mut config = config.clone();
                    if let Some(previous) = &previous {
                        config["prevResult"] = previous.clone();
                    }
                    let call = self.call("ADD", entry, Some(netns));
                    let printed = exec::run(program, &call, &config, self.config.patience).await?;
                    printed.filter(Value::is_object).ok_or_else(|| {
                        let message = format!("CNI plugin {} ADD printed no result", program.display());
                        CniError::new(Code::Internal, message)
                    })?
                }
            });
        }
        previous.ok_or_else(|| {
            CniError::new(Code::InvalidConfig, format!("network {} has no plugins", entry.network.name))
        })
    }

    /// Disconnects a sandbox. Repeatable; succeeds when nothing is connected. Where the bundled bridge made the pair, its
    /// namespace ends with the sandbox: the kernel removes the pair, and the address is free again when it has.
    ///
    /// # Errors
    /// When a plugin fails: what it held stays written down, and the next DEL tries again.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let _shared = self.collecting.read().await;
        let mut outcome = Ok(());
        for entry in self.cache.of(&attachment.container_id, &attachment.ifname) {
            outcome = outcome.and(self.del_entry(&entry, attachment.netns.as_deref()).await);
        }
        outcome
    }

    /// CNI 1.1 §4 "DEL": in reverse, with the result of ADD; a plugin that fails does not keep the others from it.
    async fn del_entry(&self, entry: &Entry, netns: Option<&std::path::Path>) -> Result<(), CniError> {
        let mut outcome = self.unprogram(entry).await;
        for step in self.steps_of(entry).into_iter().rev() {
            let done = match step {
                Ok(step) => self.del_step(step, entry, netns).await,
                Err(error) => Err(error),
            };
            outcome = outcome.and(done);
        }
        if let (Err(error), Undeleted::Forgotten) = (&outcome, self.config.undeleted) {
            tracing::warn!(
                sandbox = entry.container_id,
                network = entry.network.name,
                error = error.chain(),
                "a plugin of the pod's network may have left something"
            );
            outcome = Ok(());
        }
        outcome.and_then(|()| self.cache.remove(entry))
    }

    async fn del_step(
        &self,
        step: Step,
        entry: &Entry,
        netns: Option<&std::path::Path>,
    ) -> Result<(), CniError> {
        match step {
            Step::Portmap(_) | Step::Firewall(_) => Ok(()),
            Step::Bridge(bridge) => self.give_back(bridge.ipam, |lease| {
                lease.container_id == entry.container_id && lease.interface == entry.ifname
            }),
            Step::Foreign { program, mut config } => {
                if let Some(result) = &entry.result {
                    config["prevResult"] = result.clone();
                }
                let call = self.call("DEL", entry, netns);
                exec::run(&program, &call, &config, self.config.patience).await.map(drop)
            }
        }
    }

    /// The plugins with which it was added; those that are gone are errors by name.
    fn steps_of(&self, entry: &Entry) -> Vec<Result<Step, CniError>> {
        let capabilities = serde_json::from_value(entry.capabilities.clone()).unwrap_or_default();
        each_step(&entry.network, &self.config.bin_dirs, &capabilities)
    }

    /// Frees leases once their links have vanished.
    fn give_back(&self, ipam: HostLocal, which: impl Fn(&Lease) -> bool) -> Result<(), CniError> {
        let leases: Vec<Lease> = ipam.leases()?.into_iter().filter(which).collect();
        if !leases.is_empty() {
            let vanished = self.monitor.vanished();
            tokio::spawn(release(self.netlink.clone(), vanished, ipam, leases));
        }
        Ok(())
    }

    /// Frees what no live sandbox holds, after a start, and programs what the live ones need: CNI's GC.
    ///
    /// # Errors
    /// When the leases cannot be read, or rules cannot be written.
    pub async fn reconcile(&self, live: &BTreeSet<String>) -> Result<(), CniError> {
        let _alone = self.collecting.write().await;
        let entries = self.cache.entries();
        let (kept, stale): (Vec<&Entry>, Vec<&Entry>) =
            entries.iter().partition(|entry| live.contains(&entry.container_id));
        let mut outcome = self.reprogram(&kept, !entries.is_empty()).await;
        for entry in stale {
            tracing::info!(sandbox = entry.container_id, "disconnecting a sandbox that is gone");
            outcome = outcome.and(self.del_entry(entry, None).await);
        }
        let Ok(network) = self.network() else { return outcome };
        outcome.and(self.collect(&network, live, &kept).await)
    }

    /// GC of each plugin; continues over errors (CNI 1.1 §4).
    async fn collect(
        &self,
        network: &NetworkConfig,
        live: &BTreeSet<String>,
        kept: &[&Entry],
    ) -> Result<(), CniError> {
        let valid: Vec<Value> = kept
            .iter()
            .filter(|entry| entry.network.name == network.name)
            .map(|entry| json!({ "containerID": entry.container_id, "ifname": entry.ifname }))
            .collect();
        let mut outcome = Ok(());
        for step in each_step(network, &self.config.bin_dirs, &BTreeMap::new()) {
            let done = match step {
                Err(error) => Err(error),
                Ok(Step::Portmap(_) | Step::Firewall(_)) => Ok(()),
                Ok(Step::Bridge(bridge)) => {
                    self.give_back(bridge.ipam, |lease| !live.contains(&lease.container_id))
                }
                Ok(Step::Foreign { program, mut config })
                    if network.has_status_and_gc() && !network.disable_gc =>
                {
                    config["cni.dev/valid-attachments"] = json!(valid);
                    let call = exec::Call {
                        command: "GC",
                        bin_dirs: &self.config.bin_dirs,
                        ..exec::Call::default()
                    };
                    exec::run(&program, &call, &config, self.config.patience).await.map(drop)
                }
                Ok(Step::Foreign { .. }) => Ok(()),
            };
            outcome = outcome.and(done);
        }
        outcome
    }

    fn call<'a>(
        &'a self,
        command: &'a str,
        entry: &'a Entry,
        netns: Option<&'a std::path::Path>,
    ) -> exec::Call<'a> {
        let args: Vec<String> = entry.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        exec::Call {
            command,
            container_id: &entry.container_id,
            netns,
            ifname: &entry.ifname,
            args: args.join(";"),
            bin_dirs: &self.config.bin_dirs,
        }
    }

    /// The configuration that counts now: a file, or the built-in one.
    fn network(&self) -> Result<NetworkConfig, CniError> {
        if let Some(file) = NetworkConfig::first_of(&self.config.conf_dir)? {
            return Ok(file);
        }
        let default = self.config.default_network.borrow();
        let Some(default) = &*default else {
            let message = format!("no network configuration in {}", self.config.conf_dir.display());
            return Err(CniError::new(Code::NotAvailable, message));
        };
        NetworkConfig::parse(&built_in(default, &self.config.data_dir).to_string())
    }

    /// The bridge's index; it is set up once.
    async fn bridge(&self, bridge: &BridgeConfig) -> Result<u32, CniError> {
        let cell = self.bridges.lock().await.entry(bridge.bridge.clone()).or_default().clone();
        cell.get_or_try_init(async || bridge.set_up_bridge(&self.netlink).await).await.copied()
    }

    /// Programs what a step needs for an attachment.
    async fn program(&self, entry: &Entry, step: &Step, previous: Option<&Value>) -> Result<(), CniError> {
        let key = (entry.container_id.clone(), entry.ifname.clone());
        let mut programmed = self.programmed.lock().await;
        let mut needs = programmed.needs.get(&key).cloned().unwrap_or_default();
        let before = needs.ports.len();
        step.need(&mut needs, previous, &comment_of(&entry.args))?;
        let new: Vec<HostPort> = needs.ports[before..].to_vec();
        if let Some((other, number)) = rules::holder(&new, &key, &programmed.needs) {
            let message =
                format!("host port {number}/{} is taken by pod {}", other.protocol.name(), other.comment);
            return Err(CniError::new(Code::Internal, message));
        }
        for port in &new {
            no_process_listens(port)?;
        }
        programmed.needs.insert(key, needs);
        self.submit(&mut programmed).await?;
        drop(programmed);
        open_loopback(&new)?;
        flush_udp(new, stale_flows).await
    }

    /// Takes back what was programmed for an attachment.
    async fn unprogram(&self, entry: &Entry) -> Result<(), CniError> {
        let key = (entry.container_id.clone(), entry.ifname.clone());
        let mut programmed = self.programmed.lock().await;
        let Some(needs) = programmed.needs.remove(&key) else { return Ok(()) };
        let ports = needs.ports.clone();
        // A network's masquerade and forwarding outlive its last pod: the next one needs them again.
        let kept = needs.clone().of_the_network();
        programmed.needs.entry(network_key(&entry.network.name)).or_default().join(kept);
        if let Err(error) = self.submit(&mut programmed).await {
            // They are there still: the next DEL takes them back.
            programmed.needs.insert(key, needs);
            return Err(error);
        }
        drop(programmed);
        flush_udp(ports, ended_flows).await
    }

    /// What live attachments need, after a start.
    async fn reprogram(&self, kept: &[&Entry], anything: bool) -> Result<(), CniError> {
        if !anything {
            return Ok(());
        }
        let mut programmed = self.programmed.lock().await;
        for entry in kept {
            let mut needs = Needs::default();
            for step in self.steps_of(entry).iter().flatten() {
                step.need(&mut needs, entry.result.as_ref(), &comment_of(&entry.args))?;
            }
            programmed.needs.insert((entry.container_id.clone(), entry.ifname.clone()), needs);
        }
        self.submit(&mut programmed).await
    }

    /// Writes the rules when they differ: most pods need none of their own.
    async fn submit(&self, programmed: &mut Programmed) -> Result<(), CniError> {
        let wanted = rules::render(programmed.needs.values(), &Place::Runtime);
        if programmed.submitted.as_ref() == Some(&wanted) {
            return Ok(());
        }
        // After a failure the writer has neither for certain.
        programmed.submitted = None;
        let written = self.netfilter.submit(Owner::Cni, wanted.clone()).await;
        written
            .map_err(|error| CniError::caused(Code::Internal, "write the rules of pods' networks", error))?;
        programmed.submitted = Some(wanted);
        Ok(())
    }
}

/// The key under which what a network's pods had in common is kept; no container has an empty id.
fn network_key(network: &str) -> Key {
    (String::new(), network.to_owned())
}

fn comment_of(args: &[(String, String)]) -> String {
    let value = |wanted: &str| args.iter().find(|(key, _)| key == wanted).map_or("", |(_, value)| value);
    format!("{}/{}", value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME"))
}

/// The built-in network as a conflist.
fn built_in(default: &DefaultNetwork, data_dir: &std::path::Path) -> Value {
    let ranges: Vec<Value> = default.pod_cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let routes: Vec<Value> =
        default.pod_cidrs.iter().map(|cidr| json!({ "dst": anywhere(cidr.addr()) })).collect();
    json!({
        "cniVersion": "1.1.0", "name": "podwright",
        "plugins": [
            {
                "type": "bridge", "bridge": default.bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "mtu": default.mtu.unwrap_or(0),
                "ipam": { "type": "host-local", "dataDir": data_dir, "ranges": ranges, "routes": routes },
            },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            { "type": "firewall", "iptablesAdminChainName": "" },
        ],
    })
}

/// Rules would take the connections of whoever listens there.
fn no_process_listens(port: &HostPort) -> Result<(), CniError> {
    let any = anywhere(port.container.addr()).addr();
    let address = SocketAddr::new(port.host_ip.unwrap_or(any), port.host_port);
    let bound = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    };
    match bound {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let message = format!(
                "host port {}/{} is taken by a process of the node",
                port.host_port,
                port.protocol.name()
            );
            Err(CniError::new(Code::Internal, message))
        }
        // Another address than the node's is for the rules to match or not.
        _ => Ok(()),
    }
}

/// `127.0.0.1:PORT` answers; the rule that guards the loopback is written already (CVE-2020-8558).
pub(crate) fn open_loopback(ports: &[HostPort]) -> Result<(), CniError> {
    for interface in ports.iter().filter_map(rules::loopback_interface) {
        write_sysctl(&format!("net/ipv4/conf/{interface}/route_localnet"), "1")?;
    }
    Ok(())
}

/// UDP flows to a port of the node that go elsewhere than it leads now: they would go on as before. None can be a process's
/// of the node: the port was free.
pub(crate) fn stale_flows(flows: Vec<Flow>, port: &HostPort) -> Vec<Flow> {
    let ours = (port.container.addr(), port.container_port);
    let is_stale = |flow: &Flow| {
        flow.destination.1 == port.host_port && flow.answers != ours && is_of_the_node(flow.destination.0)
    };
    flows.into_iter().filter(is_stale).collect()
}

/// UDP flows that a port of the node led to a container that ends.
fn ended_flows(flows: Vec<Flow>, port: &HostPort) -> Vec<Flow> {
    let ours = (port.container.addr(), port.container_port);
    let has_ended =
        |flow: &Flow| flow.destination.1 == port.host_port && flow.answers == ours && flow.is_translated();
    flows.into_iter().filter(has_ended).collect()
}

/// Deletes the flows that `which` chooses for each UDP port.
async fn flush_udp(
    ports: Vec<HostPort>,
    which: impl Fn(Vec<Flow>, &HostPort) -> Vec<Flow> + Send + 'static,
) -> Result<(), CniError> {
    let ports: Vec<HostPort> = ports.into_iter().filter(|port| port.protocol == Protocol::Udp).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let work = tokio::task::spawn_blocking(move || {
        for port in &ports {
            let flows = conntrack::udp_flows(Family::of(port.container.addr()))?;
            conntrack::delete(&which(flows, port))?;
        }
        Ok(())
    });
    // It ends early only with the process.
    work.await.unwrap_or(Ok(()))
}

fn is_of_the_node(address: std::net::IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Until links are listed again when nothing is told of those that are waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Frees each lease once its link has vanished; no address is used again before.
async fn release(
    netlink: Netlink,
    mut vanished: broadcast::Receiver<LinkEvent>,
    ipam: HostLocal,
    leases: Vec<Lease>,
) {
    let mut waiting: BTreeMap<String, Vec<Lease>> = BTreeMap::new();
    for lease in leases {
        waiting.entry(host_interface(&lease.container_id, &lease.interface)).or_default().push(lease);
    }
    // The link may have gone before we listened, or messages may be lost: what exists now decides then.
    let mut look = true;
    while !waiting.is_empty() {
        if std::mem::take(&mut look) {
            match netlink.links().await {
                Ok(links) => {
                    let present: BTreeSet<String> = links.into_iter().map(|link| link.name).collect();
                    for (_, leases) in waiting.extract_if(.., |name, _| !present.contains(name)) {
                        free(&ipam, leases);
                    }
                }
                // Also when this process ends.
                Err(error) => {
                    tracing::debug!(?error, "addresses of sandboxes that ended are not free yet");
                }
            }
            continue;
        }
        match tokio::time::timeout(LOOK_AGAIN, vanished.recv()).await {
            Ok(Ok(LinkEvent::Vanished(name))) => free(&ipam, waiting.remove(&name).unwrap_or_default()),
            Ok(Err(broadcast::error::RecvError::Closed)) => return,
            Ok(Ok(LinkEvent::Missed) | Err(broadcast::error::RecvError::Lagged(_))) | Err(_) => look = true,
        }
    }
}

fn free(ipam: &HostLocal, leases: Vec<Lease>) {
    for lease in leases {
        if let Err(error) = ipam.free(&lease) {
            tracing::warn!(address = %lease.address, sandbox = lease.container_id, %error, "an address stays leased");
        }
    }
}

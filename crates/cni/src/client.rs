//! The runtime's CNI client: which network pods get, ADD and DEL through the plugins, what was leased before a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use hostnet::link::{LinkMonitor, Netlink};
use hostnet::netfilter::{Family, Owner, PerFamily, Position, Ruleset, Table, WriterHandle};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell, broadcast};

use crate::bridge::{BridgeConfig, ContainerEnd, host_interface, open_namespace};
use crate::config::NetworkConfig;
use crate::error::{CniError, Code};
use crate::host_local::{HostLocal, Lease};
use crate::result::AddResult;

/// Where configurations and leases are.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Conflists: the lexically first one counts.
    pub conf_dir: PathBuf,
    /// Foreign plugin binaries (not used yet).
    pub bin_dirs: Vec<PathBuf>,
    /// Results of ADD.
    pub cache_dir: PathBuf,
    /// Leases of the default network.
    pub data_dir: PathBuf,
    /// The network without any configuration file; none: NetworkReady waits for a file.
    pub default_network: Option<DefaultNetwork>,
}

/// The built-in network: our bridge, host-local, masquerade.
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
    /// Its network namespace.
    pub netns: PathBuf,
    /// The interface inside: `eth0`.
    pub ifname: String,
    /// K8S_POD_NAMESPACE.
    pub pod_namespace: String,
    /// K8S_POD_NAME.
    pub pod_name: String,
    /// K8S_POD_UID.
    pub pod_uid: String,
}

/// The client; one per runtime.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    netfilter: WriterHandle,
    netlink: Netlink,
    monitor: LinkMonitor,
    /// Bridges that are set up, by name: their index.
    bridges: Mutex<BTreeMap<String, Arc<OnceCell<u32>>>>,
}

impl Client {
    /// Opens the client in the network namespace of the calling thread, inside a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink.
    pub async fn open(config: ClientConfig, netfilter: WriterHandle) -> Result<Self, CniError> {
        std::fs::create_dir_all(&config.cache_dir).map_err(|error| {
            CniError::caused(Code::Io, format!("create {}", config.cache_dir.display()), error)
        })?;
        let (netlink, monitor) = (Netlink::open()?, LinkMonitor::start()?);
        Ok(Self { config, netfilter, netlink, monitor, bridges: Mutex::default() })
    }

    /// Whether pods can be connected now.
    ///
    /// # Errors
    /// When there is no network, or its configuration is not usable: with the reason.
    pub async fn status(&self) -> Result<(), CniError> {
        self.network().map(drop)
    }

    /// Which network pods get, for `crictl info`.
    #[must_use]
    pub fn config_dump(&self) -> Value {
        match self.network() {
            Ok(network) => {
                json!({ "name": network.network, "bridge": network.bridge, "hairpinMode": network.hairpin,
                "subnets": network.subnets().collect::<Vec<_>>() })
            }
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    /// Connects a sandbox.
    ///
    /// # Errors
    /// When it is connected already, no address is free, or the kernel refuses: then nothing is left of it but a lease
    /// that rests until [`reconcile`](Self::reconcile) or the link's end.
    pub async fn add(&self, attachment: &Attachment) -> Result<AddResult, CniError> {
        let network = self.network()?;
        let cache = self.cache_file(attachment);
        if cache.exists() {
            let message = format!(
                "sandbox {} is connected already; DEL comes before another ADD",
                attachment.container_id
            );
            return Err(CniError::new(Code::InvalidEnvironment, message));
        }
        let namespace = open_namespace(&attachment.netns)?;
        let bridge = self.bridge(&network).await?;
        // Recorded before it is acquired.
        write_cache(&cache, &json!({ "network": network.network, "ifname": attachment.ifname }))?;
        let connected = self.connect(&network, bridge, attachment, &namespace).await;
        match &connected {
            Ok(result) => write_cache(
                &cache,
                &json!({ "network": network.network, "ifname": attachment.ifname, "result": result }),
            )?,
            Err(_) => self.del(attachment).await?,
        }
        connected
    }

    async fn connect(
        &self,
        network: &BridgeConfig,
        bridge: u32,
        attachment: &Attachment,
        namespace: &std::os::fd::OwnedFd,
    ) -> Result<AddResult, CniError> {
        let leased = network.ipam.add(&attachment.container_id, &attachment.ifname)?;
        let end = ContainerEnd {
            container_id: &attachment.container_id,
            interface: &attachment.ifname,
            namespace,
            path: &attachment.netns,
        };
        network.connect(&self.netlink, bridge, &end, leased).await
    }

    /// Disconnects a sandbox whose network namespace ends with it: the kernel removes the pair, and the address is free
    /// again when it has. Repeatable; succeeds when nothing is connected.
    ///
    /// # Errors
    /// When the leases cannot be read.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let vanished = self.monitor.vanished();
        let network = self.network()?;
        let _ = std::fs::remove_file(self.cache_file(attachment));
        let leases = network.ipam.leases()?;
        let ours: Vec<Lease> = leases
            .into_iter()
            .filter(|lease| {
                lease.container_id == attachment.container_id && lease.interface == attachment.ifname
            })
            .collect();
        if !ours.is_empty() {
            tokio::spawn(release(self.netlink.clone(), vanished, network.ipam, ours));
        }
        Ok(())
    }

    /// Frees what no live sandbox holds, after a start: leases, records of results.
    ///
    /// # Errors
    /// When the leases cannot be read.
    pub async fn reconcile(&self, live: &BTreeSet<String>) -> Result<(), CniError> {
        for entry in std::fs::read_dir(&self.config.cache_dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !live.iter().any(|id| name.starts_with(id.as_str())) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let Ok(network) = self.network() else { return Ok(()) };
        let vanished = self.monitor.vanished();
        let stale: Vec<Lease> =
            network.ipam.leases()?.into_iter().filter(|lease| !live.contains(&lease.container_id)).collect();
        if !stale.is_empty() {
            tracing::info!(leases = stale.len(), "freeing addresses that no sandbox holds");
            tokio::spawn(release(self.netlink.clone(), vanished, network.ipam, stale));
        }
        Ok(())
    }

    /// The configuration that counts now: a file, or the built-in one.
    fn network(&self) -> Result<BridgeConfig, CniError> {
        if let Some(file) = NetworkConfig::first_of(&self.config.conf_dir)? {
            let bridge = (0..file.plugins.len()).find(|index| file.plugins[*index]["type"] == "bridge");
            let index = bridge.ok_or_else(|| {
                CniError::new(Code::InvalidConfig, format!("network {} has no bridge plugin", file.name))
            })?;
            return BridgeConfig::parse(&file.plugin_config(index));
        }
        let Some(default) = &self.config.default_network else {
            let message = format!("no network configuration in {}", self.config.conf_dir.display());
            return Err(CniError::new(Code::NotAvailable, message));
        };
        Ok(BridgeConfig {
            network: "podwright".into(),
            bridge: default.bridge.clone(),
            is_gateway: true,
            ip_masq: true,
            hairpin: true,
            mtu: default.mtu,
            default_route: false,
            ipam: HostLocal::of_subnets("podwright", &default.pod_cidrs, &self.config.data_dir)?,
        })
    }

    /// The bridge's index; it and the masquerade are set up once.
    async fn bridge(&self, network: &BridgeConfig) -> Result<u32, CniError> {
        let cell = self.bridges.lock().await.entry(network.bridge.clone()).or_default().clone();
        let set_up = async || {
            let index = network.set_up_bridge(&self.netlink).await?;
            if network.ip_masq {
                let written = self
                    .netfilter
                    .submit(Owner::Cni, PerFamily::from_fn(|family| masquerade(network, family)))
                    .await;
                written.map_err(|error| {
                    CniError::caused(Code::Internal, "masquerade the pods' traffic", error)
                })?;
            }
            Ok(index)
        };
        cell.get_or_try_init(set_up).await.copied()
    }

    fn cache_file(&self, attachment: &Attachment) -> PathBuf {
        self.config.cache_dir.join(format!("{}-{}.json", attachment.container_id, attachment.ifname))
    }
}

/// Pods reach everything outside their subnet as the node. Texts are as `iptables-save` prints them, so that a restart
/// finds nothing to change.
fn masquerade(network: &BridgeConfig, family: Family) -> Ruleset {
    const CHAIN: &str = "PODWRIGHT-MASQUERADE";
    let mut ruleset = Ruleset::default();
    let subnets: Vec<IpNet> =
        network.subnets().filter(|subnet| Family::of(subnet.addr()) == family).collect();
    if subnets.is_empty() {
        return ruleset;
    }
    let multicast = match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    let stay = subnets.iter().map(|subnet| format!("-d {subnet} -j RETURN"));
    let leave = format!("! -d {multicast} -m comment --comment \"pods leave as the node\" -j MASQUERADE");
    ruleset.chain(Table::Nat, CHAIN, stay.chain([leave]).collect());
    for subnet in &subnets {
        ruleset.hook(Table::Nat, "POSTROUTING", &format!("-s {subnet} -j {CHAIN}"), Position::Last);
    }
    ruleset
}

/// Frees each lease once its link has vanished; no address is used again before.
async fn release(
    netlink: Netlink,
    mut vanished: broadcast::Receiver<String>,
    ipam: HostLocal,
    leases: Vec<Lease>,
) {
    let mut waiting: BTreeMap<String, Lease> = leases
        .into_iter()
        .map(|lease| (host_interface(&lease.container_id, &lease.interface), lease))
        .collect();
    // The link may have gone before we listened, or messages may be lost: what exists now decides then.
    let mut look = true;
    while !waiting.is_empty() {
        if std::mem::take(&mut look) {
            let Ok(links) = netlink.links().await else { return };
            let present: BTreeSet<String> = links.into_iter().map(|link| link.name).collect();
            let gone: Vec<String> = waiting.keys().filter(|name| !present.contains(*name)).cloned().collect();
            for name in gone {
                free(&ipam, waiting.remove(&name));
            }
            continue;
        }
        match vanished.recv().await {
            Ok(name) => free(&ipam, waiting.remove(&name)),
            Err(broadcast::error::RecvError::Lagged(_)) => look = true,
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

fn free(ipam: &HostLocal, lease: Option<Lease>) {
    let Some(lease) = lease else { return };
    if let Err(error) = ipam.free(&lease) {
        tracing::warn!(address = %lease.address, sandbox = lease.container_id, %error, "an address stays leased");
    }
}

fn write_cache(file: &std::path::Path, value: &Value) -> Result<(), CniError> {
    host::state_file::write_atomic(file, value.to_string().as_bytes(), 0o600)
        .map_err(|error| CniError::caused(Code::Io, format!("write {}", file.display()), error))
}

//! The bridge plugin: a veth pair between the container's namespace and a bridge of the node.

mod check;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use host::namespace;
use hostnet::link::{LinkError, Netlink, VethPair, write_sysctl};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{CniError, Code};
use crate::host_local::HostLocal;
use crate::result::{AddResult, Interface};

/// The plugin's fields as upstream names them. What we do not do is refused when it is asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    #[serde(rename = "type")]
    _type: String,
    name: String,
    #[serde(rename = "cniVersion")]
    _cni_version: String,
    #[serde(default = "default_bridge")]
    bridge: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    hairpin_mode: bool,
    mtu: Option<u32>,
    ipam: Option<Value>,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    promisc_mode: bool,
    // Refused below unless they ask for nothing.
    #[serde(default)]
    vlan: u32,
    #[serde(default)]
    vlan_trunk: Vec<Value>,
    /// Says something of VLANs only.
    #[serde(default, rename = "preserveDefaultVlan")]
    _preserve_default_vlan: bool,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    disable_container_interface: bool,
    ip_masq_backend: Option<String>,
    #[serde(default)]
    capabilities: Value,
    #[serde(default)]
    runtime_config: Value,
    #[serde(default)]
    prev_result: Value,
    #[serde(default)]
    dns: Value,
    /// Of GC (CNI 1.1 §4), which reads it elsewhere…
    #[serde(default, rename = "cni.dev/valid-attachments")]
    _valid_attachments: Value,
    /// … and which libcni sends by its former name too.
    #[serde(default, rename = "cni.dev/attachments")]
    _attachments: Value,
}

fn default_bridge() -> String {
    "cni0".into()
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// The network's name.
    pub network: String,
    /// The bridge's name.
    pub bridge: String,
    /// Whether the bridge gets the gateway's address.
    pub is_gateway: bool,
    /// Whether traffic that leaves the subnet gets the node's address.
    pub ip_masq: bool,
    /// Whether a port sends packets back out of itself: a pod that reaches itself through a Service.
    pub hairpin: bool,
    /// Whether addresses that others gave to the bridge go.
    pub force_address: bool,
    /// Whether the bridge takes every packet.
    pub promiscuous: bool,
    /// The hardware address that the runtime asks for.
    pub mac: Option<[u8; 6]>,
    /// The MTU in bytes; the kernel's choice without.
    pub mtu: Option<u32>,
    /// Whether the container gets a default route through the bridge.
    pub default_route: bool,
    /// Where addresses come from.
    pub ipam: HostLocal,
}

/// Where the container's end of a pair goes.
#[derive(Clone, Copy, Debug)]
pub struct ContainerEnd<'a> {
    /// The container's id.
    pub container_id: &'a str,
    /// The interface's name inside.
    pub interface: &'a str,
    /// The network namespace, open.
    pub namespace: &'a OwnedFd,
    /// The network namespace's path, for the result.
    pub path: &'a Path,
}

impl BridgeConfig {
    /// Parses a plugin configuration.
    ///
    /// # Errors
    /// With the name of the field that is wrong or not supported.
    pub fn parse(config: &Value) -> Result<Self, CniError> {
        let fields: Fields = serde_json::from_value(config.clone()).map_err(|error| {
            CniError::caused(Code::InvalidConfig, "parse the bridge configuration", error)
        })?;
        const VLANS: &str = "the bundled bridge has no VLANs";
        let backend = fields.ip_masq_backend.as_deref();
        let unsupported = [
            ("vlan", fields.vlan != 0, VLANS),
            ("vlanTrunk", !fields.vlan_trunk.is_empty(), VLANS),
            (
                "macspoofchk",
                fields.macspoofchk,
                "its rules would be nftables' for bridges, and ours are iptables'",
            ),
            ("enabledad", fields.enabledad, "an address is used at once"),
            ("portIsolation", fields.port_isolation, "ports of one bridge reach each other"),
            ("disableContainerInterface", fields.disable_container_interface, "the interface is set up"),
            ("ipMasqBackend", backend.is_some_and(|backend| backend != "iptables"), "it is iptables"),
        ];
        if let Some((name, _, why)) = unsupported.iter().find(|(_, asked, _)| *asked) {
            let message = format!("bridge: {name} is not supported: {why}");
            return Err(CniError::new(Code::UnsupportedField, message));
        }
        if fields.promisc_mode && fields.hairpin_mode {
            let message = "bridge: promiscMode and hairpinMode cannot both be set";
            return Err(CniError::new(Code::InvalidConfig, message));
        }
        let _ = (fields.capabilities, fields.prev_result, fields.dns);
        let ipam = fields.ipam.unwrap_or_default();
        match ipam["type"].as_str() {
            Some("host-local") => {}
            Some(other) => {
                let message = format!("bridge: IPAM plugin {other:?} is not bundled (host-local)");
                return Err(CniError::new(Code::InvalidConfig, message));
            }
            None => return Err(CniError::new(Code::InvalidConfig, "bridge: ipam.type is missing")),
        }
        Ok(Self {
            ipam: HostLocal::parse(&fields.name, &ipam, &fields.runtime_config)?,
            mac: requested_mac(&fields.runtime_config)?,
            force_address: fields.force_address,
            promiscuous: fields.promisc_mode,
            network: fields.name,
            bridge: fields.bridge,
            is_gateway: fields.is_gateway || fields.is_default_gateway,
            ip_masq: fields.ip_masq,
            hairpin: fields.hairpin_mode,
            mtu: fields.mtu.filter(|mtu| *mtu != 0),
            default_route: fields.is_default_gateway,
        })
    }

    /// The subnets that addresses come from.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> {
        self.ipam.range_sets.iter().flatten().map(|range| range.subnet)
    }

    /// Makes the bridge what the configuration says: up, with the gateway's addresses; forwarding on.
    ///
    /// # Errors
    /// When the kernel refuses, or the name belongs to something else.
    pub async fn set_up_bridge(&self, netlink: &Netlink) -> Result<u32, CniError> {
        let gateways = || self.ipam.range_sets.iter().flatten().map(|range| (range.gateway, range.subnet));
        let address = gateways().next().map_or([2, 0, 0, 0, 0, 1], |(gateway, _)| hardware_address(gateway));
        let bridge = netlink.ensure_bridge(&self.bridge, address, self.mtu).await?;
        // No neighbour may announce itself as our router (CVE-2020-10749).
        let _ = write_sysctl(&format!("net/ipv6/conf/{}/accept_ra", self.bridge), "0");
        if self.promiscuous {
            netlink.set_promiscuous(bridge.index, &self.bridge).await?;
        }
        if self.is_gateway {
            self.check_addresses(netlink, bridge.index).await?;
            for (gateway, subnet) in gateways() {
                netlink.add_address(bridge.index, IpNet::new_assert(gateway, subnet.prefix_len())).await?;
                let forwarding =
                    if gateway.is_ipv4() { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
                write_sysctl(forwarding, "1")?;
            }
        }
        // Services between pods of one bridge are translated by netfilter only where the bridge calls it. Without
        // br_netfilter there is no such setting; then such packets pass the node's addresses anyway.
        let _ = write_sysctl("net/bridge/bridge-nf-call-iptables", "1");
        let _ = write_sysctl("net/bridge/bridge-nf-call-ip6tables", "1");
        Ok(bridge.index)
    }

    /// A bridge that has another gateway's address belongs to another network, unless `forceAddress` says that it is ours.
    async fn check_addresses(&self, netlink: &Netlink, bridge: u32) -> Result<(), CniError> {
        let ours: Vec<IpNet> = self
            .ipam
            .range_sets
            .iter()
            .flatten()
            .map(|range| IpNet::new_assert(range.gateway, range.subnet.prefix_len()))
            .collect();
        for found in netlink.addresses(bridge).await? {
            if is_link_local(found) || !ours.iter().any(|our| is_other(*our, found)) || ours.contains(&found)
            {
                continue;
            }
            if !self.force_address {
                let message = format!(
                    "bridge {} has the address {found} of another network; forceAddress replaces it",
                    self.bridge
                );
                return Err(CniError::new(Code::InvalidConfig, message));
            }
            netlink.remove_address(bridge, found).await?;
        }
        Ok(())
    }

    /// Makes the veth pair and configures the container's side. The lease is there already.
    ///
    /// # Errors
    /// When the kernel refuses: then there is no pair of this call. The caller releases the lease.
    pub async fn connect(
        &self,
        netlink: &Netlink,
        bridge: u32,
        end: &ContainerEnd<'_>,
        leased: AddResult,
    ) -> Result<AddResult, CniError> {
        let ContainerEnd { container_id, interface, namespace, .. } = *end;
        let host_name = host_interface(container_id, interface);
        let address = self.mac.or_else(|| leased.ips.first().map(|ip| hardware_address(ip.address.addr())));
        let pair = VethPair {
            host_name: &host_name,
            host_address: None,
            bridge: Some(bridge),
            pod_name: interface,
            pod_address: address,
            mtu: self.mtu,
            namespace: namespace.as_fd(),
        };
        // One that is there already is another call's.
        netlink.create_veth(&pair).await?;
        let configured = self.configure(netlink, end, leased, address).await;
        if configured.is_err() {
            // What went wrong first is what is told.
            let _ = netlink.delete(&host_name).await;
        }
        configured
    }

    async fn configure(
        &self,
        netlink: &Netlink,
        end: &ContainerEnd<'_>,
        mut leased: AddResult,
        address: Option<[u8; 6]>,
    ) -> Result<AddResult, CniError> {
        let ContainerEnd { container_id, interface, namespace, path } = *end;
        let host_name = host_interface(container_id, interface);
        if self.hairpin {
            netlink.set_hairpin(&host_name, true).await?;
        }
        if self.default_route {
            leased.routes.extend(default_routes(&leased));
        }
        let (ips, routes) = (leased.ips.clone(), leased.routes.clone());
        inside(namespace, async move |pod| {
            let link = pod.link(interface).await?;
            // Nor may another pod be this one's router.
            let _ = write_sysctl(&format!("net/ipv6/conf/{interface}/accept_ra"), "0");
            pod.set_up(link.index, interface).await?;
            for ip in &ips {
                pod.add_address(link.index, ip.address).await?;
            }
            for route in &routes {
                let family =
                    |ip: &&crate::result::IpConfig| ip.address.addr().is_ipv4() == route.dst.addr().is_ipv4();
                let gateway = route.gw.or_else(|| ips.iter().find(family)?.gateway);
                if let Some(gateway) = gateway {
                    pod.add_route(route.dst, gateway, link.index).await?;
                }
            }
            Ok::<_, CniError>(())
        })?;
        for ip in &mut leased.ips {
            ip.interface = Some(2);
        }
        leased.interfaces = vec![
            Interface { name: self.bridge.clone(), ..Interface::default() },
            Interface { name: host_name, ..Interface::default() },
            Interface {
                name: interface.to_owned(),
                mac: address.map(|address| text_of(&address)).unwrap_or_default(),
                sandbox: path.display().to_string(),
            },
        ];
        leased.dns = json!({});
        Ok(leased)
    }
}

fn is_link_local(net: IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

/// With IPv4 any other address is somebody else's; with IPv6 a link may have many, but one of each subnet.
fn is_other(ours: IpNet, found: IpNet) -> bool {
    match (ours, found) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(_), IpNet::V6(_)) => ours.trunc().contains(&found.addr()) || found.contains(&ours.addr()),
        _ => false,
    }
}

fn requested_mac(runtime_config: &Value) -> Result<Option<[u8; 6]>, CniError> {
    let Some(text) = runtime_config["mac"].as_str() else { return Ok(None) };
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    match bytes.and_then(|bytes| bytes.try_into().ok()) {
        Some(mac) => Ok(Some(mac)),
        None => {
            Err(CniError::new(Code::InvalidConfig, format!("bridge: mac {text:?} is no hardware address")))
        }
    }
}

fn default_routes(leased: &AddResult) -> Vec<crate::result::Route> {
    let routes = leased
        .ips
        .iter()
        .map(|ip| crate::result::Route { dst: hostnet::route::anywhere(ip.address.addr()), gw: ip.gateway });
    routes.filter(|route| !leased.routes.iter().any(|known| known.dst == route.dst)).collect()
}

/// The node's end of the pair, from the container's id: known without a record.
#[must_use]
pub fn host_interface(container_id: &str, interface: &str) -> String {
    let fingerprint = fingerprint(&[container_id, interface]);
    format!("veth{}", &fingerprint[5..])
}

/// 16 hex digits from names. FNV-1a: a name needs no cryptography, and containers' ids are random.
pub(crate) fn fingerprint(parts: &[&str]) -> String {
    let bytes = parts.iter().enumerate().flat_map(|(index, part)| {
        let between: &[u8] = if index == 0 { &[] } else { &[0] };
        between.iter().chain(part.as_bytes())
    });
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A hardware address that belongs to the IP address: no neighbour's cache is wrong when an address is used again.
fn hardware_address(address: IpAddr) -> [u8; 6] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [0x0a, 0x58, a, b, c, d]
        }
        IpAddr::V6(address) => {
            let octets = address.octets();
            [0x0a, 0x58, octets[12], octets[13], octets[14], octets[15]]
        }
    }
}

fn text_of(address: &[u8]) -> String {
    address.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Opens a container's network namespace.
///
/// # Errors
/// When it is gone.
pub(crate) fn open_namespace(path: &Path) -> Result<OwnedFd, CniError> {
    namespace::open(path).map_err(|error| {
        CniError::caused(Code::Io, format!("open the network namespace {}", path.display()), error)
    })
}

/// Runs netlink work inside a network namespace, on a thread of its own.
///
/// # Errors
/// What the work gives, or that the namespace cannot be entered.
pub(crate) fn inside<T: Send>(
    namespace: impl AsFd,
    work: impl AsyncFnOnce(Netlink) -> Result<T, CniError> + Send,
) -> Result<T, CniError> {
    let enter =
        |error: std::io::Error| CniError::caused(Code::Io, "enter the container's network namespace", error);
    namespace::with_network(namespace, move || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(enter)?;
        tokio.block_on(async { work(Netlink::open().map_err(CniError::from)?).await })
    })
    .map_err(enter)?
}

/// DEL as a stand-alone plugin must do it: the caller still holds the namespace, so the pair is deleted here.
///
/// # Errors
/// When the kernel refuses; a pair that is gone is no error.
pub async fn delete_pair(netlink: &Netlink, container_id: &str, interface: &str) -> Result<(), LinkError> {
    netlink.delete(&host_interface(container_id, interface)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: Value) -> Value {
        let mut config = json!({
            "type": "bridge", "name": "n", "cniVersion": "1.0.0", "isGateway": true,
            "ipam": { "type": "host-local", "subnet": "10.9.0.0/24" },
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (field, value) in
            [("vlan", json!(5)), ("macspoofchk", json!(true)), ("portIsolation", json!(true))]
        {
            let error = BridgeConfig::parse(&config(json!({ field: value }))).expect_err(field);
            assert!(error.message.contains(field), "{error}");
        }
        let error = BridgeConfig::parse(&config(json!({ "isGatway": true }))).expect_err("a typo");
        assert!(format!("{:?}", error.source).contains("isGatway"));
        BridgeConfig::parse(&config(json!({ "vlan": 0, "preserveDefaultVlan": true, "hairpinMode": true })))
            .expect("nothing is asked for");
    }

    #[test]
    fn a_hardware_address_and_addresses_may_be_asked_for() {
        let asked = json!({ "runtimeConfig": { "mac": "02:00:00:00:00:0a", "ips": ["10.9.0.7/24"] } });
        assert_eq!(BridgeConfig::parse(&config(asked)).expect("valid").mac, Some([2, 0, 0, 0, 0, 10]));
        let error = BridgeConfig::parse(&config(json!({ "runtimeConfig": { "mac": "zz" } })))
            .expect_err("no address");
        assert!(error.message.contains("zz"), "{error}");
    }

    #[test]
    fn interface_names_fit_and_differ() {
        let names: std::collections::BTreeSet<String> =
            (0..1000).map(|id| host_interface(&format!("{id:064}"), "eth0")).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 15));
    }
}

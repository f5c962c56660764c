//! Which way leads to which node's pods. Pure.
//!
//! A node with an address in a network that this machine is on is a neighbour: its pods are behind that address. To all
//! others packets go wrapped (VXLAN), to hardware addresses that both ends compute from the ranges that the cluster gave.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use hostnet::route::Route;
use hostnet::vxlan::Peer;
use ipnet::IpNet;

use crate::backend::{Backend, wrapped_mtu};
use crate::member::Member;

/// An address of this machine, with the network that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnLink {
    /// The link's index.
    pub link: u32,
    /// The link's MTU in bytes.
    pub mtu: u32,
    /// The address and its prefix.
    pub address: IpNet,
}

/// What is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The ways to neighbours' pods.
    pub routes: BTreeSet<Route>,
    /// The network to the others; none where all are neighbours.
    pub overlay: Option<Overlay>,
    /// This node's ranges.
    pub own: Vec<IpNet>,
    /// The ranges of other nodes, as few as possible: what goes there keeps its address.
    pub ranges: Vec<IpNet>,
    /// What is not done, and why.
    pub refused: Vec<Refusal>,
}

/// The network of nodes that are no neighbours, seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// This end's hardware address.
    pub hardware: [u8; 6],
    /// From which address of ours packets go.
    pub local: IpAddr,
    /// By which link.
    pub link: u32,
    /// What fits in a packet.
    pub mtu: u32,
    /// This end's addresses in the network: as the node, nobody speaks from another one there.
    pub addresses: Vec<IpNet>,
    /// Each range with the address of the end behind which it is.
    pub ways: BTreeMap<IpNet, IpAddr>,
    /// The other ends.
    pub peers: BTreeSet<Peer>,
}

/// A range to which no way is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The node.
    pub node: String,
    /// Its range.
    pub range: IpNet,
    /// What is the matter.
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pods of node {} in {} are not reached: {}", self.node, self.range, self.why)
    }
}

/// What no node's pods can have; whoever may write a Node object must not lead this machine astray.
const RESERVED: [&str; 6] = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/8", "fe00::/7"];
/// A range with more addresses than this (IPv4, IPv6) is a mistake, or worse.
const SHORTEST_PREFIX: (u8, u8) = (8, 16);

/// Decides for the node `own`, whose machine has these addresses. The plan does not depend on the order of `others`.
#[must_use]
pub fn plan(own: &Member, others: &[Member], machine: &[OnLink], backend: Backend) -> Plan {
    let mut others: Vec<&Member> = others.iter().filter(|other| other.name != own.name).collect();
    others.sort_by_key(|member| (member.since, &member.name));
    let mut plan = Plan { own: own.pod_cidrs.clone(), ..Plan::default() };
    let mut ranges: Vec<IpNet> = Vec::new();
    for member in &others {
        for range in &member.pod_cidrs {
            let objection = objection(*range, own, &others, machine, &ranges);
            let way = objection.map_or_else(|| way(*range, member, own, machine, backend), Err);
            match way {
                Ok(Way::Neighbour(route)) => drop(plan.routes.insert(route)),
                Ok(Way::Wrapped(way)) => wrap(&mut plan.overlay, *range, way, own),
                Err(why) => {
                    plan.refused.push(Refusal { node: member.name.clone(), range: *range, why });
                    continue;
                }
            }
            ranges.push(*range);
        }
    }
    plan.ranges = IpNet::aggregate(&ranges);
    plan
}

/// Why a range must not lead elsewhere.
fn objection(
    range: IpNet,
    own: &Member,
    others: &[&Member],
    machine: &[OnLink],
    taken: &[IpNet],
) -> Option<String> {
    let overlaps = |net: &IpNet| net.contains(&range) || range.contains(net);
    let shortest = if range.addr().is_ipv4() { SHORTEST_PREFIX.0 } else { SHORTEST_PREFIX.1 };
    let reserved = || RESERVED.iter().filter_map(|net| net.parse().ok()).any(|net: IpNet| overlaps(&net));
    let node_in = || {
        let all = others.iter().copied().chain([own]);
        let of = |member: &Member| member.addresses.iter().any(|address| range.contains(address));
        all.into_iter().find(|member| of(member))
    };
    if range.prefix_len() < shortest || reserved() {
        return Some("no node's pods can have so many or such addresses".to_owned());
    }
    if let Some(own) = own.pod_cidrs.iter().find(|own| overlaps(own)) {
        return Some(format!("this node has {own} itself"));
    }
    if let Some(net) = machine.iter().find(|here| overlaps(&here.address.trunc())) {
        return Some(format!("this machine is in the network {} itself", net.address.trunc()));
    }
    if let Some(node) = node_in() {
        return Some(format!("the address of node {} is in it", node.name));
    }
    taken.iter().find(|taken| overlaps(taken)).map(|taken| format!("an older node has {taken}"))
}

enum Way {
    Neighbour(Route),
    Wrapped(Wrapped),
}

/// A way through the overlay.
struct Wrapped {
    here: OnLink,
    inner: IpAddr,
    hardware: [u8; 6],
    host: IpAddr,
}

fn way(
    range: IpNet,
    member: &Member,
    own: &Member,
    machine: &[OnLink],
    backend: Backend,
) -> Result<Way, String> {
    if let Some(address) = member.addresses.iter().find(|address| own.addresses.contains(address)) {
        return Err(format!("it says that it has the address {address}, which is this node's"));
    }
    let gateway = member.address_like(range.addr()).filter(|_| backend != Backend::Vxlan);
    if let Some((gateway, here)) = gateway.and_then(|gateway| Some((gateway, on_link(gateway, machine)?))) {
        return Ok(Way::Neighbour(Route { destination: range, gateway, link: here.link, onlink: false }));
    }
    if backend == Backend::Routes {
        return Err("no address of it is in a network of this machine, and --pod-network-backend=routes wraps nothing".to_owned());
    }
    let local = own.addresses.first().ok_or("this node has no InternalIP")?;
    let host = member.address_like(*local).ok_or("it has no InternalIP that is reached from here")?;
    let here = machine.iter().find(|here| here.address.addr() == *local);
    let here =
        *here.ok_or_else(|| format!("this node's InternalIP {local} is on no link of this machine"))?;
    let hardware = hardware(member).ok_or("it has no range")?;
    Ok(Way::Wrapped(Wrapped { here, inner: range.network(), hardware, host }))
}

/// The narrowest network of this machine in which an address is.
fn on_link(address: IpAddr, machine: &[OnLink]) -> Option<&OnLink> {
    let near = machine.iter().filter(|here| {
        let net = here.address;
        net.prefix_len() < net.max_prefix_len() && net.contains(&address)
    });
    near.max_by_key(|here| here.address.prefix_len())
}

fn wrap(overlay: &mut Option<Overlay>, range: IpNet, way: Wrapped, own: &Member) {
    let overlay = overlay.get_or_insert_with(|| Overlay {
        hardware: hardware(own).unwrap_or_default(),
        local: way.here.address.addr(),
        link: way.here.link,
        mtu: wrapped_mtu(way.here.mtu, way.here.address.addr()),
        addresses: own.pod_cidrs.iter().map(|range| IpNet::from(range.network())).collect(),
        ways: BTreeMap::new(),
        peers: BTreeSet::new(),
    });
    overlay.ways.insert(range, way.inner);
    overlay.peers.insert(Peer::Neighbour(way.inner, way.hardware));
    overlay.peers.insert(Peer::Behind(way.hardware, way.host));
}

/// The hardware address of a node's end, locally administered. The first range is the node's alone, and so is this.
fn hardware(member: &Member) -> Option<[u8; 6]> {
    let [a, b, c, d] = match member.pod_cidrs.first()?.network() {
        IpAddr::V4(network) => network.octets(),
        // FNV-1a.
        IpAddr::V6(network) => network
            .octets()
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
            .to_be_bytes(),
    };
    Some([0x02, 0x50, a, b, c, d])
}

#[cfg(test)]
mod tests;

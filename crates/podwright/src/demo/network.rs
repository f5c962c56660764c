//! What the network of a node has, in a namespace that has nothing: lo, an address, a default route, forwarding.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::Context;
use hostnet::link::{Netlink, VethPair, write_sysctl};
use ipnet::{IpNet, Ipv4Net};

use super::isolation::{GATEWAY_ADDRESS, NODE_ADDRESS};

/// The node's interface, and the end on which a router would be.
const NODE_LINK: &str = "eth0";
const ROUTER_LINK: &str = "router0";

/// Sets the namespace up. Local connections to a ClusterIP need a default route: without one the kernel answers
/// ENETUNREACH before any rule is asked.
pub(crate) async fn set_up() -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let lo = netlink.link("lo").await?;
    netlink.set_up(lo.index, "lo").await?;
    let here = host::namespace::open("/proc/self/ns/net".as_ref()).context("open the network namespace")?;
    let pair = VethPair {
        host_name: ROUTER_LINK,
        host_address: None,
        bridge: None,
        pod_name: NODE_LINK,
        pod_address: None,
        mtu: None,
        namespace: here.as_fd(),
    };
    netlink.create_veth(&pair).await?;
    let link = netlink.link(NODE_LINK).await?;
    netlink.add_address(link.index, IpNet::V4(Ipv4Net::new(NODE_ADDRESS, 24)?)).await?;
    let everywhere = IpNet::V4(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0)?);
    netlink.add_route(everywhere, GATEWAY_ADDRESS.into(), link.index).await?;
    write_sysctl("net/ipv4/ip_forward", "1")?;
    Ok(())
}

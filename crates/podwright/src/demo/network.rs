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
    // This thread's: the process as a whole may be elsewhere.
    let here =
        host::namespace::open("/proc/thread-self/ns/net".as_ref()).context("open the network namespace")?;
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
    netlink.set_up(link.index, NODE_LINK).await?;
    netlink.add_address(link.index, IpNet::V4(Ipv4Net::new(NODE_ADDRESS, 24)?)).await?;
    let everywhere = IpNet::V4(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0)?);
    netlink.add_route(everywhere, GATEWAY_ADDRESS.into(), link.index).await?;
    write_sysctl("net/ipv4/ip_forward", "1")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::namespace::{Namespace, unshare};

    #[test]
    #[ignore = "needs root"]
    fn the_node_has_an_address_a_default_route_and_reaches_itself() {
        let work = || {
            unshare(&[Namespace::Net]).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                set_up().await.unwrap();
                let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
                socket.connect("198.51.100.1:9").await.expect("a route to everywhere");
                assert_eq!(socket.local_addr().unwrap().ip(), NODE_ADDRESS);
                let listener = tokio::net::TcpListener::bind((NODE_ADDRESS, 0)).await.unwrap();
                tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.expect("itself");
            });
        };
        // A thread of its own: the namespace goes with it.
        std::thread::spawn(work).join().unwrap();
    }
}

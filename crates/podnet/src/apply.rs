//! Makes the kernel's routes and VXLAN what a plan says. Everything is compared with what is there: a former agent's work is
//! taken over, and done twice is done once.

use std::collections::BTreeSet;

use hostnet::link::{LinkError, Netlink};
use hostnet::route::{Route, RouteOwner};
use hostnet::vxlan::{Peer, Vxlan};

use crate::plan::{Overlay, Plan};

/// The routes' mark: `proto 112` in `ip route`.
const OWNER: RouteOwner = RouteOwner(112);
/// The VXLAN device.
const DEVICE: &str = "podwright-vx";
/// Linux' own port for VXLAN: where other networks of pods use it, firewalls know it.
const PORT: u16 = 8472;
/// The network's number.
const NETWORK: u32 = 0x7077;

/// Brings the kernel to `plan`. What is refused does not keep the rest from being done.
pub(crate) async fn apply(netlink: &Netlink, plan: &Plan) -> Vec<LinkError> {
    let mut failed = Vec::new();
    let mut wanted = plan.routes.clone();
    match &plan.overlay {
        Some(overlay) => match overlay_routes(netlink, overlay, &mut failed).await {
            Ok(routes) => wanted.extend(routes),
            Err(error) => failed.push(error),
        },
        None => failed.extend(remove_device(netlink).await.err()),
    }
    let there = match netlink.routes(OWNER).await {
        Ok(there) => there,
        Err(error) => {
            failed.push(error);
            return failed;
        }
    };
    for route in wanted.difference(&there) {
        tracing::debug!(range = %route.destination, gateway = %route.gateway, "a way to pods");
        failed.extend(netlink.put_route(OWNER, route, &there).await.err());
    }
    let kept: BTreeSet<_> = wanted.iter().map(|route| route.destination).collect();
    // A way that was put in place of another one is that one's end.
    for route in there.difference(&wanted).filter(|route| !kept.contains(&route.destination)) {
        tracing::debug!(range = %route.destination, gateway = %route.gateway, "no way to pods any more");
        failed.extend(netlink.remove_route(OWNER, route).await.err());
    }
    failed
}

/// Makes the device and its peers, and gives the routes through it.
async fn overlay_routes(
    netlink: &Netlink,
    overlay: &Overlay,
    failed: &mut Vec<LinkError>,
) -> Result<BTreeSet<Route>, LinkError> {
    let device = netlink.ensure_vxlan(&vxlan(overlay)).await?;
    let addresses = netlink.addresses(device.index).await?;
    let ours = |net: &&ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
    for former in addresses.iter().filter(ours).filter(|there| !overlay.addresses.contains(there)) {
        failed.extend(netlink.remove_address(device.index, *former).await.err());
    }
    for address in overlay.addresses.iter().filter(|wanted| !addresses.contains(wanted)) {
        failed.extend(netlink.add_address(device.index, *address).await.err());
    }
    let there: BTreeSet<Peer> = netlink.peers(device.index).await?;
    for peer in there.difference(&overlay.peers) {
        failed.extend(netlink.remove_peer(device.index, peer).await.err());
    }
    for peer in overlay.peers.difference(&there) {
        failed.extend(netlink.put_peer(device.index, peer).await.err());
    }
    let way = |(range, inner): (&ipnet::IpNet, &std::net::IpAddr)| Route {
        destination: *range,
        gateway: *inner,
        link: device.index,
        onlink: true,
    };
    Ok(overlay.ways.iter().map(way).collect())
}

fn vxlan(overlay: &Overlay) -> Vxlan<'static> {
    Vxlan {
        name: DEVICE,
        vni: NETWORK,
        port: PORT,
        address: overlay.hardware,
        local: overlay.local,
        link: overlay.link,
        mtu: overlay.mtu,
    }
}

async fn remove_device(netlink: &Netlink) -> Result<bool, LinkError> {
    match netlink.link(DEVICE).await {
        Ok(_) => netlink.delete(DEVICE).await.map(|()| true),
        Err(LinkError::NoSuchLink { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes every way to other nodes' pods and the device; tells whether there was anything.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(netlink: &Netlink) -> Result<bool, LinkError> {
    let device = remove_device(netlink).await?;
    let routes = netlink.routes(OWNER).await?;
    for route in &routes {
        netlink.remove_route(OWNER, route).await?;
    }
    Ok(device || !routes.is_empty())
}

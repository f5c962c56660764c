//! The rules, the bridge and the ways to other nodes of a node.

use anyhow::Context;
use hostnet::link::{LinkError, Netlink};
use hostnet::netfilter::Owner;

use crate::agent::parts;
use crate::node::Node;

/// Removes every chain of ours from netfilter, the bridge with what is still attached to it, and what leads to other nodes'
/// pods. Where no Service was ever served here, Services' chains are somebody else's.
pub(crate) async fn remove(node: &Node) -> anyhow::Result<()> {
    let served = node.services_file().exists() || node.proxy_mark().exists();
    let owners: &[Owner] = if served { &Owner::ALL } else { &[Owner::Cni, Owner::Podnet] };
    let rules = parts::netfilter().clear(owners).await.context("remove the netfilter rules");
    let links = match Netlink::open() {
        Ok(netlink) => remove_links(&netlink, &node.bridge).await,
        Err(error) => Err(error.into()),
    };
    rules.and(links)
}

async fn remove_links(netlink: &Netlink, bridge: &str) -> anyhow::Result<()> {
    let bridge = delete_bridge(netlink, bridge).await.context("remove the bridge");
    let ways = podnet::remove(netlink).await.context("remove the ways to other nodes' pods");
    bridge.and(ways.map(drop))
}

/// A link of another kind under that name is not ours.
async fn delete_bridge(netlink: &Netlink, name: &str) -> Result<(), LinkError> {
    match netlink.link(name).await {
        Ok(link) if link.is_bridge => netlink.delete(name).await,
        Ok(_) | Err(LinkError::NoSuchLink { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

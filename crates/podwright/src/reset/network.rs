//! The rules and the bridge of a node.

use anyhow::Context;
use hostnet::link::{LinkError, Netlink};
use hostnet::netfilter::{ProgramError, WriteError};

use crate::agent::parts;
use crate::node::Node;

/// Removes every chain of ours from netfilter, and the bridge with what is still attached to it.
pub(crate) async fn remove(node: &Node) -> anyhow::Result<()> {
    let rules = match parts::netfilter().clear().await {
        // Without iptables there never were rules of ours.
        Err(WriteError::Program(error)) if matches!(*error, ProgramError::Missing { .. }) => Ok(()),
        cleared => cleared.context("remove the netfilter rules"),
    };
    let bridge = match Netlink::open() {
        Ok(netlink) => delete_bridge(&netlink, &node.bridge).await,
        Err(error) => Err(error),
    };
    rules.and(bridge.context("remove the bridge"))
}

/// A link of another kind under that name is not ours.
async fn delete_bridge(netlink: &Netlink, name: &str) -> Result<(), LinkError> {
    match netlink.link(name).await {
        Ok(link) if link.is_bridge => netlink.delete(name).await,
        Ok(_) | Err(LinkError::NoSuchLink { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

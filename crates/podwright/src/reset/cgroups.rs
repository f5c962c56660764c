//! The cgroups of a node: ending what still runs in them, and taking them away.

use std::time::Duration;

use anyhow::Context;
use host::cgroup::{CgroupError, CgroupManager};

use crate::node::Node;

/// How often a removal is tried again while killed processes are still leaving, and how long between.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// What may be done to a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Ours alone: what runs there is ours.
    Ours,
    /// A name that another kubelet on this machine may use too: only what is empty goes.
    Shared,
}

/// Kills and removes everything below the node's own cgroups.
pub(crate) async fn remove(node: &Node) -> anyhow::Result<()> {
    let manager = CgroupManager::detect().context("find the cgroups")?;
    for (path, owner) in owned(node) {
        match remove_one(&manager, &path, owner).await {
            Err(error) if owner == Owner::Shared => {
                tracing::debug!(%path, %error, "cgroup stays: somebody else is in it");
            }
            removed => removed.with_context(|| format!("remove the cgroup {path}"))?,
        }
    }
    Ok(())
}

/// With a cgroup root of its own everything below it is the node's.
fn owned(node: &Node) -> Vec<(String, Owner)> {
    let mut paths = vec![(node.runtime_cgroup.clone(), Owner::Ours)];
    if node.kubelet_cgroup != node.runtime_cgroup {
        paths.push((format!("{}/kubepods", node.kubelet_cgroup.trim_end_matches('/')), Owner::Shared));
    }
    paths
}

async fn remove_one(manager: &CgroupManager, path: &str, owner: Owner) -> Result<(), CgroupError> {
    let mut tries = TRIES;
    loop {
        let cgroup = manager.open(path)?;
        if !cgroup.exists() {
            return Ok(());
        }
        if owner == Owner::Ours {
            cgroup.kill()?;
        }
        match cgroup.remove() {
            Ok(()) => return Ok(()),
            Err(error) if tries == 0 || owner == Owner::Shared => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        tries -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::NodeArgs;

    #[test]
    fn only_a_cgroup_that_nobody_shares_is_killed() {
        let node = |root: Option<&str>| {
            let args = NodeArgs { cgroup_root: root.map(str::to_owned), ..NodeArgs::default() };
            owned(&Node::resolve(&args, "box").unwrap())
        };
        assert_eq!(node(None), [("/podwright".into(), Owner::Ours), ("/kubepods".into(), Owner::Shared)]);
        assert_eq!(node(Some("/two")), [("/two".into(), Owner::Ours)]);
    }
}

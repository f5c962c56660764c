//! `podwright reset`: stops every pod and removes every trace of a node. What fails is told, and the rest is still
//! done; a second reset finishes what a first one could not.

mod cgroups;
pub(crate) mod files;
mod network;
mod pods;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::admin::client::Client;
use crate::cli::ResetArgs;
use crate::join::files as joined;
use crate::lock::{LockError, NodeLock};
use crate::node::Node;
use crate::output;
use crate::status::offline::{self, Recorded};
use files::Images;

/// How long a running agent gets to end after it was asked to.
const PATIENCE: Duration = Duration::from_secs(20);

/// Resets the node whose directories the flags name.
pub(crate) fn main(args: &ResetArgs) -> anyhow::Result<()> {
    let node = Node::here(&args.node)?;
    if !args.force && !node.root.exists() && !node.state.exists() {
        // Cgroups and bridge have names that another node on this machine may use: a mistyped root must not end its pods.
        let (root, state) = (node.root.display(), node.state.display());
        output::line(&format!(
            "reset: there is no node in {root} and {state}; nothing was touched (--force looks for cgroups and rules all the same)"
        ));
        return Ok(());
    }
    let images = if args.keep_images { Images::Keep } else { Images::Remove };
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let _lock = take_over(&node, args.force).await?;
        wipe(&node, images).await?;
        let (root, state) = (node.root.display(), node.state.display());
        output::line(&match images {
            Images::Remove => format!("reset: nothing is left in {root} and {state}"),
            Images::Keep => format!("reset: nothing but images is left in {root}, nothing in {state}"),
        });
        Ok(())
    })
}

/// The node's lock; where an agent holds it and `force` allows, that agent is ended first.
async fn take_over(node: &Node, force: bool) -> anyhow::Result<NodeLock> {
    match NodeLock::take(node) {
        Err(LockError::Held { holder, .. }) if force => end_agent(node, holder).await?,
        Err(error @ LockError::Held { .. }) => {
            return Err(error).context("an agent runs on this node; stop it first, or give --force");
        }
        taken => return Ok(taken?),
    }
    Ok(NodeLock::take(node)?)
}

/// Asks the agent to end, and waits for it; one that does not listen is killed.
async fn end_agent(node: &Node, holder: Option<u32>) -> anyhow::Result<()> {
    let pid = holder.and_then(|pid| i32::try_from(pid).ok());
    let pidfd = match pid {
        Some(pid) => host::process::pidfd_open(pid).context("find the agent")?,
        None => None,
    };
    match Client::connect(node).await {
        Ok(Some(mut agent)) => agent.stop().await?,
        Ok(None) | Err(_) if pidfd.is_some() => {}
        Ok(None) => bail!("something holds the node's lock and does not say who it is"),
        Err(error) => return Err(error),
    }
    let Some(pidfd) = pidfd else { return Ok(()) };
    tokio::task::spawn_blocking(move || {
        if !host::process::wait_ended(&pidfd, PATIENCE)? {
            host::process::pidfd_send_signal(pidfd.as_fd(), rustix::process::Signal::KILL.as_raw())?;
            host::process::wait_ended(&pidfd, PATIENCE)?;
        }
        Ok::<_, std::io::Error>(())
    })
    .await?
    .context("wait for the agent to end")
}

/// Removes every trace of the node. The caller holds its lock, or knows that nobody else wants it.
pub(crate) async fn wipe(node: &Node, images: Images) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    let mut note = |step: anyhow::Result<()>| failed.extend(step.err());
    let recorded = offline::records(node).unwrap_or_default();
    note(pods::remove_all(node).await);
    note(cgroups::remove(node).await);
    note(network::remove(node).await);
    note(remove_files(node, images, &recorded));
    let Some(last) = failed.pop() else { return Ok(()) };
    failed.iter().for_each(output::error);
    Err(last)
}

fn remove_files(node: &Node, images: Images, recorded: &[Recorded]) -> anyhow::Result<()> {
    let of_pods: Vec<PathBuf> = recorded
        .iter()
        .flat_map(|(sandbox, _)| {
            let uid = sandbox.config.metadata.as_ref().map_or("", |metadata| &metadata.uid);
            files::of_pod(node, uid, &sandbox.config.log_directory)
        })
        .collect();
    let of_membership = joined::listed(&joined::list(&node.root));
    let mut below: Vec<&Path> = of_pods.iter().map(PathBuf::as_path).collect();
    below.extend([node.root.as_path(), node.state.as_path()]);
    files::unmount_below(&below)?;
    for path in &of_pods {
        files::remove(path)?;
    }
    kubelet::sweep_log_links(&node.container_logs_dir, &node.pod_logs_dir)
        .with_context(|| format!("remove links to logs in {}", node.container_logs_dir.display()))?;
    for path in &of_membership {
        files::remove(path)?;
    }
    for path in files::leftovers(node, images) {
        files::remove(&path)?;
    }
    for dir in [node.root.join("cni"), node.root.clone()] {
        if !files::remove_empty(&dir)? && images == Images::Remove && dir == node.root {
            tracing::warn!(dir = %dir.display(), "kept: there are files in it that podwright did not make");
        }
    }
    Ok(())
}

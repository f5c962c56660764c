//! `podwright demo`: a node in a network of its own, three web pods behind a Service, and the proof that it works.
//!
//! Everything it makes is gone when it ends: by itself with `--once`, by Ctrl-C, or by an error.

mod isolation;
mod network;

mod show;
mod times;
mod traffic;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Role};
use crate::cli::{DemoArgs, NodeArgs};
use crate::node::Node;
use crate::reset::{self, files::Images};
use crate::{output, signals};
use isolation::Isolation;

/// The manifest inside the binary; `deploy/examples/hello.yaml` is the same text.
const HELLO: &str = include_str!("../../../../deploy/examples/hello.yaml");

/// How long what is under way may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows the node and cleans up, whatever happened.
pub(crate) fn main(args: &DemoArgs) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo makes network namespaces, cgroups and mounts: run it as root (sudo podwright demo)");
    }
    let own_manifest =
        args.file.as_ref().map(std::path::absolute).transpose().context("find the manifest")?;
    // One thread until here: namespaces belong to threads, and tokio's threads must inherit these.
    let isolation = Isolation::enter()?;
    let shown = in_isolation(&isolation, args, own_manifest.as_deref());
    let left = isolation.leave();
    shown.and(left)
}

fn in_isolation(isolation: &Isolation, args: &DemoArgs, manifest: Option<&Path>) -> anyhow::Result<()> {
    let manifest = match manifest {
        Some(path) => path.to_owned(),
        None => {
            let path = isolation.dir().join("hello.yaml");
            std::fs::write(&path, HELLO).context("write the manifest")?;
            path
        }
    };
    let node = node(isolation.dir())?;
    let shown = until_nothing_runs(demo(&node, manifest, args))?;
    output::note("cleaning up");
    let cleaned = until_nothing_runs(async { reset::wipe(&node, Images::Remove).await.context("clean up") })?;
    match (shown, cleaned) {
        (Ok(Ended::Interrupted), Ok(())) if args.once => bail!("interrupted"),
        (Ok(_), cleaned) => cleaned,
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(cleaning)) => {
            output::error(&cleaning);
            Err(error)
        }
    }
}

/// Does `work` with threads of its own, and what it had under way has ended with them: as if a process had ended. What a node still
/// makes while it is told to stop would be made behind the back of those who clean up.
fn until_nothing_runs<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(PATIENCE);
    Ok(done)
}

/// A node that shares nothing with one that may run on this machine.
fn node(dir: &Path) -> anyhow::Result<Node> {
    let args = NodeArgs {
        root: Some(dir.join("root")),
        state: Some(dir.join("state")),
        cgroup_root: Some(format!("/podwright-demo-{}", std::process::id())),
        node_name: Some("demo".to_owned()),
        node_ip: vec![isolation::NODE_ADDRESS.into()],
        ..NodeArgs::default()
    };
    Ok(Node::resolve(&args, "demo")?)
}

async fn demo(node: &Node, manifest: PathBuf, args: &DemoArgs) -> anyhow::Result<Ended> {
    let stop = signals::stop_token(signals::Again::KeepCleaning)?;
    network::set_up().await.context("set up the demo's network")?;
    show::rules().await.context("the node needs iptables")?;
    run(node, manifest, args, &stop).await
}

/// How a demo came to its end.
enum Ended {
    Shown,
    Interrupted,
}

async fn run(
    node: &Node,
    manifest: PathBuf,
    args: &DemoArgs,
    stop: &CancellationToken,
) -> anyhow::Result<Ended> {
    #[expect(clippy::disallowed_methods, reason = "the demo tells how long things take")]
    let start = std::time::Instant::now();
    let agent_stop = CancellationToken::new();
    let _stops_with_us = agent_stop.clone().drop_guard();
    let agent = Agent::start(
        node.clone(),
        Role::Node { manifests: vec![manifest], settings: None },
        agent_stop.clone(),
    )
    .await?;
    let sources = agent.sources();
    let mut agent = std::pin::pin!(agent.end());
    let mut shown = tokio::select! {
        ended = &mut agent => return Err(ended_by_itself(ended)),
        shown = show::everything(&sources, start) => shown.map(|()| Ended::Shown),
        () = stop.cancelled() => Ok(Ended::Interrupted),
    };
    if matches!(shown, Ok(Ended::Shown)) && !args.once {
        show::how_to_look_around(node);
        shown = tokio::select! {
            ended = &mut agent => return Err(ended_by_itself(ended)),
            () = stop.cancelled() => Ok(Ended::Shown),
        };
    }
    agent_stop.cancel();
    let ended = agent.await;
    // Where the agent broke down, what is shown broke down with it.
    ended.and(shown)
}

/// An agent ends when it is told to; before that its end is an error.
fn ended_by_itself(ended: anyhow::Result<()>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("the agent ended by itself"),
        Err(error) => error.context("the agent ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_inside_has_no_problem_and_the_documented_objects() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello.yaml");
        std::fs::write(&path, HELLO).unwrap();
        let loaded = manifest::load(&[path]);
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        assert_eq!((loaded.objects.pods.len(), loaded.objects.services.len()), (3, 2));
    }

    #[test]
    fn what_is_under_way_has_ended_before_the_cleaning_up() {
        let (begun, begins) = tokio::sync::oneshot::channel();
        let under_way = std::sync::Arc::new(());
        let theirs = std::sync::Arc::clone(&under_way);
        until_nothing_runs(async {
            tokio::spawn(async move {
                begun.send(()).unwrap();
                // As the making of cgroups: it is not left in the middle.
                std::thread::sleep(Duration::from_millis(50));
                drop(theirs);
            });
            begins.await.unwrap();
        })
        .unwrap();
        assert_eq!(std::sync::Arc::strong_count(&under_way), 1);
    }

    #[test]
    fn a_demo_node_lies_in_its_directory() {
        let node = node(Path::new("/tmp/podwright-demo-x")).unwrap();
        let paths = [&node.root, &node.state, &node.listen, &node.cni_conf_dir, &node.kubelet_dir];
        for path in paths.into_iter().chain([&node.pod_logs_dir, &node.registry_config_dir]) {
            assert!(path.starts_with("/tmp/podwright-demo-x"), "{}", path.display());
        }
        assert!(node.runtime_cgroup.starts_with("/podwright-demo-"));
    }
}

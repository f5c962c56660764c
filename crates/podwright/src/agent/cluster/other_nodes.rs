//! The ways to other nodes' pods: ours with the built-in network, and none of ours with another one.

use anyhow::Context;
use hostnet::link::Netlink;
use hostnet::netfilter::{Owner, WriterHandle};

use crate::cli::PodNetwork;

/// Keeps what the pod network asks for, until `stop`.
pub(super) async fn run(
    pod_network: PodNetwork,
    nodes: podnet::Config,
    client: kube::Client,
    writer: WriterHandle,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    match pod_network {
        PodNetwork::Builtin => Ok(podnet::run(nodes, client, writer, stop).await?),
        PodNetwork::Cni => {
            if let Err(error) = withdraw(&writer).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "ways to pods that a built-in network left are still there"
                );
            }
            stop.await;
            Ok(())
        }
    }
}

/// Takes back what an agent with the built-in network left: it would lead past the network that is here now.
async fn withdraw(writer: &WriterHandle) -> anyhow::Result<()> {
    let netlink = Netlink::open().context("look for routes")?;
    if podnet::remove(&netlink).await? {
        writer.clear(&[Owner::Podnet]).await?;
        tracing::info!("removed the built-in network's ways to other nodes' pods");
    }
    Ok(())
}

//! From the start of a node's agent, where the cluster has no object of that node, until the node is Ready as a watch sees it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::cluster::ClusterNode;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, WatchEvent, WatchParams};

use super::api::with_client;
use super::{PEER, Sides};
use crate::measure::{Row, now};

/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Row `node-ready`: of the peer only the kubelet is started anew, containerd runs.
pub(super) fn of_starts(sides: &Sides, n: usize) -> Result<Row> {
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..n {
        for (node, samples) in sides.nodes().into_iter().zip(&mut samples) {
            samples.push(one(sides, node)?);
        }
    }
    Ok(Row::of_medians("node-ready", PEER, &samples[0], &samples[1]))
}

fn one(sides: &Sides, node: &ClusterNode) -> Result<Duration> {
    let name = node.name();
    node.end_agent();
    with_client(&sides.cluster, async |client| {
        let api: Api<Node> = Api::all(client);
        let version = api.list_metadata(&Default::default()).await?.metadata.resource_version;
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = Box::pin(api.watch(&params, &version.unwrap_or_default()).await?);
        api.delete(name, &DeleteParams::default()).await?;
        let begun = now();
        node.start_agent()?;
        let ready = async {
            let mut is_new = false;
            while let Some(event) = events.try_next().await? {
                match event {
                    WatchEvent::Deleted(_) => is_new = true,
                    WatchEvent::Added(node) | WatchEvent::Modified(node) if is_new && is_ready(&node) => {
                        return Ok(begun.elapsed());
                    }
                    _ => {}
                }
            }
            bail!("the watch ended")
        };
        let done = tokio::time::timeout(PATIENCE, ready).await;
        done.with_context(|| format!("{name} is not Ready after {PATIENCE:?}"))?
    })
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

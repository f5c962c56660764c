//! Stopping and removing every pod of a node through the runtime's own calls: the one teardown there is.

use std::path::Path;

use anyhow::Context;
use cri::v1::runtime_service_server::RuntimeService;
use cri::v1::{ListPodSandboxRequest, PodSandbox, RemovePodSandboxRequest, StopPodSandboxRequest};
use runtime::Runtime;
use tokio::task::JoinSet;
use tonic::Request;

use crate::agent::parts;
use crate::node::Node;

/// Takes over what the records tell of, and removes it. A node that never ran has nothing.
pub(crate) async fn remove_all(node: &Node) -> anyhow::Result<()> {
    if !Path::new(&node.state).join("sandboxes").exists() {
        return Ok(());
    }
    // Nothing new is connected: no network is needed.
    let mut config = parts::runtime(node, tokio::sync::watch::channel(None).1);
    // A plugin that is gone is not waited for: nobody will ask it again.
    config.cni.undeleted = cni::Undeleted::Forgotten;
    let runtime = Runtime::open(config, parts::netfilter()).await.context("read the records")?;
    let calls = std::sync::Arc::new(runtime.runtime_service());
    let listed = calls.list_pod_sandbox(Request::new(ListPodSandboxRequest::default())).await;
    let sandboxes = listed.context("list the pods")?.into_inner().items;
    let mut removals: JoinSet<anyhow::Result<()>> = JoinSet::new();
    for sandbox in sandboxes {
        let calls = std::sync::Arc::clone(&calls);
        removals.spawn(async move { remove(&*calls, &sandbox).await.with_context(|| title(&sandbox)) });
    }
    let mut result = Ok(());
    while let Some(removed) = removals.join_next().await {
        let removed = removed.context("a removal panicked").and_then(|removed| removed);
        result = result.and(removed);
    }
    result
}

async fn remove(calls: &impl RuntimeService, sandbox: &PodSandbox) -> anyhow::Result<()> {
    let id = || sandbox.id.clone();
    calls
        .stop_pod_sandbox(Request::new(StopPodSandboxRequest { pod_sandbox_id: id() }))
        .await
        .context("stop")?;
    calls
        .remove_pod_sandbox(Request::new(RemovePodSandboxRequest { pod_sandbox_id: id() }))
        .await
        .context("remove")?;
    Ok(())
}

fn title(sandbox: &PodSandbox) -> String {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    format!("pod {}/{} ({})", metadata.namespace, metadata.name, sandbox.id)
}

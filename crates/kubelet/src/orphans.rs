//! Pods that nobody looks after: those of a former agent of which there is no record that this one understands, and sandboxes that
//! the runtime finished after their pod was gone. Upstream: pkg/kubelet, HandlePodCleanups.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::cri_requests::{GRACE, POD_UID};
use crate::pod::worker::Node;

/// How long an orphan that could not be ended waits for the next attempt.
const AGAIN: Duration = Duration::from_secs(10);

/// What is being looked for, and whom it ends.
#[derive(Default)]
pub(crate) struct Orphans {
    looks: JoinSet<BTreeSet<String>>,
    ends: JoinSet<String>,
    /// The uids of the latter.
    ending: BTreeSet<String>,
}

/// What the manager hears.
pub(crate) enum News {
    /// The uids of all pods that have something on this node.
    Here(BTreeSet<String>),
    /// Nothing is left of an orphan: a pod of its uid may start.
    Ended,
}

impl Orphans {
    /// Begins to look for whose sandboxes and volumes there are; the answer is news.
    pub(crate) fn look(&mut self, node: &Arc<Node>) {
        if self.looks.is_empty() {
            self.looks.spawn(uids(Arc::clone(node)));
        }
    }

    /// Waits for news; for ever when nothing is under way. Dropping the future loses nothing.
    pub(crate) async fn news(&mut self) -> News {
        tokio::select! {
            Some(uids) = self.looks.join_next() => News::Here(uids.unwrap_or_default()),
            Some(ended) = self.ends.join_next() => {
                self.ending.retain(|uid| ended.as_ref().is_ok_and(|ended| ended != uid));
                News::Ended
            }
            else => std::future::pending().await,
        }
    }

    /// Ends what there is of a pod, in the background.
    pub(crate) fn end(&mut self, node: &Arc<Node>, uid: String) {
        if self.ending.insert(uid.clone()) {
            tracing::info!(uid, "ending a pod that nobody asks for any more");
            self.ends.spawn(end_one(Arc::clone(node), uid));
        }
    }

    /// Whether that pod is being ended.
    pub(crate) fn is_ending(&self, uid: &str) -> bool {
        self.ending.contains(uid)
    }
}

async fn uids(node: Arc<Node>) -> BTreeSet<String> {
    // A pod may have volumes and no sandbox yet.
    let mut uids: BTreeSet<String> = node.volumes.uids().into_iter().collect();
    match cri::runtime_client(&node.cri).list_pod_sandbox(v1::ListPodSandboxRequest::default()).await {
        Ok(listed) => {
            let sandboxes = listed.into_inner().items.into_iter();
            uids.extend(sandboxes.filter_map(|mut sandbox| sandbox.labels.remove(POD_UID)));
        }
        Err(status) => tracing::warn!(error = status.message(), "pods that nobody wants are not looked for"),
    }
    uids
}

async fn end_one(node: Arc<Node>, uid: String) -> String {
    // What its containers use stays for as long as they run.
    while let Err(error) = end_containers(&node.cri, &uid).await {
        tracing::warn!(
            uid,
            error = error.message(),
            "a pod that nobody wants could not be ended; trying again in 10 s"
        );
        tokio::time::sleep(AGAIN).await;
    }
    let logs = ("logs", remove_logs(&node, &uid).map_err(|error| error.to_string()));
    for (what, removed) in node.give_back(&uid).into_iter().chain([logs]) {
        if let Err(error) = removed {
            tracing::warn!(uid, what, error, "cannot remove what is left of a pod that nobody wants");
        }
    }
    uid
}

/// The directory of its logs, by the one part of its name that is known, and the links into it.
fn remove_logs(node: &Node, uid: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(&node.config.pod_logs_dir)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(|name| name.rsplit('_').next()) == Some(uid) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    node.log_links().sweep()
}

/// Stops the pod's containers together, then removes its sandboxes.
async fn end_containers(cri: &Channel, uid: &str) -> Result<(), tonic::Status> {
    let mut client = cri::runtime_client(cri);
    let selector = HashMap::from([(POD_UID.to_owned(), uid.to_owned())]);
    let filter = v1::ContainerFilter { label_selector: selector.clone(), ..Default::default() };
    let listed =
        client.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?.into_inner();
    let mut stops = JoinSet::new();
    for container in listed.containers {
        let grace = container.annotations.get(GRACE).and_then(|seconds| seconds.parse().ok());
        let request = v1::StopContainerRequest { container_id: container.id, timeout: grace.unwrap_or(30) };
        let mut client = client.clone();
        stops.spawn(async move { client.stop_container(request).await.map(drop) });
    }
    while let Some(stopped) = stops.join_next().await {
        stopped.unwrap_or(Ok(()))?;
    }
    let filter = v1::PodSandboxFilter { label_selector: selector, ..Default::default() };
    let listed =
        client.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?.into_inner();
    for sandbox in listed.items {
        client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() }).await?;
        client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id }).await?;
    }
    Ok(())
}

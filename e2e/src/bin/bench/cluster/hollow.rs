//! A node without anything behind it: every pod bound to it is reported Ready at once, and gone when it is to go.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use e2e::cluster::Cluster;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;

use super::api::{on_this_thread, place};

pub(super) const NAME: &str = "hollow";

/// The node; it is deleted with the value.
pub(super) struct Hollow {
    stop: Arc<Notify>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Hollow {
    /// Registers the node and begins to report.
    pub(super) fn start(cluster: &Cluster) -> Result<Self> {
        let stop = Arc::new(Notify::new());
        let told = Arc::clone(&stop);
        let (pid, file) = place(cluster);
        let thread = std::thread::spawn(move || {
            on_this_thread(pid, &file, async |client: Client| {
                register(client.clone()).await?;
                tokio::select! {
                    failed = report(client.clone()) => failed?,
                    failed = live(client.clone()) => failed?,
                    () = told.notified() => {}
                }
                Api::<Node>::all(client).delete(NAME, &DeleteParams::default()).await?;
                Ok(())
            })
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Hollow {
    fn drop(&mut self) {
        self.stop.notify_one();
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        if let Some(Ok(Err(error))) = ended {
            #[expect(clippy::print_stderr, reason = "a benchmark's last words")]
            {
                eprintln!("the hollow node failed: {error:#}");
            }
        }
    }
}

async fn register(client: Client) -> Result<()> {
    let api: Api<Node> = Api::all(client);
    let node = serde_json::from_value(json!({
        "metadata": { "name": NAME, "labels": { "kubernetes.io/hostname": NAME } },
    }))?;
    api.create(&PostParams::default(), &node).await?;
    Ok(())
}

/// Says every 10 s that the node is there.
async fn live(client: Client) -> Result<()> {
    let api: Api<Node> = Api::all(client);
    let resources = json!({ "cpu": "8", "memory": "32Gi", "pods": "110" });
    loop {
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let status = json!({ "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "hollow",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
        } });
        api.patch_status(NAME, &PatchParams::default(), &Patch::Merge(status)).await?;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

async fn report(client: Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let params = WatchParams::default().fields(&format!("spec.nodeName={NAME}"));
    loop {
        let mut events = Box::pin(pods.watch(&params, "0").await?);
        while let Some(event) = events.try_next().await? {
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { continue };
            let name = pod.name_any();
            let told = if pod.metadata.deletion_timestamp.is_some() {
                pods.delete(&name, &DeleteParams::default().grace_period(0)).await.map(drop)
            } else if pod.status.and_then(|status| status.phase).as_deref() == Some("Pending") {
                pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(ready())).await.map(drop)
            } else {
                Ok(())
            };
            match told {
                // It is gone already.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                told => told?,
            }
        }
    }
}

fn ready() -> serde_json::Value {
    let condition = |kind| json!({ "type": kind, "status": "True" });
    let all = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({ "status": { "phase": "Running", "conditions": all } })
}

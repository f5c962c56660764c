//! The last word of a node whose machine goes down. An agent that only stops says nothing: its pods go on, and are to stay Ready.
//! Upstream: pkg/kubelet/nodeshutdown, whose words these are; that one also holds the shutdown up until its pods have ended.

use std::time::Duration;

use k8s_openapi::api::core::v1;
use kube::{Api, Client};

use super::super::source::chain;
use super::render::condition;
use super::tell;
use crate::time::wall_ns;

/// How long systemd, and then the API server, may take: the machine does not wait for us.
const PATIENCE: Duration = Duration::from_secs(3);

/// Tells the cluster that the node is not ready, if its machine goes down.
pub(in crate::api) async fn last_word(client: Client, name: &str) {
    if !machine_goes_down().await {
        return;
    }
    tracing::info!("the machine goes down: the node says that it is not ready");
    let nodes = Api::<v1::Node>::all(client);
    let told = tokio::time::timeout(PATIENCE, async {
        let node = nodes.get(name).await.map_err(|error| chain(&error))?;
        tell(&nodes, name, &going_down(&node.status.unwrap_or_default(), wall_ns())).await
    });
    if let Err(error) = told.await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
        tracing::warn!(error, "the cluster does not know that the machine goes down");
    }
}

/// Whether systemd shuts the machine down or starts it anew; nobody knows where there is no systemd.
async fn machine_goes_down() -> bool {
    if !host::process::is_booted_by_systemd() {
        return false;
    }
    let mut asking = tokio::process::Command::new("systemctl");
    let answer = asking.arg("is-system-running").kill_on_drop(true).output();
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => answer.stdout.trim_ascii() == b"stopping",
        Ok(Err(_)) | Err(_) => false,
    }
}

/// The status with which a node leaves.
fn going_down(status: &v1::NodeStatus, now: i64) -> v1::NodeStatus {
    let known = status.conditions.as_deref().unwrap_or_default();
    let message = "node is shutting down".to_owned();
    let ready = condition(known, "Ready", false, "KubeletNotReady", message, now);
    let others = known.iter().filter(|one| one.type_ != "Ready").cloned();
    v1::NodeStatus { conditions: Some(others.chain([ready]).collect()), ..status.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_readiness_goes() {
        let left = |status: &str| -> Value {
            let before = serde_json::from_value(json!({ "phase": "Running", "conditions": [
                { "type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory" },
                { "type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z" },
            ] }));
            let after = going_down(&before.expect("a status"), 1_000_000_000);
            serde_json::to_value(after).expect("JSON")
        };
        for (before, changed) in [("True", "1970-01-01T00:00:01Z"), ("False", "2026-01-01T00:00:00Z")] {
            assert_eq!(
                left(before),
                json!({ "phase": "Running", "conditions": [
                    { "type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory" },
                    { "type": "Ready", "status": "False", "reason": "KubeletNotReady",
                      "message": "node is shutting down",
                      "lastHeartbeatTime": "1970-01-01T00:00:01Z", "lastTransitionTime": changed },
                ] })
            );
        }
    }
}

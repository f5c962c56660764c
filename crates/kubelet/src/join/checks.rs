//! What a machine asks a cluster that it found, before it changes anything: whether its name is free, how its kubelets are
//! configured, and for a certificate.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, Client};
use rcgen::KeyPair;

use super::discovery::Found;
use super::error::JoinError;
use super::trouble;
use crate::certificates::{Identity, IssueError, Purpose, issue};

/// A machine that is about to join.
pub struct Joining<'a> {
    /// The cluster, and the bearer of the token.
    pub found: &'a Found,
    /// The node's name.
    pub node: &'a str,
}

impl Joining<'_> {
    /// Checks that no living node has our name: one that is not Ready may be this machine, come again.
    ///
    /// # Errors
    /// When there is one, or the API server does not say.
    pub async fn check_name(&self) -> Result<(), JoinError> {
        let what = format!("look for a node {}", self.node);
        let nodes = Api::<Node>::all(self.client());
        match nodes.get_opt(self.node).await.map_err(|error| self.tell(&error, &what))? {
            Some(node) if is_ready(&node) => Err(JoinError::NameTaken { name: self.node.to_owned() }),
            _ => Ok(()),
        }
    }

    /// The KubeletConfiguration of the cluster's nodes, as kubeadm keeps it.
    ///
    /// # Errors
    /// When there is none, or it may not be read.
    pub async fn kubelet_config(&self) -> Result<String, JoinError> {
        let what = "ConfigMap kube-system/kubelet-config";
        let maps = Api::<ConfigMap>::namespaced(self.client(), "kube-system");
        let map =
            maps.get("kubelet-config").await.map_err(|error| self.tell(&error, &format!("read {what}")))?;
        let text = map.data.unwrap_or_default().remove("kubelet");
        let none =
            || JoinError::Unusable { what: what.to_owned(), cause: "it has no key \"kubelet\"".to_owned() };
        text.ok_or_else(none)
    }

    /// The node's client certificate.
    ///
    /// # Errors
    /// When the cluster does not sign one within `patience`.
    pub async fn certificate(&self, patience: Duration) -> Result<Identity, JoinError> {
        let key = KeyPair::generate().map_err(|error| JoinError::Certificate(IssueError::Make(error)))?;
        let issued = issue(&self.found.client, self.node, &Purpose::Client, &key, patience).await;
        issued.map_err(|error| match error {
            IssueError::Send { name, source } if matches!(&*source, kube::Error::Api(status) if [401, 403].contains(&status.code)) => {
                self.tell(&source, &format!("send the certificate signing request {name}"))
            }
            other => JoinError::Certificate(other),
        })
    }

    fn client(&self) -> Client {
        self.found.client.clone()
    }

    fn tell(&self, error: &kube::Error, what: &str) -> JoinError {
        trouble::of(error).tell(&self.found.cluster.server, what, None)
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_ready_node_holds_its_name() {
        let with = |conditions| {
            is_ready(
                &serde_json::from_value(json!({ "metadata": {}, "status": { "conditions": conditions } }))
                    .expect("a node"),
            )
        };
        assert!(with(json!([{ "type": "Ready", "status": "True" }])));
        assert!(!with(json!([{ "type": "Ready", "status": "Unknown" }])));
        assert!(!with(json!([{ "type": "MemoryPressure", "status": "True" }])));
        assert!(!is_ready(&Node::default()));
    }
}

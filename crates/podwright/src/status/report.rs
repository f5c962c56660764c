//! What is known of a node at one moment, as v1 objects: the answer of the admin socket, and what `status` shows.

use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A node, whether its agent runs or not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The process that answered; `None` when only records were read.
    pub(crate) agent: Option<Agent>,
    /// The node itself.
    pub(crate) node: Node,
    /// Its pods, with their status.
    pub(crate) pods: Vec<Pod>,
    /// Services, with the addresses and ports that were allocated.
    pub(crate) services: Vec<Service>,
    /// Where the Services lead.
    pub(crate) endpoint_slices: Vec<EndpointSlice>,
    /// What happened lately.
    pub(crate) events: Vec<Event>,
    /// What is wrong with the manifests, one sentence each.
    pub(crate) problems: Vec<String>,
}

/// A running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agent {
    /// Its process.
    pub(crate) pid: u32,
    /// What it is.
    pub(crate) version: String,
}

impl Report {
    /// The report as a v1 List. Problems are no objects: they go to stderr.
    pub(crate) fn to_list(&self) -> serde_json::Result<Value> {
        let mut items = vec![serde_json::to_value(&self.node)?];
        for pod in &self.pods {
            items.push(serde_json::to_value(pod)?);
        }
        for service in &self.services {
            items.push(serde_json::to_value(service)?);
        }
        for slice in &self.endpoint_slices {
            items.push(serde_json::to_value(slice)?);
        }
        for event in &self.events {
            items.push(serde_json::to_value(event)?);
        }
        Ok(json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_every_object_with_its_kind() {
        let report = Report {
            pods: vec![Pod::default()],
            services: vec![Service::default()],
            endpoint_slices: vec![EndpointSlice::default()],
            events: vec![Event::default()],
            ..Report::default()
        };
        let list = report.to_list().unwrap();
        let kinds: Vec<&str> =
            list["items"].as_array().unwrap().iter().map(|item| item["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["Node", "Pod", "Service", "EndpointSlice", "Event"]);
        assert_eq!(list["kind"], "List");
    }

    #[test]
    fn survives_the_admin_socket_unchanged() {
        let report = Report {
            agent: Some(Agent { pid: 7, version: "1".into() }),
            problems: vec!["p".into()],
            ..Report::default()
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}

//! What the parts of a running agent know, for the admin socket and the demo: one report of v1 objects.

use std::sync::Arc;

use anyhow::Context;
use cri::v1::StatusRequest;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_openapi::api::core::v1::{Node as NodeObject, Service};
use kubelet::NodeReport;
use manifest::Loaded;
use proxy::ProxyReport;
use runtime::Runtime;
use runtime::images::ImageStore;
use serde_json::json;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::node::Node;
use crate::status::report::{Agent, Report};
use crate::status::sandboxes;

/// Everything that is reported inside the agent.
pub(crate) struct Sources {
    /// Where everything lies.
    pub(crate) node: Node,
    /// The runtime of this process; none where another one runs the pods.
    pub(crate) runtime: Option<Arc<Runtime>>,
    /// A channel to the CRI server.
    pub(crate) cri: Channel,
    /// What there is more where a kubelet runs.
    pub(crate) reports: Option<Reports>,
}

/// What kubelet and proxy report.
#[derive(Clone)]
pub(crate) struct Reports {
    /// What the kubelet is told to run, by manifests or by the API server.
    pub(crate) manifests: watch::Receiver<Arc<Loaded>>,
    /// Pods and events.
    pub(crate) kubelet: watch::Receiver<Arc<NodeReport>>,
    /// Services with their addresses; none before they are known.
    pub(crate) services: watch::Receiver<Option<Arc<Vec<Service>>>>,
    /// Endpoints of Services that manifests have, and what is not served.
    pub(crate) proxy: watch::Receiver<Arc<ProxyReport>>,
}

impl Sources {
    /// The image store; a foreign runtime keeps its own.
    pub(crate) fn images(&self) -> anyhow::Result<&Arc<ImageStore>> {
        let endpoint = self.node.cri_endpoint();
        let own = self.runtime.as_ref().map(|runtime| runtime.images());
        own.with_context(|| format!("images are kept by the runtime at {endpoint}: use its own tools"))
    }

    /// Everything, as of now.
    pub(crate) async fn report(&self) -> Report {
        let agent = Agent { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let mut report = Report { agent: Some(agent), node: self.node_object().await, ..Report::default() };
        match &self.reports {
            Some(reports) => reports.add_to(&mut report),
            None => match sandboxes::pods(self.cri.clone()).await {
                Ok(pods) => report.pods = pods,
                Err(error) => report.problems.push(format!("{error:#}")),
            },
        }
        report
    }

    /// The node with the conditions that its runtime gives.
    async fn node_object(&self) -> NodeObject {
        let status =
            RuntimeServiceClient::new(self.cri.clone()).status(StatusRequest { verbose: false }).await;
        let trouble = match status {
            Ok(reply) => {
                let conditions = reply.into_inner().status.unwrap_or_default().conditions;
                let bad = conditions.into_iter().find(|condition| !condition.status);
                bad.map(|condition| (condition.reason, condition.message))
            }
            Err(error) => Some(("RuntimeUnknown".to_owned(), error.message().to_owned())),
        };
        node_object(&self.node, trouble)
    }
}

impl Reports {
    fn add_to(&self, report: &mut Report) {
        let kubelet = Arc::clone(&self.kubelet.borrow());
        let proxy = Arc::clone(&self.proxy.borrow());
        report.pods = kubelet.pods.iter().map(|pod| (**pod).clone()).collect();
        report.events = kubelet.events.iter().map(|event| (**event).clone()).collect();
        report.services = self.services.borrow().as_deref().cloned().unwrap_or_default();
        report.endpoint_slices.clone_from(&proxy.endpoints);
        report.problems = self.manifests.borrow().problems.iter().map(ToString::to_string).collect();
        report.problems.extend(proxy.problems.iter().map(ToString::to_string));
    }
}

/// A v1 Node of what is known here. `trouble` is a reason and a sentence.
pub(crate) fn node_object(node: &Node, trouble: Option<(String, String)>) -> NodeObject {
    let (status, reason, message) = match trouble {
        None => ("True", "KubeletReady".to_owned(), "the runtime and its network are ready".to_owned()),
        Some((reason, message)) => ("False", reason, message),
    };
    let mut addresses = vec![json!({"type": "Hostname", "address": node.name})];
    let internal = |ip: std::net::IpAddr| json!({"type": "InternalIP", "address": ip.to_string()});
    addresses.extend(node.addresses().into_iter().map(internal));
    let object = json!({
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": node.pod_cidrs[0].to_string(), "podCIDRs": node.pod_cidrs},
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": status, "reason": reason, "message": message}],
        },
    });
    serde_json::from_value(object).unwrap_or_default()
}

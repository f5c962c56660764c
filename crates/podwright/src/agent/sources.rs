//! What the parts of a running agent know, for the admin socket and the demo: one report of v1 objects.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as NodeObject, NodeAddress, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubelet::NodeReport;
use manifest::Loaded;
use proxy::ProxyReport;
use runtime::Runtime;
use tokio::sync::watch;

use crate::node::Node;
use crate::status::report::{Agent, Report};

/// Receivers of everything that is reported inside the agent.
pub(crate) struct Sources {
    node: Node,
    runtime: Arc<Runtime>,
    standalone: Option<Standalone>,
}

/// What there is more on a node that runs manifests.
#[derive(Clone)]
pub(crate) struct Standalone {
    /// The manifests as they are now.
    pub(crate) manifests: watch::Receiver<Arc<Loaded>>,
    /// Pods and events.
    pub(crate) kubelet: watch::Receiver<Arc<NodeReport>>,
    /// Services and endpoints.
    pub(crate) proxy: watch::Receiver<Arc<ProxyReport>>,
}

impl Sources {
    /// What a CRI server alone knows, and on a node with manifests the rest.
    pub(crate) fn new(node: Node, runtime: Arc<Runtime>, standalone: Option<Standalone>) -> Self {
        Self { node, runtime, standalone }
    }

    /// Where everything lies.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// The image store.
    pub(crate) fn images(&self) -> &Arc<runtime::images::ImageStore> {
        self.runtime.images()
    }

    /// The reports of a node that runs manifests.
    pub(crate) fn standalone(&self) -> Option<&Standalone> {
        self.standalone.as_ref()
    }

    /// Everything, as of now.
    pub(crate) async fn report(&self) -> Report {
        let agent = Agent { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let mut report = Report { agent: Some(agent), node: self.node_object().await, ..Report::default() };
        match &self.standalone {
            Some(standalone) => standalone.add_to(&mut report),
            None => report.pods = crate::status::sandboxes::pods(&self.runtime).await,
        }
        report
    }
}

//! Stands in for the kubelet's interface until that part is here; it refuses to start.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, Pod};
use tokio::sync::watch;
use tonic::transport::Channel;

/// What the kubelet will report.
#[derive(Default, Debug, Clone)]
pub(crate) struct NodeReport {
    /// Pods with their status.
    pub(crate) pods: Vec<Pod>,
    /// What happened lately.
    pub(crate) events: Vec<Event>,
}

/// Refuses by name.
pub(crate) async fn run(
    (): (),
    _cri: Channel,
    _desired: watch::Receiver<Arc<manifest::Loaded>>,
    _report: watch::Sender<Arc<NodeReport>>,
    _stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    anyhow::bail!("pods from manifests are not supported yet: use `podwright runtime`")
}

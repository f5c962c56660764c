//! From the kubelet's report to what the proxy wants to know: this node's pods, and which of them are ready.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kubelet::NodeReport;
use proxy::{LocalPod, Protocol};
use tokio::sync::{oneshot, watch};

/// How long the first report may take: a pod of which nothing can be learned must not keep Services from others.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hands on every change that matters to the proxy, until `stop`. `first` is told once the pods that a former agent left
/// have been handed on: rules made before would cut them off.
pub(crate) async fn follow(
    mut reports: watch::Receiver<Arc<NodeReport>>,
    pods: watch::Sender<Arc<Vec<LocalPod>>>,
    first: oneshot::Sender<()>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    tokio::select! {
        _ = tokio::time::timeout(PATIENCE, reports.wait_for(|report| report.complete)) => {}
        () = &mut stop => return,
    }
    let mut first = Some(first);
    loop {
        let local: Vec<LocalPod> =
            reports.borrow_and_update().pods.iter().filter_map(|pod| local_pod(pod)).collect();
        pods.send_if_modified(|known| {
            let changed = **known != local;
            *known = Arc::new(local);
            changed
        });
        if let Some(first) = first.take() {
            // The proxy has ended: so will this.
            let _ = first.send(());
        }
        tokio::select! {
            Ok(()) = reports.changed() => {},
            () = &mut stop => return,
        }
    }
}

/// A pod as an endpoint; one without an address is none.
fn local_pod(pod: &Pod) -> Option<LocalPod> {
    let status = pod.status.as_ref()?;
    let ips: Vec<IpAddr> = match &status.pod_ips {
        Some(ips) => ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect(),
        None => status.pod_ip.iter().filter_map(|ip| ip.parse().ok()).collect(),
    };
    if ips.is_empty() {
        return None;
    }
    let condition = |name: &str| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == name && condition.status == "True")
    };
    Some(LocalPod {
        namespace: pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: pod.metadata.name.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        ips,
        ready: condition("Ready") && pod.metadata.deletion_timestamp.is_none(),
        ports: named_ports(pod),
    })
}

fn named_ports(pod: &Pod) -> BTreeMap<(Protocol, String), u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        Some(((protocol, port.name.clone()?), u16::try_from(port.container_port).ok()?))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_pod_is_handed_on_before_all_that_were_there_are_told_of() {
        let (reporter, reports) = watch::channel(Arc::default());
        let (sender, pods) = watch::channel(Arc::default());
        let (first, mut known) = oneshot::channel();
        let following = tokio::spawn(follow(reports, sender, first, std::future::pending()));
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "a" },
            "status": { "podIP": "10.85.0.2", "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .expect("a pod");
        let report = |complete| {
            Arc::new(NodeReport { pods: vec![Arc::new(pod.clone())], complete, ..NodeReport::default() })
        };
        reporter.send_replace(report(false));
        tokio::task::yield_now().await;
        assert!(known.try_recv().is_err() && pods.borrow().is_empty(), "another pod may still run");
        reporter.send_replace(report(true));
        known.await.expect("the proxy may begin");
        assert!(pods.borrow()[0].ready);
        following.abort();
    }
}

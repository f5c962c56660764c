//! Ends pods when the node runs short of memory, one at a time, so that the kernel does not choose; and pods that take more of
//! the disk than they may. Only `memory.available` of `evictionHard` is looked at. Upstream: pkg/kubelet/eviction/eviction_manager.go.

mod disk;
mod plan;
pub(crate) mod storage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cri::v1 as crv1;
use tokio::sync::{mpsc, watch};

use crate::cgroups::memory_of;
use crate::cri_requests::POD_UID;
use crate::events::Kind;
use crate::meminfo;
use crate::pod::model::{Pod, admit};
use crate::pod::plan::Failure;
use crate::pod::worker::Node;
use crate::report::NodeReport;
use crate::sizing::MemoryThreshold;
use crate::time::BootTime;
use plan::{Memory, Usage};

/// How often the node's memory is looked at. Upstream: evictionMonitoringPeriod.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same where less than twice the threshold is left.
const CLOSE: Duration = Duration::from_secs(1);
/// How long a pod may take to end before the next one is chosen. Upstream: podCleanupTimeout.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub(crate) struct Evictor {
    node: Arc<Node>,
    threshold: Option<MemoryThreshold>,
    reports: watch::Receiver<Arc<NodeReport>>,
    pressure: watch::Sender<bool>,
    orders: mpsc::Sender<(String, Failure)>,
    last_short: Option<BootTime>,
}

impl Evictor {
    /// `pressure` gets whether memory runs short, `orders` whom to end and why.
    pub(crate) fn new(
        node: &Arc<Node>,
        pressure: watch::Sender<bool>,
        orders: mpsc::Sender<(String, Failure)>,
    ) -> Self {
        let threshold = node.config.sizing.and_then(|sizing| sizing.memory_threshold);
        let reports = node.reporter.subscribe();
        Self { node: Arc::clone(node), threshold, reports, pressure, orders, last_short: None }
    }

    /// Looks again and again; for ever.
    pub(crate) async fn run(mut self) -> std::convert::Infallible {
        let Some(threshold) = self.threshold else { return std::future::pending().await };
        let threshold = threshold.bytes(self.node.capacity.memory);
        loop {
            let memory = Memory { available: available(&self.node), threshold };
            self.tell(memory);
            let ended = if memory.is_short() { self.evict(memory).await } else { None };
            if let Some(uid) = ended {
                self.wait_for_the_end_of(&uid).await;
                continue;
            }
            let close = memory.available < threshold.saturating_mul(2);
            tokio::time::sleep(if close { CLOSE } else { INTERVAL }).await;
        }
    }

    /// Tells of pressure, where that changes.
    fn tell(&mut self, memory: Memory) {
        let now = BootTime::now();
        if memory.is_short() {
            self.last_short = Some(now);
        }
        let is_pressed = plan::pressure(self.last_short, self.node.config.pressure_transition, now);
        let changed =
            self.pressure.send_if_modified(|known| std::mem::replace(known, is_pressed) != is_pressed);
        if changed {
            let reason = if is_pressed { "NodeHasInsufficientMemory" } else { "NodeHasSufficientMemory" };
            let message = format!("Node {} status is now: {reason}", self.node.config.node_name);
            self.node.reporter.node_event(Kind::Normal, reason, &message);
        }
    }

    /// Has the first pod that may go ended; its uid.
    async fn evict(&self, memory: Memory) -> Option<String> {
        let reporter = &self.node.reporter;
        reporter.node_event(Kind::Warning, "EvictionThresholdMet", "Attempting to reclaim memory");
        let usage = match self.usage().await {
            Ok(usage) => usage,
            Err(status) => {
                tracing::warn!(error = status.message(), "what pods use of the memory is not known");
                return None;
            }
        };
        let pods = active_pods(&self.reports.borrow().clone());
        let Some(pod) = plan::first(&pods, &usage) else {
            tracing::warn!(available = memory.available, "memory runs short, and no pod may be evicted");
            return None;
        };
        let failure = plan::failure(pod, memory, usage.get(&pod.uid));
        reporter.event(pod, Kind::Warning, "Evicted", &failure.message);
        // Without a manager there is nothing to evict.
        self.orders.send((pod.uid.clone(), failure)).await.ok()?;
        Some(pod.uid.clone())
    }

    /// Memory of each container, by uid of its pod and its name.
    async fn usage(&self) -> Result<BTreeMap<String, Usage>, tonic::Status> {
        let mut usage: BTreeMap<String, Usage> = BTreeMap::new();
        for stats in container_stats(&self.node, None).await? {
            let Some(attributes) = stats.attributes else { continue };
            let Some(uid) = attributes.labels.get(POD_UID) else { continue };
            let name = attributes.metadata.unwrap_or_default().name;
            let bytes = stats.memory.and_then(|memory| memory.working_set_bytes).unwrap_or_default().value;
            *usage.entry(uid.clone()).or_default().entry(name).or_default() += bytes;
        }
        Ok(usage)
    }

    async fn wait_for_the_end_of(&mut self, uid: &str) {
        let has_ended = |report: &Arc<NodeReport>| {
            let pod = report.pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid));
            let phase = pod.and_then(|pod| pod.status.as_ref()?.phase.as_deref());
            pod.is_none() || phase == Some("Failed")
        };
        // Who takes longer is not waited for: memory is still short.
        let _ = tokio::time::timeout(PATIENCE, self.reports.wait_for(has_ended)).await;
    }
}

/// Pods that run and are wanted.
fn active_pods(report: &NodeReport) -> Vec<Pod> {
    let active = report.pods.iter().filter(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    });
    active.filter_map(|pod| admit(pod).ok()).collect()
}

/// What the containers use: of one pod, or all.
async fn container_stats(node: &Node, uid: Option<&str>) -> Result<Vec<crv1::ContainerStats>, tonic::Status> {
    let mut client = cri::runtime_client(&node.cri);
    let filter = uid.map(|uid| crv1::ContainerStatsFilter {
        label_selector: std::collections::HashMap::from([(POD_UID.to_owned(), uid.to_owned())]),
        ..Default::default()
    });
    let answer = client.list_container_stats(crv1::ListContainerStatsRequest { filter }).await?;
    Ok(answer.into_inner().stats)
}

/// Bytes that the node can still give: of its cgroup's limit where it has one, else of the machine's memory.
fn available(node: &Node) -> u64 {
    let capacity = node.capacity.memory;
    match memory_of(&node.config.cgroup_root) {
        Some(memory) if memory.limit.is_some() => capacity.saturating_sub(memory.working_set()),
        _ => {
            let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
            capacity.saturating_sub(meminfo::working_set(&meminfo).unwrap_or(0))
        }
    }
}

//! The kubelet's events to the API server: an event is posted once, what happens again counts it up. Upstream's limit for each
//! object holds: a burst of 25, then one in five minutes.
//!
//! Events give way to what pods wait for: the API server's time is spent on their tokens and statuses first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::source::chain;
use super::status::is_on_its_way;
use crate::report::NodeReport;
use crate::time::BootTime;

const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// How long one event may take; then it is dropped: events are for people who look now.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long events wait for pods that are being started.
const GIVE_WAY: Duration = Duration::from_millis(500);

/// Objects whose events are counted, at most.
const OBJECTS: usize = 4096;

/// Sends what comes, in order, for ever.
pub(super) async fn send(
    client: Client,
    mut events: mpsc::Receiver<Arc<v1::Event>>,
    mut reports: watch::Receiver<Arc<NodeReport>>,
) {
    let mut limits = Limits::default();
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, 1).await > 0 {
        let _ = tokio::time::timeout(GIVE_WAY, reports.wait_for(|report| !starts_pods(report))).await;
        while let Ok(event) = events.try_recv() {
            batch.push(event);
        }
        for event in batch.drain(..) {
            let about = event.involved_object.uid.clone().unwrap_or_default();
            if limits.allow(&about, BootTime::now()) {
                tell(client.clone(), event).await;
            }
        }
    }
}

fn starts_pods(report: &NodeReport) -> bool {
    report.pods.iter().any(|pod| pod.status.as_ref().is_some_and(is_on_its_way))
}

/// Tells of one event, once.
pub(super) async fn tell(client: Client, event: Arc<v1::Event>) {
    match tokio::time::timeout(PATIENCE, send_one(&client, &event)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(reason = event.reason, error = %chain(&error), "an event is not told");
        }
        Err(_) => {
            tracing::debug!(reason = event.reason, "an event is not told: the API server does not answer")
        }
    }
}

async fn send_one(client: &Client, event: &v1::Event) -> Result<(), kube::Error> {
    let api = Api::<v1::Event>::namespaced(
        client.clone(),
        event.metadata.namespace.as_deref().unwrap_or("default"),
    );
    if event.count.is_some_and(|count| count > 1) {
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let again = json!({ "count": event.count, "lastTimestamp": event.last_timestamp });
        match api.patch(name, &PatchParams::default(), &Patch::Strategic(again)).await {
            // It was never told, or has been forgotten.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
    }
    api.create(&PostParams::default(), event).await.map(drop)
}

/// Token buckets by object.
#[derive(Default)]
struct Limits {
    buckets: BTreeMap<String, Bucket>,
    /// The oldest first.
    order: VecDeque<String>,
}

struct Bucket {
    left: u32,
    filled: BootTime,
}

impl Limits {
    fn allow(&mut self, about: &str, now: BootTime) -> bool {
        if !self.buckets.contains_key(about) {
            if self.order.len() >= OBJECTS
                && let Some(oldest) = self.order.pop_front()
            {
                self.buckets.remove(&oldest);
            }
            self.order.push_back(about.to_owned());
            self.buckets.insert(about.to_owned(), Bucket { left: BURST, filled: now });
        }
        let Some(bucket) = self.buckets.get_mut(about) else { return false };
        let more = u32::try_from(now.since(bucket.filled).as_secs() / REFILL.as_secs()).unwrap_or(BURST);
        if more > 0 {
            bucket.left = bucket.left.saturating_add(more).min(BURST);
            bucket.filled = now;
        }
        let allowed = bucket.left > 0;
        bucket.left = bucket.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_talks_too_much_is_heard_every_five_minutes() {
        let mut limits = Limits::default();
        let start = BootTime(0);
        let allowed = (0..100).filter(|_| limits.allow("a", start)).count();
        assert_eq!(allowed, 25);
        assert!(limits.allow("b", start), "others are not silenced");
        let later = start.after(REFILL);
        assert!(limits.allow("a", later));
        assert!(!limits.allow("a", later));
    }
}

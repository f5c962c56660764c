//! The node's lease in kube-node-lease: what tells the cluster every ten seconds that the node lives.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::super::source::chain;
use super::PATIENCE;
use crate::time::wall_ns;

const NAMESPACE: &str = "kube-node-lease";

/// Renews the lease of node `name` four times as often as it would run out, for ever. Upstream: component-helpers, lease.
pub(super) async fn renew(client: Client, name: String, uid: String, duration: Duration) {
    let leases = Api::<Lease>::namespaced(client, NAMESPACE);
    let mut ticks = tokio::time::interval(duration / 4);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        ticks.tick().await;
        let renewed =
            tokio::time::timeout(PATIENCE.min(duration / 4), renew_once(&leases, &name, &uid, duration))
                .await;
        let failure = match renewed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some("the API server does not answer".to_owned()),
        };
        match &failure {
            Some(error) if !failed => tracing::warn!(error, "the node's lease is not renewed; trying again"),
            None if failed => tracing::info!("the node's lease is renewed again"),
            _ => {}
        }
        failed = failure.is_some();
    }
}

async fn renew_once(
    leases: &Api<Lease>,
    name: &str,
    uid: &str,
    duration: Duration,
) -> Result<(), kube::Error> {
    let spec = LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
        renew_time: Timestamp::from_nanosecond(i128::from(wall_ns())).ok().map(MicroTime),
        ..LeaseSpec::default()
    };
    let patch = Patch::Merge(json!({ "spec": spec }));
    match leases.patch(name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(drop),
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(NAMESPACE.into()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    leases.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await.map(drop)
}

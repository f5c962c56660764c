//! The service proxy of a cluster's node: whether it is its turn, and what it has to know of the node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hostnet::netfilter::WriterHandle;
use k8s_openapi::api::core::v1;
use kubelet::NodeReport;
use manifest::Loaded;
use proxy::{Cluster, ExternalIps, Mode, NodeNetwork, ProxyReport, Source, Switch};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ranges_of;

/// Where the proxy's health is asked for, as kube-proxy's.
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 10_256);
/// For so long after the last kube-proxy pod the next one is waited for: a roll-out replaces them one after the other.
const GAP: Duration = Duration::from_secs(10);

/// What the proxy is to do.
pub(super) struct Duty {
    /// The API server.
    pub(super) client: kube::Client,
    /// When.
    pub(super) mode: Mode,
    /// What becomes of `spec.externalIPs`.
    pub(super) external_ips: ExternalIps,
    /// The file that is there as long as the chains of Services are ours, for `podwright reset`.
    pub(super) mark: PathBuf,
}

/// What the proxy learns of its node.
#[derive(Clone)]
pub(super) struct Surroundings {
    /// The node's own object.
    pub(super) own: watch::Receiver<Option<Arc<v1::Node>>>,
    /// The node's pods…
    pub(super) desired: watch::Receiver<Arc<Loaded>>,
    /// … and whether these are all.
    pub(super) synced: watch::Receiver<bool>,
    /// How they are.
    pub(super) reports: watch::Receiver<Arc<NodeReport>>,
}

/// Serves Services for as long as it is our turn, until `stop`.
pub(super) async fn run(
    config: proxy::Config,
    duty: Duty,
    around: Surroundings,
    (writer, report): (WriterHandle, watch::Sender<Arc<ProxyReport>>),
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (mut own, mut stop) = (around.own.clone(), std::pin::pin!(stop));
    // Rules made without the node's addresses and ranges would be other ones for a moment.
    let first = tokio::select! {
        Ok(node) = own.wait_for(Option::is_some) => node.as_deref().map(network_of).unwrap_or_default(),
        () = &mut stop => return Ok(()),
    };
    let (network, known_network) = watch::channel(first);
    let (turn, our_turn) = watch::channel(Switch::Off);
    let Duty { client, mode, external_ips, mark } = duty;
    let cluster =
        Cluster { client, network: known_network, switch: our_turn, healthz: Some(HEALTHZ), external_ips };
    let serving = proxy::run(config, Source::Cluster(cluster), writer, report, stop);
    tokio::select! {
        served = serving => Ok(served?),
        () = follow_network(own, network) => Ok(()),
        () = follow_turn(mode, around, turn, &mark) => Ok(()),
    }
}

/// Tells of every change of the node's addresses and ranges, for ever.
async fn follow_network(
    mut own: watch::Receiver<Option<Arc<v1::Node>>>,
    network: watch::Sender<NodeNetwork>,
) {
    while own.changed().await.is_ok() {
        // A node whose object was deleted registers again.
        let Some(now) = own.borrow_and_update().as_deref().map(network_of) else { continue };
        network.send_if_modified(|known| {
            let changed = now != *known;
            *known = now;
            changed
        });
    }
    std::future::pending().await
}

fn network_of(node: &v1::Node) -> NodeNetwork {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    NodeNetwork {
        pod_cidrs: ranges_of(node),
        addresses: addresses.filter_map(|address| address.address.parse().ok()).collect(),
    }
}

/// Turns the proxy on and off by what runs on the node, for ever.
async fn follow_turn(mode: Mode, around: Surroundings, turn: watch::Sender<Switch>, mark: &Path) {
    let Surroundings { mut desired, mut synced, mut reports, .. } = around;
    let (mut turns, mut noted) = (Turns::default(), None);
    loop {
        let known = *synced.borrow_and_update();
        let wanted = {
            let (pods, report) = (desired.borrow_and_update(), reports.borrow_and_update());
            known.then(|| proxy::switch(mode, labels_of_living(&pods, &report)))
        };
        let (now, again) = turns.decide(wanted, Instant::now());
        if known && noted != Some(now) {
            note(mark, now);
            noted = Some(now);
        }
        turn.send_if_modified(|was| std::mem::replace(was, now) != now);
        let due = async {
            match again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            changed = desired.changed() => changed,
            changed = synced.changed() => changed,
            changed = reports.changed() => changed,
            () = due => Ok(()),
        };
        if changed.is_err() {
            // The agent ends.
            return std::future::pending().await;
        }
    }
}

/// Writes down whose the chains are, before they are ours.
fn note(mark: &Path, turn: Switch) {
    let done = match turn {
        Switch::On => std::fs::write(mark, ""),
        Switch::Off => std::fs::remove_file(mark),
    };
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, file = %mark.display(), "note whose the chains of Services are");
        }
        _ => {}
    }
}

/// The labels of the pods that have not ended.
fn labels_of_living<'a>(
    pods: &'a Loaded,
    report: &NodeReport,
) -> impl Iterator<Item = &'a BTreeMap<String, String>> {
    let has_ended = |pod: &v1::Pod| {
        let known = report.pods.iter().find(|known| known.metadata.uid == pod.metadata.uid);
        let phase = known.and_then(|known| known.status.as_ref()?.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let living = pods.objects.pods.values().filter(move |pod| !has_ended(pod));
    living.filter_map(|pod| pod.metadata.labels.as_ref()).collect::<Vec<_>>().into_iter()
}

/// What was decided before.
#[derive(Debug, Default)]
struct Turns {
    now: Switch,
    /// When it was last somebody else's turn.
    yielded: Option<Instant>,
}

impl Turns {
    /// What is to be done by what is wanted, and when to ask again. As long as nothing is known, nothing changes.
    fn decide(&mut self, wanted: Option<Switch>, at: Instant) -> (Switch, Option<Instant>) {
        let due = self.yielded.map(|yielded| yielded + GAP).filter(|due| *due > at);
        match (wanted, due) {
            (None, _) => {}
            (Some(Switch::Off), _) => (self.now, self.yielded) = (Switch::Off, Some(at)),
            (Some(Switch::On), None) => self.now = Switch::On,
            (Some(Switch::On), Some(due)) => return (self.now, Some(due)),
        }
        (self.now, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use manifest::{ObjectKey, Objects};

    #[test]
    fn the_first_turn_is_taken_at_once_and_a_later_one_after_a_while() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(turns.decide(None, start), (Switch::Off, None), "nobody knows yet");
        assert_eq!(turns.decide(Some(Switch::On), start), (Switch::On, None));
        assert_eq!(turns.decide(Some(Switch::Off), later(1)), (Switch::Off, None));
        assert_eq!(turns.decide(Some(Switch::On), later(2)), (Switch::Off, Some(later(11))));
        assert_eq!(turns.decide(Some(Switch::Off), later(3)), (Switch::Off, None), "the next one is there");
        assert_eq!(turns.decide(Some(Switch::On), later(9)), (Switch::Off, Some(later(13))));
        assert_eq!(turns.decide(Some(Switch::On), later(13)), (Switch::On, None));
        assert_eq!(turns.decide(None, later(14)), (Switch::On, None), "the API server is away");
    }

    #[test]
    fn a_pod_that_has_ended_has_no_say() {
        let pod = |uid: &str, app: &str, phase: &str| {
            let object = serde_json::json!({
                "metadata": { "name": uid, "uid": uid, "labels": { "k8s-app": app } },
                "status": { "phase": phase },
            });
            Arc::new(serde_json::from_value::<v1::Pod>(object).expect("a pod"))
        };
        let pods = [pod("a", "kube-proxy", "Failed"), pod("b", "web", "Running"), pod("c", "new", "Pending")];
        let keyed = |pod: &Arc<v1::Pod>| {
            (ObjectKey::new("x", pod.metadata.uid.as_deref().unwrap_or_default()), Arc::clone(pod))
        };
        let objects = Objects { pods: pods.iter().map(keyed).collect(), ..Objects::default() };
        let loaded = Loaded { objects, ..Loaded::default() };
        let report = NodeReport { pods: pods[..2].to_vec(), ..NodeReport::default() };
        let apps: Vec<&str> = labels_of_living(&loaded, &report).map(|one| one["k8s-app"].as_str()).collect();
        assert_eq!(apps, ["web", "new"]);
    }

    #[test]
    fn the_network_is_what_the_node_says_of_itself() {
        let node: v1::Node = serde_json::from_value(serde_json::json!({
            "spec": { "podCIDR": "10.244.1.0/24" },
            "status": { "addresses": [
                { "type": "InternalIP", "address": "192.0.2.11" }, { "type": "Hostname", "address": "one" },
            ] },
        }))
        .expect("a node");
        let network = network_of(&node);
        assert_eq!(network.addresses, ["192.0.2.11".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(network.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    }
}

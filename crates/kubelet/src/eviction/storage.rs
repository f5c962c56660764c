//! Pods that take more of the disk than they may: the `sizeLimit` of an emptyDir, the `ephemeral-storage` limits of containers.
//! Looked at every ten seconds, as upstream does: pkg/kubelet/eviction/eviction_manager.go, localStorageEviction.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::sync::mpsc;

use super::disk;
use super::{INTERVAL, active_pods, container_stats};
use crate::events::Kind;
use crate::pod::model::Pod;
use crate::pod::plan::Failure;
use crate::pod::worker::Node;

/// What is left to the pod. Upstream: immediateEvictionGracePeriodSeconds.
const GRACE: Duration = Duration::from_secs(1);
const RESOURCE: &str = "ephemeral-storage";

/// Looks again and again, and orders the end of pods that take too much; for ever.
pub(crate) async fn watch(
    node: Arc<Node>,
    orders: mpsc::Sender<(String, Failure)>,
) -> std::convert::Infallible {
    let reports = node.reporter.subscribe();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let pods = active_pods(&reports.borrow().clone());
        for pod in pods.into_iter().filter(is_limited) {
            let used = measure(&node, &pod).await;
            let Some(message) = excess(&pod, &used) else { continue };
            node.reporter.event(&pod, Kind::Warning, "Evicted", &message);
            let failure =
                Failure { reason: "Evicted".to_owned(), message, grace: Some(GRACE), disruption: None };
            // Without a manager there is nothing to evict.
            let _ = orders.send((pod.uid.clone(), failure)).await;
        }
    }
}

/// Bytes of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Used {
    /// By volume.
    volumes: BTreeMap<String, u64>,
    /// Writable layer and logs, by container.
    containers: BTreeMap<String, u64>,
}

/// Why the pod is too large, in upstream's order and words.
fn excess(pod: &Pod, used: &Used) -> Option<String> {
    let is_over = |used: Option<&u64>, limit: &Quantity| *used.unwrap_or(&0) > bytes(limit);
    for (name, limit) in empty_dirs(pod) {
        if let Some(limit) = limit.filter(|limit| bytes(limit) > 0)
            && is_over(used.volumes.get(name), limit)
        {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.0));
        }
    }
    let limits: Vec<(&str, &Quantity)> = container_limits(pod).collect();
    let total: u64 = used.volumes.values().chain(used.containers.values()).sum();
    let allowed: u64 = limits.iter().map(|(_, limit)| bytes(limit)).sum();
    if !limits.is_empty() && total > allowed {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            limits
                .first()
                .filter(|_| limits.len() == 1)
                .map_or_else(|| allowed.to_string(), |(_, one)| one.0.clone())
        ));
    }
    let (name, limit) =
        limits.into_iter().find(|(name, limit)| is_over(used.containers.get(*name), limit))?;
    Some(format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", limit.0))
}

fn is_limited(pod: &Pod) -> bool {
    empty_dirs(pod).any(|(_, limit)| limit.is_some()) || container_limits(pod).next().is_some()
}

/// Those on the disk, with their limits.
fn empty_dirs(pod: &Pod) -> impl Iterator<Item = (&str, Option<&Quantity>)> {
    let volumes = pod.source.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let on_disk = source.medium.as_ref().is_none_or(String::is_empty);
        on_disk.then_some((volume.name.as_str(), source.size_limit.as_ref()))
    })
}

fn container_limits(pod: &Pod) -> impl Iterator<Item = (&str, &Quantity)> {
    let limited = pod.containers.iter().filter_map(|container| {
        let limits = container.spec.resources.as_ref()?.limits.as_ref()?;
        Some((container.name.as_str(), limits.get(RESOURCE)?))
    });
    limited.filter(|(_, limit)| bytes(limit) > 0)
}

fn bytes(quantity: &Quantity) -> u64 {
    let parsed = manifest::quantity::parse(&quantity.0).ok();
    parsed.and_then(|amount| u64::try_from(amount.ceil()).ok()).unwrap_or(0)
}

async fn measure(node: &Arc<Node>, pod: &Pod) -> Used {
    let directories: Vec<(String, PathBuf)> =
        empty_dirs(pod).map(|(name, _)| (name.to_owned(), node.volumes.empty_dir(&pod.uid, name))).collect();
    let logs = node.pod_logs(pod);
    let names: Vec<String> = container_limits(pod).map(|(name, _)| name.to_owned()).collect();
    let log_directories = names.iter().map(|name| (name.clone(), logs.join(name))).collect::<Vec<_>>();
    let count = |all: Vec<(String, PathBuf)>| {
        all.into_iter().map(|(name, path)| (name, disk::usage(&path))).collect::<BTreeMap<_, _>>()
    };
    let counted = tokio::task::spawn_blocking(move || (count(directories), count(log_directories)));
    let (volumes, mut containers) = counted.await.unwrap_or_default();
    if !names.is_empty() {
        let stats = container_stats(node, Some(&pod.uid)).await.unwrap_or_default();
        for stats in stats {
            let name = stats.attributes.and_then(|one| one.metadata).unwrap_or_default().name;
            let layer = stats.writable_layer.and_then(|layer| layer.used_bytes).unwrap_or_default().value;
            if names.contains(&name) {
                *containers.entry(name).or_default() += layer;
            }
        }
    }
    Used { volumes, containers }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::model::tests::pod_of;

    #[test]
    fn a_pod_may_take_what_its_limits_say() {
        let pod = pod_of(json!({
            "volumes": [
                { "name": "small", "emptyDir": { "sizeLimit": "1Mi" } }, { "name": "any", "emptyDir": {} },
                { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Ki" } },
            ],
            "containers": [
                { "name": "a", "image": "i", "resources": { "limits": { "ephemeral-storage": "2Mi" } } },
                { "name": "b", "image": "i", "resources": { "limits": { "ephemeral-storage": "2Mi" } } },
            ],
        }));
        assert!(
            is_limited(&pod)
                && !is_limited(&pod_of(json!({ "containers": [{ "name": "a", "image": "i" }] })))
        );
        let mib = 1 << 20;
        let used = |small, any, a, b| Used {
            volumes: [("small".to_owned(), small), ("any".to_owned(), any)].into(),
            containers: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
        };
        for (used, expect) in [
            (used(mib, mib, mib, mib), None),
            (used(mib + 1, 0, 0, 0), Some("Usage of EmptyDir volume \"small\" exceeds the limit \"1Mi\". ")),
            (
                used(0, 3 * mib, mib, mib),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 4194304. "),
            ),
            (
                used(0, 0, 0, 2 * mib + 1),
                Some("Container b exceeded its local ephemeral storage limit \"2Mi\". "),
            ),
        ] {
            assert_eq!(excess(&pod, &used).as_deref(), expect, "{used:?}");
        }
    }
}

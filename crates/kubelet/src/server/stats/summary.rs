//! `/stats/summary`: its objects, and how they are made of what was read. Pure. Upstream: k8s.io/kubelet/pkg/apis/stats/v1alpha1.

use cri::v1 as crv1;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use super::node::{FileSystem, Node};
use crate::cri_requests::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::time::api_time;

/// See the module.
#[derive(Debug, Default, Serialize)]
pub(in crate::server) struct Summary {
    pub(in crate::server) node: NodeStats,
    pub(in crate::server) pods: Vec<PodStats>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct NodeStats {
    pub(in crate::server) node_name: String,
    start_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<RuntimeStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimit: Option<Rlimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) swap: Option<Swap>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeStats {
    image_fs: Fs,
    container_fs: Fs,
}

#[derive(Debug, Serialize)]
struct Rlimit {
    time: Option<Time>,
    maxpid: u64,
    curproc: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct PodStats {
    pub(in crate::server) pod_ref: PodReference,
    start_time: Option<Time>,
    pub(in crate::server) containers: Vec<ContainerStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    process_stats: Option<ProcessStats>,
}

#[derive(Debug, Serialize)]
struct ProcessStats {
    process_count: u64,
}

#[derive(Debug, Default, Serialize)]
pub(in crate::server) struct PodReference {
    pub(in crate::server) name: String,
    pub(in crate::server) namespace: String,
    uid: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct ContainerStats {
    pub(in crate::server) name: String,
    pub(in crate::server) start_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) swap: Option<Swap>,
}

/// Times are also kept in nanoseconds since 1970, for metrics.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct Cpu {
    #[serde(skip)]
    pub(in crate::server) at: i64,
    time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) usage_nano_cores: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) usage_core_nano_seconds: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct Memory {
    #[serde(skip)]
    pub(in crate::server) at: i64,
    time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) working_set_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major_page_faults: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct Swap {
    #[serde(skip)]
    pub(in crate::server) at: i64,
    time: Option<Time>,
    swap_available_bytes: u64,
    pub(in crate::server) swap_usage_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Network {
    time: Option<Time>,
    #[serde(flatten)]
    default: Interface,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) rx_bytes: u64,
    pub(super) rx_errors: u64,
    pub(super) tx_bytes: u64,
    pub(super) tx_errors: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Fs {
    time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_free: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_used: Option<u64>,
}

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Extent {
    Everything,
    /// `only_cpu_and_memory=true`.
    CpuAndMemory,
}

/// Puts together what was read; `pods` say when containers were started.
pub(super) fn summary(
    node_name: &str,
    node: &Node,
    sandboxes: Vec<crv1::PodSandboxStats>,
    pods: &[std::sync::Arc<v1::Pod>],
    extent: Extent,
) -> Summary {
    let mut stats: Vec<PodStats> =
        sandboxes.into_iter().filter_map(|one| pod_stats(one, node, pods)).collect();
    let mut node = node_stats(node_name, node);
    if extent == Extent::CpuAndMemory {
        (node.network, node.fs, node.runtime, node.rlimit) = (None, None, None, None);
        for pod in &mut stats {
            (pod.network, pod.process_stats) = (None, None);
            pod.containers.iter_mut().for_each(|container| container.rootfs = None);
        }
    }
    Summary { node, pods: stats }
}

fn node_stats(node_name: &str, node: &Node) -> NodeStats {
    let (at, time) = (node.at, api_time(node.at));
    NodeStats {
        node_name: node_name.to_owned(),
        start_time: api_time(node.booted),
        cpu: node.cpu.map(|total| Cpu {
            at,
            time: time.clone(),
            usage_nano_cores: node.nano_cores,
            usage_core_nano_seconds: Some(total),
        }),
        memory: node.memory.map(|memory| Memory {
            at,
            time: time.clone(),
            available_bytes: Some(memory.capacity.saturating_sub(memory.working_set)),
            usage_bytes: Some(memory.usage),
            working_set_bytes: Some(memory.working_set),
            rss_bytes: Some(memory.anonymous),
            ..Memory::default()
        }),
        network: network(node.interfaces.clone(), time.clone()),
        fs: node.root.map(|root| fs(root, time.clone())),
        runtime: node.images.map(|images| {
            let fs = Fs { used_bytes: node.images_used, ..fs(images, time.clone()) };
            RuntimeStats { image_fs: fs.clone(), container_fs: fs }
        }),
        rlimit: node.processes.map(|(curproc, maxpid)| Rlimit { time: time.clone(), maxpid, curproc }),
        swap: node.swap.map(|(total, used)| Swap {
            at,
            time,
            swap_available_bytes: total.saturating_sub(used),
            swap_usage_bytes: used,
        }),
    }
}

fn fs(system: FileSystem, time: Option<Time>) -> Fs {
    Fs {
        time,
        available_bytes: Some(system.available),
        capacity_bytes: Some(system.capacity),
        used_bytes: Some(system.capacity.saturating_sub(system.free)),
        inodes_free: Some(system.inodes_free),
        inodes: Some(system.inodes),
        inodes_used: Some(system.inodes.saturating_sub(system.inodes_free)),
    }
}

/// Nothing for a sandbox that no kubelet made.
fn pod_stats(
    sandbox: crv1::PodSandboxStats,
    node: &Node,
    pods: &[std::sync::Arc<v1::Pod>],
) -> Option<PodStats> {
    let attributes = sandbox.attributes?;
    let label = |key: &str| attributes.labels.get(key).cloned().filter(|value| !value.is_empty());
    let pod_ref =
        PodReference { name: label(POD_NAME)?, namespace: label(POD_NAMESPACE)?, uid: label(POD_UID)? };
    let pod = pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(&pod_ref.uid));
    let status = pod.and_then(|pod| pod.status.as_ref());
    let linux = sandbox.linux?;
    let containers = linux.containers.into_iter().filter_map(|one| container_stats(one, node, status));
    Some(PodStats {
        pod_ref,
        start_time: status.and_then(|status| status.start_time.clone()),
        containers: containers.collect(),
        cpu: linux.cpu.map(cpu),
        memory: linux.memory.map(memory),
        network: linux.network.and_then(|told| {
            let time = api_time(told.timestamp);
            network(told.interfaces.into_iter().map(interface).collect(), time)
        }),
        process_stats: linux
            .process
            .and_then(|process| process.process_count)
            .map(|count| ProcessStats { process_count: count.value }),
    })
}

/// Nothing for a container that does not run.
fn container_stats(
    told: crv1::ContainerStats,
    node: &Node,
    pod: Option<&v1::PodStatus>,
) -> Option<ContainerStats> {
    let name = told.attributes?.labels.get(CONTAINER_NAME)?.clone();
    let (cpu, memory) = (told.cpu.map(cpu)?, told.memory.map(memory));
    let all = pod.iter().flat_map(|pod| {
        [&pod.container_statuses, &pod.init_container_statuses, &pod.ephemeral_container_statuses]
    });
    let status = all.flatten().flatten().find(|status| status.name == name);
    let running = status.and_then(|status| status.state.as_ref()?.running.as_ref());
    let rootfs = told.writable_layer.map(|layer| Fs {
        used_bytes: layer.used_bytes.map(|value| value.value),
        inodes_used: layer.inodes_used.map(|value| value.value),
        ..node.images.map(|images| fs(images, api_time(layer.timestamp))).unwrap_or_default()
    });
    let swap = told.swap.map(|swap| Swap {
        at: swap.timestamp,
        time: api_time(swap.timestamp),
        swap_available_bytes: swap.swap_available_bytes.map_or(0, |value| value.value),
        swap_usage_bytes: swap.swap_usage_bytes.map_or(0, |value| value.value),
    });
    let start_time = running.and_then(|running| running.started_at.clone());
    Some(ContainerStats { name, start_time, cpu: Some(cpu), memory, rootfs, swap })
}

fn cpu(told: crv1::CpuUsage) -> Cpu {
    Cpu {
        at: told.timestamp,
        time: api_time(told.timestamp),
        usage_nano_cores: told.usage_nano_cores.map(|value| value.value),
        usage_core_nano_seconds: told.usage_core_nano_seconds.map(|value| value.value),
    }
}

fn memory(told: crv1::MemoryUsage) -> Memory {
    let value = |value: Option<crv1::UInt64Value>| value.map(|value| value.value);
    Memory {
        at: told.timestamp,
        time: api_time(told.timestamp),
        // CRI tells 0 for what has no limit.
        available_bytes: value(told.available_bytes).filter(|bytes| *bytes > 0),
        usage_bytes: value(told.usage_bytes),
        working_set_bytes: value(told.working_set_bytes),
        rss_bytes: value(told.rss_bytes),
        page_faults: value(told.page_faults),
        major_page_faults: value(told.major_page_faults),
    }
}

fn interface(told: crv1::NetworkInterfaceUsage) -> Interface {
    let value = |value: Option<crv1::UInt64Value>| value.map_or(0, |value| value.value);
    Interface {
        name: told.name,
        rx_bytes: value(told.rx_bytes),
        rx_errors: value(told.rx_errors),
        tx_bytes: value(told.tx_bytes),
        tx_errors: value(told.tx_errors),
    }
}

fn network(interfaces: Vec<Interface>, time: Option<Time>) -> Option<Network> {
    let default = interfaces.iter().find(|one| one.name == "eth0").or(interfaces.first())?.clone();
    Some(Network { time, default, interfaces })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn some(value: u64) -> Option<crv1::UInt64Value> {
        Some(crv1::UInt64Value { value })
    }

    fn labels() -> HashMap<String, String> {
        let labels = [(POD_NAME, "p"), (POD_NAMESPACE, "n"), (POD_UID, "u"), (CONTAINER_NAME, "c")];
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    fn sandbox() -> crv1::PodSandboxStats {
        let container = |cpu| crv1::ContainerStats {
            attributes: Some(crv1::ContainerAttributes { labels: labels(), ..Default::default() }),
            cpu,
            memory: Some(crv1::MemoryUsage {
                working_set_bytes: some(7),
                available_bytes: some(0),
                ..Default::default()
            }),
            writable_layer: Some(crv1::FilesystemUsage { used_bytes: some(3), ..Default::default() }),
            ..Default::default()
        };
        let running = crv1::CpuUsage { timestamp: 5, usage_core_nano_seconds: some(9), ..Default::default() };
        crv1::PodSandboxStats {
            attributes: Some(crv1::PodSandboxAttributes { labels: labels(), ..Default::default() }),
            linux: Some(crv1::LinuxPodSandboxStats {
                containers: vec![container(None), container(Some(running))],
                ..Default::default()
            }),
            windows: None,
        }
    }

    fn node() -> Node {
        let images = FileSystem { capacity: 100, free: 50, available: 40, inodes: 10, inodes_free: 4 };
        Node { at: 2_000_000_000, cpu: Some(1), images: Some(images), ..Node::default() }
    }

    fn told(extent: Extent) -> serde_json::Value {
        let pod = serde_json::from_value(json!({
            "metadata": { "uid": "u" },
            "status": { "containerStatuses": [{
                "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
            }]},
        }));
        let pods = [Arc::new(pod.unwrap())];
        serde_json::to_value(summary("box", &node(), vec![sandbox(), Default::default()], &pods, extent))
            .unwrap()
    }

    #[test]
    fn a_summary_is_as_the_api_has_it() {
        let told = told(Extent::Everything);
        assert_eq!(told["node"]["nodeName"], "box");
        assert_eq!(told["node"]["cpu"], json!({ "time": "1970-01-01T00:00:02Z", "usageCoreNanoSeconds": 1 }));
        assert_eq!(told["pods"].as_array().map(Vec::len), Some(1), "a sandbox of no kubelet is none of ours");
        let pod = &told["pods"][0];
        assert_eq!(pod["podRef"], json!({ "name": "p", "namespace": "n", "uid": "u" }));
        assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1), "what does not run uses nothing");
        let container = &pod["containers"][0];
        assert_eq!(
            (&container["name"], &container["startTime"]),
            (&json!("c"), &json!("2026-01-01T00:00:00Z"))
        );
        assert_eq!(container["memory"], json!({ "time": null, "workingSetBytes": 7 }));
        assert_eq!(
            (&container["rootfs"]["usedBytes"], &container["rootfs"]["capacityBytes"]),
            (&json!(3), &json!(100))
        );
    }

    #[test]
    fn only_cpu_and_memory_leaves_the_rest_out() {
        let told = told(Extent::CpuAndMemory);
        assert!(
            told["node"].get("runtime").is_none() && told["pods"][0]["containers"][0].get("rootfs").is_none()
        );
        assert_eq!(told["pods"][0]["containers"][0]["cpu"]["usageCoreNanoSeconds"], 9);
    }
}

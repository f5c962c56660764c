//! The node's object from what is known of it: pure.

use std::collections::BTreeMap;

use cri::v1 as crv1;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use manifest::quantity::Amount;

use super::NodeConfig;
use super::facts::Machine;
use crate::sizing::Allocatable;
use crate::time::api_time;

/// The release of Kubernetes whose kubelet this one is like, and what it is.
pub(crate) const KUBELET_VERSION: &str = concat!("v1.36.3+podwright.", env!("CARGO_PKG_VERSION"));

/// Names of one image in the status, at most. Upstream: maxNamesPerImageInNodeStatus.
const MAX_NAMES: usize = 5;

/// What the runtime says.
pub(super) struct Observed {
    pub(super) runtime: Option<crv1::VersionResponse>,
    /// The status, or why there is none.
    pub(super) status: Result<crv1::StatusResponse, String>,
    pub(super) images: Vec<crv1::Image>,
    /// Whether memory runs short.
    pub(super) memory_pressure: bool,
}

/// The object that is registered.
pub(super) fn node_object(config: &NodeConfig, machine: &Machine, observed: &Observed, now: i64) -> v1::Node {
    let annotations = BTreeMap::from([(
        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
        "true".to_owned(),
    )]);
    v1::Node {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            labels: Some(labels_of(config, machine)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(v1::NodeSpec {
            provider_id: config.provider_id.clone(),
            taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
            ..v1::NodeSpec::default()
        }),
        status: Some(status_of(config, machine, observed, None, now)),
    }
}

/// The labels that this node keeps up to date.
pub(super) fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    labels_of(config, &Machine { architecture: architecture(), ..Machine::default() })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn labels_of(config: &NodeConfig, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = config.labels.iter().cloned().collect();
    for (key, value) in [
        ("kubernetes.io/hostname", config.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine.architecture),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// The status; conditions keep the transition times of `former` where they did not change.
pub(super) fn status_of(
    config: &NodeConfig,
    machine: &Machine,
    observed: &Observed,
    former: Option<&v1::NodeStatus>,
    now: i64,
) -> v1::NodeStatus {
    let address = |kind: &str, address: String| v1::NodeAddress { type_: kind.to_owned(), address };
    let mut addresses: Vec<v1::NodeAddress> =
        config.ips.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", config.name.clone()));
    v1::NodeStatus {
        addresses: Some(addresses),
        capacity: Some(amounts(config, machine, false)),
        allocatable: Some(amounts(config, machine, true)),
        conditions: Some(conditions(observed, former, now)),
        daemon_endpoints: Some(v1::NodeDaemonEndpoints {
            kubelet_endpoint: Some(v1::DaemonEndpoint { port: config.port.into() }),
        }),
        images: Some(images(&observed.images, config.max_images)),
        node_info: Some(node_info(machine, observed)),
        runtime_handlers: Some(handlers(observed)).filter(|handlers| !handlers.is_empty()),
        features: features(observed),
        declared_features: Some(declared(observed)),
        ..v1::NodeStatus::default()
    }
}

/// Whether the status says that pods can come.
pub(super) fn is_ready(status: &v1::NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Whether another status must be told at once: heartbeats alone wait.
pub(super) fn differs(known: Option<&v1::NodeStatus>, new: &v1::NodeStatus) -> bool {
    let Some(known) = known else { return true };
    let still = |status: &v1::NodeStatus| {
        let mut conditions = status.conditions.clone().unwrap_or_default();
        let own = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
        conditions.retain(|one| own.contains(&one.type_.as_str()));
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        for condition in &mut conditions {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        (
            conditions,
            status.addresses.clone(),
            parsed(&status.capacity),
            parsed(&status.allocatable),
            status.images.clone().unwrap_or_default(),
            status.node_info.clone(),
            status.runtime_handlers.clone().unwrap_or_default(),
            status.declared_features.clone().unwrap_or_default(),
        )
    };
    still(known) != still(new)
}

/// An API server writes the same amount in its own way.
fn parsed(amounts: &Option<BTreeMap<String, Quantity>>) -> Vec<(String, Option<Amount>)> {
    let parse = |quantity: &Quantity| manifest::quantity::parse(&quantity.0).ok();
    amounts.iter().flatten().map(|(name, quantity)| (name.clone(), parse(quantity))).collect()
}

fn amounts(config: &NodeConfig, machine: &Machine, allocatable: bool) -> BTreeMap<String, Quantity> {
    let all = machine.capacity;
    let given = match allocatable {
        true => config.sizing.allocatable(all),
        false => Allocatable {
            millicpu: all.cpus * 1000,
            memory: all.memory,
            ephemeral_storage: all.ephemeral_storage,
            pods: config.sizing.pods(all.cpus),
        },
    };
    let Allocatable { millicpu, memory, ephemeral_storage: storage, pods } = given;
    let cpu =
        if millicpu.is_multiple_of(1000) { (millicpu / 1000).to_string() } else { format!("{millicpu}m") };
    let kib = |bytes: u64| format!("{}Ki", bytes / 1024);
    let mut amounts = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpu)),
        ("memory".to_owned(), Quantity(kib(memory))),
        ("pods".to_owned(), Quantity(pods.to_string())),
        (
            "ephemeral-storage".to_owned(),
            Quantity(if allocatable { storage.to_string() } else { kib(storage) }),
        ),
    ]);
    for (size, count) in &machine.huge_pages {
        let name = match size {
            size if size.is_multiple_of(1 << 30) => format!("hugepages-{}Gi", size >> 30),
            size => format!("hugepages-{}Mi", size >> 20),
        };
        let bytes = size * count;
        amounts
            .insert(name, Quantity(if bytes == 0 { "0".to_owned() } else { format!("{}Mi", bytes >> 20) }));
    }
    amounts
}

fn conditions(observed: &Observed, former: Option<&v1::NodeStatus>, now: i64) -> Vec<v1::NodeCondition> {
    let (ready, reason, message) = readiness(observed);
    let (memory_reason, memory_message) = match observed.memory_pressure {
        true => ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        false => ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    };
    let all = [
        ("MemoryPressure", observed.memory_pressure, memory_reason, memory_message.to_owned()),
        ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure".to_owned()),
        ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available".to_owned()),
        ("Ready", ready, reason, message),
    ];
    let known = former.and_then(|former| former.conditions.as_deref()).unwrap_or_default();
    all.map(|(kind, status, reason, message)| condition(known, kind, status, reason, message, now)).into()
}

/// A condition as it is told now; it has been so since `known` says.
pub(super) fn condition(
    known: &[v1::NodeCondition],
    kind: &str,
    status: bool,
    reason: &str,
    message: String,
    now: i64,
) -> v1::NodeCondition {
    let status = if status { "True" } else { "False" };
    let same = known.iter().find(|one| one.type_ == kind && one.status == status);
    let since = same.and_then(|one| one.last_transition_time.clone());
    v1::NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: api_time(now),
        last_transition_time: since.or_else(|| api_time(now)),
    }
}

/// Upstream's words: nodestatus, ReadyCondition.
fn readiness(observed: &Observed) -> (bool, &'static str, String) {
    let status = match &observed.status {
        Ok(status) => status.status.clone().unwrap_or_default(),
        Err(error) => {
            return (
                false,
                "KubeletNotReady",
                format!("container runtime status check may not have completed yet: {error}"),
            );
        }
    };
    // A runtime may have more conditions: they are not the node's.
    let own = |one: &&crv1::RuntimeCondition| matches!(one.r#type.as_str(), "RuntimeReady" | "NetworkReady");
    let bad = status.conditions.iter().filter(own).filter(|condition| !condition.status);
    let troubles: Vec<String> = bad
        .map(|one| {
            let what = if one.r#type == "NetworkReady" {
                "container runtime network not ready: NetworkReady"
            } else {
                "container runtime not ready: RuntimeReady"
            };
            format!("{what}=false reason:{} message:{}", one.reason, one.message)
        })
        .collect();
    match troubles.is_empty() {
        true => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        false => (false, "KubeletNotReady", troubles.join(", ")),
    }
}

fn images(images: &[crv1::Image], most: Option<u32>) -> Vec<v1::ContainerImage> {
    let mut all: Vec<&crv1::Image> = images.iter().collect();
    all.sort_by(|a, b| (b.size, &a.id).cmp(&(a.size, &b.id)));
    let most = most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    let named = all.into_iter().take(most).map(|image| {
        let names = image.repo_digests.iter().chain(&image.repo_tags).take(MAX_NAMES).cloned().collect();
        v1::ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
    });
    named.collect()
}

fn node_info(machine: &Machine, observed: &Observed) -> v1::NodeSystemInfo {
    let runtime = observed.runtime.as_ref().map_or_else(String::new, |version| {
        format!("{}://{}", version.runtime_name, version.runtime_version)
    });
    v1::NodeSystemInfo {
        architecture: machine.architecture.to_owned(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: runtime,
        kernel_version: machine.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.system_uuid.clone(),
        ..v1::NodeSystemInfo::default()
    }
}

fn handlers(observed: &Observed) -> Vec<v1::NodeRuntimeHandler> {
    let handlers =
        observed.status.as_ref().map(|status| status.runtime_handlers.as_slice()).unwrap_or_default();
    let told = handlers.iter().map(|handler| v1::NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: handler.features.as_ref().map(|features| v1::NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
            user_namespaces: Some(features.user_namespaces),
        }),
    });
    told.collect()
}

/// By this the API server sends WebSockets on as they come, instead of turning them into SPDY (KEP-4006). The kubelet joins
/// connections byte for byte, so it is the runtime that must speak `v5.channel.k8s.io`: ours does, of others nobody knows.
fn declared(observed: &Observed) -> Vec<String> {
    let is_ours = observed.runtime.as_ref().is_some_and(|version| version.runtime_name == "podwright");
    is_ours.then(|| "ExtendWebSocketsToKubelet".to_owned()).into_iter().collect()
}

fn features(observed: &Observed) -> Option<v1::NodeFeatures> {
    let features = observed.status.as_ref().ok()?.features.as_ref()?;
    Some(v1::NodeFeatures { supplemental_groups_policy: Some(features.supplemental_groups_policy) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::downward::Capacity;
    use crate::sizing::{MemoryThreshold, Reserved, Sizing};

    fn config() -> NodeConfig {
        NodeConfig {
            name: "n".into(),
            ips: vec!["192.0.2.2".parse().expect("an address")],
            labels: vec![("pool".into(), "edge".into())],
            taints: Vec::new(),
            register: true,
            sizing: Sizing {
                max_pods: 110,
                pods_per_core: None,
                reserved: Reserved { millicpu: 500, memory: 1 << 30, ..Reserved::default() },
                memory_threshold: Some(MemoryThreshold::Bytes(100 << 20)),
                enforce_pods: true,
            },
            max_images: Some(50),
            provider_id: None,
            port: 10250,
            status_update: Duration::from_secs(10),
            status_report: Duration::from_secs(300),
            lease: Duration::from_secs(40),
        }
    }

    fn machine() -> Machine {
        let capacity = Capacity { cpus: 2, memory: 4 << 30, ephemeral_storage: 100 << 30, pids: 0 };
        Machine { capacity, architecture: "amd64", huge_pages: vec![(2 << 20, 4)], ..Machine::default() }
    }

    fn observed(network: bool) -> Observed {
        let condition = |kind: &str, status| crv1::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: "NetworkPluginNotReady".into(),
            message: "cni".into(),
        };
        let other = condition("ContainerdHasNoDeprecationWarnings", false);
        let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", network), other];
        let status = crv1::StatusResponse {
            status: Some(crv1::RuntimeStatus { conditions }),
            ..crv1::StatusResponse::default()
        };
        Observed { runtime: None, status: Ok(status), images: Vec::new(), memory_pressure: false }
    }

    #[test]
    fn what_is_reserved_is_not_allocatable() {
        let text = |allocatable| {
            let amounts = amounts(&config(), &machine(), allocatable);
            amounts
                .into_iter()
                .map(|(name, Quantity(amount))| format!("{name}={amount}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            text(false),
            "cpu=2 ephemeral-storage=104857600Ki hugepages-2Mi=8Mi memory=4194304Ki pods=110"
        );
        assert_eq!(
            text(true),
            "cpu=1500m ephemeral-storage=107374182400 hugepages-2Mi=8Mi memory=3043328Ki pods=110"
        );
    }

    #[test]
    fn a_node_is_ready_when_its_runtime_and_network_are() {
        let status = |network| status_of(&config(), &machine(), &observed(network), None, 1_000_000_000);
        assert!(is_ready(&status(true)));
        assert!(!is_ready(&status(false)));
        let (_, reason, message) = readiness(&observed(false));
        assert_eq!(reason, "KubeletNotReady");
        assert_eq!(
            message,
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni"
        );
    }

    #[test]
    fn a_heartbeat_alone_is_not_told_at_once() {
        let status = |network, former: Option<&v1::NodeStatus>, now| {
            status_of(&config(), &machine(), &observed(network), former, now)
        };
        let first = status(true, None, 1_000_000_000);
        let later = status(true, Some(&first), 9_000_000_000);
        assert!(!differs(Some(&first), &later));
        assert_eq!(
            later.conditions.as_ref().map(|all| all[3].last_transition_time.clone()),
            first.conditions.as_ref().map(|all| all[3].last_transition_time.clone()),
        );
        assert!(differs(Some(&first), &status(false, Some(&first), 9_000_000_000)));
        assert!(differs(None, &first));
        let mut returned = first.clone();
        let capacity = returned.capacity.get_or_insert_default();
        capacity.insert("memory".into(), Quantity("4Gi".into()));
        assert!(!differs(Some(&returned), &later), "the same, written otherwise");
    }

    #[test]
    fn web_sockets_are_declared_where_the_runtime_is_known_to_speak_them() {
        let declared = |name: &str| {
            let version = crv1::VersionResponse { runtime_name: name.into(), ..Default::default() };
            declared(&Observed { runtime: Some(version), ..observed(true) })
        };
        assert_eq!(declared("podwright"), ["ExtendWebSocketsToKubelet"]);
        // Told, so that what a former runtime could is forgotten.
        assert_eq!(declared("containerd"), [""; 0]);
    }

    #[test]
    fn own_labels_win_over_given_ones() {
        let mut config = config();
        config.labels.push(("kubernetes.io/os".into(), "windows".into()));
        let labels = labels(&config);
        assert_eq!(labels["kubernetes.io/os"], "linux");
        assert_eq!(labels["pool"], "edge");
    }
}

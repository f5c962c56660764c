//! What the kubelet is configured with: the node's paths and names, and what a KubeletConfiguration says of its pods. Pure.

use std::time::Duration;

use kubelet::{Config, Held, MemoryThreshold, Reserved, ReservedCgroup, Sizing};

use crate::config::{Capacity, HeldCgroup, Settings, Threshold};
use crate::image::auth_file::{self, Puller};
use crate::node::Node;

/// The kubelet. Without a KubeletConfiguration a node of its own gives its pods all that it has, and evicts none.
pub(super) fn of(node: &Node, settings: Option<&Settings>) -> Config {
    let puller = match node.container_runtime_endpoint {
        None => Puller::Own,
        Some(_) => Puller::Foreign,
    };
    Config {
        node_name: node.name.clone(),
        node_ips: node.addresses(),
        root_dir: node.kubelet_dir.clone(),
        pod_logs_dir: node.pod_logs_dir.clone(),
        container_logs_dir: node.container_logs_dir.clone(),
        cgroup_root: node.kubelet_cgroup.clone(),
        state_dir: node.kubelet_state(),
        resolv_conf: node.resolv_conf.clone(),
        cluster_dns: node.cluster_dns.clone(),
        cluster_domain: node.cluster_domain.clone(),
        image_gc: node.image_gc,
        log_rotation: node.log_rotation,
        sizing: settings.map(sizing),
        reserved_cgroups: settings.map_or_else(Vec::new, reserved_cgroups),
        pod_pids_limit: settings.and_then(|settings| settings.capacity.pod_pids_limit),
        seccomp_default: settings.is_some_and(|settings| settings.seccomp_default),
        pressure_transition: settings
            .map_or(Duration::ZERO, |settings| settings.eviction.pressure_transition_period),
        allowed_sysctls: settings.map_or_else(Vec::new, |settings| settings.allowed_unsafe_sysctls.clone()),
        node_logins: auth_file::for_kubelet(node.registry_auth_files.clone(), puller),
    }
}

/// How much pods may have.
pub(super) fn sizing(settings: &Settings) -> Sizing {
    let capacity = &settings.capacity;
    let threshold = settings.eviction.memory().map(|threshold| match threshold {
        Threshold::Amount(amount) => MemoryThreshold::Bytes(u64::try_from(amount.ceil()).unwrap_or(0)),
        Threshold::Share(share) => MemoryThreshold::Share(share),
    });
    Sizing {
        max_pods: capacity.max_pods,
        pods_per_core: capacity.pods_per_core,
        reserved: reserved(capacity),
        memory_threshold: threshold,
        enforce_pods: capacity.enforce_pods,
    }
}

/// What is kept from pods, for the system and for us.
fn reserved(capacity: &Capacity) -> Reserved {
    let of = |name: &str| {
        [&capacity.kube_reserved, &capacity.system_reserved]
            .into_iter()
            .filter_map(|all| all.get(name))
            .copied()
            .collect::<Vec<_>>()
    };
    let whole = |name: &str| of(name).iter().map(|amount| u64::try_from(amount.ceil()).unwrap_or(0)).sum();
    Reserved {
        millicpu: of("cpu").iter().map(|amount| u64::try_from(amount.milli()).unwrap_or(0)).sum(),
        memory: whole("memory"),
        ephemeral_storage: whole("ephemeral-storage"),
        pids: whole("pid"),
    }
}

fn reserved_cgroups(settings: &Settings) -> Vec<ReservedCgroup> {
    let of = |held: &HeldCgroup| {
        let whole = |name: &str| held.amounts.get(name).and_then(|amount| u64::try_from(amount.ceil()).ok());
        ReservedCgroup {
            key: held.key,
            path: held.path.clone(),
            held: Held {
                millicpu: held.amounts.get("cpu").and_then(|amount| u64::try_from(amount.milli()).ok()),
                memory: whole("memory"),
                pids: whole("pid"),
            },
        }
    };
    settings.capacity.held_cgroups.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::NodeArgs;
    use crate::config::kubelet_text;

    #[test]
    fn a_node_of_its_own_does_as_its_file_says() {
        let node = Node::resolve(&NodeArgs::default(), "box").expect("a node");
        let file = kubelet_text(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 5\n\
             kubeReserved: {cpu: 200m}\nsystemReserved: {cpu: 300m, memory: 1Gi, pid: \"100\"}\npodPidsLimit: 20\nenforceNodeAllocatable: [none]\n\
             evictionHard: {memory.available: 5%}\nevictionPressureTransitionPeriod: 7s\n\
             allowedUnsafeSysctls: [net.core.*]\n",
        )
        .expect("a good file");
        let made = of(&node, Some(&file.settings));
        let expect = Sizing {
            max_pods: 5,
            pods_per_core: None,
            reserved: Reserved { millicpu: 500, memory: 1 << 30, ephemeral_storage: 0, pids: 100 },
            memory_threshold: Some(MemoryThreshold::Share(0.05)),
            enforce_pods: false,
        };
        assert_eq!(made.sizing, Some(expect));
        assert_eq!(made.pod_pids_limit, Some(20));
        assert_eq!(made.pressure_transition, Duration::from_secs(7));
        assert_eq!(made.allowed_sysctls, ["net.core.*"]);
    }

    #[test]
    fn without_a_file_pods_of_a_node_of_its_own_have_all_that_there_is() {
        let node = Node::resolve(&NodeArgs::default(), "box").expect("a node");
        let made = of(&node, None);
        assert_eq!((made.sizing, made.allowed_sysctls), (None, Vec::new()));
    }
}

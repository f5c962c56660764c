//! How much of the machine its pods may have: what it has, less what is reserved. Pure.
//!
//! Upstream: pkg/kubelet/cm/node_container_manager_linux.go.

use std::collections::BTreeMap;

use crate::downward::Capacity;

/// What is kept from pods, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizing {
    /// Pods at most (`maxPods`).
    pub max_pods: u32,
    /// And no more than this for each core (`podsPerCore`).
    pub pods_per_core: Option<u32>,
    /// `kubeReserved` and `systemReserved` together.
    pub reserved: Reserved,
    /// `evictionHard`'s `memory.available`: with less of it pods are evicted, so it is not given to pods either.
    pub memory_threshold: Option<MemoryThreshold>,
    /// Whether all pods together are held to what is not reserved (`enforceNodeAllocatable: [pods]`).
    pub enforce_pods: bool,
}

/// `kubeReserved` and `systemReserved` together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of a CPU.
    pub millicpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub ephemeral_storage: u64,
    /// Tasks.
    pub pids: u64,
}

/// A cgroup of the machine that is held to what is reserved for it (`enforceNodeAllocatable: [system-reserved, kube-reserved]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedCgroup {
    /// `systemReserved` or `kubeReserved`.
    pub key: &'static str,
    /// Its path; it is there already.
    pub path: String,
    /// What its processes are held to.
    pub held: Held,
}

/// When there is too little memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryThreshold {
    /// Less than these bytes are available.
    Bytes(u64),
    /// Less than this part of the node's memory, between 0 and 1.
    Share(f64),
}

impl MemoryThreshold {
    /// The threshold in bytes, on a node with that much memory.
    #[must_use]
    pub fn bytes(self, memory: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (memory as f64 * share) as u64,
        }
    }
}

/// What the processes of one cgroup are held to, as far as it is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Thousandths of a CPU: a weight beside others.
    pub millicpu: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
}

/// What pods may ask for, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocatable {
    /// Thousandths of a CPU.
    pub(crate) millicpu: u64,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes.
    pub(crate) ephemeral_storage: u64,
    /// How many pods.
    pub(crate) pods: u64,
}

impl Sizing {
    /// How many pods there may be on a node with that many CPUs.
    pub(crate) fn pods(&self, cpus: u64) -> u64 {
        let most = u64::from(self.max_pods);
        self.pods_per_core.map_or(most, |each| most.min(u64::from(each) * cpus))
    }

    /// What is left for pods of that capacity.
    pub(crate) fn allocatable(&self, capacity: Capacity) -> Allocatable {
        let threshold = self.memory_threshold.map_or(0, |threshold| threshold.bytes(capacity.memory));
        Allocatable {
            millicpu: (capacity.cpus * 1000).saturating_sub(self.reserved.millicpu),
            memory: capacity.memory.saturating_sub(self.reserved.memory).saturating_sub(threshold),
            ephemeral_storage: capacity.ephemeral_storage.saturating_sub(self.reserved.ephemeral_storage),
            pods: self.pods(capacity.cpus),
        }
    }

    /// What all pods together are held to. The threshold of eviction is not kept from them: before they reach it, they are
    /// evicted. Tasks are counted only where some are reserved: the kernel's own limit holds without us.
    pub(crate) fn pod_limits(&self, capacity: Capacity) -> Held {
        let Reserved { millicpu, memory, pids, .. } = self.reserved;
        Held {
            millicpu: Some((capacity.cpus * 1000).saturating_sub(millicpu)),
            memory: Some(capacity.memory.saturating_sub(memory)),
            pids: (pids > 0).then(|| capacity.pids.saturating_sub(pids)),
        }
    }
}

impl Allocatable {
    /// By resource, CPUs in thousandths.
    pub(crate) fn amounts(&self) -> BTreeMap<String, i64> {
        let amount = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        BTreeMap::from([
            ("cpu".to_owned(), amount(self.millicpu)),
            ("memory".to_owned(), amount(self.memory)),
            ("ephemeral-storage".to_owned(), amount(self.ephemeral_storage)),
            ("pods".to_owned(), amount(self.pods)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_and_what_triggers_evictions_is_not_allocatable() {
        let sizing = Sizing {
            max_pods: 110,
            pods_per_core: Some(10),
            reserved: Reserved { millicpu: 500, memory: 1 << 30, ephemeral_storage: 1 << 30, pids: 100 },
            memory_threshold: Some(MemoryThreshold::Bytes(100 << 20)),
            enforce_pods: true,
        };
        let capacity = Capacity { cpus: 2, memory: 4 << 30, ephemeral_storage: 10 << 30, pids: 32_768 };
        let allocatable = sizing.allocatable(capacity);
        assert_eq!(allocatable.memory, (3 << 30) - (100 << 20));
        assert_eq!((allocatable.millicpu, allocatable.pods), (1500, 20));
        assert_eq!(allocatable.ephemeral_storage, 9 << 30);
        let held = Held { millicpu: Some(1500), memory: Some(3 << 30), pids: Some(32_668) };
        assert_eq!(sizing.pod_limits(capacity), held);
        let all = Sizing { reserved: Reserved::default(), ..sizing };
        assert_eq!(all.pod_limits(capacity).pids, None);
        assert_eq!(sizing.allocatable(Capacity { memory: 1, ..capacity }).memory, 0);
    }

    #[test]
    fn a_threshold_may_be_a_share() {
        assert_eq!(MemoryThreshold::Share(0.05).bytes(1000), 50);
        assert_eq!(MemoryThreshold::Bytes(7).bytes(1000), 7);
    }
}

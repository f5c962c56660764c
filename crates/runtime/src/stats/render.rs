//! Statistics as CRI's messages: pure.

use cri::v1;
use host::cgroup::usage::{CpuUsage, MemoryUsage, Pressure, Stall, Usage};

use super::layer::LayerUsage;
use super::network::Interface;
use super::{ContainerReading, SandboxReading};
use crate::record::{ContainerRecord, SandboxRecord};

/// ContainerStats; a container that does not run has its attributes and its layer only.
pub(crate) fn container(reading: &ContainerReading, mountpoint: &str) -> v1::ContainerStats {
    let usage = reading.usage.as_ref();
    v1::ContainerStats {
        attributes: Some(container_attributes(&reading.record)),
        cpu: usage.and_then(|usage| cpu(usage, reading.nano_cores, reading.at)),
        memory: usage.and_then(|usage| memory(usage, reading.at)),
        writable_layer: Some(writable_layer(reading.layer, mountpoint, reading.at)),
        swap: usage.and_then(|usage| usage.memory.as_ref()).and_then(|memory| swap(memory, reading.at)),
        io: usage.and_then(|usage| io(usage, reading.at)),
    }
}

/// PodSandboxStats.
pub(crate) fn sandbox(reading: &SandboxReading, mountpoint: &str) -> v1::PodSandboxStats {
    let (at, usage) = (reading.at, reading.usage.as_ref());
    let count = |reading: &ContainerReading| reading.usage.as_ref().map_or(0, |usage| usage.pids.current);
    let linux = v1::LinuxPodSandboxStats {
        cpu: usage.and_then(|usage| cpu(usage, reading.nano_cores, at)),
        memory: usage.and_then(|usage| memory(usage, at)),
        network: reading.interfaces.as_deref().map(|interfaces| network(interfaces, at)),
        process: Some(v1::ProcessUsage {
            timestamp: at,
            process_count: some(reading.containers.iter().map(count).sum()),
        }),
        containers: reading.containers.iter().map(|one| container(one, mountpoint)).collect(),
        io: usage.and_then(|usage| io(usage, at)),
    };
    v1::PodSandboxStats {
        attributes: Some(sandbox_attributes(&reading.record)),
        linux: Some(linux),
        windows: None,
    }
}

fn container_attributes(record: &ContainerRecord) -> v1::ContainerAttributes {
    v1::ContainerAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

fn sandbox_attributes(record: &SandboxRecord) -> v1::PodSandboxAttributes {
    v1::PodSandboxAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

fn cpu(usage: &Usage, nano_cores: Option<u64>, at: i64) -> Option<v1::CpuUsage> {
    let CpuUsage { total, .. } = usage.cpu?;
    Some(v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: some(total),
        usage_nano_cores: nano_cores.and_then(some),
        psi: usage.cpu_pressure.map(psi),
    })
}

fn memory(usage: &Usage, at: i64) -> Option<v1::MemoryUsage> {
    let memory = usage.memory?;
    let working_set = memory.working_set();
    Some(v1::MemoryUsage {
        timestamp: at,
        working_set_bytes: some(working_set),
        available_bytes: some(memory.limit.map_or(0, |limit| limit.saturating_sub(working_set))),
        usage_bytes: some(memory.usage),
        rss_bytes: some(memory.anonymous),
        page_faults: some(memory.page_faults),
        major_page_faults: some(memory.major_page_faults),
        psi: usage.memory_pressure.map(psi),
    })
}

fn swap(memory: &MemoryUsage, at: i64) -> Option<v1::SwapUsage> {
    let used = memory.swap?;
    Some(v1::SwapUsage {
        timestamp: at,
        swap_available_bytes: some(memory.swap_limit.map_or(0, |limit| limit.saturating_sub(used))),
        swap_usage_bytes: some(used),
    })
}

fn io(usage: &Usage, at: i64) -> Option<v1::IoUsage> {
    usage.io_pressure.map(|pressure| v1::IoUsage { timestamp: at, psi: Some(psi(pressure)) })
}

/// Nanoseconds in CRI, microseconds in the kernel.
fn psi(pressure: Pressure) -> v1::PsiStats {
    let data = |stall: Stall| v1::PsiData {
        total: stall.total * 1000,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    v1::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

fn writable_layer(layer: LayerUsage, mountpoint: &str, at: i64) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: at,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
        used_bytes: some(layer.bytes),
        inodes_used: some(layer.inodes),
    }
}

/// The default interface is `eth0`, else the first.
fn network(interfaces: &[Interface], at: i64) -> v1::NetworkUsage {
    let all: Vec<_> = interfaces
        .iter()
        .map(|interface| v1::NetworkInterfaceUsage {
            name: interface.name.clone(),
            rx_bytes: some(interface.received.bytes),
            rx_errors: some(interface.received.errors),
            tx_bytes: some(interface.sent.bytes),
            tx_errors: some(interface.sent.errors),
        })
        .collect();
    let default_interface = all.iter().find(|one| one.name == "eth0").or(all.first()).cloned();
    v1::NetworkUsage { timestamp: at, default_interface, interfaces: all }
}

fn some(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

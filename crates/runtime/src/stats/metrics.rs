//! Metrics under the names that cadvisor gave them: descriptors, and the values of a sandbox and its containers.
//!
//! Values are whole numbers in CRI: seconds are cut off, as containerd does it.

use std::path::Path;

use cri::v1;
use cri::v1::MetricType::{Counter, Gauge};
use host::cgroup::usage::{IoUsage, MemoryUsage, Usage};

use super::network::Interface;
use super::{ContainerReading, SandboxReading};
use crate::record::{ContainerPhase, ContainerRecord};

/// The labels of every metric.
const LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

const NANO: u64 = 1_000_000_000;

/// Name, what it tells, its labels beside [`LABELS`].
const DESCRIPTORS: [(&str, &str, &[&str]); 48] = [
    ("container_cpu_user_seconds_total", "CPU time in user mode, in seconds", &[]),
    ("container_cpu_system_seconds_total", "CPU time in kernel mode, in seconds", &[]),
    ("container_cpu_usage_seconds_total", "CPU time, in seconds", &[]),
    ("container_cpu_cfs_periods_total", "Enforcement periods of the CPU quota", &[]),
    ("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up", &[]),
    ("container_cpu_cfs_throttled_seconds_total", "Time kept from running by the CPU quota, in seconds", &[]),
    ("container_memory_cache", "Page cache, in bytes", &[]),
    ("container_memory_rss", "Anonymous memory, in bytes", &[]),
    ("container_memory_kernel_usage", "Memory of the kernel for its tasks, in bytes", &[]),
    ("container_memory_mapped_file", "Mapped page cache, in bytes", &[]),
    ("container_memory_swap", "Swap in use, in bytes", &[]),
    ("container_memory_failcnt", "How often the memory limit was hit", &[]),
    ("container_memory_usage_bytes", "All memory that is charged, in bytes", &[]),
    ("container_memory_max_usage_bytes", "The most memory that was charged, in bytes", &[]),
    ("container_memory_working_set_bytes", "Memory without inactive page cache, in bytes", &[]),
    ("container_memory_total_active_file_bytes", "Page cache in use, in bytes", &[]),
    ("container_memory_total_inactive_file_bytes", "Page cache that can be dropped, in bytes", &[]),
    ("container_memory_failures_total", "Page faults", &["failure_type", "scope"]),
    ("container_oom_events_total", "Processes killed for lack of memory", &[]),
    ("container_fs_inodes_free", "Free inodes of the file system with the writable layer", &["device"]),
    ("container_fs_inodes_total", "Inodes of the file system with the writable layer", &["device"]),
    ("container_fs_limit_bytes", "Size of the file system with the writable layer, in bytes", &["device"]),
    ("container_fs_usage_bytes", "Size of the writable layer, in bytes", &["device"]),
    ("container_fs_reads_bytes_total", "Bytes read from a block device", &["device"]),
    ("container_fs_reads_total", "Completed reads from a block device", &["device"]),
    ("container_fs_writes_bytes_total", "Bytes written to a block device", &["device"]),
    ("container_fs_writes_total", "Completed writes to a block device", &["device"]),
    (
        "container_blkio_device_usage_total",
        "Bytes by device and operation",
        &["device", "major", "minor", "operation"],
    ),
    ("container_network_receive_bytes_total", "Bytes received", &["interface"]),
    ("container_network_receive_packets_total", "Packets received", &["interface"]),
    ("container_network_receive_packets_dropped_total", "Received packets that were dropped", &["interface"]),
    ("container_network_receive_errors_total", "Errors on receiving", &["interface"]),
    ("container_network_transmit_bytes_total", "Bytes sent", &["interface"]),
    ("container_network_transmit_packets_total", "Packets sent", &["interface"]),
    ("container_network_transmit_packets_dropped_total", "Packets dropped on sending", &["interface"]),
    ("container_network_transmit_errors_total", "Errors on sending", &["interface"]),
    ("container_processes", "Tasks in the container", &[]),
    ("container_file_descriptors", "Open file descriptors of the container's processes", &[]),
    ("container_sockets", "Open sockets of the container's processes", &[]),
    ("container_threads_max", "How many tasks there may be; 0 stands for no limit", &[]),
    ("container_threads", "Tasks in the container", &[]),
    ("container_last_seen", "When the container was last looked at, in seconds since 1970", &[]),
    ("container_start_time_seconds", "When the container was started, in seconds since 1970", &[]),
    ("container_spec_cpu_period", "Length of a period of the CPU quota, in microseconds", &[]),
    ("container_spec_cpu_shares", "CPU shares", &[]),
    ("container_spec_memory_limit_bytes", "Memory limit, in bytes", &[]),
    ("container_spec_memory_reservation_limit_bytes", "Soft memory limit, in bytes", &[]),
    ("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together, in bytes", &[]),
];

/// ListMetricDescriptors.
pub(crate) fn descriptors() -> Vec<v1::MetricDescriptor> {
    DESCRIPTORS
        .iter()
        .map(|(name, help, labels)| v1::MetricDescriptor {
            name: (*name).to_owned(),
            help: (*help).to_owned(),
            label_keys: LABELS.iter().chain(*labels).map(|&label| label.to_owned()).collect(),
        })
        .collect()
}

/// The file system that holds the writable layers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filesystem {
    bytes: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Filesystem {
    /// Asks the kernel; zeros where it does not tell.
    pub(crate) fn of(path: &Path) -> Self {
        rustix::fs::statvfs(path)
            .map(|stat| Self {
                bytes: stat.f_blocks * stat.f_frsize,
                inodes: stat.f_files,
                inodes_free: stat.f_ffree,
            })
            .unwrap_or_default()
    }
}

/// What the processes of a container hold open.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptors {
    all: u64,
    sockets: u64,
}

impl Descriptors {
    /// Counts those of each process; a process that ends meanwhile has none.
    pub(crate) fn of(pids: &[i32]) -> Self {
        let mut count = Self::default();
        for pid in pids {
            let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            for link in links.filter_map(|entry| std::fs::read_link(entry.path()).ok()) {
                count.all += 1;
                count.sockets += u64::from(link.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            }
        }
        count
    }
}

/// The metrics of a sandbox: its network, and those of its containers.
pub(crate) fn sandbox(reading: &SandboxReading, filesystem: &Filesystem) -> v1::PodSandboxMetrics {
    let metadata = reading.record.config.metadata.clone().unwrap_or_default();
    let pod = [metadata.name, metadata.namespace];
    let mut of_pod = Writer::new(&pod, ["", &reading.record.id, ""], reading.at);
    reading.interfaces.iter().flatten().for_each(|interface| network(&mut of_pod, interface));
    v1::PodSandboxMetrics {
        pod_sandbox_id: reading.record.id.clone(),
        metrics: of_pod.metrics,
        container_metrics: reading
            .containers
            .iter()
            .map(|container| v1::ContainerMetrics {
                container_id: container.record.id.clone(),
                metrics: metrics_of(container, &pod, filesystem),
            })
            .collect(),
    }
}

fn metrics_of(reading: &ContainerReading, pod: &[String; 2], filesystem: &Filesystem) -> Vec<v1::Metric> {
    let record = &reading.record;
    let name = record.config.metadata.clone().unwrap_or_default().name;
    let image = record.config.image.clone().unwrap_or_default().image;
    let mut to = Writer::new(pod, [&name, &record.id, &image], reading.at);
    if let Some(usage) = &reading.usage {
        cpu(&mut to, usage);
        usage.memory.iter().for_each(|used| memory(&mut to, used));
        usage.io.iter().for_each(|io| device(&mut to, io));
        to.gauge("container_processes", usage.pids.current);
        to.gauge("container_threads", usage.pids.current);
        to.gauge("container_threads_max", usage.pids.limit.unwrap_or(0));
        to.gauge("container_file_descriptors", reading.descriptors.all);
        to.gauge("container_sockets", reading.descriptors.sockets);
        to.gauge("container_last_seen", reading.at.unsigned_abs() / NANO);
    }
    if let ContainerPhase::Running { started_at, .. } = record.phase {
        to.gauge("container_start_time_seconds", started_at.unsigned_abs() / NANO);
    }
    limits(&mut to, record);
    to.labelled(Gauge, "container_fs_usage_bytes", &["/"], reading.layer.bytes);
    to.labelled(Gauge, "container_fs_limit_bytes", &["/"], filesystem.bytes);
    to.labelled(Gauge, "container_fs_inodes_total", &["/"], filesystem.inodes);
    to.labelled(Gauge, "container_fs_inodes_free", &["/"], filesystem.inodes_free);
    to.metrics
}

fn cpu(to: &mut Writer, usage: &Usage) {
    let Some(cpu) = usage.cpu else { return };
    to.counter("container_cpu_usage_seconds_total", cpu.total / NANO);
    to.counter("container_cpu_user_seconds_total", cpu.user / NANO);
    to.counter("container_cpu_system_seconds_total", cpu.system / NANO);
    to.counter("container_cpu_cfs_periods_total", cpu.periods);
    to.counter("container_cpu_cfs_throttled_periods_total", cpu.throttled_periods);
    to.counter("container_cpu_cfs_throttled_seconds_total", cpu.throttled / NANO);
}

fn memory(to: &mut Writer, memory: &MemoryUsage) {
    to.gauge("container_memory_usage_bytes", memory.usage);
    to.gauge("container_memory_working_set_bytes", memory.working_set());
    to.gauge("container_memory_max_usage_bytes", memory.peak.unwrap_or(memory.usage));
    to.gauge("container_memory_rss", memory.anonymous);
    to.gauge("container_memory_cache", memory.file);
    to.gauge("container_memory_mapped_file", memory.mapped_file);
    to.gauge("container_memory_total_active_file_bytes", memory.active_file);
    to.gauge("container_memory_total_inactive_file_bytes", memory.inactive_file);
    to.gauge("container_memory_kernel_usage", memory.kernel);
    to.gauge("container_memory_swap", memory.swap.unwrap_or(0));
    to.counter("container_memory_failcnt", memory.failures);
    let faults = [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)];
    for (kind, count) in faults {
        to.labelled(Counter, "container_memory_failures_total", &[kind, "container"], count);
    }
    to.counter("container_oom_events_total", memory.oom_kills);
}

fn device(to: &mut Writer, io: &IoUsage) {
    let (major, minor) = (io.major.to_string(), io.minor.to_string());
    let device = format!("{major}:{minor}");
    to.labelled(Counter, "container_fs_reads_bytes_total", &[&device], io.read_bytes);
    to.labelled(Counter, "container_fs_writes_bytes_total", &[&device], io.written_bytes);
    to.labelled(Counter, "container_fs_reads_total", &[&device], io.reads);
    to.labelled(Counter, "container_fs_writes_total", &[&device], io.writes);
    for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
        let labels = [device.as_str(), &major, &minor, operation];
        to.labelled(Counter, "container_blkio_device_usage_total", &labels, bytes);
    }
}

fn network(to: &mut Writer, interface: &Interface) {
    for (direction, counters) in [("receive", interface.received), ("transmit", interface.sent)] {
        for (what, value) in [
            ("bytes", counters.bytes),
            ("packets", counters.packets),
            ("packets_dropped", counters.dropped),
            ("errors", counters.errors),
        ] {
            let name = format!("container_network_{direction}_{what}_total");
            to.labelled(Counter, &name, &[&interface.name], value);
        }
    }
}

/// What the client asked for; no limit has no metric.
fn limits(to: &mut Writer, record: &ContainerRecord) {
    let linux = record.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    for (name, value) in [
        ("container_spec_cpu_period", linux.cpu_period),
        ("container_spec_cpu_shares", linux.cpu_shares),
        ("container_spec_memory_limit_bytes", linux.memory_limit_in_bytes),
        ("container_spec_memory_swap_limit_bytes", linux.memory_swap_limit_in_bytes),
    ] {
        if let Some(value) = u64::try_from(value).ok().filter(|value| *value > 0) {
            to.gauge(name, value);
        }
    }
}

/// Collects metrics with the same labels and the same time.
struct Writer {
    labels: Vec<String>,
    at: i64,
    metrics: Vec<v1::Metric>,
}

impl Writer {
    fn new(pod: &[String; 2], rest: [&str; 3], at: i64) -> Self {
        let labels = pod.iter().map(String::as_str).chain(rest).map(str::to_owned).collect();
        Self { labels, at, metrics: Vec::new() }
    }

    fn counter(&mut self, name: &str, value: u64) {
        self.labelled(Counter, name, &[], value);
    }

    fn gauge(&mut self, name: &str, value: u64) {
        self.labelled(Gauge, name, &[], value);
    }

    fn labelled(&mut self, kind: v1::MetricType, name: &str, more: &[&str], value: u64) {
        self.metrics.push(v1::Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: kind.into(),
            label_values: self
                .labels
                .iter()
                .map(String::as_str)
                .chain(more.iter().copied())
                .map(str::to_owned)
                .collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use host::cgroup::usage::CpuUsage;

    use super::*;
    use crate::stats::network::Counters;

    /// As if everything that a kernel can tell were told.
    fn everything() -> Vec<v1::Metric> {
        let mut to = Writer::new(&["web".into(), "default".into()], ["main", "id", "image"], 5);
        let usage =
            Usage { cpu: Some(CpuUsage { total: 3 * NANO, ..Default::default() }), ..Usage::default() };
        cpu(&mut to, &usage);
        memory(&mut to, &MemoryUsage { usage: 10, inactive_file: 4, ..Default::default() });
        device(&mut to, &IoUsage { major: 8, minor: 1, read_bytes: 7, ..Default::default() });
        let received = Counters { bytes: 9, ..Default::default() };
        network(&mut to, &Interface { name: "eth0".into(), received, ..Default::default() });
        to.metrics
    }

    #[test]
    fn every_value_has_the_labels_that_its_descriptor_names() {
        let metrics = everything();
        for metric in &metrics {
            let descriptor = DESCRIPTORS.iter().find(|(name, ..)| *name == metric.name);
            let (_, _, labels) = descriptor.unwrap_or_else(|| panic!("{} is not described", metric.name));
            assert_eq!(metric.label_values.len(), LABELS.len() + labels.len(), "{}", metric.name);
        }
        let value = |name: &str| metrics.iter().find(|one| one.name == name).and_then(|one| one.value);
        assert_eq!(value("container_cpu_usage_seconds_total"), Some(v1::UInt64Value { value: 3 }));
        assert_eq!(value("container_memory_working_set_bytes"), Some(v1::UInt64Value { value: 6 }));
        assert_eq!(value("container_network_receive_bytes_total"), Some(v1::UInt64Value { value: 9 }));
    }

    #[test]
    fn each_name_is_described_once() {
        let names: BTreeSet<_> = DESCRIPTORS.iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), DESCRIPTORS.len());
    }
}

//! What the node uses: read from /proc, or from the cgroup in which a node lives that does not have the machine to itself.

use std::path::Path;

use super::summary::Interface;
use crate::meminfo;
use crate::time::{BootTime, wall_ns};

/// What was read; what cannot be read is not there.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Nanoseconds since 1970.
    pub(super) at: i64,
    /// When the machine was booted, in nanoseconds since 1970.
    pub(super) booted: i64,
    /// CPU time, in nanoseconds.
    pub(super) cpu: Option<u64>,
    /// Billionths of a core, since it was last read.
    pub(super) nano_cores: Option<u64>,
    pub(super) memory: Option<Memory>,
    /// All of it and what is used, in bytes.
    pub(super) swap: Option<(u64, u64)>,
    pub(super) interfaces: Vec<Interface>,
    /// The file system of the kubelet's directory.
    pub(super) root: Option<FileSystem>,
    /// The file system of images and containers.
    pub(super) images: Option<FileSystem>,
    /// Bytes of images.
    pub(super) images_used: Option<u64>,
    /// Tasks there are, and may be.
    pub(super) processes: Option<(u64, u64)>,
}

/// In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) capacity: u64,
    pub(super) usage: u64,
    pub(super) working_set: u64,
    pub(super) anonymous: u64,
}

/// In bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FileSystem {
    pub(super) capacity: u64,
    /// For everyone.
    pub(super) available: u64,
    /// For root, too.
    pub(super) free: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// The last reading of CPU time, for a rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    at: i64,
    cpu: u64,
}

/// Looks at the node.
pub(super) fn read(root_dir: &Path, cgroup_root: &str, last: &mut Option<Sample>) -> Node {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (at, meminfo) = (wall_ns(), text("/proc/meminfo"));
    let cgroup = of_cgroup(cgroup_root);
    let capacity = meminfo::bytes(&meminfo, "MemTotal");
    let memory = match cgroup.as_ref().and_then(|usage| usage.memory) {
        Some(used) => capacity.map(|capacity| Memory {
            capacity: capacity.min(used.limit.unwrap_or(u64::MAX)),
            usage: used.usage,
            working_set: used.working_set(),
            anonymous: used.anonymous,
        }),
        None => memory_of(&meminfo),
    };
    let cpu = match &cgroup {
        Some(usage) => usage.cpu.map(|cpu| cpu.total),
        None => cpu_time(&text("/proc/stat"), rustix::param::clock_ticks_per_second()),
    };
    let nano_cores = cpu.and_then(|cpu| rate(last.replace(Sample { at, cpu }), at, cpu));
    let since_boot = i64::try_from(BootTime::now().0).unwrap_or(0).saturating_mul(1_000_000);
    Node {
        at,
        booted: at.saturating_sub(since_boot),
        cpu,
        nano_cores,
        memory,
        swap: meminfo::bytes(&meminfo, "SwapTotal")
            .zip(meminfo::bytes(&meminfo, "SwapFree"))
            .map(|(total, free)| (total, total.saturating_sub(free))),
        interfaces: interfaces(&text("/proc/self/net/dev")),
        root: file_system(root_dir),
        images: None,
        images_used: None,
        processes: tasks(&text("/proc/loadavg")).zip(text("/proc/sys/kernel/pid_max").trim().parse().ok()),
    }
}

/// Nothing for a node that has the machine to itself.
fn of_cgroup(path: &str) -> Option<host::cgroup::Usage> {
    if path.trim_matches('/').is_empty() {
        return None;
    }
    let cgroup = host::cgroup::CgroupManager::detect().ok()?.open(path).ok()?;
    cgroup.exists().then(|| cgroup.usage())
}

/// How full it is.
pub(super) fn file_system(path: &Path) -> Option<FileSystem> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(FileSystem {
        capacity: stat.f_blocks * stat.f_frsize,
        available: stat.f_bavail * stat.f_frsize,
        free: stat.f_bfree * stat.f_frsize,
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

/// Billionths of a core between two readings.
fn rate(last: Option<Sample>, at: i64, cpu: u64) -> Option<u64> {
    let last = last?;
    let time = u64::try_from(at.checked_sub(last.at)?).ok().filter(|time| *time > 0)?;
    let used = cpu.checked_sub(last.cpu)?;
    u64::try_from(u128::from(used) * 1_000_000_000 / u128::from(time)).ok()
}

fn memory_of(meminfo: &str) -> Option<Memory> {
    Some(Memory {
        capacity: meminfo::bytes(meminfo, "MemTotal")?,
        usage: meminfo::usage(meminfo)?,
        working_set: meminfo::working_set(meminfo)?,
        anonymous: meminfo::bytes(meminfo, "AnonPages").unwrap_or(0),
    })
}

/// CPU time in the first line of /proc/stat without idling, in nanoseconds.
fn cpu_time(stat: &str, ticks: u64) -> Option<u64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = fields.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are in user and nice.
    let busy = [0, 1, 2, 5, 6, 7].into_iter().filter_map(|at| fields.get(at)).sum::<u64>();
    Some(busy.saturating_mul(1_000_000_000 / ticks.max(1)))
}

/// Interfaces but the loopback. Upstream: cadvisor leaves out lo, veth and docker's.
fn interfaces(dev: &str) -> Vec<Interface> {
    let lines = dev.lines().filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let at = |at: usize| counters.get(at).copied();
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: at(0)?,
            rx_errors: at(2)?,
            tx_bytes: at(8)?,
            tx_errors: at(10)?,
        })
    });
    let is_asked = |name: &str| name != "lo" && !name.starts_with("veth");
    lines.filter(|interface| is_asked(&interface.name)).collect()
}

/// `0.00 0.01 0.05 1/234 5678`.
fn tasks(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_the_kernel_writes_it() {
        let meminfo = "MemTotal:  100 kB\nMemFree:  40 kB\nInactive(file):  10 kB\nAnonPages:  5 kB\n";
        let expect = Memory { capacity: 102_400, usage: 61_440, working_set: 51_200, anonymous: 5120 };
        assert_eq!(memory_of(meminfo), Some(expect));
        assert_eq!(memory_of(""), None);
        assert_eq!(cpu_time("cpu  1 2 3 100 100 4 5 6 7 8\ncpu0 1", 100), Some(210_000_000));
        assert_eq!(tasks("0.00 0.01 0.05 1/234 5678\n"), Some(234));
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n    lo: 1 1 1 1 1 1 1 1 1 1 1\n  eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\n";
        let eth0 = Interface { name: "eth0".into(), rx_bytes: 10, rx_errors: 2, tx_bytes: 20, tx_errors: 3 };
        assert_eq!(interfaces(dev), [eth0]);
    }

    #[test]
    fn a_rate_needs_two_readings_in_order() {
        let last = Some(Sample { at: 1_000_000_000, cpu: 100 });
        assert_eq!(rate(last, 3_000_000_000, 1_000_000_100), Some(500_000_000));
        assert_eq!(rate(last, 3_000_000_000, 0), None);
        assert_eq!(rate(last, 0, 200), None);
        assert_eq!(rate(None, 1, 1), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let mut last = None;
        let node = read(Path::new("/"), "/", &mut last);
        assert!(
            node.memory.is_some_and(|memory| memory.working_set > 0) && node.cpu.is_some_and(|cpu| cpu > 0)
        );
        assert!(node.booted < node.at && node.root.is_some() && last.is_some());
    }
}

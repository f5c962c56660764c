//! What a cgroup has used: CPU, memory, tasks, block devices, and the pressure it felt. Files that this machine does not have leave
//! their part out.
//!
//! Read here, judged elsewhere. On the hybrid layout CPU time and pressure come from the v2 directory, which counts them without a
//! controller.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Cgroup, Version, file};

/// Everything at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time.
    pub cpu: Option<CpuUsage>,
    /// Memory and swap.
    pub memory: Option<MemoryUsage>,
    /// Tasks.
    pub pids: PidsUsage,
    /// One entry per block device; on v2 only.
    pub io: Vec<IoUsage>,
    /// Time that tasks waited for a CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Time that tasks waited for memory.
    pub memory_pressure: Option<Pressure>,
    /// Time that tasks waited for block devices.
    pub io_pressure: Option<Pressure>,
}

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuUsage {
    /// In user and kernel mode.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In kernel mode.
    pub system: u64,
    /// Enforcement periods of a quota.
    pub periods: u64,
    /// Those in which it was used up.
    pub throttled_periods: u64,
    /// How long tasks were kept from running.
    pub throttled: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// All that is charged.
    pub usage: u64,
    /// The most that ever was, where the kernel keeps it.
    pub peak: Option<u64>,
    /// The limit, if there is one.
    pub limit: Option<u64>,
    /// Anonymous memory.
    pub anonymous: u64,
    /// Page cache.
    pub file: u64,
    /// Mapped page cache.
    pub mapped_file: u64,
    /// Page cache in use.
    pub active_file: u64,
    /// Page cache that can be dropped first.
    pub inactive_file: u64,
    /// The kernel's own, for its tasks.
    pub kernel: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that read from a disk.
    pub major_page_faults: u64,
    /// Swap, where it is counted.
    pub swap: Option<u64>,
    /// The limit of swap, if there is one.
    pub swap_limit: Option<u64>,
    /// How often the limit was hit.
    pub failures: u64,
    /// How many processes the kernel has killed for lack of it.
    pub oom_kills: u64,
}

impl MemoryUsage {
    /// What cannot be taken back without cost: usage without the page cache that is dropped first.
    #[must_use]
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

/// Tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsUsage {
    /// How many there are.
    pub current: u64,
    /// How many there may be.
    pub limit: Option<u64>,
}

/// What went over one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoUsage {
    /// The device's major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Completed reads.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
}

/// A pressure stall file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All of them did.
    pub full: Stall,
}

/// One line of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Percent of the last 10 s.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last 5 minutes.
    pub avg300: f64,
    /// Microseconds.
    pub total: u64,
}

impl Cgroup {
    /// Reads everything.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let pressure = |name| self.text("", name).map(|text| pressure_of(&text));
        Usage {
            cpu: self.cpu_usage(),
            memory: match self.version {
                Version::V1 => self.memory_v1(),
                Version::V2 => self.memory_v2(),
            },
            pids: self.pids_usage(),
            io: self.text("", "io.stat").map(|text| io_of(&text)).unwrap_or_default(),
            cpu_pressure: pressure("cpu.pressure"),
            memory_pressure: pressure("memory.pressure"),
            io_pressure: pressure("io.pressure"),
        }
    }

    /// Reads CPU time only: cheap enough for sampling.
    #[must_use]
    pub fn cpu_usage(&self) -> Option<CpuUsage> {
        let mut cpu = match self.text("", "cpu.stat") {
            Some(text) => cpu_v2(&text),
            None => cpu_v1(
                &self.text("cpuacct", "cpuacct.usage")?,
                &self.text("cpuacct", "cpuacct.stat").unwrap_or_default(),
            ),
        };
        if self.version == Version::V1 {
            let throttling = self.text("cpu", "cpu.stat").unwrap_or_default();
            let throttling = flat(&throttling);
            let count = |name| throttling.get(name).copied().unwrap_or_default();
            (cpu.periods, cpu.throttled_periods) = (count("nr_periods"), count("nr_throttled"));
            cpu.throttled = count("throttled_time");
        }
        Some(cpu)
    }

    fn memory_v1(&self) -> Option<MemoryUsage> {
        let read = |name: &str| number(&self.text("memory", name)?);
        let text = self.text("memory", "memory.stat")?;
        let stat = flat(&text);
        let of = |name: &str| stat.get(name).copied().unwrap_or_default();
        let usage = read("memory.usage_in_bytes")?;
        let limit = read("memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT_V1);
        let both_limit = read("memory.memsw.limit_in_bytes").filter(|limit| *limit < NO_LIMIT_V1);
        Some(MemoryUsage {
            usage,
            peak: read("memory.max_usage_in_bytes"),
            limit,
            anonymous: of("total_rss"),
            file: of("total_cache"),
            mapped_file: of("total_mapped_file"),
            active_file: of("total_active_file"),
            inactive_file: of("total_inactive_file"),
            kernel: read("memory.kmem.usage_in_bytes").unwrap_or_default(),
            page_faults: of("total_pgfault"),
            major_page_faults: of("total_pgmajfault"),
            swap: read("memory.memsw.usage_in_bytes").map(|both| both.saturating_sub(usage)),
            swap_limit: both_limit.zip(limit).map(|(both, limit)| both.saturating_sub(limit)),
            failures: read("memory.failcnt").unwrap_or_default(),
            oom_kills: self.oom_kills(),
        })
    }

    fn memory_v2(&self) -> Option<MemoryUsage> {
        let read = |name: &str| number(&self.text("", name)?);
        let text = self.text("", "memory.stat")?;
        let stat = flat(&text);
        let of = |name: &str| stat.get(name).copied().unwrap_or_default();
        let events = self.text("", "memory.events").unwrap_or_default();
        Some(MemoryUsage {
            usage: read("memory.current")?,
            peak: read("memory.peak"),
            limit: read("memory.max"),
            anonymous: of("anon"),
            file: of("file"),
            mapped_file: of("file_mapped"),
            active_file: of("active_file"),
            inactive_file: of("inactive_file"),
            kernel: stat.get("kernel").or_else(|| stat.get("kernel_stack")).copied().unwrap_or_default(),
            page_faults: of("pgfault"),
            major_page_faults: of("pgmajfault"),
            swap: read("memory.swap.current"),
            swap_limit: read("memory.swap.max"),
            failures: flat(&events).get("max").copied().unwrap_or_default(),
            oom_kills: self.oom_kills(),
        })
    }

    fn pids_usage(&self) -> PidsUsage {
        let read = |name: &str| number(&self.text("pids", name)?);
        let counted = || {
            let directory = self.directories.first()?;
            Some(tasks_below(&directory.path))
        };
        PidsUsage {
            current: read("pids.current").or_else(counted).unwrap_or_default(),
            limit: read("pids.max"),
        }
    }

    /// A control file: of a v1 controller's hierarchy or, on v2 and for the empty name, of the v2 directory.
    fn text(&self, controller: &str, name: &str) -> Option<String> {
        let directory = match (self.version, controller) {
            (Version::V1, "") => self.unified(),
            _ => self.directory_of(controller),
        };
        // The cgroup may vanish while it is read.
        file::read_proc(&directory?.join(name)).ok()
    }
}

/// What v1 shows where no limit is set is the largest number of whole pages.
const NO_LIMIT_V1: u64 = 0x7fff_ffff_ffff_0000;

fn cpu_v2(text: &str) -> CpuUsage {
    let stat = flat(text);
    let of = |name| stat.get(name).copied().unwrap_or_default();
    CpuUsage {
        total: of("usage_usec") * 1000,
        user: of("user_usec") * 1000,
        system: of("system_usec") * 1000,
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled: of("throttled_usec") * 1000,
    }
}

/// `cpuacct.stat` counts in hundredths of a second.
fn cpu_v1(usage: &str, stat: &str) -> CpuUsage {
    const TICK: u64 = 10_000_000;
    let stat = flat(stat);
    let of = |name| stat.get(name).copied().unwrap_or_default() * TICK;
    CpuUsage {
        total: number(usage).unwrap_or_default(),
        user: of("user"),
        system: of("system"),
        ..CpuUsage::default()
    }
}

/// Lines of a name and a number.
fn flat(text: &str) -> BTreeMap<&str, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, value)| Some((name, value.trim().parse().ok()?)))
        .collect()
}

/// One number; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn io_of(text: &str) -> Vec<IoUsage> {
    let device = |line: &str| {
        let (numbers, values) = line.split_once(' ')?;
        let (major, minor) = numbers.split_once(':')?;
        let mut io = IoUsage { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoUsage::default() };
        for (name, value) in values.split_whitespace().filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match name {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(device).collect()
}

fn pressure_of(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let Some((kind, values)) = line.split_once(' ') else { continue };
        let mut stall = Stall::default();
        for (name, value) in values.split_whitespace().filter_map(|word| word.split_once('=')) {
            match name {
                "avg10" => stall.avg10 = value.parse().unwrap_or_default(),
                "avg60" => stall.avg60 = value.parse().unwrap_or_default(),
                "avg300" => stall.avg300 = value.parse().unwrap_or_default(),
                "total" => stall.total = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
        match kind {
            "some" => pressure.some = stall,
            "full" => pressure.full = stall,
            _ => {}
        }
    }
    pressure
}

/// Where no pids controller counts them.
fn tasks_below(directory: &Path) -> u64 {
    let text = file::read_proc(&directory.join("cgroup.procs")).unwrap_or_default();
    let here = text.lines().count() as u64;
    here + file::subdirectories(directory).iter().map(|below| tasks_below(below)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_nanoseconds_on_both_versions() {
        let v2 = cpu_v2(
            "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 4\n",
        );
        let expected = CpuUsage {
            total: 5000,
            user: 3000,
            system: 2000,
            periods: 7,
            throttled_periods: 1,
            throttled: 4000,
        };
        assert_eq!(v2, expected);
        let v1 = cpu_v1("123456789\n", "user 4\nsystem 8\n");
        assert_eq!((v1.total, v1.user, v1.system), (123_456_789, 40_000_000, 80_000_000));
    }

    #[test]
    fn pressure_has_both_lines() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=7\n";
        let some = Stall { avg10: 1.5, avg60: 0.25, avg300: 0.0, total: 42 };
        assert_eq!(
            pressure_of(text),
            Pressure { some, full: Stall { avg10: 0.1, total: 7, ..Stall::default() } }
        );
    }

    #[test]
    fn devices_are_read_line_by_line() {
        let text = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:1\nnonsense\n";
        let io = IoUsage { major: 8, minor: 0, read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        assert_eq!(io_of(text), [io]);
    }

    #[test]
    fn a_machine_without_the_files_gives_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup {
            version: Version::V2,
            directories: vec![super::super::Directory {
                hierarchy: "unified".into(),
                path: directory.path().into(),
            }],
        };
        assert_eq!(cgroup.usage(), Usage::default());
    }

    #[test]
    fn memory_of_v2_is_read_with_its_limits() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("memory.stat", "anon 100\nfile 50\ninactive_file 30\npgfault 9\n"),
            ("memory.current", "160\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "0\n"),
            ("memory.swap.max", "4096\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let cgroup = Cgroup {
            version: Version::V2,
            directories: vec![super::super::Directory {
                hierarchy: "unified".into(),
                path: directory.path().into(),
            }],
        };
        let usage = cgroup.usage();
        let memory = usage.memory.unwrap();
        assert_eq!(
            (memory.working_set(), memory.limit, memory.anonymous, memory.page_faults),
            (130, None, 100, 9)
        );
        assert_eq!((memory.swap, memory.swap_limit), (Some(0), Some(4096)));
        assert_eq!(usage.pids, PidsUsage { current: 3, limit: None });
    }
}

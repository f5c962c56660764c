//! What an ordinary container must not see or change of /proc and /sys. Upstream: pkg/securitycontext.

use std::path::Path;
use std::sync::OnceLock;

/// What it must not change.
pub const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What it must not see on any machine; what a machine does not have does no harm.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What it must not see on this machine: beside what no machine shows, how hot each CPU gets.
pub fn masked() -> &'static [String] {
    static PATHS: OnceLock<Vec<String>> = OnceLock::new();
    PATHS.get_or_init(|| all(&hot_cpus(Path::new("/sys/devices/system/cpu"))))
}

fn all(cpus: &[u32]) -> Vec<String> {
    let hot = cpus.iter().map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
    MASKED.iter().map(|&path| path.to_owned()).chain(hot).collect()
}

/// The CPUs that tell when they were slowed down for heat, in order.
fn hot_cpus(directory: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let hot = entries.filter(|entry| entry.path().join("thermal_throttle").is_dir());
    let mut cpus: Vec<u32> =
        hot.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok()).collect();
    cpus.sort_unstable();
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_that_tells_of_heat_is_masked() {
        let dir = tempfile::tempdir().unwrap();
        for path in
            ["cpu0/thermal_throttle", "cpu10/thermal_throttle", "cpu2/thermal_throttle", "cpu1", "cpufreq"]
        {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let cpus = hot_cpus(dir.path());
        assert_eq!(cpus, [0, 2, 10]);
        let paths = all(&cpus);
        assert_eq!(paths.len(), MASKED.len() + 3);
        assert_eq!(paths.last().unwrap(), "/sys/devices/system/cpu/cpu10/thermal_throttle");
        assert!(hot_cpus(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn what_upstream_masks_since_1_36_is_masked() {
        for path in ["/proc/interrupts", "/sys/devices/virtual/powercap", "/proc/kcore", "/sys/firmware"] {
            assert!(masked().iter().any(|masked| masked == path), "{path}");
        }
    }
}

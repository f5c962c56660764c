//! What may be mounted over a container's procfs: next to nothing, as what the container's processes are told and what is written
//! for them there must be the kernel's own (CVE-2019-16884, CVE-2019-19921). The rule is runc's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use super::report::{Failure, Step};

/// What is only told to people, and what lxcfs tells in the kernel's place.
const REPLACEABLE: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Refuses a mount of `source` on the opened `target`, whose name is `name`, where it would replace what must be the kernel's.
pub(super) fn check(name: &Path, target: &OwnedFd, source: &OwnedFd) -> Result<(), Failure> {
    let step = || format!("mount on {}", name.display());
    let why = refuse(name, is_procfs(target).step(step)?, is_procfs(source).step(step)?);
    match why {
        None => Ok(()),
        Some(why) => {
            let text = format!("{} cannot be mounted because it is {why}", name.display());
            Err(Failure::step(text, &std::io::Error::from_raw_os_error(libc::EPERM)))
        }
    }
}

fn is_procfs(file: impl AsFd) -> std::io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// By the target's name, and by what it is: a link of the image may lead into /proc too.
fn refuse(name: &Path, onto_procfs: bool, of_procfs: bool) -> Option<&'static str> {
    let name: std::path::PathBuf = name.components().filter(|part| *part != Component::CurDir).collect();
    if name == Path::new("/proc") {
        return (!of_procfs).then_some("not of type proc");
    }
    let replaceable = REPLACEABLE.iter().any(|path| name == Path::new(path));
    (onto_procfs && !replaceable).then_some("inside /proc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2019_19921_only_a_procfs_lies_on_proc_and_little_lies_in_it() {
        for (name, onto_procfs, of_procfs, expect) in [
            ("/proc", false, true, None),
            ("/proc", true, true, None),
            ("/proc", false, false, Some("not of type proc")),
            ("/proc/.", false, false, Some("not of type proc")),
            ("//proc//", true, false, Some("not of type proc")),
            ("/proc/self/attr", true, false, Some("inside /proc")),
            ("/proc/self/attr", true, true, Some("inside /proc")),
            ("/proc/sys", true, false, Some("inside /proc")),
            ("/link/attr", true, false, Some("inside /proc")),
            ("/proc/cpuinfo", true, false, None),
            ("/proc//./meminfo", true, false, None),
            // Not a procfs: a container without one, or a volume of that name.
            ("/proc/self/attr", false, false, None),
            ("/data", false, false, None),
            ("/procs", false, false, None),
        ] {
            assert_eq!(refuse(Path::new(name), onto_procfs, of_procfs), expect, "{name}");
        }
    }
}

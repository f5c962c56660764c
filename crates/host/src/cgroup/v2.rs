//! cgroup v2: one tree.

use std::path::{Path, PathBuf};

use super::limits::Controller;
use super::{Cgroup, CgroupError, Directory, Limits, Version, convert, device, file, v1};

/// How the v2 tree is called among a cgroup's directories.
pub(super) const NAME: &str = "unified";

#[derive(Debug, Clone)]
pub(super) struct Tree {
    mount: PathBuf,
    own: String,
}

impl Tree {
    pub(super) fn new(mount: &Path, own: &str) -> Self {
        let own = v1::parse_own(own).into_iter().find(|(controllers, _)| controllers.is_empty());
        Self { mount: mount.to_owned(), own: own.map_or_else(|| "/".to_owned(), |(_, path)| path) }
    }

    pub(super) fn has(&self, controller: Controller) -> bool {
        let all = std::fs::read_to_string(self.mount.join("cgroup.controllers")).unwrap_or_default();
        all.split_whitespace().any(|name| name == controller.name())
    }

    pub(super) fn create(&self, path: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let directory = v1::resolve(&self.mount, &self.own, path);
        let controllers = limits.controllers();
        file::make_directories(&directory, &mut |_| Ok(()))?;
        self.enable(&directory, &controllers)?;
        let cgroup = Cgroup {
            version: Version::V2,
            directories: vec![Directory { hierarchy: NAME.to_owned(), path: directory }],
        };
        Ok(cgroup)
    }

    /// Turns controllers on in every directory above, topmost first; usually the nearest parent has them already.
    fn enable(&self, directory: &Path, controllers: &[Controller]) -> Result<(), CgroupError> {
        let Some(parent) = directory.parent().filter(|parent| parent.starts_with(&self.mount)) else {
            return Ok(());
        };
        let control = parent.join("cgroup.subtree_control");
        let enabled = file::read(&control)?;
        let missing: Vec<Controller> = controllers
            .iter()
            .copied()
            .filter(|c| !enabled.split_whitespace().any(|name| name == c.name()))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.enable(parent, &missing)?;
        for controller in missing {
            file::write(&control, &format!("+{}", controller.name())).map_err(|error| match error {
                CgroupError::Write { source, .. } if source.raw_os_error() == Some(libc::ENOENT) => {
                    CgroupError::NoController(controller.name().to_owned())
                }
                other => other,
            })?;
        }
        Ok(())
    }

    pub(super) fn open(&self, path: &str) -> Cgroup {
        let path = v1::resolve(&self.mount, &self.own, path);
        let directories =
            if path.is_dir() { vec![Directory { hierarchy: NAME.to_owned(), path }] } else { Vec::new() };
        Cgroup { version: Version::V2, directories }
    }

    /// A cgroup that hands controllers down takes no process itself (cgroup-v2.rst, No Internal Process Constraint): a container
    /// whose init is systemd, for one. runc goes to the init's place then too.
    pub(super) fn beside(&self, cgroup: Cgroup, pid: i32) -> Result<Cgroup, CgroupError> {
        let Some(directory) = cgroup.unified() else { return Ok(cgroup) };
        let handed_down = file::read_if_there(&directory.join("cgroup.subtree_control"))?.unwrap_or_default();
        if handed_down.trim().is_empty() {
            return Ok(cgroup);
        }
        let places = file::read_proc(Path::new(&format!("/proc/{pid}/cgroup")))?;
        Ok(match place_below(&self.mount, directory, &places) {
            Some(path) => Cgroup {
                version: Version::V2,
                directories: vec![Directory { hierarchy: NAME.to_owned(), path }],
            },
            None => cgroup,
        })
    }
}

/// Where `/proc/PID/cgroup` says that a process is, if that is below `directory`.
fn place_below(mount: &Path, directory: &Path, places: &str) -> Option<PathBuf> {
    let (_, place) = v1::parse_own(places).into_iter().find(|(controllers, _)| controllers.is_empty())?;
    let path = mount.join(place.trim_start_matches('/'));
    (path.starts_with(directory) && !place.split('/').any(|part| part == "..")).then_some(path)
}

pub(super) fn set(cgroup: &Cgroup, limits: &Limits) -> Result<(), CgroupError> {
    let Some(directory) = cgroup.unified() else { return Ok(()) };
    for (name, value) in lines(limits)? {
        match file::write(&directory.join(&name), &value) {
            // A kernel that does not count swap has no limit for it.
            Err(CgroupError::Write { source, .. })
                if name == "memory.swap.max" && source.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    for weight in limits.io.bfq_lines() {
        if !file::write_if_there(&directory.join("io.bfq.weight"), &weight)? {
            write_io_weight(directory, limits)?;
        }
    }
    if let Some(rules) = limits.devices.as_deref().filter(|rules| device::restricts(rules)) {
        let handle = file::open_directory(directory)?;
        device::attach(&handle, rules)
            .map_err(|source| file::error("attach device program to", directory, source))?;
    }
    Ok(())
}

/// Without the BFQ scheduler there is one weight for every device.
fn write_io_weight(directory: &Path, limits: &Limits) -> Result<(), CgroupError> {
    if !limits.io.device_weights.is_empty() {
        let text = "weights of single devices need the BFQ I/O scheduler (io.bfq.weight)";
        return Err(CgroupError::Unsupported(text.to_owned()));
    }
    match limits.io.io_weight() {
        Some(weight) => file::write(&directory.join("io.weight"), &weight),
        None => Ok(()),
    }
}

/// What is written, file by file. Pure.
fn lines(limits: &Limits) -> Result<Vec<(String, String)>, CgroupError> {
    if let Some(name) = limits.v1_only.keys().next() {
        return Err(CgroupError::Unsupported(format!("{name} exists on cgroup v1 only")));
    }
    let swap =
        convert::swap_max(limits.memory_swap, limits.memory_limit).map_err(CgroupError::Unsupported)?;
    let nonzero = |limit: Option<i64>| limit.filter(|limit| *limit != 0).map(convert::or_max);
    // cpu.idle and cpu.weight exclude each other.
    let weight = limits.cpu_shares.filter(|shares| *shares != 0 && limits.cpu_idle != Some(1));
    let values = [
        ("memory.max", nonzero(limits.memory_limit)),
        ("memory.swap.max", swap),
        ("memory.low", nonzero(limits.memory_reservation)),
        ("cpu.weight", weight.map(|shares| convert::cpu_weight(shares).to_string())),
        ("cpu.idle", limits.cpu_idle.map(|idle| idle.to_string())),
        (
            "cpu.max",
            convert::cpu_max(
                limits.cpu_quota.filter(|q| *q != 0),
                limits.cpu_period.filter(|period| *period != 0),
            ),
        ),
        ("cpu.max.burst", limits.cpu_burst.map(|burst| burst.to_string())),
        ("cpuset.cpus", limits.cpuset_cpus.clone()),
        ("cpuset.mems", limits.cpuset_mems.clone()),
        ("pids.max", limits.pids.map(convert::pids_max)),
    ];
    let mut lines: Vec<(String, String)> =
        values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    lines.extend(limits.io.v2_lines().into_iter().map(|line| ("io.max".to_owned(), line)));
    for (size, bytes) in &limits.hugepages {
        lines.push((format!("hugetlb.{size}.max"), bytes.to_string()));
    }
    for (name, value) in &limits.unified {
        if name.contains('/') || name.starts_with("cgroup.") {
            return Err(CgroupError::Unsupported(format!("unified resource {name:?} is no controller file")));
        }
        lines.push((name.clone(), value.clone()));
    }
    Ok(lines)
}

pub(super) fn oom_kills(cgroup: &Cgroup) -> u64 {
    cgroup.unified().map_or(0, |directory| count(&directory.join("memory.events"), "oom_kill"))
}

/// One number of a file of `name number` lines; 0 when file or line is missing.
pub(super) fn count(path: &Path, name: &str) -> u64 {
    std::fs::File::open(path).ok().and_then(|file| count_in(&file, name)).unwrap_or(0)
}

/// One number of an open file of `name number` lines.
pub(super) fn count_in(mut file: &std::fs::File, name: &str) -> Option<u64> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text).ok()?;
    let value = text.lines().filter_map(|line| line.split_once(' ')).find(|(key, _)| *key == name);
    value.and_then(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_only_what_is_asked_for() {
        assert_eq!(lines(&Limits::default()).unwrap(), []);
        let limits = Limits {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_limit: Some(1 << 20),
            memory_swap: Some(1 << 20),
            pids: Some(10),
            ..Limits::default()
        };
        let expected = [
            ("memory.max", "1048576"),
            ("memory.swap.max", "0"),
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "10"),
        ];
        assert_eq!(lines(&limits).unwrap(), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn a_process_is_followed_only_below_its_container() {
        let (mount, container) = (Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/pods/c"));
        for (places, expect) in [
            ("0::/pods/c/init.scope\n", Some("/sys/fs/cgroup/pods/c/init.scope")),
            ("1:cpu:/x\n0::/pods/c/a/b\n", Some("/sys/fs/cgroup/pods/c/a/b")),
            ("0::/pods/other\n", None),
            ("0::/pods/c/../other\n", None),
            ("", None),
        ] {
            assert_eq!(place_below(mount, container, places), expect.map(PathBuf::from), "{places:?}");
        }
    }

    #[test]
    fn what_only_v1_has_is_an_error_that_names_it() {
        let v1_only = [("memory.swappiness".to_owned(), "10".to_owned())].into();
        let error = lines(&Limits { v1_only, ..Limits::default() }).unwrap_err();
        assert_eq!(error.to_string(), "memory.swappiness exists on cgroup v1 only");
    }

    #[test]
    fn huge_pages_and_rates_of_devices_are_written() {
        use super::super::{IoLimits, Rate, Throttle};
        let throttle = Throttle { major: 8, minor: 1, what: Rate::WriteBytes, rate: 9 };
        let limits = Limits {
            hugepages: [("2MB".to_owned(), 4 << 20)].into(),
            io: IoLimits { throttles: vec![throttle], ..IoLimits::default() },
            ..Limits::default()
        };
        let expected = [("io.max", "8:1 wbps=9"), ("hugetlb.2MB.max", "4194304")];
        assert_eq!(lines(&limits).unwrap(), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn a_unified_resource_cannot_name_a_core_file_or_leave_the_directory() {
        for name in ["../memory.max", "cgroup.procs"] {
            let limits = Limits { unified: [(name.to_owned(), "1".to_owned())].into(), ..Limits::default() };
            assert!(lines(&limits).is_err(), "{name}");
        }
    }
}

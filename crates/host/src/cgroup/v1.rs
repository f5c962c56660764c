//! cgroup v1: one hierarchy per controller, with the v2 tree of the hybrid layout used for killing and freezing where it exists.

use std::path::{Path, PathBuf};

use super::limits::Controller;
use super::{Cgroup, CgroupError, Directory, Frozen, Limits, Version, convert, device, file, v2};

/// The hierarchies that `/proc/self/cgroup` lists and the mount point has.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies {
    list: Vec<Hierarchy>,
    unified: Option<Hierarchy>,
}

#[derive(Debug, Clone)]
struct Hierarchy {
    /// Directory name below the mount point: the controllers joined by commas.
    name: String,
    mount: PathBuf,
    /// The caller's own cgroup in it, `/` at the top.
    own: String,
}

impl Hierarchies {
    pub(super) fn find(root: &Path, own: &str) -> Result<Self, CgroupError> {
        let mut list = Vec::new();
        let mut unified = None;
        for (name, own) in parse_own(own) {
            if name.is_empty() {
                let mount = root.join(v2::NAME);
                if mount.join("cgroup.procs").exists() {
                    unified = Some(Hierarchy { name: v2::NAME.to_owned(), mount, own });
                }
            } else if !name.starts_with("name=") {
                let mount = root.join(&name);
                list.push(Hierarchy { name, mount, own });
            }
        }
        if list.is_empty() {
            return Err(CgroupError::NotMounted(root.to_owned()));
        }
        Ok(Self { list, unified })
    }

    pub(super) fn have(&self, controller: Controller) -> bool {
        self.of(controller).is_some()
    }

    /// Whether the kernel counts what is swapped.
    pub(super) fn count_swap(&self) -> bool {
        let memory = self.of(Controller::Memory);
        memory.is_some_and(|memory| memory.mount.join("memory.memsw.limit_in_bytes").exists())
    }

    fn of(&self, controller: Controller) -> Option<&Hierarchy> {
        self.list.iter().find(|hierarchy| hierarchy.name.split(',').any(|name| name == controller.name()))
    }

    pub(super) fn create(&self, path: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let mut cgroup = Cgroup { version: Version::V1, directories: Vec::new() };
        let outcome = self.create_each(path, limits, &mut cgroup.directories);
        if let Err(error) = outcome {
            drop(cgroup.remove());
            return Err(error);
        }
        Ok(cgroup)
    }

    fn create_each(&self, path: &str, limits: &Limits, made: &mut Vec<Directory>) -> Result<(), CgroupError> {
        let mut names: Vec<&str> = limits.controllers().into_iter().map(Controller::v1_name).collect();
        // The v2 tree counts CPU time without a controller.
        let uncounted = limits.accounting && self.unified.is_none();
        if uncounted && self.with_controller("cpuacct").is_some() {
            names.push("cpuacct");
        }
        if limits.devices.as_deref().is_some_and(device::restricts) {
            names.push("devices");
        }
        if self.unified.is_none() {
            names.push("freezer");
        }
        names.extend(self.limited_above(path));
        for name in names {
            let hierarchy =
                self.with_controller(name).ok_or_else(|| CgroupError::NoController(name.to_owned()))?;
            if made.iter().any(|directory| directory.hierarchy == hierarchy.name) {
                continue;
            }
            let directory = hierarchy.directory(path);
            let is_cpuset = hierarchy.has("cpuset");
            file::make_directories(&directory, &mut |new| {
                if is_cpuset { inherit_cpuset(new) } else { Ok(()) }
            })?;
            made.push(Directory { hierarchy: hierarchy.name.clone(), path: directory });
        }
        if let Some(unified) = &self.unified {
            let directory = unified.directory(path);
            file::make_directories(&directory, &mut |_| Ok(()))?;
            made.push(Directory { hierarchy: v2::NAME.to_owned(), path: directory });
        }
        Ok(())
    }

    /// The hierarchies in which the cgroup above lies, and so may limit what is below: a cgroup without limits of its own joins them too.
    fn limited_above(&self, path: &str) -> Vec<&'static str> {
        let Some((parent, _)) = path.trim_end_matches('/').rsplit_once('/') else { return Vec::new() };
        let reaches = |controller: &&str| {
            let hierarchy = self.with_controller(controller);
            !parent.is_empty() && hierarchy.is_some_and(|one| one.directory(parent).is_dir())
        };
        ["pids", "hugetlb"].into_iter().filter(reaches).collect()
    }

    pub(super) fn open(&self, path: &str) -> Cgroup {
        let directories = self
            .list
            .iter()
            .chain(&self.unified)
            .map(|hierarchy| Directory { hierarchy: hierarchy.name.clone(), path: hierarchy.directory(path) })
            .filter(|directory| directory.path.is_dir())
            .collect();
        Cgroup { version: Version::V1, directories }
    }

    fn with_controller(&self, controller: &str) -> Option<&Hierarchy> {
        self.list.iter().find(|hierarchy| hierarchy.has(controller))
    }
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.name.split(',').any(|name| name == controller)
    }

    fn directory(&self, path: &str) -> PathBuf {
        resolve(&self.mount, &self.own, path)
    }
}

/// Absolute paths count from the mount point, others from the caller's own cgroup.
pub(super) fn resolve(mount: &Path, own: &str, path: &str) -> PathBuf {
    match path.strip_prefix('/') {
        Some(absolute) => mount.join(absolute),
        None => mount.join(own.trim_start_matches('/')).join(path),
    }
}

/// Lines of `/proc/self/cgroup` as (controllers, path).
pub(super) fn parse_own(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
        })
        .collect()
}

/// A new cpuset is empty, and nothing may join it: it takes over what its parent has.
fn inherit_cpuset(directory: &Path) -> Result<(), CgroupError> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let value = file::read(&parent.join(name))?;
        file::write(&directory.join(name), value.trim())?;
    }
    Ok(())
}

pub(super) fn set(cgroup: &Cgroup, limits: &Limits) -> Result<(), CgroupError> {
    let write = |controller: Controller, name: &str, value: String| {
        let directory = cgroup
            .directory_of(controller.v1_name())
            .ok_or_else(|| CgroupError::NoController(controller.v1_name().to_owned()))?;
        file::write(&directory.join(name), &value)
    };
    set_memory(limits, &write)?;
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares != 0) {
        write(Controller::Cpu, "cpu.shares", shares.to_string())?;
    }
    if let Some(period) = limits.cpu_period.filter(|period| *period != 0) {
        write(Controller::Cpu, "cpu.cfs_period_us", period.to_string())?;
    }
    if let Some(quota) = limits.cpu_quota.filter(|quota| *quota != 0) {
        write(Controller::Cpu, "cpu.cfs_quota_us", quota.to_string())?;
    }
    if let Some(burst) = limits.cpu_burst {
        write(Controller::Cpu, "cpu.cfs_burst_us", burst.to_string())?;
    }
    if let Some(idle) = limits.cpu_idle {
        write(Controller::Cpu, "cpu.idle", idle.to_string())?;
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        write(Controller::Cpuset, "cpuset.cpus", cpus.clone())?;
    }
    if let Some(mems) = &limits.cpuset_mems {
        write(Controller::Cpuset, "cpuset.mems", mems.clone())?;
    }
    if let Some(pids) = limits.pids {
        write(Controller::Pids, "pids.max", convert::pids_max(pids))?;
    }
    for (name, value) in limits.io.v1_lines() {
        write(Controller::Io, name, value)?;
    }
    for weight in limits.io.bfq_lines() {
        // Which of them there is depends on the scheduler.
        let device = weight.contains(':');
        let plain = if device { "blkio.weight_device" } else { "blkio.weight" };
        let bfq = if device { "blkio.bfq.weight_device" } else { "blkio.bfq.weight" };
        if write(Controller::Io, plain, weight.clone()).is_err() {
            write(Controller::Io, bfq, weight)?;
        }
    }
    for (size, bytes) in &limits.hugepages {
        write(Controller::Hugetlb, &format!("hugetlb.{size}.limit_in_bytes"), bytes.to_string())?;
    }
    for (name, value) in &limits.v1_only {
        let controller = name.split('.').next().unwrap_or_default();
        let directory = cgroup
            .directory_of(controller)
            .ok_or_else(|| CgroupError::NoController(controller.to_owned()))?;
        file::write(&directory.join(name), value)?;
    }
    if let (Some(rules), Some(directory)) = (&limits.devices, cgroup.directory_of("devices")) {
        for (name, lines) in device::v1_lines(rules) {
            file::write_each(&directory.join(name), &lines)?;
        }
    }
    Ok(())
}

/// The sum of memory and swap may never be below memory, so their order depends on what is there; new groups have no limit at all.
fn set_memory(
    limits: &Limits,
    write: &dyn Fn(Controller, &str, String) -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    let memory = limits.memory_limit.filter(|limit| *limit != 0);
    let swap = limits.memory_swap.filter(|limit| *limit != 0);
    let write_memory = |limit: i64| write(Controller::Memory, "memory.limit_in_bytes", limit.to_string());
    // Without swap accounting the file does not exist, and the limit cannot be exceeded by swapping that is not counted.
    let write_swap =
        |limit: i64| match write(Controller::Memory, "memory.memsw.limit_in_bytes", limit.to_string()) {
            Err(CgroupError::Write { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        };
    match (memory, swap) {
        (Some(memory), Some(swap)) => {
            if write_memory(memory).is_err() {
                write_swap(swap)?;
                write_memory(memory)?;
            } else {
                write_swap(swap)?;
            }
        }
        (Some(memory), None) => write_memory(memory)?,
        (None, Some(swap)) => write_swap(swap)?,
        (None, None) => {}
    }
    if let Some(reservation) = limits.memory_reservation.filter(|limit| *limit != 0) {
        write(Controller::Memory, "memory.soft_limit_in_bytes", reservation.to_string())?;
    }
    Ok(())
}

/// Moves every process of `before` into those directories of `after` that `before` does not have.
pub(super) fn move_processes(before: &Cgroup, after: &Cgroup) -> Result<(), CgroupError> {
    let is_new = |directory: &&Directory| {
        !before.directories.iter().any(|known| known.hierarchy == directory.hierarchy)
    };
    for directory in after.directories.iter().filter(is_new) {
        let procs = directory.path.join("cgroup.procs");
        // What is forked by a process that was not moved yet is found in the next round.
        for _ in 0..8 {
            let moved = file::read(&procs)?;
            let missing: Vec<i32> = before
                .pids_below()?
                .into_iter()
                .filter(|pid| !moved.lines().any(|line| line == pid.to_string()))
                .collect();
            if missing.is_empty() {
                break;
            }
            for pid in missing {
                match file::write(&procs, &pid.to_string()) {
                    // It has ended.
                    Err(CgroupError::Write { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other?,
                }
            }
        }
    }
    Ok(())
}

pub(super) fn freeze(cgroup: &Cgroup, frozen: Frozen) -> Result<(), CgroupError> {
    let Some(directory) = cgroup.directory_of("freezer") else { return Ok(()) };
    let value = if frozen == Frozen::Yes { "FROZEN" } else { "THAWED" };
    file::write_if_there(&directory.join("freezer.state"), value).map(drop)
}

pub(super) fn oom_kills(cgroup: &Cgroup) -> u64 {
    let Some(directory) = cgroup.directory_of("memory") else { return 0 };
    v2::count(&directory.join("memory.oom_control"), "oom_kill")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cgroups_parse_with_colons_in_the_path() {
        let parsed = parse_own("4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/c\n");
        let expected = [("cpu,cpuacct", "/a:b"), ("name=systemd", "/"), ("", "/c")];
        assert_eq!(parsed, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn a_cgroup_without_limits_joins_the_hierarchies_where_the_one_above_may_have_some() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["freezer", "memory/pods/p", "pids/pods/p"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let hierarchies =
            Hierarchies::find(root.path(), "4:hugetlb:/\n3:freezer:/\n2:memory:/\n1:pids:/\n").unwrap();
        for (path, expect) in [
            ("/pods/p/c", vec!["freezer", "pids"]),
            ("/pods/q/c", vec!["freezer"]),
            ("/c", vec!["freezer"]),
            ("c", vec!["freezer"]),
        ] {
            let cgroup = hierarchies.create(path, &Limits::default()).unwrap();
            let names: Vec<&str> = cgroup.directories().map(|(name, _)| name).collect();
            assert_eq!(names, expect, "{path}");
        }
    }

    #[test]
    fn absolute_paths_count_from_the_mount_point_and_others_from_the_own_cgroup() {
        let mount = Path::new("/sys/fs/cgroup/pids");
        assert_eq!(resolve(mount, "/own", "/pod/c"), Path::new("/sys/fs/cgroup/pids/pod/c"));
        assert_eq!(resolve(mount, "/own", "pod/c"), Path::new("/sys/fs/cgroup/pids/own/pod/c"));
    }
}

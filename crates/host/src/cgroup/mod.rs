//! Control groups of both versions behind one small interface. It decides nothing about names or limits.
//!
//! v2 is the design. v1 (each controller a hierarchy, often with a controller-less v2 tree beside them, the hybrid layout) is supported
//! for hosts that still mount it; there only the hierarchies that a cgroup's limits need get a directory.
//! Processes join by themselves: on v1 each write of another's pid waits for a grace period. [`CgroupManager::update`] alone does that,
//! where a running container's new limit needs a hierarchy that it is not in.

pub mod convert;
pub mod device;
mod file;
mod io_limits;
mod kill;
mod limits;
pub mod usage;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use device::{DeviceKind, DeviceRule, PartOfRule, settle as settle_devices};
pub use io_limits::{IoLimits, Rate, Throttle};
pub use usage::Usage;

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Nothing that looks like a cgroup mount is at `/sys/fs/cgroup`.
    #[error("no cgroup file system at {}", .0.display())]
    NotMounted(PathBuf),
    /// A hierarchy that the limits need does not exist on this machine.
    #[error("this machine has no cgroup controller {0}")]
    NoController(String),
    /// The path leaves the tree.
    #[error("cgroup path {0:?} has empty or dot components")]
    BadPath(String),
    /// The kernel refused a value.
    #[error("write {value:?} to {}", file.display())]
    Write {
        /// The control file.
        file: PathBuf,
        /// What was written.
        value: String,
        /// Why not.
        source: io::Error,
    },
    /// Any other operation on a file or directory.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no such cgroup, or not where the limits would be.
    #[error("there is no cgroup {path} with the controller {controller}")]
    Missing {
        /// Which.
        path: String,
        /// Whose limits it was to have.
        controller: &'static str,
    },
    /// A value cannot be expressed on this version.
    #[error("{0}")]
    Unsupported(String),
}

/// The limits of one cgroup, in the units of the OCI runtime spec (that is, of v1). `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// cpu.shares; on v2 converted to cpu.weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period; negative = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<i64>,
    /// Length of a period in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    /// Burst in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_burst: Option<u64>,
    /// 1 makes the group SCHED_IDLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_idle: Option<i64>,
    /// CPU list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    /// Memory node list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
    /// Bytes; -1 = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<i64>,
    /// Soft limit in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<i64>,
    /// Memory and swap together in bytes; -1 = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
    /// Number of tasks; negative = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
    /// Device rules as [`settle_devices`] gives them. `None` = no device control at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<DeviceRule>>,
    /// Block I/O.
    #[serde(skip_serializing_if = "IoLimits::is_empty")]
    pub io: IoLimits,
    /// Bytes in huge pages, by page size as the kernel writes it (`2MB`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hugepages: BTreeMap<String, u64>,
    /// Raw v1 files that v2 has nothing for (`memory.swappiness`, `net_cls.classid`): an error on v2.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub v1_only: BTreeMap<String, String>,
    /// Raw v2 files (file name → content).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
    /// Count memory and CPU time even without limits, so that usage can be read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub accounting: bool,
}

/// Which layout the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// One tree.
    V2,
}

/// Knows where the hierarchies of this machine are. Detect once per process and keep it.
#[derive(Debug, Clone)]
pub struct CgroupManager {
    layout: Layout,
}

#[derive(Debug, Clone)]
enum Layout {
    V1(v1::Hierarchies),
    V2(v2::Tree),
}

/// One cgroup: the directories that exist for a path.
#[derive(Debug, Clone)]
pub struct Cgroup {
    version: Version,
    directories: Vec<Directory>,
}

/// One directory of a cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    /// The hierarchy's directory name below the mount point (`cpu,cpuacct`, `memory`); for the v2 tree `unified`.
    pub(crate) hierarchy: String,
    pub(crate) path: PathBuf,
}

/// Opened doors into a cgroup, for a child that is about to be made or for the caller itself.
#[derive(Debug)]
pub struct Entry {
    /// v2 directory for CLONE_INTO_CGROUP.
    pub into: Option<OwnedFd>,
    /// v1 `tasks` files: the child writes `0` into each while it is single-threaded.
    pub tasks: Vec<OwnedFd>,
    /// The `tasks` file of v1's cpu hierarchy, apart from the others: a child that sets itself up for a program with few shares or a
    /// small quota joins it last, or its own work would be done at that pace.
    pub cpu: Option<OwnedFd>,
}

impl Entry {
    /// Moves the calling, single-threaded process in through the v1 doors but the cpu's. For a child that was cloned into the v2 one.
    pub fn join_tasks(&self) -> io::Result<()> {
        for tasks in &self.tasks {
            rustix::io::write(tasks, b"0")?;
        }
        Ok(())
    }

    /// Moves the calling, single-threaded process into the cpu hierarchy of v1.
    pub fn join_cpu(&self) -> io::Result<()> {
        if let Some(cpu) = &self.cpu {
            rustix::io::write(cpu, b"0")?;
        }
        Ok(())
    }
}

impl CgroupManager {
    /// Looks at `/sys/fs/cgroup` and at the caller's own cgroups.
    pub fn detect() -> Result<Self, CgroupError> {
        Self::detect_at(Path::new("/sys/fs/cgroup"))
    }

    /// [`Self::detect`] for a tree mounted elsewhere.
    pub fn detect_at(root: &Path) -> Result<Self, CgroupError> {
        let own = file::read_proc(Path::new("/proc/self/cgroup"))?;
        let layout = match file::filesystem(root)? {
            file::Filesystem::Cgroup2 => Layout::V2(v2::Tree::new(root, &own)),
            file::Filesystem::Other => Layout::V1(v1::Hierarchies::find(root, &own)?),
        };
        Ok(Self { layout })
    }

    /// Which version carries the controllers.
    pub fn version(&self) -> Version {
        match self.layout {
            Layout::V1(_) => Version::V1,
            Layout::V2(_) => Version::V2,
        }
    }

    /// Whether huge pages can be limited: a kernel may have no `hugetlb`, and a hybrid machine has it where limits are not.
    pub fn limits_huge_pages(&self) -> bool {
        match &self.layout {
            Layout::V1(hierarchies) => hierarchies.have(limits::Controller::Hugetlb),
            Layout::V2(tree) => tree.has(limits::Controller::Hugetlb),
        }
    }

    /// Whether swap can be limited: a v1 kernel may not count it. On v2 such a limit is passed over where it does not exist.
    pub fn limits_swap(&self) -> bool {
        match &self.layout {
            Layout::V1(hierarchies) => hierarchies.count_swap(),
            Layout::V2(_) => true,
        }
    }

    /// Whether a cgroup can be killed as a whole when one of its processes wants too much memory (`memory.oom.group`).
    pub fn has_oom_groups(&self) -> bool {
        match &self.layout {
            Layout::V1(_) => false,
            Layout::V2(tree) => tree.has(limits::Controller::Memory),
        }
    }

    /// Makes the cgroup at `path` (and its parents) with these limits; an existing one gets the limits. A path that begins with `/`
    /// counts from the mount point, another from the caller's own cgroup.
    pub fn create(&self, path: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        check_path(path)?;
        let cgroup = match &self.layout {
            Layout::V1(hierarchies) => hierarchies.create(path, limits)?,
            Layout::V2(tree) => tree.create(path, limits)?,
        };
        // A cgroup with half its limits is not handed out, and not left behind either.
        if let Err(error) = cgroup.set(limits) {
            drop(cgroup.remove());
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Changes the limits of the cgroup at `path`, which has processes. On v1 hierarchies that only the new limits need get a directory
    /// now, and the processes are moved into it: the one place where another process's pid is written.
    pub fn update(&self, path: &str, limits: &Limits) -> Result<(), CgroupError> {
        check_path(path)?;
        let before = self.open(path)?;
        let cgroup = match &self.layout {
            Layout::V1(hierarchies) => hierarchies.create(path, limits)?,
            Layout::V2(tree) => tree.create(path, limits)?,
        };
        v1::move_processes(&before, &cgroup)?;
        cgroup.set(&cgroup.completed(limits))
    }

    /// Changes the limits of the cgroup at `path`, which is another's: it is not made, in no hierarchy, and no process is moved.
    pub fn update_existing(&self, path: &str, limits: &Limits) -> Result<(), CgroupError> {
        let cgroup = self.open(path)?;
        for controller in limits.controllers() {
            if cgroup.directory_of(controller.v1_name()).is_none() {
                let controller = controller.name();
                return Err(CgroupError::Missing { path: path.to_owned(), controller });
            }
        }
        if let Layout::V2(tree) = &self.layout {
            // Its files are there once the controllers are on above it.
            tree.create(path, limits)?;
        }
        cgroup.set(limits)
    }

    /// The cgroup at `path` as far as it exists.
    pub fn open(&self, path: &str) -> Result<Cgroup, CgroupError> {
        check_path(path)?;
        Ok(match &self.layout {
            Layout::V1(hierarchies) => hierarchies.open(path),
            Layout::V2(tree) => tree.open(path),
        })
    }

    /// The cgroup at `path` for one more process: itself, or where its process `pid` is, if that has made cgroups of its own below.
    pub fn open_beside(&self, path: &str, pid: i32) -> Result<Cgroup, CgroupError> {
        let cgroup = self.open(path)?;
        match &self.layout {
            Layout::V1(_) => Ok(cgroup),
            Layout::V2(tree) => tree.beside(cgroup, pid),
        }
    }
}

impl Cgroup {
    /// Which version carries the controllers.
    pub fn version(&self) -> Version {
        self.version
    }

    /// False when no hierarchy has such a directory.
    pub fn exists(&self) -> bool {
        !self.directories.is_empty()
    }

    /// The directories, each with its hierarchy's name (`unified` for the v2 tree): for records, state files and binds.
    pub fn directories(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.directories.iter().map(|directory| (directory.hierarchy.as_str(), directory.path.as_path()))
    }

    /// Writes limits into the existing directories.
    pub fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => v1::set(self, limits),
            Version::V2 => v2::set(self, limits),
        }
    }

    /// Opens the doors for a child.
    pub fn entry(&self) -> Result<Entry, CgroupError> {
        let mut entry = Entry { into: None, tasks: Vec::new(), cpu: None };
        for directory in &self.directories {
            if directory.hierarchy == v2::NAME {
                entry.into = Some(file::open_directory(&directory.path)?);
            } else {
                let tasks = file::open_write(&directory.path.join("tasks"))?;
                if directory.hierarchy.split(',').any(|name| name == "cpu") {
                    entry.cpu = Some(tasks);
                } else {
                    entry.tasks.push(tasks);
                }
            }
        }
        Ok(entry)
    }

    /// Pids in this cgroup itself (not below it), in the caller's pid namespace.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let Some(directory) = self.directories.first() else { return Ok(Vec::new()) };
        let text = file::read_if_there(&directory.path.join("cgroup.procs"))?.unwrap_or_default();
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Pids in this cgroup and below it, in the caller's pid namespace, in order.
    pub fn pids_below(&self) -> Result<Vec<i32>, CgroupError> {
        let Some(directory) = self.directories.first() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        let mut pending = vec![directory.path.clone()];
        while let Some(directory) = pending.pop() {
            let text = file::read_if_there(&directory.join("cgroup.procs"))?.unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            pending.extend(file::subdirectories(&directory));
        }
        pids.sort_unstable();
        Ok(pids)
    }

    /// Kills every process in this cgroup and below it: by `cgroup.kill`, or without it by freezing, killing and thawing. They may take a
    /// moment to be gone.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if let Some(unified) = self.unified() {
            let kill = unified.join("cgroup.kill");
            if file::write_if_there(&kill, "1")? {
                return Ok(());
            }
        }
        kill::each(self)
    }

    /// Stops or lets go every process in this cgroup and below it.
    pub fn freeze(&self, frozen: Frozen) -> Result<(), CgroupError> {
        if let Some(unified) = self.unified() {
            let value = if frozen == Frozen::Yes { "1" } else { "0" };
            if file::write_if_there(&unified.join("cgroup.freeze"), value)? {
                return Ok(());
            }
        }
        v1::freeze(self, frozen)
    }

    /// Whether its processes were stopped by [`Self::freeze`].
    pub fn is_frozen(&self) -> bool {
        let read = |path: &Path| file::read_if_there(path).ok().flatten().unwrap_or_default();
        if let Some(unified) = self.unified() {
            return read(&unified.join("cgroup.freeze")).trim() == "1";
        }
        let freezer = self.directory_of("freezer").map(|directory| read(&directory.join("freezer.state")));
        freezer.is_some_and(|state| state.trim() != "THAWED" && !state.is_empty())
    }

    /// Stops every process in this cgroup and below it, and waits until they stand still, at most this long. Where they do not, they
    /// run on and it is an error.
    pub fn pause(&self, patience: std::time::Duration) -> Result<(), CgroupError> {
        if self.freeze_within(patience)? {
            return Ok(());
        }
        self.freeze(Frozen::No)?;
        Err(CgroupError::Unsupported("the processes could not be frozen".to_owned()))
    }

    /// Says whether every process in this cgroup and below it stands still now; those that do not are on their way.
    fn freeze_within(&self, patience: std::time::Duration) -> Result<bool, CgroupError> {
        /// It takes as long as it takes to wake each of them up: asking again at once is soon enough.
        const AT_ONCE: u32 = 100;
        if self.unified().is_none() && self.directory_of("freezer").is_none() {
            return Ok(self.directories.is_empty());
        }
        let mut left = patience;
        for turn in 0_u32.. {
            // On v1 the state must be written again when a process was forked meanwhile.
            self.freeze(Frozen::Yes)?;
            if self.stands_still() {
                return Ok(true);
            }
            if left.is_zero() {
                break;
            }
            if turn < AT_ONCE {
                std::thread::yield_now();
                continue;
            }
            let pause = left.min(std::time::Duration::from_millis(1));
            std::thread::sleep(pause);
            left = left.saturating_sub(pause);
        }
        Ok(false)
    }

    /// What is gone stands still, too.
    fn stands_still(&self) -> bool {
        if let Some(unified) = self.unified() {
            let events = unified.join("cgroup.events");
            return v2::count(&events, "frozen") == 1 || !events.exists();
        }
        let Some(directory) = self.directory_of("freezer") else { return false };
        file::read_if_there(&directory.join("freezer.state"))
            .is_ok_and(|state| state.is_none_or(|state| state.trim() == "FROZEN"))
    }

    /// Limits of a change, with what they only mean together with what is set already: memory beside its sum with swap, the quota
    /// beside a period.
    fn completed(&self, limits: &Limits) -> Limits {
        let mut limits = limits.clone();
        let memory = if self.version == Version::V2 { "memory.max" } else { "memory.limit_in_bytes" };
        if limits.memory_swap.is_some_and(|swap| swap > 0) && limits.memory_limit.is_none() {
            limits.memory_limit = self.number("memory", memory);
        }
        if self.version == Version::V2 && limits.cpu_period.is_some() && limits.cpu_quota.is_none() {
            limits.cpu_quota = self.number("cpu", "cpu.max");
        }
        limits
    }

    /// The first number in a control file; -1 for `max`.
    fn number(&self, controller: &str, name: &str) -> Option<i64> {
        let text = file::read(&self.directory_of(controller)?.join(name)).ok()?;
        match text.split_whitespace().next()? {
            "max" => Some(-1),
            number => number.parse().ok(),
        }
    }

    /// Removes every directory of this cgroup and those below. Gone already is fine; processes inside are an error (EBUSY).
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut first_error = None;
        for directory in &self.directories {
            if let Err(error) = file::remove_tree(&directory.path) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Removes the cgroup; if there still are processes, kills them and waits until they are gone, at most this long.
    pub fn destroy(&self, patience: std::time::Duration) -> Result<(), CgroupError> {
        if self.remove().is_ok() {
            return Ok(());
        }
        self.kill()?;
        let mut left = patience;
        while self.remove().is_err() && !left.is_zero() {
            let pause = left.min(std::time::Duration::from_millis(50));
            self.wait_for_change(pause);
            left = left.saturating_sub(pause);
        }
        self.remove()
    }

    /// Waits until `cgroup.events` of the v2 directory changes; without one, a millisecond.
    fn wait_for_change(&self, at_most: std::time::Duration) {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let events = self.unified().map(|directory| std::fs::File::open(directory.join("cgroup.events")));
        let Some(Ok(events)) = events else {
            // v1 tells nobody when its last process has gone.
            std::thread::sleep(std::time::Duration::from_millis(1));
            return;
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: at_most.subsec_nanos().into() };
        // Between opening and here it may have become empty: then the change is not seen, and the time limit ends the wait.
        if v2::count_in(&events, "populated") == Some(1) {
            let _ = rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout));
        }
    }

    /// How many processes of this cgroup the kernel has killed for lack of memory.
    pub fn oom_kills(&self) -> u64 {
        match self.version {
            Version::V1 => v1::oom_kills(self),
            Version::V2 => v2::oom_kills(self),
        }
    }

    /// Whether the kernel counts and limits what this cgroup swaps; never without its memory being counted.
    pub fn limits_swap(&self) -> bool {
        let name =
            if self.version == Version::V2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
        self.directory_of("memory").is_some_and(|directory| directory.join(name).exists())
    }

    /// The directory in one v1 hierarchy, or in the v2 tree whatever the controller.
    pub fn directory_of(&self, controller: &str) -> Option<&Path> {
        self.directories
            .iter()
            .find(|directory| match self.version {
                Version::V1 => directory.hierarchy.split(',').any(|name| name == controller),
                Version::V2 => true,
            })
            .map(|directory| directory.path.as_path())
    }

    fn unified(&self) -> Option<&Path> {
        self.directories
            .iter()
            .find(|directory| directory.hierarchy == v2::NAME)
            .map(|directory| directory.path.as_path())
    }
}

/// Whether a cgroup's processes may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    /// They stand still.
    Yes,
    /// They run.
    No,
}

fn check_path(path: &str) -> Result<(), CgroupError> {
    let relative = path.strip_prefix('/').unwrap_or(path);
    if relative.is_empty()
        || relative.split('/').any(|part| matches!(part, "" | "." | "..") || part.contains('\0'))
    {
        return Err(CgroupError::BadPath(path.to_owned()));
    }
    Ok(())
}

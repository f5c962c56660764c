//! What a launch consists of: checked, complete, small, and able to travel to the supervisor as JSON.

use std::path::PathBuf;

use host::cgroup::Limits;
use host::namespace::Namespace;
use host::sys::Scheduling;
use host::user_namespace::IdMap;
use serde::{Deserialize, Serialize};

use super::HooksPlan;

/// Where the container's root comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// A directory, bound.
    Directory(PathBuf),
    /// An overlay that is mounted inside the container's own mount namespace.
    Overlay {
        /// Read-only layers, top first.
        lower: Vec<PathBuf>,
        /// Writable layer.
        upper: PathBuf,
        /// Overlay's work directory, on the same file system as `upper`.
        work: PathBuf,
    },
}

/// Everything that starting a container needs, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchPlan {
    /// Namespaces the container gets new.
    pub new_namespaces: Vec<Namespace>,
    /// Namespaces it joins by path. Kinds in neither list are inherited from the caller.
    pub join_namespaces: Vec<(Namespace, PathBuf)>,
    /// Ids of its user namespace, if it has one: one of the new ones, or one that it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserPlan>,
    /// Its cgroup, made by `launch::start`; `None` = the caller's.
    pub cgroup: Option<CgroupPlan>,
    /// Its root.
    pub rootfs: Rootfs,
    /// Whether the root mount becomes read-only at the end.
    pub readonly_rootfs: bool,
    /// Propagation of the root mount (`MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`).
    pub root_propagation: u64,
    /// Mounts, in order.
    pub mounts: Vec<MountPlan>,
    /// Device nodes beside the standard ones.
    pub devices: Vec<DeviceNode>,
    /// Paths that show nothing.
    pub masked_paths: Vec<String>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<String>,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Host name for a new UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name for a new UTS namespace.
    pub domainname: Option<String>,
    /// How far the clocks of a new time namespace are ahead of the machine's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clocks: Vec<ClockOffset>,
    /// What runs in it.
    pub process: ProcessPlan,
    /// What runs beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<HooksPlan>,
}

/// How far a clock is ahead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// `monotonic` or `boottime`.
    pub clock: String,
    /// May be negative.
    pub seconds: i64,
    /// Added to these.
    pub nanoseconds: u32,
}

/// Ids of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPlan {
    /// Users; empty where the namespace is joined and the spec does not say.
    pub uid: Vec<IdMap>,
    /// Groups, likewise.
    pub gid: Vec<IdMap>,
}

/// A cgroup and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// As `host::cgroup::CgroupManager::create` takes it.
    pub path: String,
    /// What to write.
    pub limits: Limits,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// What is mounted there.
    pub kind: MountKind,
    /// `MOUNT_ATTR_*` to set on this mount.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear on this mount.
    pub clear: u64,
    /// `MOUNT_ATTR_*` to set on this mount and all below (`rro` and relatives).
    pub set_recursive: u64,
    /// `MOUNT_ATTR_*` to clear on this mount and all below.
    pub clear_recursive: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`.
    pub propagation: u64,
    /// Whether the propagation holds for the mounts below too (`rprivate` and relatives).
    pub propagation_recursive: bool,
    /// The mount shows other ids than there are on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<MountIds>,
}

/// Ids of a bind mount: `container` is what is on disk, `host` what the mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIds {
    /// Which; those of the container's user namespace where it does not say.
    pub ids: UserPlan,
    /// With the mounts below it.
    pub recursive: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// Something of the host.
    Bind {
        /// Absolute host path.
        source: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
    /// A new instance of a file system.
    New {
        /// Its type.
        filesystem: String,
        /// What mountinfo shows as source.
        source: String,
        /// Options of the file system: name, and value if it has one.
        options: Vec<(String, Option<String>)>,
        /// It begins with a copy of what lies where it is mounted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        copy_up: bool,
    },
    /// An image's layers, only to read: config.json has it as an overlay of nothing but `lowerdir+` options.
    Layers {
        /// Absolute host paths, the topmost layer first.
        lower: Vec<PathBuf>,
        /// The part of the image that is shown, resolved inside the image.
        sub_path: Option<PathBuf>,
    },
    /// The container's own cgroups.
    Cgroup,
}

/// A device node in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Block, character or fifo (`S_IFBLK`, `S_IFCHR`, `S_IFIFO`).
    pub file_type: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One process: of a container's start or of an exec session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute path in the container.
    pub cwd: PathBuf,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Capability sets.
    pub capabilities: Capabilities,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// (RLIMIT number, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Score for the OOM killer.
    pub oom_score_adj: Option<i32>,
    /// How it is scheduled; else as the starter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<Scheduling>,
    /// I/O priority: the kernel's number of the class, and the level in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<(u32, u32)>,
    /// Execution domain, as personality(2) takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<u32>,
    /// System call filter.
    pub seccomp: Option<SeccompPlan>,
    /// How many descriptors from 3 on stay open.
    pub preserve_fds: u32,
    /// The process gets a terminal of its own instead of three streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalPlan>,
    /// What becomes of it where its starter has not the rights that it asks for.
    #[serde(default)]
    pub without_rights: WithoutRights,
}

/// What follows where whoever starts a process may not give it a capability, a hard limit or an OOM score that it asks for: root in a
/// container has no CAP_SYS_RESOURCE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutRights {
    /// It runs without: a pod would run nowhere else, and the agent has said so when it began.
    #[default]
    GoOn,
    /// It is not started, as runc has it.
    Refuse,
}

/// A terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalPlan {
    /// How large it is to begin with; else the kernel's 0 by 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// Capability sets as bit masks. Inheritable is not here: it is what ambient needs, else empty (CVE-2022-29162).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Limit for everything that is ever executed.
    pub bounding: u64,
    /// Active.
    pub effective: u64,
    /// May be made active.
    pub permitted: u64,
    /// Kept over exec without privilege.
    pub ambient: u64,
}

/// A compiled system call filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompPlan {
    /// In a file of `struct sock_filter`s, read by whoever starts the process.
    File {
        /// Absolute host path.
        path: PathBuf,
        /// `SECCOMP_FILTER_FLAG_*`.
        flags: u32,
    },
    /// Here.
    Inline {
        /// `struct sock_filter`s.
        program: Vec<u8>,
        /// `SECCOMP_FILTER_FLAG_*`.
        flags: u32,
    },
}

/// An exec session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// What runs.
    pub process: ProcessPlan,
    /// The container's cgroup path, joined by the new process; `None` = the caller's.
    pub cgroup: Option<String>,
}

/// Whom an exec session joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecTarget {
    /// The container's init.
    pub init: host::process::ProcessId,
    /// Namespaces that init has of its own and the caller does not share.
    pub namespaces: Vec<Namespace>,
    /// Ids of its user namespace, as far as they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserPlan>,
}

impl UserPlan {
    /// Which user of the host `uid` of the namespace is; itself where that is not known.
    pub fn host_uid(&self, uid: u32) -> u32 {
        host::user_namespace::on_host(&self.uid, uid).unwrap_or(uid)
    }

    /// Likewise for a group.
    pub fn host_gid(&self, gid: u32) -> u32 {
        host::user_namespace::on_host(&self.gid, gid).unwrap_or(gid)
    }
}

impl LaunchPlan {
    /// Whether its cgroups look like roots of their hierarchies to it.
    #[must_use]
    pub fn has_cgroup_namespace(&self) -> bool {
        self.new_namespaces.contains(&Namespace::Cgroup)
            || self.join_namespaces.iter().any(|(kind, _)| *kind == Namespace::Cgroup)
    }

    /// The namespaces in which a container started from this plan differs from its starter: what an [`ExecTarget`] must name.
    pub fn own_namespaces(&self) -> Vec<Namespace> {
        let joined = self.join_namespaces.iter().map(|(kind, _)| *kind);
        self.new_namespaces.iter().copied().chain(joined).collect()
    }
}

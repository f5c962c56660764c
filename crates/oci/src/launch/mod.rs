//! Starts containers and exec sessions from plans. Single-threaded callers only (the supervisor, `podwright oci`).

use std::io;
use std::os::fd::OwnedFd;

use host::cgroup::{CgroupError, CgroupManager};

use crate::plan::{ExecPlan, ExecTarget, LaunchPlan};

/// Standard streams of a new process. Closed in the caller once it is started.
#[derive(Debug)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// Holds a container back right before it executes its program: it waits until one byte can be read from this descriptor (a fifo opened
/// read-write, an eventfd, a pipe). Errors after the gate are not reported to the starter: the process says them on its stderr and
/// exits 255.
#[derive(Debug)]
pub struct Gate(pub OwnedFd);

/// A started process.
#[derive(Debug)]
pub struct Child {
    /// Pid in the caller's namespace.
    pub pid: i32,
    /// Becomes readable when it ends.
    pub pidfd: OwnedFd,
    /// In clock ticks since boot.
    pub start_time: u64,
}

/// Why a process was not started. Its text is what runc says where runc has a text.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The cgroup could not be made or joined.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The program cannot be executed: `exec: "x": executable file not found in $PATH`.
    #[error("exec: {program:?}: {reason}")]
    Exec {
        /// `args[0]`.
        program: String,
        /// Why, in the words of runc.
        reason: String,
        /// The errno.
        errno: i32,
    },
    /// A step inside the new process.
    #[error("{step}")]
    Child {
        /// What was being done, on what.
        step: String,
        /// Why not.
        source: io::Error,
    },
    /// A step of the starter.
    #[error("{step}")]
    Starter {
        /// What was being done.
        step: String,
        /// Why not.
        source: io::Error,
    },
    /// The container to exec into has no running init.
    #[error("container is not running")]
    NotRunning,
}

impl LaunchError {
    /// The exit code shells and runtimes use: 127 not found, 126 not executable, 128 anything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exec { errno, .. } if *errno == libc::ENOENT => 127,
            Self::Exec { .. } => 126,
            _ => 128,
        }
    }
}

/// Makes the cgroup, clones, sets everything up, and returns when the program was executed (or waits at the gate). On an error nothing
/// is left: no process, no cgroup.
pub fn start(
    cgroups: &CgroupManager,
    plan: &LaunchPlan,
    stdio: Stdio,
    gate: Option<Gate>,
) -> Result<Child, LaunchError> {
    let _ = (cgroups, plan, stdio, gate);
    Err(LaunchError::NotRunning)
}

/// Starts a process inside a running container, and returns when its program was executed.
pub fn exec(
    cgroups: &CgroupManager,
    target: &ExecTarget,
    plan: &ExecPlan,
    stdio: Stdio,
) -> Result<Child, LaunchError> {
    let _ = (cgroups, target, plan, stdio);
    Err(LaunchError::NotRunning)
}

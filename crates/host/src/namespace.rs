//! Namespaces: kinds, clone flags, joining. What to create or join is decided elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sys;

/// A kind of namespace this project uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Process ids.
    Pid,
    /// Mounts.
    Mnt,
    /// Cgroup root.
    Cgroup,
    /// User and group ids, and capabilities.
    User,
    /// The monotonic and the boot clock (for new ones: of its children).
    Time,
}

impl Namespace {
    /// The `CLONE_NEW*` flag.
    pub fn clone_flag(self) -> u64 {
        let flag = match self {
            Self::Net => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Mnt => libc::CLONE_NEWNS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::User => libc::CLONE_NEWUSER,
            Self::Time => libc::CLONE_NEWTIME,
        };
        u64::from(flag as u32)
    }

    /// The file name below `/proc/PID/ns`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::Mnt => "mnt",
            Self::Cgroup => "cgroup",
            Self::User => "user",
            Self::Time => "time",
        }
    }
}

/// Moves the calling thread into new namespaces of these kinds (for pid: its children).
pub fn unshare(kinds: &[Namespace]) -> io::Result<()> {
    sys::unshare(kinds.iter().fold(0, |flags, kind| flags | kind.clone_flag()))
}

/// Moves the calling thread into one namespace; the kernel verifies that the file is of this kind.
pub fn join(namespace: impl AsFd, kind: Namespace) -> io::Result<()> {
    sys::setns(namespace.as_fd(), kind.clone_flag())
}

/// Moves the calling thread into several namespaces of the process behind a pidfd at once.
pub fn join_process(pidfd: impl AsFd, kinds: &[Namespace]) -> io::Result<()> {
    sys::setns(pidfd.as_fd(), kinds.iter().fold(0, |flags, kind| flags | kind.clone_flag()))
}

/// Opens a namespace file.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Runs `work` on a thread of its own inside the given network namespace, so that the caller's threads stay where they are.
pub fn with_network<T: Send>(namespace: impl AsFd, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = namespace.as_fd();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || join(namespace, Namespace::Net).map(|()| work()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

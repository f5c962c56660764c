//! Processes the supervisor started: how they ended, by pidfd, and clearing away orphans that are nobody's.

use std::os::fd::{AsFd, OwnedFd};

use host::process::{Exit, try_wait};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::sys;

/// Collects the process if it has ended.
pub(super) fn collect(pidfd: &OwnedFd) -> Option<Exit> {
    match try_wait(pidfd.as_fd()) {
        Ok(exit) => exit,
        // Not ours to wait for any more: it is gone, and its status with it.
        Err(_) => Some(Exit::Code(255)),
    }
}

/// The signal that ended a process, as the protocol has it.
pub(super) fn signal_of(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(_) => None,
        Exit::Signal(signal) => Some(signal),
    }
}

/// Whether [`collect_orphans`] found every ended child to be an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orphans {
    /// Nothing is left to collect.
    AllCollected,
    /// A tracked process stands first in the kernel's list; call again once its pidfd was served.
    Behind,
}

/// Collects ended children until it meets one that `is_tracked`, which is left for its pidfd. Orphans come to the supervisor
/// because it is a subreaper; a tracked process keeps its pid until it is collected, so the two cannot be confused.
pub(super) fn collect_orphans(is_tracked: impl Fn(i32) -> bool) -> Orphans {
    while let Ok(Some(pid)) = sys::ended_child() {
        if is_tracked(pid) {
            return Orphans::Behind;
        }
        let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
    }
    Orphans::AllCollected
}

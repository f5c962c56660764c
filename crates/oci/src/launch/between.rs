//! The go-between of a container with a user namespace.
//!
//! ```text
//! starter ──clone──► go-between: opens everything of the host, joins the user namespace ──clone──► container's init
//!    ▲                   └─ pidfd, then exits                                                              │
//!    └────────────── parent of both (CLONE_PARENT), reads both their reports ◄─────────────────────────────┘
//! ```
//!
//! Who has joined a user namespace cannot come back, and namespaces belong to the user namespace in which they are made: so somebody
//! must join it and make them there who is not the starter.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use host::namespace::{self, Namespace};
use host::sys::{self, Forked};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::container::{self, Seed, join_namespaces};
use super::report::{Failure, Reporter, Step};
use super::{LaunchError, clocks, credentials, user};
use crate::console;
use crate::plan::ProcessPlan;

/// Brings the pidfd of the container's init to the starter.
pub(super) struct Channel {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Channel {
    pub(super) fn new() -> Result<Self, LaunchError> {
        let pair = console::pair();
        let (ours, theirs) =
            pair.map_err(|source| LaunchError::Starter { step: "make a socket pair".to_owned(), source })?;
        Ok(Self { ours, theirs })
    }

    /// Waits until the go-between has done its work. `None` if it has failed: the reason is in its report.
    pub(super) fn adopt(&self, between: &OwnedFd) -> io::Result<Option<(i32, OwnedFd)>> {
        host::process::wait(between.as_fd())?;
        // It is there, or will never be.
        match console::receive(&self.ours) {
            Ok(pidfd) => Ok(Some((host::process::pid_of(pidfd.as_fd())?, pidfd))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn send(&self, pidfd: &OwnedFd) -> rustix::io::Result<()> {
        let descriptors = [pidfd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        rustix::net::sendmsg(&self.theirs, &[io::IoSlice::new(b"p")], &mut control, SendFlags::NOSIGNAL)
            .map(drop)
    }
}

/// Comes back only with what went wrong: here, or in the container's init.
pub(super) fn run(seed: &Seed<'_>, channel: &Channel, flags: u64, reporter: &mut Reporter) -> Failure {
    match set_up(seed, channel, flags, reporter) {
        Ok(never) | Err(never) => never,
    }
}

fn set_up(
    seed: &Seed<'_>,
    channel: &Channel,
    flags: u64,
    reporter: &mut Reporter,
) -> Result<Failure, Failure> {
    container::shield(seed.plan.process.preserve_fds)?;
    join_namespaces(seed.joins)?;
    set_oom_score(&seed.plan.process)?;
    namespace::unshare(&[Namespace::Mnt]).step(|| "make a mount namespace".to_owned())?;
    if seed.plan.new_namespaces.contains(&Namespace::Time) {
        clocks::set_for_children(&seed.plan.clocks).step(|| "make a time namespace".to_owned())?;
    }
    let joined = seed.joins.iter().find(|(kind, _)| *kind == Namespace::User).map(|(_, fd)| fd);
    let prepared = user::prepare(seed.plan, seed.mount_ids, joined)?;
    if let Some(joined) = joined {
        namespace::join(joined, Namespace::User).step(|| "join the user namespace".to_owned())?;
    }
    match sys::fork_sibling(flags).step(|| "clone".to_owned())? {
        Forked::Child => Ok(container::run(seed, Some(&prepared), reporter)),
        Forked::Parent { pidfd, .. } => {
            channel.send(&pidfd).step(|| "tell of the new process".to_owned())?;
            sys::exit_now(0)
        }
    }
}

/// While /proc is the host's and this process may write to it; whom it clones inherits the score. Lowering it needs CAP_SYS_RESOURCE,
/// which not every root has.
pub(super) fn set_oom_score(process: &ProcessPlan) -> Result<(), Failure> {
    let Some(score) = process.oom_score_adj else { return Ok(()) };
    let written = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    credentials::if_allowed(process, written).step(|| format!("set oom_score_adj to {score}"))
}

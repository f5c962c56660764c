//! The first process of a pod PID namespace: keeps the namespace alive and reaps orphans. It has no privileges, and an empty
//! read-only root: its `/proc/1/root` is in reach of containers that may trace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use host::namespace::Namespace;
use host::process::{pidfd_send_signal, try_wait, wait_ended};
use host::sys::{Forked, fork_into};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::sys;

/// The user that pause containers run as.
const PAUSE_ID: u32 = 65_535;

/// A running pause process.
#[derive(Debug)]
pub(super) struct Pause {
    pub(super) pid: i32,
    pidfd: OwnedFd,
}

/// How long [`Pause::end`] waits for everything in the namespace to be gone.
const END: Duration = Duration::from_secs(2);

impl Pause {
    /// Ends the namespace, with everything in it, and collects its first process.
    pub(super) fn end(&self) {
        let _ = pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        if wait_ended(&self.pidfd, END).is_ok_and(|ended| ended) {
            let _ = try_wait(self.pidfd.as_fd());
        }
    }
}

/// Starts the pause process; the caller has unshared the PID namespace and started nothing in it. `mount_point` is any
/// directory; nothing is mounted on it outside the new process.
pub(super) fn start(mount_point: &Path) -> io::Result<Pause> {
    let (report, failure) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (pid, pidfd) = match fork_into(0, None)? {
        Forked::Child => run(failure.as_raw_fd(), mount_point),
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(failure);
    let pause = Pause { pid, pidfd };
    let mut errno = [0; 4];
    // The end of the pipe without a word means that the process is set up.
    match rustix::io::read(&report, &mut errno)? {
        0 => Ok(pause),
        _ => {
            pause.end();
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
    }
}

fn run(failure: std::os::fd::RawFd, mount_point: &Path) -> ! {
    sys::reset_signal_handlers();
    // Number 3 is the only descriptor kept besides the null device on 0, 1 and 2.
    let Ok(failure) = keep_only(failure) else { host::sys::exit_now(1) };
    if let Err(error) = isolate(mount_point) {
        let _ = rustix::io::write(&failure, &error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
        host::sys::exit_now(1);
    }
    drop(failure);
    sys::sleep_for_ever()
}

fn isolate(mount_point: &Path) -> io::Result<()> {
    host::namespace::unshare(&[Namespace::Mnt])?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(
        "tmpfs",
        mount_point,
        "tmpfs",
        flags | MountFlags::RDONLY,
        Some(c"size=0,nr_inodes=2,mode=555"),
    )?;
    let root =
        rustix::fs::open(mount_point, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    drop(root);
    let _ = rustix::thread::set_name(c"pause");
    sys::drop_privileges(PAUSE_ID)?;
    sys::die_with_parent()
}

fn keep_only(failure: std::os::fd::RawFd) -> io::Result<OwnedFd> {
    let failure = sys::move_to_three(failure)?;
    sys::close_from(4)?;
    Ok(failure)
}

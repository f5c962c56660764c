//! The first process of a pod PID namespace: keeps the namespace alive and reaps orphans. It has no privileges, and an empty
//! read-only root: its `/proc/1/root` is in reach of containers that may trace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use host::memory::OwnMappings;
use host::mount::{self, MountAttributes, Parameter};
use host::namespace::Namespace;
use host::process::{pidfd_send_signal, try_wait, wait_ended};
use host::sys::{Forked, fork_into};
use rustix::fs::{Mode, OFlags};

use super::sys;

/// The user that pause containers run as.
const PAUSE_ID: u32 = 65_535;

/// Which ids there are for the pause process to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ids {
    /// All.
    Host,
    /// So many from 0, those of a user namespace.
    Namespace(u32),
}

impl Ids {
    /// Root only where there is nobody else.
    fn of_pause(self) -> u32 {
        match self {
            Self::Host => PAUSE_ID,
            Self::Namespace(count) => PAUSE_ID.min(count.saturating_sub(1)),
        }
    }
}

/// A running pause process.
#[derive(Debug)]
pub(super) struct Pause {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
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

/// Starts the pause process; the caller has unshared the PID namespace and started nothing in it.
pub(super) fn start(ids: Ids) -> io::Result<Pause> {
    let (report, failure) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (pid, pidfd) = match fork_into(0, None)? {
        Forked::Child => run(failure.as_raw_fd(), ids),
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(failure);
    started(Pause { pid, pidfd }, &report)
}

/// Waits until the process that is to be the pause process is set up.
pub(super) fn started(pause: Pause, report: &OwnedFd) -> io::Result<Pause> {
    let mut errno = [0; 4];
    // The end of the pipe without a word means that the process is set up.
    match rustix::io::read(report, &mut errno)? {
        0 => Ok(pause),
        _ => {
            pause.end();
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
    }
}

/// Makes the calling process the pause process, which the first of its namespace must be. Writes to `failure` why it cannot.
pub(super) fn run(failure: std::os::fd::RawFd, ids: Ids) -> ! {
    sys::reset_signal_handlers();
    // Number 3 is the only descriptor kept besides the null device on 0, 1 and 2.
    let Ok(failure) = keep_only(failure) else { host::sys::exit_now(1) };
    match isolate(ids) {
        Ok(memory) => {
            drop(failure);
            memory.sleep_without()
        }
        Err(error) => {
            let _ = rustix::io::write(&failure, &error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
            host::sys::exit_now(1)
        }
    }
}

fn isolate(ids: Ids) -> io::Result<OwnMappings> {
    // While there is a /proc.
    let memory = OwnMappings::open()?;
    host::namespace::unshare(&[Namespace::Mnt])?;
    let old = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
    mount::set_attributes(&old, mount::Depth::Recursive, private)?;
    let attributes =
        libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_RDONLY;
    let options = [
        Parameter::String("size", "0"),
        Parameter::String("nr_inodes", "2"),
        Parameter::String("mode", "555"),
    ];
    let root = mount::new_filesystem("tmpfs", "tmpfs", &options, attributes)?;
    mount::attach(&root, &old)?;
    rustix::process::fchdir(&root)?;
    mount::pivot_to_working_directory()?;
    let _ = rustix::thread::set_name(c"pause");
    sys::drop_privileges(ids.of_pause())?;
    sys::die_with_parent()?;
    Ok(memory)
}

fn keep_only(failure: std::os::fd::RawFd) -> io::Result<OwnedFd> {
    let failure = sys::move_to_three(failure)?;
    sys::close_from(4)?;
    Ok(failure)
}

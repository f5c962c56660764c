//! Namespaces of a pod with a user namespace of its own. They belong to it only if they are made in it, and whoever joins it cannot come
//! back: so a process of its own makes and furnishes them, and the supervisor joins all but the user namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use host::namespace::{self, Namespace};
use host::process::{pidfd_send_signal, wait};
use host::sys::{self, Forked};
use host::user_namespace;
use rustix::pipe::{PipeFlags, pipe_with};

use super::pause::{self, Pause};
use super::protocol::{PidMode, Setup, SetupFailure};
use super::setup::{furnish, own_namespaces, step};
use crate::plan::UserPlan;

/// What the maker says when everything is there.
const MADE: u8 = b'+';

/// What is left of the making.
pub(super) struct Owned {
    pub(super) user_namespace: OwnedFd,
    /// The maker itself, where it is to be the first process of a PID namespace.
    pub(super) pause: Option<Pause>,
}

/// Makes the namespaces and joins them.
pub(super) fn make(setup: &Setup, user: &UserPlan) -> Result<Owned, SetupFailure> {
    let kinds = own_namespaces(setup);
    let maker = step("clone into a user namespace", Maker::start(setup, &kinds, user))?;
    let outcome = maker.work(&kinds, user);
    if setup.namespaces.pid == PidMode::Pod && outcome.is_ok() {
        let Maker { pause, report, .. } = maker;
        let pause = Some(step("start pause process", pause::started(pause, &report))?);
        return outcome.map(|user_namespace| Owned { user_namespace, pause });
    }
    maker.end();
    outcome.map(|user_namespace| Owned { user_namespace, pause: None })
}

struct Maker {
    pause: Pause,
    /// Lets it begin, once its ids are mapped.
    word: OwnedFd,
    report: OwnedFd,
}

impl Maker {
    fn start(setup: &Setup, kinds: &[Namespace], user: &UserPlan) -> io::Result<Self> {
        let (told, word) = pipe_with(PipeFlags::CLOEXEC)?;
        let (report, telling) = pipe_with(PipeFlags::CLOEXEC)?;
        let flags = kinds.iter().fold(Namespace::User.clone_flag(), |flags, kind| flags | kind.clone_flag());
        match sys::fork_into(flags, None)? {
            Forked::Child => {
                drop((word, report));
                run(setup, user, &told, &telling)
            }
            Forked::Parent { pid, pidfd } => Ok(Self { pause: Pause { pid, pidfd }, word, report }),
        }
    }

    /// Maps its ids, waits for what it makes, and joins that.
    fn work(&self, kinds: &[Namespace], user: &UserPlan) -> Result<OwnedFd, SetupFailure> {
        let pid = self.pause.pid;
        step("map ids", user_namespace::write_maps(pid, &user.uid, &user.gid))?;
        step("let namespaces be made", rustix::io::write(&self.word, b"g").map_err(io::Error::from))?;
        self.listen()?;
        let path = format!("/proc/{pid}/ns/user");
        let user_namespace = step("open the user namespace", namespace::open(Path::new(&path)))?;
        if !kinds.is_empty() {
            step("join the pod's namespaces", namespace::join_process(&self.pause.pidfd, kinds))?;
        }
        Ok(user_namespace)
    }

    fn listen(&self) -> Result<(), SetupFailure> {
        let mut first = [0_u8; 1];
        let read = rustix::io::read(&self.report, &mut first).map_err(io::Error::from);
        match step("wait for namespaces", read)? {
            1 if first[0] == MADE => return Ok(()),
            0 => return Err(failed("make namespaces", "their maker has ended")),
            _ => {}
        }
        let mut rest = vec![0_u8; 4096];
        let length = rustix::io::read(&self.report, &mut rest[..]).unwrap_or(0);
        let text = [&first[..], &rest[..length]].concat();
        Err(serde_json::from_slice(&text)
            .unwrap_or_else(|_| failed("make namespaces", "their maker speaks nonsense")))
    }

    fn end(self) {
        let _ = pidfd_send_signal(self.pause.pidfd.as_fd(), libc::SIGKILL);
        let _ = wait(self.pause.pidfd.as_fd());
    }
}

fn failed(phase: &str, message: &str) -> SetupFailure {
    SetupFailure { phase: phase.to_owned(), message: message.to_owned() }
}

/// The maker: furnishes the namespaces that it was cloned into, then waits to be ended, or is the pause process.
fn run(setup: &Setup, user: &UserPlan, told: &OwnedFd, report: &OwnedFd) -> ! {
    // The end of the file: the supervisor has ended, or has given up.
    if rustix::io::read(told, &mut [0_u8; 1]) != Ok(1) {
        sys::exit_now(1)
    }
    let furnished = step("become root of the user namespace", become_root()).and_then(|()| furnish(setup));
    if let Err(failure) = furnished {
        let text = serde_json::to_vec(&failure).unwrap_or_default();
        let _ = rustix::io::write(report, &text[..text.len().min(4000)]);
        sys::exit_now(1)
    }
    let _ = rustix::io::write(report, &[MADE]);
    if setup.namespaces.pid == PidMode::Pod {
        let count = user.uid.iter().filter(|map| map.container == 0).map(|map| map.size).min().unwrap_or(0);
        pause::run(report.as_raw_fd(), pause::Ids::Namespace(count))
    }
    // Until it is killed, or the supervisor ends.
    let _ = rustix::io::read(told, &mut [0_u8; 1]);
    sys::exit_now(0)
}

fn become_root() -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    Ok(rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?)
}

//! From a fresh process to a pod's supervisor: one straight ladder of steps. A step that goes wrong ends the process, and with
//! it everything that earlier steps made.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use host::cgroup::{CgroupManager, Limits};
use host::namespace::{self, Namespace};
use host::process::{ProcessId, wait};
use host::sys::{Forked, exit_now, fork_into};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, getpid, set_child_subreaper};

use super::frame::{FrameReader, Payload, encode_json};
use super::owned;
use super::pause::{self, Pause};
use super::protocol::{NamespaceMode, PidMode, Ready, SOCKET_NAME, ServerMessage, Setup, SetupFailure};
use super::{sys, sysctl};

/// What set-up leaves for the event loop.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) setup: Setup,
    pub(super) ready: Ready,
    pub(super) pause: Option<Pause>,
    /// Keeps the pod's user namespace open under the path that was told.
    pub(super) user_namespace: Option<OwnedFd>,
    pub(super) cgroups: CgroupManager,
    /// The connection that brought the set-up.
    pub(super) agent: OwnedFd,
    /// Accepts later agents.
    pub(super) listener: OwnedFd,
    /// Readable after SIGCHLD.
    pub(super) children: OwnedFd,
}

/// Sets everything up and tells the agent. Returns nothing if the process has to end; the agent knows why, if it lives.
pub(super) fn run() -> Option<Pod> {
    let (agent, children) = isolate_process().ok()?;
    let setup = read_setup(&agent)?;
    // The next agent may have removed this sandbox already: a cgroup that is made now would be nobody's.
    if is_gone(&agent) {
        return None;
    }
    match build(&setup) {
        Ok(Built { ready, pause, user_namespace, listener, cgroups, first }) => {
            // An agent that is gone never learns of this supervisor, so nobody would ever end it.
            if send(&agent, &ServerMessage::Ready(ready.clone())).is_err() {
                remove_socket(&setup.directory);
                return None;
            }
            first.into_iter().for_each(First::leave);
            Some(Pod { setup, ready, pause, user_namespace, cgroups, agent, listener, children })
        }
        Err(failure) => {
            remove_socket(&setup.directory);
            let _ = send(&agent, &ServerMessage::SetupFailed(failure));
            None
        }
    }
}

/// Cuts what ties the process to the agent: descriptors, session, signals, working directory.
fn isolate_process() -> io::Result<(OwnedFd, OwnedFd)> {
    let agent = sys::take_stdin()?;
    let agent = if agent.as_raw_fd() == 3 { agent } else { sys::move_to_three(agent.as_raw_fd())? };
    sys::close_from(4)?;
    sys::null_stdio()?;
    let children = sys::install_signal_handlers()?;
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let _ = rustix::thread::set_name(c"podwright-sup");
    Ok((agent, children))
}

fn read_setup(agent: &OwnedFd) -> Option<Setup> {
    let mut frames = FrameReader::default();
    let mut buffer = [0; 4096];
    loop {
        match frames.next_payload() {
            Ok(Some(Payload::Json(json))) => match serde_json::from_slice(json) {
                Ok(setup) => return Some(setup),
                Err(error) => {
                    let failure = SetupFailure { phase: "read set-up".into(), message: error.to_string() };
                    let _ = send(agent, &ServerMessage::SetupFailed(failure));
                    return None;
                }
            },
            Ok(Some(Payload::Output { .. })) | Err(_) => return None,
            Ok(None) => match rustix::io::read(agent, &mut buffer) {
                Ok(0) => return None,
                Ok(length) => frames.push(&buffer[..length]),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            },
        }
    }
}

/// Whether the agent has closed its end, also by dying.
fn is_gone(agent: &OwnedFd) -> bool {
    let mut ends = [PollFd::new(agent, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut ends, Some(&now)).is_ok() && ends[0].revents().contains(PollFlags::HUP)
}

fn send(agent: &OwnedFd, message: &ServerMessage) -> io::Result<()> {
    let mut bytes = Vec::new();
    encode_json(&mut bytes, message).map_err(io::Error::other)?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let sent = rustix::net::send(agent, rest, rustix::net::SendFlags::NOSIGNAL)?;
        rest = &rest[sent..];
    }
    Ok(())
}

struct Built {
    ready: Ready,
    pause: Option<Pause>,
    user_namespace: Option<OwnedFd>,
    listener: OwnedFd,
    cgroups: CgroupManager,
    first: Option<First>,
}

fn build(setup: &Setup) -> Result<Built, SetupFailure> {
    let cgroups = step("find cgroups", CgroupManager::detect().map_err(io::Error::other))?;
    let first = match &setup.cgroup {
        Some(path) => step(&format!("enter cgroup {path}"), enter_cgroup(&cgroups, path))?,
        None => None,
    };
    // Not before: a clone has neither. The session is refused only to a process that leads its group already, which is as good.
    let _ = rustix::process::setsid();
    step("adopt orphans", set_child_subreaper(Some(getpid())).map_err(io::Error::from))?;
    if let Some(score) = setup.oom_score_adj {
        // Lowering it needs CAP_SYS_RESOURCE, which nested machines lack; a supervisor without it is only less protected.
        let _ = write_file(Path::new("/proc/self/oom_score_adj"), score.to_string().as_bytes());
    }
    // Before the pod's network namespace, whose /proc/net/unix would show it, and whose somaxconn the pod may choose.
    let listener = step("bind supervisor socket", bind_socket(&setup.directory))?;
    let (pause, user_namespace) = match &setup.user {
        None => (unshared(setup)?, None),
        Some(user) => owned::make(setup, user).map(|owned| (owned.pause, Some(owned.user_namespace)))?,
    };
    let process = step("read own identity", ProcessId::of(getpid().as_raw_nonzero().get()))?;
    let opened_at = |fd: &OwnedFd| format!("/proc/{}/fd/{}", process.pid, fd.as_raw_fd()).into();
    let ready = Ready {
        pause_pid: pause.as_ref().map(|pause| pause.pid),
        user_namespace: user_namespace.as_ref().map(opened_at),
        process,
    };
    Ok(Built { ready, pause, user_namespace, listener, cgroups, first })
}

/// Namespaces that belong to the supervisor's own user namespace.
fn unshared(setup: &Setup) -> Result<Option<Pause>, SetupFailure> {
    step("unshare namespaces", namespace::unshare(&own_namespaces(setup)))?;
    furnish(setup)?;
    match setup.namespaces.pid {
        PidMode::Pod => step("start pause process", pause::start(pause::Ids::Host)).map(Some),
        PidMode::Container | PidMode::Node => Ok(None),
    }
}

/// Gives the namespaces that the caller is in what the pod finds in them.
pub(super) fn furnish(setup: &Setup) -> Result<(), SetupFailure> {
    if let (Some(hostname), NamespaceMode::Pod) = (&setup.hostname, setup.namespaces.uts) {
        let set = rustix::system::sethostname(hostname.as_bytes()).map_err(io::Error::from);
        step(&format!("set host name {hostname:?}"), set)?;
    }
    if setup.namespaces.network == NamespaceMode::Pod {
        step("bring loopback up", sys::loopback_up())?;
    }
    sysctl::write_all(&setup.sysctls, setup.namespaces)
        .map_err(|(name, error)| failure(&format!("write sysctl {name}"), &error))
}

/// Those that the pod does not share with the node.
pub(super) fn own_namespaces(setup: &Setup) -> Vec<Namespace> {
    let namespaces = setup.namespaces;
    let own = [
        (Namespace::Net, namespaces.network == NamespaceMode::Pod),
        (Namespace::Ipc, namespaces.ipc == NamespaceMode::Pod),
        (Namespace::Uts, namespaces.uts == NamespaceMode::Pod),
        (Namespace::Pid, namespaces.pid == PidMode::Pod),
    ];
    own.into_iter().filter_map(|(namespace, own)| own.then_some(namespace)).collect()
}

/// Goes into the cgroup. Into one of v2 goes a clone, and the caller of this is the clone: for a process that moves, the kernel waits
/// until every CPU has come to rest once, which takes 8 to 25 ms; for one that is made there it does not.
fn enter_cgroup(cgroups: &CgroupManager, path: &str) -> io::Result<Option<First>> {
    let cgroup = cgroups.create(path, &Limits::default()).map_err(io::Error::other)?;
    let entry = cgroup.entry().map_err(io::Error::other)?;
    let first = entry.into.as_ref().map(|into| First::stay_behind(into.as_fd())).transpose()?;
    entry.join_tasks()?;
    entry.join_cpu()?;
    Ok(first)
}

/// The process that the agent started, for its clone. Until it leaves, it ends when the clone has ended: the agent, which knows no other
/// process before [`Ready`], then knows that nothing is left.
#[derive(Debug)]
struct First {
    word: OwnedFd,
}

impl First {
    /// Clones the caller into the cgroup. Only the clone returns.
    fn stay_behind(into: BorrowedFd<'_>) -> io::Result<Self> {
        let (told, word) = pipe_with(PipeFlags::CLOEXEC)?;
        let clone = match fork_into(0, Some(into))? {
            Forked::Child => return Ok(Self { word }),
            Forked::Parent { pidfd, .. } => pidfd,
        };
        drop(word);
        let is_set_up = rustix::io::read(&told, &mut [0]) == Ok(1);
        if !is_set_up {
            let _ = wait(clone.as_fd());
        }
        exit_now(i32::from(!is_set_up))
    }

    /// Lets it end.
    fn leave(self) {
        // It may have been killed, and then it has left.
        let _ = rustix::io::write(&self.word, b"+");
    }
}

pub(super) fn step<T>(phase: &str, result: io::Result<T>) -> Result<T, SetupFailure> {
    result.map_err(|error| failure(phase, &error))
}

fn failure(phase: &str, error: &io::Error) -> SetupFailure {
    SetupFailure { phase: phase.to_owned(), message: error.to_string() }
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes)?;
    Ok(())
}

/// Binds through the directory's descriptor, because the path may not fit into `sockaddr_un`.
fn bind_socket(directory: &Path) -> io::Result<OwnedFd> {
    let directory =
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::unlinkat(&directory, SOCKET_NAME, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd()))?;
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = bind(&socket, &address);
    rustix::process::umask(umask);
    bound?;
    listen(&socket, 512)?;
    Ok(socket)
}

/// Removes the socket of a supervisor that ends.
pub(super) fn remove_socket(directory: &Path) {
    let _ = std::fs::remove_file(directory.join(SOCKET_NAME));
}

//! Starts containers and exec sessions from plans. Single-threaded callers only (the supervisor, `podwright oci`).
//!
//! The caller makes the cgroup and clones once; the child sets itself up (`container`, `session`), tells over a close-on-exec pipe what
//! went wrong (`report`), and executes the program. Nothing is mounted, joined or written on the host's side.

mod between;
mod clocks;
mod container;
mod copy_up;
mod credentials;
mod dev;
pub mod hooks;
mod procfs;
mod program;
mod report;
mod rights;
mod rootfs;
mod session;
mod terminal;
mod user;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use host::cgroup::{Cgroup, CgroupError, CgroupManager, Entry};
use host::namespace::{self, Namespace};
use host::sys::{self, Forked};

use crate::plan::{ClockOffset, ExecPlan, ExecTarget, HookPoint, LaunchPlan, ProcessPlan, SeccompPlan};
use report::{Message, Reporter};
pub use rights::missing_rights;

/// What a new process reads and writes: a terminal if its plan has one, else streams. Closed in the caller once it is started.
#[derive(Debug)]
pub enum Stdio {
    /// Three descriptors.
    Streams {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
    /// A new terminal of the container's own devpts. Its controlling side is sent to this unix socket before the program runs:
    /// one message with one descriptor, as runc's `--console-socket` has it.
    Terminal {
        /// A connected stream socket.
        console: OwnedFd,
    },
}

impl Stdio {
    fn fits(&self, process: &ProcessPlan) -> Result<(), LaunchError> {
        let reason = match (self, process.terminal) {
            (Self::Streams { .. }, None) | (Self::Terminal { .. }, Some(_)) => return Ok(()),
            (Self::Streams { .. }, Some(_)) => "the process has a terminal and nobody takes its other side",
            (Self::Terminal { .. }, None) => "the process has no terminal",
        };
        let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
        Err(LaunchError::Starter { step: "connect the standard streams".to_owned(), source })
    }
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
    /// A hook has failed.
    #[error(transparent)]
    Hook(#[from] hooks::HookError),
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
    stdio.fits(&plan.process)?;
    let cgroup = match &plan.cgroup {
        Some(wanted) => Some(cgroups.create(&wanted.path, &wanted.limits)?),
        None => None,
    };
    let outcome = start_in(cgroup.as_ref(), plan, stdio, gate);
    if let (Err(_), Some(cgroup)) = (&outcome, &cgroup) {
        // The child was collected, so nothing is inside any more; what cannot be removed is reported by nobody better than the cause.
        let _ = cgroup.kill();
        let _ = cgroup.remove();
    }
    outcome
}

fn start_in(
    cgroup: Option<&Cgroup>,
    plan: &LaunchPlan,
    stdio: Stdio,
    gate: Option<Gate>,
) -> Result<Child, LaunchError> {
    let entry = cgroup.map(Cgroup::entry).transpose()?;
    let filter = read_filter(&plan.process)?;
    let joins = open_joins(plan)?;
    let mount_ids = user::open_mount_ids(plan, &joins)?;
    let mut flags = 0;
    for kind in &plan.new_namespaces {
        // A cgroup namespace has its root where its maker stands, so the child makes it itself once it is inside.
        // The clocks of a time namespace must be set before anybody is in it.
        if !matches!(kind, Namespace::Cgroup | Namespace::Time) {
            flags |= kind.clone_flag();
        }
    }
    let pid_namespace = joins.iter().find(|(kind, _)| *kind == Namespace::Pid).map(|(_, fd)| fd.as_fd());
    let own_user = plan.user.as_ref().filter(|_| plan.new_namespaces.contains(&Namespace::User));
    let waits = plan.hooks.is_some() || own_user.is_some();
    let sync = waits.then(Sync::new).transpose()?;
    let between = plan.user.as_ref().map(|_| between::Channel::new()).transpose()?;
    let (word, told) = sync.map_or((None, None), |Sync { word, told }| (Some(word), Some(told)));
    // The child has but its own end: when the starter dies, it reads the end of the file.
    let word = std::cell::Cell::new(word);
    let seed = container::Seed {
        plan,
        told: told.as_ref(),
        mount_ids: &mount_ids,
        stdio: &stdio,
        gate: gate.as_ref(),
        cgroup,
        entry: entry.as_ref(),
        joins: &joins,
        filter,
    };
    let set_up = |reporter: &mut Reporter| {
        drop(word.take());
        match &between {
            Some(channel) => between::run(&seed, channel, flags, reporter),
            None => container::run(&seed, None, reporter),
        }
    };
    let clocks = plan.new_namespaces.contains(&Namespace::Time).then_some(plan.clocks.as_slice());
    let birth = Birth { flags, entry: entry.as_ref(), pid_namespace, clocks, between: between.as_ref() };
    launch(birth, &plan.process, set_up, |moment, pid| {
        match (moment, own_user, &plan.hooks) {
            (Moment::Cloned, Some(user), _) => user::map_ids(pid, user)?,
            (Moment::AtHooks, _, Some(hooks)) => {
                hooks::run(hooks, HookPoint::Prestart, pid)?;
                hooks::run(hooks, HookPoint::CreateRuntime, pid)?;
            }
            (Moment::Cloned, None, _) | (Moment::AtHooks, _, None) => return Ok(()),
        }
        let Some(told) = word.take() else { return Ok(()) };
        let go_on = |source: rustix::io::Errno| LaunchError::Starter {
            step: "let the new process go on".to_owned(),
            source: source.into(),
        };
        rustix::io::write(&told, b"g").map_err(go_on)?;
        word.set(Some(told));
        Ok(())
    })
}

/// When the starter has something to do for a container's init, which then waits for it.
#[derive(Clone, Copy)]
enum Moment {
    /// It exists, and nothing more.
    Cloned,
    /// It has made the container, and its hooks are next.
    AtHooks,
}

/// By which the starter lets a container's init go on when it has done its part.
struct Sync {
    word: OwnedFd,
    told: OwnedFd,
}

impl Sync {
    fn new() -> Result<Self, LaunchError> {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map(|(told, word)| Self { word, told })
            .map_err(|error| LaunchError::Starter { step: "make a pipe".to_owned(), source: error.into() })
    }
}

/// Starts a process inside a running container, and returns when its program was executed.
pub fn exec(
    cgroups: &CgroupManager,
    target: &ExecTarget,
    plan: &ExecPlan,
    stdio: Stdio,
) -> Result<Child, LaunchError> {
    stdio.fits(&plan.process)?;
    let starter = |step: &str| {
        let step = step.to_owned();
        move |source| LaunchError::Starter { step, source }
    };
    let init =
        target.init.pidfd().map_err(starter("open the container's init"))?.ok_or(LaunchError::NotRunning)?;
    if !target.init.is_alive() {
        return Err(LaunchError::NotRunning);
    }
    let entry = match &plan.cgroup {
        Some(path) => Some(cgroups.open_beside(path, target.init.pid)?.entry()?),
        None => None,
    };
    let filter = read_filter(&plan.process)?;
    let pid_namespace = target.namespaces.contains(&Namespace::Pid).then(|| init.as_fd());
    let seed =
        session::Seed { plan, target, stdio: &stdio, init: init.as_fd(), entry: entry.as_ref(), filter };
    let set_up = |reporter: &mut Reporter| session::run(&seed, reporter);
    let birth = Birth { flags: 0, entry: entry.as_ref(), pid_namespace, clocks: None, between: None };
    launch(birth, &plan.process, set_up, |_, _| Ok(()))
}

/// How a new process comes to be.
struct Birth<'a> {
    /// Of clone3.
    flags: u64,
    entry: Option<&'a Entry>,
    pid_namespace: Option<std::os::fd::BorrowedFd<'a>>,
    /// Of a new time namespace, if there is to be one.
    clocks: Option<&'a [ClockOffset]>,
    /// Where a go-between tells of the process that it has made in its place.
    between: Option<&'a between::Channel>,
}

/// Clones, lets the child run `set_up`, and listens to what it says. `help` does, with its pid, what the child waits for.
fn launch(
    birth: Birth<'_>,
    process: &ProcessPlan,
    set_up: impl FnOnce(&mut Reporter) -> report::Failure,
    mut help: impl FnMut(Moment, i32) -> Result<(), LaunchError>,
) -> Result<Child, LaunchError> {
    let starter = |step: &str| {
        let step = step.to_owned();
        move |source: io::Error| LaunchError::Starter { step, source }
    };
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| starter("make a pipe")(error.into()))?;
    let into = birth.entry.and_then(|entry| entry.into.as_ref()).map(AsFd::as_fd);
    // A go-between makes the namespaces.
    let (flags, clocks) = if birth.between.is_some() { (0, None) } else { (birth.flags, birth.clocks) };
    let fork = || clocks::fork_with(clocks, || sys::fork_into(flags, into));
    let forked = in_pid_namespace(birth.pid_namespace, fork).map_err(starter("clone"))?;
    let (pid, pidfd) = match forked {
        Forked::Child => {
            drop(reader);
            let mut reporter = Reporter::new(writer);
            let failure = set_up(&mut reporter);
            reporter.fail(&failure);
            sys::exit_now(255)
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(writer);
    let mut listener = report::Listener::new(reader);
    let (pid, pidfd) = match birth.between {
        None => (pid, pidfd),
        Some(channel) => match channel.adopt(&pidfd).map_err(starter("take over the new process"))? {
            Some(adopted) => adopted,
            None => return Err(listener.failure(process)),
        },
    };
    let kill = || {
        let _ = host::process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = host::process::wait(pidfd.as_fd());
    };
    help(Moment::Cloned, pid).inspect_err(|_| kill())?;
    let mut message = listener.receive();
    if matches!(message, Ok(Message::AtHooks)) {
        help(Moment::AtHooks, pid).inspect_err(|_| kill())?;
        message = listener.receive();
    }
    match message {
        Ok(Message::Started | Message::AtGate) => {
            let start_time = host::process::start_time(pid).map_err(starter("read the start time"))?;
            Ok(Child { pid, pidfd, start_time })
        }
        Ok(Message::Failed(failure)) => {
            let _ = host::process::wait(pidfd.as_fd());
            Err(failure.into_error(process))
        }
        Ok(Message::AtHooks) => {
            kill();
            Err(starter("read the report of the new process")(io::ErrorKind::InvalidData.into()))
        }
        Err(source) => {
            kill();
            Err(starter("read the report of the new process")(source))
        }
    }
}

/// Runs `work` so that a child it makes lands in the given pid namespace (a namespace file or a pidfd); the caller's next children will
/// land where they did before.
fn in_pid_namespace<T>(
    target: Option<std::os::fd::BorrowedFd<'_>>,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let Some(target) = target else { return work() };
    let before = namespace::open(std::path::Path::new("/proc/self/ns/pid_for_children"));
    namespace::join(target, Namespace::Pid)?;
    let outcome = work();
    // In the child (which has no children yet) this changes nothing that matters, and it may not be allowed to.
    if let Ok(before) = before {
        let _ = namespace::join(&before, Namespace::Pid);
    }
    outcome
}

fn read_filter(process: &ProcessPlan) -> Result<Option<(Vec<u8>, u32)>, LaunchError> {
    match &process.seccomp {
        None => Ok(None),
        Some(SeccompPlan::Inline { program, flags }) => Ok(Some((program.clone(), *flags))),
        Some(SeccompPlan::File { path, flags }) => match std::fs::read(path) {
            Ok(program) => Ok(Some((program, *flags))),
            // Never without the filter that was asked for.
            Err(source) => Err(LaunchError::Starter {
                step: format!("read the seccomp filter {}", path.display()),
                source,
            }),
        },
    }
}

type Joins = Vec<(Namespace, OwnedFd)>;

fn open_joins(plan: &LaunchPlan) -> Result<Joins, LaunchError> {
    let open = |(kind, path): &(Namespace, std::path::PathBuf)| match namespace::open(path) {
        Ok(fd) => Ok((*kind, fd)),
        Err(source) => {
            Err(LaunchError::Starter { step: format!("open namespace {}", path.display()), source })
        }
    };
    plan.join_namespaces.iter().map(open).collect()
}

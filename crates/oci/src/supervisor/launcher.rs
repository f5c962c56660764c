//! Between the event loop and `launch`: makes the pipes, words the errors, acts on a container's cgroup.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use host::cgroup::CgroupManager;
use host::process::{self, ProcessId};
use rustix::fs::{Mode, OFlags};

use super::output;
use super::protocol::{ErrorCode, ErrorReply};
use crate::console;
use crate::launch::{self, Child, LaunchError, Stdio};
use crate::plan::{ExecPlan, ExecTarget, LaunchPlan, ProcessPlan, UserPlan};

/// Starts what the supervisor is asked to start.
#[derive(Debug)]
pub(super) struct Launcher {
    cgroups: CgroupManager,
}

/// A started process with the supervisor's ends of its streams, none of which waits.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) child: Child,
    /// Its standard input, if it has one that is not a terminal.
    pub(super) stdin: Option<OwnedFd>,
    /// Its standard output, or the controlling side of its terminal.
    pub(super) stdout: OwnedFd,
    /// Its standard error; a terminal has none.
    pub(super) stderr: Option<OwnedFd>,
}

/// What a process without a terminal reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stdin {
    /// Nothing.
    Null,
    /// What somebody writes.
    Pipe,
}

impl Launcher {
    pub(super) fn new(cgroups: CgroupManager) -> Self {
        Self { cgroups }
    }

    pub(super) fn start(&self, plan: &LaunchPlan, stdin: Stdin) -> Result<Launched, ErrorReply> {
        connected(&plan.process, plan.user.as_ref(), stdin, |stdio| {
            launch::start(&self.cgroups, plan, stdio, None)
        })
    }

    pub(super) fn exec(
        &self,
        target: &ExecTarget,
        plan: &ExecPlan,
        stdin: Stdin,
    ) -> Result<Launched, ErrorReply> {
        connected(&plan.process, target.user.as_ref(), stdin, |stdio| {
            launch::exec(&self.cgroups, target, plan, stdio)
        })
    }

    /// The cgroup of a container that was started from this plan.
    pub(super) fn cgroup(&self, plan: &LaunchPlan) -> Cgroup {
        let cgroup = plan.cgroup.as_ref().and_then(|cgroup| self.cgroups.open(&cgroup.path).ok());
        Cgroup(cgroup)
    }
}

/// Whom an exec joins.
pub(super) fn exec_target(launched: &Launched, plan: &LaunchPlan) -> Result<ExecTarget, ErrorReply> {
    let boot_id = process::boot_id().map_err(|error| failed("read boot id", &error))?;
    let init = ProcessId { pid: launched.child.pid, start_time: launched.child.start_time, boot_id };
    Ok(ExecTarget { init, namespaces: plan.own_namespaces(), user: plan.user.clone() })
}

fn connected(
    process: &ProcessPlan,
    ids: Option<&UserPlan>,
    stdin: Stdin,
    start: impl FnOnce(Stdio) -> Result<Child, LaunchError>,
) -> Result<Launched, ErrorReply> {
    if process.terminal.is_some() {
        return with_terminal(start);
    }
    with_pipes(ids.map_or(process.uid, |ids| ids.host_uid(process.uid)), stdin, start)
}

fn with_terminal(start: impl FnOnce(Stdio) -> Result<Child, LaunchError>) -> Result<Launched, ErrorReply> {
    let (console, ours) = console::pair().map_err(|error| failed("make a console socket", &error))?;
    let child = start(Stdio::Terminal { console }).map_err(|error| launch_error(&error))?;
    let received = console::receive(&ours).and_then(|terminal| {
        rustix::io::ioctl_fionbio(&terminal, true)?;
        Ok(terminal)
    });
    match received {
        Ok(stdout) => Ok(Launched { child, stdin: None, stdout, stderr: None }),
        Err(error) => {
            // Collected as an orphan.
            let _ = process::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            Err(failed("take the terminal", &error))
        }
    }
}

fn with_pipes(
    user: u32,
    stdin: Stdin,
    start: impl FnOnce(Stdio) -> Result<Child, LaunchError>,
) -> Result<Launched, ErrorReply> {
    let make_input = || match stdin {
        Stdin::Null => {
            let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            Ok((null, None))
        }
        Stdin::Pipe => output::pipe_to(user).map(|(reader, writer)| (reader, Some(writer))),
    };
    let make_stdio =
        || -> io::Result<_> { Ok((make_input()?, output::pipe_of(user)?, output::pipe_of(user)?)) };
    let ((input, stdin), (stdout, out), (stderr, err)) =
        make_stdio().map_err(|error| failed("make pipes", &error))?;
    let child = start(Stdio::Streams { stdin: input, stdout: out, stderr: err })
        .map_err(|error| launch_error(&error))?;
    Ok(Launched { child, stdin, stdout, stderr: Some(stderr) })
}

fn launch_error(error: &LaunchError) -> ErrorReply {
    ErrorReply { code: ErrorCode::Launch, message: host::error::chain(error) }
}

fn failed(what: &str, error: &io::Error) -> ErrorReply {
    ErrorReply { code: ErrorCode::Failed, message: format!("{what}: {error}") }
}

/// A container's cgroup, if it has one of its own.
#[derive(Debug)]
pub(super) struct Cgroup(Option<host::cgroup::Cgroup>);

impl Cgroup {
    /// Signals every process in it; SIGKILL reaches those that are being born too.
    pub(super) fn signal_all(&self, signal: i32) -> io::Result<()> {
        let Some(cgroup) = &self.0 else { return Err(io::Error::other("it has no cgroup of its own")) };
        if signal == libc::SIGKILL {
            return cgroup.kill().map_err(io::Error::other);
        }
        for pid in cgroup.pids().map_err(io::Error::other)? {
            if let Some(pidfd) = process::pidfd_open(pid)? {
                process::pidfd_send_signal(pidfd.as_fd(), signal)?;
            }
        }
        Ok(())
    }

    /// Whether the kernel has killed a process of it for lack of memory.
    pub(super) fn out_of_memory(&self) -> bool {
        self.0.as_ref().is_some_and(|cgroup| cgroup.oom_kills() > 0)
    }
}

//! The way of an exec session's process from the clone to its program, in the new process.

use std::os::fd::BorrowedFd;

use host::cgroup::Entry;
use host::namespace::{self, Namespace};
use host::sys;
use rustix::fs::{Mode, OFlags};

use super::container::{become_root, own_stdio, shield, take_stdio};
use super::report::{Failure, Reporter, Step};
use super::{Stdio, between::set_oom_score, credentials, program, terminal};
use crate::plan::{ExecPlan, ExecTarget};

/// What the starter has prepared.
pub(super) struct Seed<'a> {
    pub(super) plan: &'a ExecPlan,
    pub(super) target: &'a ExecTarget,
    pub(super) stdio: &'a Stdio,
    pub(super) init: BorrowedFd<'a>,
    pub(super) entry: Option<&'a Entry>,
    pub(super) filter: Option<(Vec<u8>, u32)>,
}

/// Becomes the session's process; comes back only with what went wrong.
pub(super) fn run(seed: &Seed<'_>, _reporter: &mut Reporter) -> Failure {
    let outcome = set_up(seed);
    match outcome {
        Ok((found, env)) => program::execute(&found, &seed.plan.process, &env),
        Err(failure) => failure,
    }
}

fn set_up(seed: &Seed<'_>) -> Result<(program::Found, Vec<std::ffi::CString>), Failure> {
    let process = &seed.plan.process;
    shield(process.preserve_fds)?;
    if let Some(entry) = seed.entry {
        entry.join_tasks().step(|| "join the cgroup".to_owned())?;
    }
    // While /proc is the starter's: the container's may be anything, and none can be mounted anew where parts of it are masked.
    set_oom_score(process)?;
    // The clone has put this process into the pid namespace already.
    let kinds: Vec<Namespace> =
        seed.target.namespaces.iter().copied().filter(|kind| *kind != Namespace::Pid).collect();
    if !kinds.is_empty() {
        namespace::join_process(seed.init, &kinds).step(|| "join the container's namespaces".to_owned())?;
    }
    if kinds.contains(&Namespace::User) {
        become_root()?;
    }
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    let terminal = match seed.stdio {
        Stdio::Streams { .. } => None,
        Stdio::Terminal { console } => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open("/", flags, Mode::empty()).step(|| "open the root".to_owned())?;
            Some(terminal::open(&root, console, process)?)
        }
    };
    take_stdio(seed.stdio, terminal.as_ref())?;
    own_stdio(process.uid);
    if let Some(entry) = seed.entry {
        entry.join_cpu().step(|| "join the cpu cgroup".to_owned())?;
    }
    let env = program::environment(process);
    credentials::set_rlimits(process)?;
    credentials::set_priorities(process)?;
    program::change_directory(&process.cwd)?;
    let filter = seed.filter.as_ref();
    let install = |(filter, flags): &(Vec<u8>, u32)| {
        sys::install_seccomp(filter, *flags).step(|| "install the seccomp filter".to_owned())
    };
    if let Some(filter) = filter.filter(|_| !process.no_new_privileges) {
        install(filter)?;
    }
    credentials::drop_privileges(process)?;
    program::check_directory()?;
    let found = program::find(process, &env)?;
    if let Some(filter) = filter.filter(|_| process.no_new_privileges) {
        install(filter)?;
    }
    Ok((found, env))
}

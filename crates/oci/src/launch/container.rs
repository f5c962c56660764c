//! The way of a container's init from the clone to its program, in the new process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use host::cgroup::{Cgroup, Entry};
use host::namespace::{self, Namespace};
use host::{path, sys};
use rustix::fs::{Mode, OFlags};

use super::report::{Failure, Reporter, Step};
use super::user::{MountNamespaces, Prepared};
use super::{Gate, Joins, Stdio, credentials, hooks, program, rootfs};
use crate::plan::{HookPoint, HooksPlan, LaunchPlan};

/// What the starter has prepared.
pub(super) struct Seed<'a> {
    pub(super) plan: &'a LaunchPlan,
    /// Where the starter says that it has done its part: mapped ids, run hooks. Only where there is such a part.
    pub(super) told: Option<&'a OwnedFd>,
    /// User namespaces that stand for the ids of mounts, in the order of the plan's mounts.
    pub(super) mount_ids: &'a MountNamespaces,
    pub(super) stdio: &'a Stdio,
    pub(super) gate: Option<&'a Gate>,
    pub(super) cgroup: Option<&'a Cgroup>,
    pub(super) entry: Option<&'a Entry>,
    pub(super) joins: &'a Joins,
    pub(super) filter: Option<(Vec<u8>, u32)>,
}

/// Becomes the container's init; comes back only with what went wrong. With a user namespace, `prepared` is what its root could not
/// have opened.
pub(super) fn run(seed: &Seed<'_>, prepared: Option<&Prepared>, reporter: &mut Reporter) -> Failure {
    match set_up(seed, prepared, reporter) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

enum Never {}

fn set_up(seed: &Seed<'_>, prepared: Option<&Prepared>, reporter: &mut Reporter) -> Result<Never, Failure> {
    let plan = seed.plan;
    let process = &plan.process;
    shield(process.preserve_fds)?;
    if let (true, Some(told)) = (plan.new_namespaces.contains(&Namespace::User), seed.told) {
        wait_for(told).step(|| "wait for the mapping of ids".to_owned())?;
    }
    if plan.user.is_some() {
        become_root()?;
    }
    if let Some(entry) = seed.entry {
        entry.join_tasks().step(|| "join the cgroup".to_owned())?;
    }
    if plan.user.is_none() {
        join_namespaces(seed.joins)?;
    }
    name_host(plan)?;
    let parts = rootfs::Parts { plan, cgroup: seed.cgroup, prepared, mount_ids: seed.mount_ids };
    let built = rootfs::build(&parts, seed.stdio, &|procfs| {
        // In a user namespace the go-between has done it.
        if let Some(score) = process.oom_score_adj.filter(|_| plan.user.is_none()) {
            let set = set_oom_score(procfs, score);
            credentials::if_allowed(process, set).step(|| format!("set oom_score_adj to {score}"))?;
        }
        plan.sysctls.iter().try_for_each(|(name, value)| write_sysctl(procfs, name, value))
    })?;
    if let (Some(hooks), Some(told)) = (&plan.hooks, seed.told) {
        reporter.at_hooks();
        wait_for(told).step(|| "wait for the hooks".to_owned())?;
        run_hooks(hooks, HookPoint::CreateContainer)?;
    }
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    take_stdio(seed.stdio, built.terminal.as_ref())?;
    own_stdio(process.uid);
    rootfs::enter(&built.root, plan)?;
    let env = program::environment(process);
    let filter = seed.filter.as_ref();
    finish_cgroup(seed)?;
    credentials::set_rlimits(process)?;
    credentials::set_priorities(process)?;
    program::change_directory(&process.cwd)?;
    if let Some((filter, flags)) = filter.filter(|_| !process.no_new_privileges) {
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, which the process is about to lose.
        sys::install_seccomp(filter, *flags).step(|| "install the seccomp filter".to_owned())?;
    }
    let hooks = plan.hooks.as_ref().filter(|hooks| !hooks.at(HookPoint::StartContainer).is_empty());
    if let Some(hooks) = hooks {
        // They run with the privileges of the container, not of its user: the start is awaited here.
        if let Some(gate) = seed.gate {
            reporter.at_gate();
            wait_for(&gate.0).step(|| "wait for the start".to_owned())?;
        }
        run_hooks(hooks, HookPoint::StartContainer)?;
    }
    credentials::drop_privileges(process)?;
    program::check_directory()?;
    let found = program::find(process, &env)?;
    if let Some(gate) = seed.gate.filter(|_| hooks.is_none()) {
        reporter.at_gate();
        wait_for(&gate.0).step(|| "wait for the start".to_owned())?;
    }
    if let Some((filter, flags)) = filter.filter(|_| process.no_new_privileges) {
        sys::install_seccomp(filter, *flags).step(|| "install the seccomp filter".to_owned())?;
    }
    Err(program::execute(&found, process, &env))
}

/// Before anything that the container chose: nobody may look into this process, and no descriptor outlives the exec (CVE-2024-21626).
pub(super) fn shield(preserve_fds: u32) -> Result<(), Failure> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "become undumpable".to_owned())?;
    sys::close_on_exec_from(3 + preserve_fds).step(|| "mark descriptors close-on-exec".to_owned())?;
    sys::reset_signals();
    rustix::process::umask(Mode::empty());
    Ok(())
}

/// Takes the ids that are root in this user namespace; those from outside are nobody's here.
pub(super) fn become_root() -> Result<(), Failure> {
    use rustix::process::{Gid, Uid};
    let step = || "become root of the user namespace".to_owned();
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step(step)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(step)
}

/// All but that of processes, which the clone has done, and that of users, which is the last.
pub(super) fn join_namespaces(joins: &Joins) -> Result<(), Failure> {
    for (kind, fd) in joins {
        if !matches!(kind, Namespace::Pid | Namespace::User) {
            namespace::join(fd, *kind).step(|| format!("join the {} namespace", kind.file_name()))?;
        }
    }
    Ok(())
}

/// Joins what slows this process down, and makes the cgroup namespace, whose roots are where it stands then.
fn finish_cgroup(seed: &Seed<'_>) -> Result<(), Failure> {
    if let Some(entry) = seed.entry {
        entry.join_cpu().step(|| "join the cpu cgroup".to_owned())?;
    }
    if seed.plan.new_namespaces.contains(&Namespace::Cgroup) {
        namespace::unshare(&[Namespace::Cgroup]).step(|| "make a cgroup namespace".to_owned())?;
    }
    Ok(())
}

fn name_host(plan: &LaunchPlan) -> Result<(), Failure> {
    if let Some(name) = &plan.hostname {
        sys::set_hostname(name.as_bytes()).step(|| format!("set the host name {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        sys::set_domainname(name.as_bytes()).step(|| format!("set the domain name {name:?}"))?;
    }
    Ok(())
}

/// Lowering it needs CAP_SYS_RESOURCE, which not every root has.
fn set_oom_score(procfs: &OwnedFd, score: i32) -> io::Result<()> {
    let pid = rustix::process::getpid().as_raw_nonzero();
    write_proc(procfs, &format!("{pid}/oom_score_adj"), score.to_string().as_bytes())
}

fn write_sysctl(procfs: &OwnedFd, name: &str, value: &str) -> Result<(), Failure> {
    write_proc(procfs, &format!("sys/{name}"), value.as_bytes())
        .step(|| format!("set sysctl {name} to {value:?}"))
}

/// Writes below a procfs that was mounted by this process a moment ago and is attached nowhere (CVE-2025-52881).
fn write_proc(procfs: &OwnedFd, name: &str, value: &[u8]) -> io::Result<()> {
    let file = path::open_strict(procfs, Path::new(name), OFlags::WRONLY)?;
    rustix::io::write(&file, value)?;
    Ok(())
}

/// Makes the streams, or the terminal made for this process, its descriptors 0 to 2; the terminal also controls its session.
pub(super) fn take_stdio(stdio: &Stdio, terminal: Option<&OwnedFd>) -> Result<(), Failure> {
    let step = || "take over the standard streams".to_owned();
    let streams = match (stdio, terminal) {
        (_, Some(terminal)) => {
            rustix::process::ioctl_tiocsctty(terminal).step(|| "take the terminal".to_owned())?;
            [terminal; 3]
        }
        (Stdio::Streams { stdin, stdout, stderr }, None) => [stdin, stdout, stderr],
        // `Stdio::fits` has seen to it that a terminal is made.
        (Stdio::Terminal { .. }, None) => return Ok(()),
    };
    // First out of the way, in case one of them is a standard descriptor itself.
    let [stdin, stdout, stderr] = streams.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 64));
    rustix::stdio::dup2_stdin(stdin.step(step)?).step(step)?;
    rustix::stdio::dup2_stdout(stdout.step(step)?).step(step)?;
    rustix::stdio::dup2_stderr(stderr.step(step)?).step(step)
}

/// Lets the container's user open its own output by name (`/dev/stderr`), as runc does. Where the file does not allow it, it stays.
pub(super) fn own_stdio(uid: u32) {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        let is_null = stat.st_rdev == rustix::fs::makedev(1, 3);
        if stat.st_uid != uid && !is_null {
            let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
}

/// By this process: in its namespaces it has the pid that it sees itself.
fn run_hooks(hooks: &HooksPlan, point: HookPoint) -> Result<(), Failure> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    hooks::run(hooks, point, pid)
        .map_err(|error| Failure::step(error.to_string(), &io::Error::from_raw_os_error(libc::ECANCELED)))
}

fn wait_for(told: &OwnedFd) -> io::Result<()> {
    let mut byte = [0_u8; 8];
    loop {
        match rustix::io::read(told, &mut byte) {
            Err(rustix::io::Errno::INTR) => {}
            // Closed on the other side: whoever would have said it is gone, and the container never starts.
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::EPIPE)),
            other => return Ok(other.map(drop)?),
        }
    }
}

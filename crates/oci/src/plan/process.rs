//! The process of a container or of an exec session.

use oci_spec::runtime::{Linux, PosixRlimitType, Process};

use super::capability::plan_capabilities;
use super::priority;
use super::{PlanError, ProcessPlan, SeccompPlan, TerminalPlan, TerminalSize, WithoutRights};

pub(super) fn plan_process(
    process: &Process,
    seccomp: Option<SeccompPlan>,
    linux: &Linux,
) -> Result<ProcessPlan, PlanError> {
    refuse(process)?;
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(PlanError::invalid("process.args", "it names no program"));
    }
    let env = process.env().clone().unwrap_or_default();
    if args.iter().chain(&env).any(|text| text.contains('\0')) {
        return Err(PlanError::invalid("process.args", "NUL in an argument or an environment variable"));
    }
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return Err(PlanError::invalid("process.cwd", format!("{} is not an absolute path", cwd.display())));
    }
    let user = process.user();
    for (field, id) in [("process.user.uid", user.uid()), ("process.user.gid", user.gid())] {
        // 2^32 - 1 means "leave it" to the kernel: the process would stay root.
        if id == u32::MAX {
            return Err(PlanError::invalid(field, "4294967295 is no id"));
        }
    }
    let mut rlimits: Vec<(u32, u64, u64)> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let resource = rlimit_number(limit.typ());
        if rlimits.iter().any(|(other, ..)| *other == resource) {
            return Err(PlanError::invalid("process.rlimits", format!("{} is there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(PlanError::invalid(
                "process.rlimits",
                format!("{}: soft is above hard", limit.typ()),
            ));
        }
        rlimits.push((resource, limit.soft(), limit.hard()));
    }
    Ok(ProcessPlan {
        args,
        env,
        cwd: cwd.clone(),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().map(|umask| umask & 0o777),
        capabilities: plan_capabilities(process),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        rlimits,
        oom_score_adj: process.oom_score_adj(),
        scheduling: process.scheduler().as_ref().map(priority::plan_scheduling).transpose()?,
        io_priority: process.io_priority().as_ref().map(priority::plan_io_priority).transpose()?,
        personality: linux.personality().as_ref().map(priority::personality),
        seccomp,
        preserve_fds: 0,
        terminal: plan_terminal(process)?,
        without_rights: WithoutRights::default(),
    })
}

fn plan_terminal(process: &Process) -> Result<Option<TerminalPlan>, PlanError> {
    if process.terminal() != Some(true) {
        // OCI runtime spec, process: consoleSize is ignored without a terminal.
        return Ok(None);
    }
    let Some(size) = process.console_size() else { return Ok(Some(TerminalPlan::default())) };
    let number = |number: u64| {
        u16::try_from(number)
            .map_err(|_| PlanError::invalid("process.consoleSize", format!("{number} is over 65535")))
    };
    let size = TerminalSize { rows: number(size.height())?, columns: number(size.width())? };
    Ok(Some(TerminalPlan { size: Some(size) }))
}

fn refuse(process: &Process) -> Result<(), PlanError> {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let refusals = [
        (set(process.command_line()), "process.commandLine", "it belongs to Windows"),
        (set(process.apparmor_profile()), "process.apparmorProfile", "AppArmor"),
        (set(process.selinux_label()), "process.selinuxLabel", "SELinux"),
        (process.exec_cpu_affinity().is_some(), "process.execCPUAffinity", "CPU affinity"),
    ];
    match refusals.into_iter().find(|(given, ..)| *given) {
        Some((_, field, reason)) => Err(PlanError::unsupported(field, reason)),
        None => Ok(()),
    }
}

fn rlimit_number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

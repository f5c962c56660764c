//! `start`, `state`, `kill`, `delete`.

use std::os::fd::AsFd;
use std::time::Duration;

use host::cgroup::CgroupManager;
use host::process;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::CliError;
use super::args::Global;
use super::log;
use super::pause;
use super::record::{FIFO, Record, Status, remove_directory};
use crate::launch;
use crate::plan::{self, HookPoint, HooksPlan};

/// Lets a created container's init execute its program.
pub(super) fn start(global: &Global, id: &str) -> Result<(), CliError> {
    let record = Record::load(global, id)?;
    match record.status(global) {
        Status::Created => {}
        Status::Running | Status::Paused => {
            return Err(CliError::new("cannot start an already running container"));
        }
        Status::Creating | Status::Stopped => {
            return Err(CliError::new("cannot start a container that has stopped"));
        }
    }
    let fifo = global.root.join(id).join(FIFO);
    let failed = |error: Errno| match error {
        // Nobody reads: the init ended between the look and the word.
        Errno::NXIO => CliError::new("cannot start a container that has stopped"),
        Errno::NOENT => CliError::new("cannot start an already running container"),
        other => CliError::because(&format!("open {}", fifo.display()), &std::io::Error::from(other)),
    };
    let gate = rustix::fs::open(&fifo, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed)?;
    // Whoever removes it has started the container; of two at once, one.
    rustix::fs::unlink(&fifo).map_err(failed)?;
    rustix::io::write(&gate, b"0").map_err(failed)?;
    let (Some(hooks), Some(init)) = (hooks(&record)?, &record.init) else { return Ok(()) };
    poststart(&hooks, init.pid).inspect_err(|_| {
        if let Ok(Some(pidfd)) = init.pidfd() {
            let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    })
}

/// The container's hooks, if it has any.
fn hooks(record: &Record) -> Result<Option<HooksPlan>, CliError> {
    if !record.hooks {
        return Ok(None);
    }
    let spec = record.spec()?;
    plan::plan_hooks(spec, Some(&record.id), &record.bundle).map_err(|error| CliError::new(error.to_string()))
}

/// A container one of whose poststart hooks fails must not run on.
pub(super) fn poststart(hooks: &HooksPlan, pid: i32) -> Result<(), CliError> {
    launch::hooks::run(hooks, HookPoint::Poststart, pid)
        .map_err(|error| CliError::because("run the hooks", &error))
}

/// What fails here is told, and ends nothing: the container is going anyhow.
pub(super) fn poststop(global: &Global, record: &Record) {
    let outcome = hooks(record).and_then(|hooks| match hooks {
        Some(hooks) => launch::hooks::run(&hooks, HookPoint::Poststop, 0)
            .map_err(|error| CliError::because("run the hooks", &error)),
        None => Ok(()),
    });
    if let Err(error) = outcome {
        log::report(global, &error.0);
    }
}

/// Prints the state.
pub(super) fn state(global: &Global, id: &str) -> Result<(), CliError> {
    log::print_json(&Record::load(global, id)?.state(global, ""))
}

/// Sends a signal to the init, or to everything in the container.
pub(super) fn kill(global: &Global, id: &str, signal: i32, all: bool) -> Result<(), CliError> {
    let record = Record::load(global, id)?;
    if all {
        return kill_all(&record, signal);
    }
    let failed = |error: std::io::Error| CliError::because("signal the container", &error);
    let status = record.status(global);
    if !matches!(status, Status::Created | Status::Running | Status::Paused) {
        return Err(CliError::new("container not running"));
    }
    let init = record.init.as_ref().map(process::ProcessId::pidfd).transpose().map_err(failed)?.flatten();
    let Some(init) = init else { return Err(CliError::new("container not running")) };
    if !process::pidfd_send_signal(init.as_fd(), signal).map_err(failed)? {
        return Err(CliError::new("container not running"));
    }
    if status == Status::Paused && signal == libc::SIGKILL {
        // On v1 what stands still does not even die.
        return pause::thaw(&record);
    }
    Ok(())
}

fn kill_all(record: &Record, signal: i32) -> Result<(), CliError> {
    let failed = |error: &dyn std::error::Error| CliError::because("signal the container", error);
    let cgroup = record.cgroup()?;
    if signal == libc::SIGKILL {
        return cgroup.kill().map_err(|error| failed(&error));
    }
    for pid in cgroup.pids_below().map_err(|error| failed(&error))? {
        if let Some(pidfd) = process::pidfd_open(pid).map_err(|error| failed(&error))? {
            process::pidfd_send_signal(pidfd.as_fd(), signal).map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

/// Removes a stopped container; a created one, or with `force` any, is killed first.
pub(super) fn delete(global: &Global, id: &str, force: bool) -> Result<(), CliError> {
    let record = match Record::load(global, id) {
        Ok(record) => record,
        Err(_) if force => {
            // Killed between making the directory and writing the record: then there is only the directory.
            return remove_directory(&global.root.join(id));
        }
        Err(error) => return Err(error),
    };
    let status = record.status(global);
    if matches!(status, Status::Running | Status::Paused) && !force {
        return Err(CliError::new(format!(
            "cannot delete container {id} that is not stopped: {}",
            status.name()
        )));
    }
    if let Some(init) = record.init.as_ref().filter(|init| init.is_alive())
        && let Ok(Some(pidfd)) = init.pidfd()
    {
        let failed = |error: std::io::Error| CliError::because("kill the container", &error);
        process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).map_err(failed)?;
        if status == Status::Paused {
            pause::thaw(&record)?;
        }
        process::wait_ended(&pidfd, Duration::from_secs(10)).map_err(failed)?;
    }
    let cgroups = CgroupManager::detect().map_err(|error| CliError::because("look for cgroups", &error))?;
    if record.init.is_some() {
        poststop(global, &record);
    }
    record.destroy(global, &cgroups)
}

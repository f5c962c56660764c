//! `exec`: one more process in a running container.

use std::path::Path;

use host::cgroup::CgroupManager;
use host::{process, state_file, sys};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, Spec};
use rustix::fd::AsFd;

use super::args::{Exec, Global};
use super::record::{Record, Status};
use super::{CliError, terminal};
use crate::launch;
use crate::plan::{self, ExecTarget, WithoutRights};

/// Starts the process, and unless detached waits for its end; gives its exit code.
pub(super) fn exec(global: &Global, exec: &Exec) -> Result<u8, CliError> {
    let record = Record::load(global, &exec.id)?;
    match record.status(global) {
        Status::Running | Status::Created => {}
        Status::Paused if exec.ignore_paused => {}
        Status::Paused => {
            let text = "cannot exec in a paused container (use --ignore-paused to override)";
            return Err(CliError::new(text));
        }
        Status::Creating | Status::Stopped => {
            return Err(CliError::new("cannot exec in a stopped container"));
        }
    }
    let spec = record.spec()?;
    let process = session_process(spec, exec)?;
    let cgroup = match &exec.cgroup {
        None => record.cgroup_path.clone(),
        Some(below) => format!("{}/{}", record.cgroup_path, below.trim_matches('/')),
    };
    let cgroups = CgroupManager::detect().map_err(|error| CliError::because("look for cgroups", &error))?;
    check_cgroup(&cgroups, &cgroup)?;
    let (mut plan, namespaces) =
        plan::plan_session(spec, &process, Some(cgroup)).map_err(|error| CliError::new(error.to_string()))?;
    plan.process.preserve_fds = exec.preserve_fds;
    plan.process.without_rights = WithoutRights::Refuse;
    let init = record.init.ok_or_else(|| CliError::new("cannot exec in a stopped container"))?;
    let target = ExecTarget { init, namespaces, user: None };
    let signals = match exec.detach {
        true => None,
        false => Some(
            sys::signals_as_descriptor()
                .map_err(|error| CliError::because("make a signal descriptor", &error))?,
        ),
    };
    let terminal = plan.process.terminal.is_some();
    let (stdio, rest) = terminal::stdio(terminal, exec.console_socket.as_deref(), exec.detach)?;
    let child = launch::exec(&cgroups, &target, &plan, stdio)
        .map_err(|error| CliError::because("unable to start container process", &error))?;
    if let Some(path) = &exec.pid_file
        && let Err(error) = state_file::write_atomic(path, child.pid.to_string().as_bytes(), 0o644)
    {
        let _ = process::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
        return Err(CliError::because(&format!("write {}", path.display()), &error));
    }
    let Some(signals) = signals else { return Ok(0) };
    let exit = terminal::wait(&child.pidfd, &signals, &rest)
        .map_err(|error| CliError::because("wait for the process", &error))?;
    Ok(u8::try_from(exit.code()).unwrap_or(u8::MAX))
}

fn check_cgroup(cgroups: &CgroupManager, path: &str) -> Result<(), CliError> {
    let cgroup = cgroups.open(path).map_err(|error| CliError::because("open the cgroup", &error))?;
    if cgroup.exists() { Ok(()) } else { Err(CliError::new(format!("cgroup {path} does not exist"))) }
}

/// The process file's, or the container's own process with what the command line changes.
fn session_process(spec: &Spec, exec: &Exec) -> Result<Process, CliError> {
    if let Some(path) = &exec.process_file {
        let mut process = read_process(path)?;
        if exec.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    let mut process =
        spec.process().clone().ok_or_else(|| CliError::new("config.json field process is missing"))?;
    process.set_args(Some(exec.args.clone())).set_terminal(Some(exec.tty));
    if let Some(cwd) = &exec.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(exec.env.iter().cloned());
    process.set_env(Some(env));
    if exec.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    let mut user = process.user().clone();
    if let Some(given) = exec.user {
        user.set_uid(given.uid).set_gid(given.gid.unwrap_or(0));
    }
    if !exec.additional_gids.is_empty() {
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&exec.additional_gids);
        user.set_additional_gids(Some(gids));
    }
    process.set_user(user);
    add_capabilities(&mut process, &exec.capabilities)?;
    Ok(process)
}

fn read_process(path: &Path) -> Result<Process, CliError> {
    std::fs::read(path)
        .and_then(|text| serde_json::from_slice(&text).map_err(std::io::Error::from))
        .map_err(|error| CliError::because(&format!("read {}", path.display()), &error))
}

/// Adds to what the process may have, never to what its children inherit.
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<(), CliError> {
    if names.is_empty() {
        return Ok(());
    }
    let parse = |name: &String| {
        serde_json::from_value(serde_json::json!(name))
            .map_err(|_| CliError::new(format!("unknown capability {name:?}")))
    };
    let added: Vec<Capability> = names.iter().map(parse).collect::<Result<_, _>>()?;
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(added.iter().copied());
        Some(set)
    };
    let mut sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
    Ok(())
}

/// The type's own default is Docker's set.
fn no_capabilities() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    let none = || Some(Capabilities::default());
    sets.set_bounding(none()).set_effective(none()).set_permitted(none());
    sets.set_inheritable(none()).set_ambient(none());
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::User;

    #[test]
    fn the_command_line_changes_the_containers_own_process() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0",
            "process": { "args": ["init"], "env": ["A=1"], "cwd": "/", "terminal": true,
                "user": { "uid": 5, "gid": 6, "additionalGids": [7] }, "capabilities": { "bounding": ["CAP_KILL"] } },
        }))
        .unwrap();
        let exec = Exec {
            args: vec!["id".into()],
            env: vec!["B=2".into()],
            cwd: Some("/tmp".into()),
            user: Some(User { uid: 9, gid: None }),
            additional_gids: vec![8],
            capabilities: vec!["CAP_CHOWN".into()],
            ..Exec::default()
        };
        let process = session_process(&spec, &exec).unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["id"]);
        assert_eq!(process.env().as_ref().unwrap(), &["A=1", "B=2"]);
        assert_eq!((process.user().uid(), process.user().gid()), (9, 0));
        assert_eq!(process.user().additional_gids().as_ref().unwrap(), &[7, 8]);
        assert_eq!(process.terminal(), Some(false));
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 2);
        assert_eq!(sets.effective().as_ref().unwrap().len(), 1);
        session_process(&spec, &Exec { capabilities: vec!["CAP_NOTHING".into()], ..exec })
            .expect_err("no such capability");
    }
}

//! `create` and `run`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use host::cgroup::CgroupManager;
use host::process::{self, ProcessId};
use host::{state_file, sys};
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::CliError;
use super::args::{Create, Global};
use super::record::{FIFO, Record, remove_directory};
use super::terminal::{self, Rest};
use super::{commands, log};
use crate::launch::{self, Child, Gate};
use crate::plan::{
    InheritedNamespaces, LaunchOptions, LaunchPlan, Parsed, Rootfs, WithoutRights, parse_spec, plan_launch,
};

/// Makes a container whose init waits for `start`.
pub(super) fn create(global: &Global, create: &Create) -> Result<(), CliError> {
    let context = |error: CliError| CliError(format!("create failed: {}", error.0));
    let prepared = Prepared::new(global, create).map_err(context)?;
    prepared.launch(global, create, Release::AtStart).map(drop).map_err(context)
}

/// Makes a container, starts it, and unless detached waits for its end; gives its exit code.
pub(super) fn run(global: &Global, create: &Create) -> Result<u8, CliError> {
    let context = |error: CliError| CliError(format!("run failed: {}", error.0));
    let prepared = Prepared::new(global, create).map_err(context)?;
    if create.detach {
        return prepared.launch(global, create, Release::AtOnce).map(|_| 0).map_err(context);
    }
    let signals = sys::signals_as_descriptor()
        .map_err(|error| context(CliError::because("make a signal descriptor", &error)))?;
    let started = prepared.launch(global, create, Release::AtOnce).map_err(context)?;
    let exit = terminal::wait(&started.child.pidfd, &signals, &started.rest)
        .map_err(|error| context(CliError::because("wait for the container", &error)))?;
    if !create.keep {
        commands::poststop(global, &started.record);
        started.record.destroy(global, &started.cgroups).map_err(context)?;
    }
    Ok(u8::try_from(exit.code()).unwrap_or(u8::MAX))
}

/// When the container's program is executed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    AtOnce,
    AtStart,
}

struct Prepared {
    bundle: PathBuf,
    rootfs: PathBuf,
    spec: Spec,
    plan: LaunchPlan,
    cgroup_path: String,
}

struct Started {
    child: Child,
    rest: Rest,
    record: Record,
    cgroups: CgroupManager,
}

impl Prepared {
    fn new(global: &Global, create: &Create) -> Result<Self, CliError> {
        let current = std::env::current_dir()
            .map_err(|error| CliError::because("find the current directory", &error))?;
        let bundle = create.bundle.as_ref().map_or_else(|| current.clone(), |bundle| current.join(bundle));
        let config = bundle.join("config.json");
        let text = std::fs::read(&config).map_err(|error| {
            CliError::because(&format!("JSON specification file {} not found", config.display()), &error)
        })?;
        let Parsed { spec, unknown_capabilities } = parse_spec(&text)
            .map_err(|error| CliError::because(&format!("parse {}", config.display()), &error))?;
        if !unknown_capabilities.is_empty() {
            let names = unknown_capabilities.join(", ");
            log::warn(
                global,
                &format!("the container runs without capabilities that are not known: {names}"),
            );
        }
        let root = spec.root().as_ref().ok_or_else(|| CliError::new("config.json field root is missing"))?;
        let rootfs = bundle.join(root.path());
        if !rootfs.is_dir() {
            return Err(CliError::new(format!("invalid rootfs: {} is not a directory", rootfs.display())));
        }
        let cgroup_path = cgroup_path(&spec, &create.id);
        let options = LaunchOptions {
            rootfs: Rootfs::Directory(rootfs.clone()),
            cgroup: Some(cgroup_path.clone()),
            seccomp: None,
            inherit: InheritedNamespaces::default(),
            bundle: bundle.clone(),
            hooks_for: Some(create.id.clone()),
        };
        let mut plan = plan_launch(&spec, &options).map_err(|error| CliError::new(error.to_string()))?;
        plan.process.preserve_fds = create.preserve_fds;
        plan.process.without_rights = WithoutRights::Refuse;
        if let Some(cgroup) = &mut plan.cgroup {
            // `events` tells of usage whether there is a limit or not.
            cgroup.limits.accounting = true;
        }
        Ok(Self { bundle, rootfs, spec, plan, cgroup_path })
    }

    /// Records, launches, records the init. When it fails nothing is left.
    fn launch(self, global: &Global, create: &Create, release: Release) -> Result<Started, CliError> {
        let cgroups =
            CgroupManager::detect().map_err(|error| CliError::because("look for cgroups", &error))?;
        let directory = Record::reserve(global, &create.id)?;
        self.launch_in(&directory, global, create, release, cgroups).inspect_err(|_| {
            let _ = remove_directory(&directory);
        })
    }

    fn launch_in(
        self,
        directory: &Path,
        global: &Global,
        create: &Create,
        release: Release,
        cgroups: CgroupManager,
    ) -> Result<Started, CliError> {
        let mut record = self.record(&create.id);
        record.save(global)?;
        let gate = match release {
            Release::AtOnce => None,
            Release::AtStart => Some(make_gate(directory)?),
        };
        let detach = create.detach || release == Release::AtStart;
        let (stdio, rest) =
            terminal::stdio(self.plan.process.terminal.is_some(), create.console_socket.as_deref(), detach)?;
        let child = launch::start(&cgroups, &self.plan, stdio, gate)
            .map_err(|error| CliError::because("unable to start container process", &error))?;
        let recorded = process::boot_id()
            .map_err(|error| CliError::because("read the boot id", &error))
            .and_then(|boot_id| {
                record.init = Some(ProcessId { pid: child.pid, start_time: child.start_time, boot_id });
                record.save(global)?;
                match &create.pid_file {
                    Some(path) => state_file::write_atomic(path, child.pid.to_string().as_bytes(), 0o644)
                        .map_err(|error| CliError::because(&format!("write {}", path.display()), &error)),
                    None => Ok(()),
                }
            });
        let started = recorded.and_then(|()| match (&self.plan.hooks, release) {
            (Some(hooks), Release::AtOnce) => commands::poststart(hooks, child.pid),
            _ => Ok(()),
        });
        if let Err(error) = started {
            let _ = process::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            let _ = process::wait(child.pidfd.as_fd());
            let _ = record.destroy(global, &cgroups);
            return Err(error);
        }
        Ok(Started { child, rest, record, cgroups })
    }

    fn record(&self, id: &str) -> Record {
        let annotations =
            self.spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Record {
            id: id.to_owned(),
            oci_version: self.spec.version().clone(),
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: log::now(),
            annotations,
            cgroup_path: self.cgroup_path.clone(),
            hooks: self.plan.hooks.is_some(),
            spec: Some(self.spec.clone()),
            init: None,
        }
    }
}

/// Always from the mount point, so that every later command finds it from wherever it is called.
fn cgroup_path(spec: &Spec, id: &str) -> String {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    match given.map(|path| path.to_string_lossy().into_owned()).filter(|path| !path.is_empty()) {
        None => format!("/podwright/oci/{id}"),
        Some(path) if path.starts_with('/') => path,
        Some(path) => format!("/{path}"),
    }
}

/// Opened for both directions it never blocks here, and its reader exists as long as the init does.
fn make_gate(directory: &Path) -> Result<Gate, CliError> {
    let path = directory.join(FIFO);
    let failed = |error: rustix::io::Errno| {
        CliError::because(&format!("make {}", path.display()), &std::io::Error::from(error))
    };
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).map_err(failed)?;
    let fifo = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    Ok(Gate(fifo))
}

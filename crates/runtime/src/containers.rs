//! CreateContainer, StartContainer, StopContainer, RemoveContainer, ExecSync.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use cri::v1::{ContainerEventType, NamespaceMode};
use host::error::chain;
use oci::plan::{
    ExecPlan, InheritedNamespaces, LaunchOptions, LaunchPlan, Rootfs, UserPlan, plan_exec, plan_launch,
};
use oci::supervisor::protocol::{ExitRecord, LogFile, SignalScope, StartContainer};
use oci_spec::runtime::{LinuxSeccomp, Spec};

use crate::config::is_plain_relative;
use crate::devices;
use crate::error::Error;
use crate::images::{Image, Snapshot};
use crate::record::{ContainerPhase, ContainerRecord, Exit, SandboxPhase};
use crate::runtime::{Runtime, now_ns};
use crate::spec::{self, Accounts, ResolvedUser, render_spec, resolve_user};
use crate::state::{Container, Sandbox, new_id};
use crate::status;
use crate::supervisor::{RequestError, Supervisor};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// Output of both streams that fits into the 16 MiB of a message, which no client of CRI takes more of (CVE-2022-1708).
const MAX_RESPONSE: usize = (16 << 20) - (4 << 10);

/// What processes of the sandbox are told to be on: its own name, or the node's.
fn hostname(sandbox: &v1::PodSandboxConfig) -> String {
    match sandbox.hostname.as_str() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        name => name.to_owned(),
    }
}

/// What a container takes from images.
struct Images<'a> {
    own: &'a Image,
    /// Looked up in its own.
    user: &'a ResolvedUser,
    /// The layers of those mounted as volumes, by name.
    volumes: &'a BTreeMap<String, Vec<PathBuf>>,
}

impl Runtime {
    /// Writes the container down and prepares its directories; no process is started.
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, Error> {
        let sandbox = self.index().sandbox(sandbox_id)?;
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Error::Invalid("container config has no metadata".into()))?;
        if metadata.name.is_empty() {
            return Err(Error::Invalid("container metadata has no name".into()));
        }
        let wanted = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        let image = self.images.get(&wanted).ok_or(Error::NotFound { kind: "image", id: wanted })?;
        // Its removal looks once whose containers go with it.
        let _busy = sandbox.busy.lock().await;
        let id = new_id()?;
        let name = format!("{}_{}_{}", metadata.name, sandbox.id, metadata.attempt);
        self.index().reserve("container", &name, &id)?;
        let made = self.make_container(&sandbox, &id, config, &sandbox_config, &image).await;
        match made {
            Ok(container) => {
                self.index().add_container(container.clone());
                self.tell_container(&container, ContainerEventType::ContainerCreatedEvent);
                Ok(id)
            }
            Err(error) => {
                for directory in [sandbox.container_directory(&id), self.config.layer(&id)] {
                    if let Err(left) = remove_all(&directory) {
                        tracing::warn!(
                            container = id,
                            error = left.chain(),
                            "a container that was not made left files"
                        );
                    }
                }
                self.index().release(&id);
                Err(error)
            }
        }
    }

    async fn make_container(
        &self,
        sandbox: &Arc<Sandbox>,
        id: &str,
        config: v1::ContainerConfig,
        sandbox_config: &v1::PodSandboxConfig,
        image: &Image,
    ) -> Result<Arc<Container>, Error> {
        let supervisor = running_supervisor(sandbox)?;
        let Snapshot { lower, hold } = self.images.snapshot(image)?;
        let mut holds = vec![hold];
        let mut image_volumes = BTreeMap::new();
        for (name, Snapshot { lower, hold }) in self.image_volumes(&config)? {
            image_volumes.insert(name, lower);
            holds.push(hold);
        }
        let volume_layers: Vec<PathBuf> = image_volumes.values().flatten().cloned().collect();
        let security = security_of(&config);
        let user = user_of(&security, image, &lower)?;
        let parent = sandbox.record().cgroup_parent;
        let log_path = log_path(&sandbox.record().config, &config)?;
        let record = ContainerRecord {
            id: id.to_owned(),
            sandbox_id: sandbox.id.clone(),
            created_at: now_ns(),
            image_id: image.id.clone(),
            lower,
            volume_layers,
            log_path,
            stop_signal: stop_signal(&config, image)?,
            cgroup: format!("{parent}/{id}"),
            user: v1::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.additional_gids.iter().map(|&gid| gid.into()).collect(),
            },
            phase: ContainerPhase::Created,
            config,
        };
        let images = Images { own: image, user: &user, volumes: &image_volumes };
        let spec = self.spec_of(sandbox, sandbox_config, &record, images, &supervisor)?;
        let plan = self.plan(&record, &spec)?;
        let directory = sandbox.container_directory(id);
        make_directories(&[&directory])?;
        // Written before the layer's directories are made.
        record.write(&directory)?;
        let layer = self.config.layer(id);
        make_directories(&[&layer, &layer.join("upper"), &layer.join("work")])?;
        if let Some(user) = &plan.user {
            for name in ["upper", "work"] {
                give_to_root_of(user, &layer.join(name))?;
            }
        }
        let text = serde_json::to_vec(&spec)
            .map_err(|error| Error::io("write", directory.join("config.json"))(error.into()))?;
        let path = directory.join("config.json");
        host::state_file::write_atomic(&path, &text, 0o600).map_err(Error::io("write", &path))?;
        Ok(Arc::new(Container::new(sandbox.clone(), record, Some(plan), holds)))
    }

    /// The layers of every image that is mounted as a volume.
    fn image_volumes(&self, config: &v1::ContainerConfig) -> Result<BTreeMap<String, Snapshot>, Error> {
        let mut layers = BTreeMap::new();
        let named = config.mounts.iter().filter_map(|mount| mount.image.as_ref());
        for name in named.map(|image| &image.image).filter(|name| !name.is_empty()) {
            let image = self.images.get(name).ok_or(Error::NotFound { kind: "image", id: name.clone() })?;
            layers.insert(name.clone(), self.images.snapshot(&image)?);
        }
        Ok(layers)
    }

    fn spec_of(
        &self,
        sandbox: &Sandbox,
        sandbox_config: &v1::PodSandboxConfig,
        record: &ContainerRecord,
        images: Images<'_>,
        supervisor: &Supervisor,
    ) -> Result<Spec, Error> {
        let directory = sandbox.container_directory(&record.id);
        let security = security_of(&record.config);
        let request = spec::Request {
            sandbox_id: &sandbox.id,
            config: &record.config,
            sandbox: sandbox_config,
            image: &images.own.config,
            user: images.user,
            supervisor_pid: supervisor.process().pid,
            user_namespace: supervisor.user_namespace().map(Path::to_owned),
            target_pid: self.target_of(sandbox, &record.config)?,
            cgroup: &record.cgroup,
            sandbox_directory: sandbox.directory.clone(),
            directory,
            devices: &devices::granted(&record.config.devices)?,
            host_devices: &if security.privileged { devices::all() } else { Vec::new() },
            hostname: &hostname(sandbox_config),
            limits_swap: self.limits_swap,
            image_volumes: images.volumes,
            limits_huge_pages: self.limits_huge_pages,
            masked_paths: host::proc_paths::masked(),
            has_apparmor: host::lsm::has_apparmor(),
            localhost_profile: localhost_profile(&security)?,
        };
        Ok(render_spec(&request)?)
    }

    /// The process of the container that another one of its sandbox is to look at.
    fn target_of(&self, sandbox: &Sandbox, config: &v1::ContainerConfig) -> Result<Option<i32>, Error> {
        let options = security_of(config).namespace_options.unwrap_or_default();
        if options.pid() != NamespaceMode::Target {
            return Ok(None);
        }
        let target = self.index().container(&options.target_id)?;
        if target.sandbox.id != sandbox.id {
            let message = format!("container {} is not in sandbox {}", target.id, sandbox.id);
            return Err(Error::Invalid(message));
        }
        match target.phase() {
            ContainerPhase::Running { pid, .. } => Ok(Some(pid)),
            _ => Err(Error::WrongState(format!("container {} is not running", target.id))),
        }
    }

    /// What the supervisor carries out.
    pub(crate) fn plan(&self, record: &ContainerRecord, spec: &Spec) -> Result<LaunchPlan, Error> {
        let layer = self.config.layer(&record.id);
        let rootfs = Rootfs::Overlay {
            lower: record.lower.clone(),
            upper: layer.join("upper"),
            work: layer.join("work"),
        };
        let pid = security_of(&record.config).namespace_options.unwrap_or_default().pid();
        let options = LaunchOptions {
            rootfs,
            cgroup: Some(record.cgroup.clone()),
            seccomp: self.filter(spec)?,
            inherit: InheritedNamespaces { net: true, ipc: true, uts: true, pid: pid == NamespaceMode::Pod },
            bundle: PathBuf::from("/"),
            hooks_for: None,
        };
        let mut plan = plan_launch(spec, &options)?;
        // Statistics tell of containers without limits too.
        if let Some(cgroup) = &mut plan.cgroup {
            cgroup.limits.accounting = true;
        }
        Ok(plan)
    }

    /// The compiled filter's file. Profiles are few: each is compiled once per boot.
    fn filter(&self, spec: &Spec) -> Result<Option<PathBuf>, Error> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let Some(seccomp) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
            return Ok(None);
        };
        let mut hasher = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        format!("{seccomp:?}").hash(&mut hasher);
        let path = self.config.filters().join(format!("{:016x}.bpf", hasher.finish()));
        if !path.exists() {
            let program = oci::seccomp::compile(seccomp)?;
            host::state_file::write_atomic(&path, &program, 0o600).map_err(Error::io("write", &path))?;
        }
        Ok(Some(path))
    }

    /// Starts the container's process; on an error the container has exited with code 128, as containerd tells it.
    pub(crate) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let container = self.index().container(id)?;
        let _busy = container.busy.lock().await;
        let supervisor = running_supervisor(&container.sandbox)?;
        if container.phase() != ContainerPhase::Created {
            return Err(Error::WrongState(format!("container {id} is not in created state")));
        }
        let record = container.record();
        let plan = match container.take_plan() {
            Some(plan) => plan,
            None => self.plan(&record, &read_spec(&container.directory)?)?,
        };
        container.advance(|_| Some(ContainerPhase::Starting))?;
        let started = supervisor.start(start_request(&container, &record, plan)).await;
        match started {
            Ok(started) => {
                let told = container.telling();
                let running = ContainerPhase::Running { pid: started.pid, started_at: started.started_at };
                container.advance(|_| Some(running))?;
                self.tell_container(&container, ContainerEventType::ContainerStartedEvent);
                drop(told);
                // It may have ended before we heard of its start.
                supervisor.exit_of(id).into_iter().for_each(|exit| self.record_exit(id, &exit));
                Ok(())
            }
            Err(source) => {
                let message = match &source {
                    RequestError::Refused(refused) => refused.message.clone(),
                    other => other.to_string(),
                };
                let exit = Exit {
                    pid: 0,
                    started_at: 0,
                    finished_at: now_ns(),
                    code: 128,
                    reason: "StartError".into(),
                    message: format!("failed to create containerd task: {message}")
                        .replace("containerd task", "container process"),
                };
                container.advance(|_| Some(ContainerPhase::Exited(exit)))?;
                self.tell_container(&container, ContainerEventType::ContainerStoppedEvent);
                Err(Error::Supervisor { what: format!("start container {id}"), source })
            }
        }
    }

    /// The stop signal, then SIGKILL when the grace period is over; returns when the container has exited. Unknown
    /// containers are stopped already.
    pub(crate) async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Error> {
        let container = match self.index().container(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        if container.phase() == ContainerPhase::Starting {
            // The supervisor may not know it yet.
            drop(container.busy.lock().await);
        }
        self.stop_found_container(&container, timeout).await
    }

    async fn stop_found_container(&self, container: &Arc<Container>, timeout: i64) -> Result<(), Error> {
        if !matches!(container.phase(), ContainerPhase::Running { .. } | ContainerPhase::Starting) {
            return Ok(());
        }
        let Some(supervisor) = container.sandbox.supervisor() else { return Ok(()) };
        let seconds = u64::try_from(timeout).unwrap_or(0);
        // The supervisor keeps the deadline: it holds whatever happens to us.
        let asked = if seconds == 0 {
            supervisor.signal(&container.id, SIGKILL, SignalScope::All).await
        } else {
            supervisor.stop(&container.id, container.record().stop_signal, Duration::from_secs(seconds)).await
        };
        match asked {
            Ok(()) | Err(RequestError::Dead) => {}
            Err(source) => {
                return Err(Error::Supervisor { what: format!("stop container {}", container.id), source });
            }
        }
        tokio::select! {
            () = container.wait_exited() => Ok(()),
            () = supervisor.died() => self.settle_exit(container),
        }
    }

    /// Kills the container if it runs and removes everything of it. Unknown containers are removed already.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let container = match self.index().container(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        self.remove_found_container(&container).await
    }

    pub(crate) async fn remove_found_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), Error> {
        let _busy = container.busy.lock().await;
        self.stop_found_container(container, 0).await?;
        if let Some(supervisor) = container.sandbox.supervisor() {
            match supervisor.remove(&container.id).await {
                Ok(()) | Err(RequestError::Dead) => {}
                Err(source) => {
                    return Err(Error::Supervisor {
                        what: format!("remove container {}", container.id),
                        source,
                    });
                }
            }
        }
        let cgroup = container.record().cgroup;
        let removed = self.remove_cgroup(&cgroup).await;
        removed.map_err(|error| Error::Teardown { what: cgroup, problems: chain(&error) })?;
        remove_all(&self.config.layer(&container.id))?;
        remove_all(&container.directory)?;
        self.index().remove_container(&container.id);
        self.tell_container(container, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// What the supervisor told of an exit.
    pub(crate) fn record_exit(&self, id: &str, exit: &ExitRecord) {
        let Ok(container) = self.index().container(id) else { return };
        let _told = container.telling();
        let changed = container.advance(|phase| match phase {
            // Its start is told first, and then this.
            ContainerPhase::Exited(_) | ContainerPhase::Starting => None,
            phase => Some(ContainerPhase::Exited(exit_of(phase, exit))),
        });
        match changed {
            Ok(false) => return,
            Ok(true) => {}
            // It has ended all the same; the exit file tells it after a crash.
            Err(error) => {
                tracing::warn!(container = id, error = error.chain(), "an exit could not be written down");
            }
        }
        self.tell_container(&container, ContainerEventType::ContainerStoppedEvent);
    }

    /// What the exit file says of a container whose supervisor is gone; without one its end is unknown.
    pub(crate) fn settle_exit(&self, container: &Container) -> Result<(), Error> {
        let told: Option<ExitRecord> = std::fs::read(container.directory.join("exit"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        let changed = container.advance(|phase| match (phase, &told) {
            (ContainerPhase::Exited(_) | ContainerPhase::Created, _) => None,
            (phase, Some(exit)) => Some(ContainerPhase::Exited(exit_of(phase, exit))),
            (phase, None) => {
                let (pid, started_at) = facts(phase);
                let (reason, message) = ("Unknown".to_owned(), "its supervisor ended before it".to_owned());
                Some(ContainerPhase::Exited(Exit {
                    pid,
                    started_at,
                    finished_at: now_ns(),
                    code: 255,
                    reason,
                    message,
                }))
            }
        })?;
        if changed {
            self.tell_container(container, ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// Runs a command to its end in a running container.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, Error> {
        let container = self.running_container(id)?;
        if command.is_empty() {
            return Err(Error::Invalid("no command to execute".into()));
        }
        let supervisor = running_supervisor(&container.sandbox)?;
        let plan = self.exec_plan(&container, &command, Tty::No)?;
        let limit = u64::try_from(timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let output = supervisor.exec_sync(&container.id, plan, limit).await;
        let output = output.map_err(|source| Error::Supervisor {
            what: format!("execute {command:?} in container {id}"),
            source,
        })?;
        if output.result.timed_out {
            return Err(Error::Timeout { command, seconds: timeout });
        }
        let (mut stdout, mut stderr) = (output.stdout, output.stderr);
        stdout.truncate(MAX_RESPONSE);
        stderr.truncate(MAX_RESPONSE - stdout.len());
        Ok(v1::ExecSyncResponse { stdout, stderr, exit_code: output.result.code })
    }

    /// The container, if a command can be executed in it.
    pub(crate) fn running_container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let container = self.index().container(id)?;
        match container.phase() {
            ContainerPhase::Running { .. } => Ok(container),
            phase => {
                let state = status::container_state(&phase).as_str_name();
                Err(Error::NotRunning(format!("container is in {state} state")))
            }
        }
    }

    /// The container's own process with another command.
    pub(crate) fn exec_plan(
        &self,
        container: &Container,
        command: &[String],
        tty: Tty,
    ) -> Result<ExecPlan, Error> {
        let spec = read_spec(&container.directory)?;
        let mut process =
            spec.process().clone().ok_or_else(|| Error::Invalid("config.json has no process".into()))?;
        process.set_args(Some(command.to_vec())).set_terminal(Some(tty == Tty::Yes)).set_console_size(None);
        if tty == Tty::Yes {
            let mut env = process.env().clone().unwrap_or_default();
            spec::add_term(&mut env);
            process.set_env(Some(env));
        }
        let file = self.filter(&spec)?;
        let linux = spec.linux().as_ref();
        let filter = linux.map_or(Ok(None), |linux| oci::plan::plan_filter(linux, file.as_deref()))?;
        Ok(plan_exec(&process, Some(container.record().cgroup), filter)?)
    }

    /// Opens the log by its name again, after the kubelet has moved it away.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let container = self.index().container(id)?;
        let supervisor = running_supervisor(&container.sandbox)?;
        let reopened = supervisor.reopen_log(&container.id).await;
        reopened
            .map_err(|source| Error::Supervisor { what: format!("reopen the log of container {id}"), source })
    }
}

/// Whether a command gets a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tty {
    /// A new one.
    Yes,
    /// Three streams.
    No,
}

pub(crate) fn running_supervisor(sandbox: &Sandbox) -> Result<Supervisor, Error> {
    let ready = sandbox.record().phase == SandboxPhase::Ready;
    let supervisor = sandbox.supervisor().filter(|supervisor| ready && !supervisor.is_dead());
    supervisor.ok_or_else(|| Error::WrongState(format!("sandbox {} is not running", sandbox.id)))
}

fn start_request(container: &Container, record: &ContainerRecord, plan: LaunchPlan) -> StartContainer {
    let directory = container.sandbox.record().config.log_directory;
    let log = (!record.log_path.is_empty())
        .then(|| LogFile { directory: directory.into(), path: PathBuf::from(&record.config.log_path) });
    StartContainer {
        container: container.id.clone(),
        plan,
        log,
        exit_file: container.directory.join("exit"),
        stdin: record.config.stdin,
        tty: record.config.tty,
        stdin_once: record.config.stdin_once,
    }
}

fn exit_of(phase: &ContainerPhase, exit: &ExitRecord) -> Exit {
    let (pid, started_at) = facts(phase);
    let reason = match (exit.oom_killed, exit.code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    Exit {
        pid,
        started_at: if started_at == 0 { exit.finished_at } else { started_at },
        finished_at: exit.finished_at,
        code: exit.code,
        reason: reason.to_owned(),
        message: String::new(),
    }
}

fn facts(phase: &ContainerPhase) -> (i32, i64) {
    match phase {
        ContainerPhase::Running { pid, started_at } => (*pid, *started_at),
        ContainerPhase::Created | ContainerPhase::Starting => (0, 0),
        ContainerPhase::Exited(exit) => (exit.pid, exit.started_at),
    }
}

pub(crate) fn security_of(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn user_of(
    security: &v1::LinuxContainerSecurityContext,
    image: &Image,
    lower: &[PathBuf],
) -> Result<ResolvedUser, Error> {
    let asked = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    Ok(resolve_user(security, &asked, &Accounts::read(lower))?)
}

/// The client's log path stays below the pod's log directory.
fn log_path(sandbox: &v1::PodSandboxConfig, config: &v1::ContainerConfig) -> Result<String, Error> {
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(String::new());
    }
    if !is_plain_relative(Path::new(&config.log_path)) {
        return Err(Error::Invalid(format!("log path {:?} leaves the pod's log directory", config.log_path)));
    }
    Ok(Path::new(&sandbox.log_directory).join(&config.log_path).display().to_string())
}

/// What the client asks for, else the image, else SIGTERM. A name with or without SIG, or a number.
fn stop_signal(config: &v1::ContainerConfig, image: &Image) -> Result<i32, Error> {
    let asked = match config.stop_signal() {
        v1::Signal::RuntimeDefault => {
            let of_image = image.config.config().as_ref().and_then(|config| config.stop_signal().clone());
            of_image.unwrap_or_default()
        }
        signal => signal.as_str_name().to_owned(),
    };
    if asked.is_empty() {
        return Ok(SIGTERM);
    }
    oci::signal::parse(&asked).ok_or_else(|| Error::Invalid(format!("unknown stop signal {asked:?}")))
}

fn localhost_profile(security: &v1::LinuxContainerSecurityContext) -> Result<Option<LinuxSeccomp>, Error> {
    let profile = security.seccomp.as_ref();
    let Some(profile) = profile.filter(|one| {
        one.profile_type() == v1::security_profile::ProfileType::Localhost && !one.localhost_ref.is_empty()
    }) else {
        return Ok(None);
    };
    let path = Path::new(profile.localhost_ref.trim_start_matches("localhost/"));
    let text = std::fs::read(path).map_err(Error::io("read the seccomp profile", path))?;
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|error| Error::Invalid(format!("seccomp profile {}: {error}", path.display())))
}

pub(crate) fn read_spec(directory: &Path) -> Result<Spec, Error> {
    let path = directory.join("config.json");
    let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
    serde_json::from_slice(&text).map_err(|error| Error::io("parse", path)(error.into()))
}

/// Makes directories that only root passes through: what a container has of them is opened for it.
pub(crate) fn make_directories(paths: &[&Path]) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    for path in paths {
        // What the container sees as its root directory has everybody's permissions.
        let mode = if path.ends_with("upper") { 0o755 } else { 0o700 };
        std::fs::DirBuilder::new().mode(mode).create(path).map_err(Error::io("create", *path))?;
    }
    Ok(())
}

/// Gives a file to the root of a user namespace.
pub(crate) fn give_to_root_of(user: &UserPlan, path: &Path) -> Result<(), Error> {
    let (uid, gid) = (user.host_uid(0), user.host_gid(0));
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(Error::io("change the owner of", path))
}

fn remove_all(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

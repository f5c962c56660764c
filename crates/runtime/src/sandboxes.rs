//! RunPodSandbox, StopPodSandbox, RemovePodSandbox, and the one teardown that failure, stop, remove and recovery share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cri::v1;
use cri::v1::{ContainerEventType, NamespaceMode as CriMode};
use host::error::chain;
use oci::plan::UserPlan;
use oci::supervisor::protocol::{NamespaceMode, PidMode, PodNamespaces, Setup};

use crate::containers::{make_directories, read_spec};
use crate::error::Error;
use crate::network;
use crate::record::{SandboxPhase, SandboxRecord};
use crate::recovery::directories;
use crate::runtime::{Runtime, now_ns};
use crate::spec::{namespace_options, shares_host_uts, user_namespace};
use crate::state::{Sandbox, new_id};
use crate::supervisor::{PATIENCE, Supervisor, kill_pod};
use crate::{files, handlers};

impl Runtime {
    /// All or nothing: on an error nothing of the sandbox is left. What cannot be taken back is listed as a sandbox that is not ready,
    /// so that its removal can be asked for again.
    #[tracing::instrument(skip_all, fields(pod))]
    pub(crate) async fn run_sandbox(
        self: &Arc<Self>,
        config: v1::PodSandboxConfig,
        handler: String,
    ) -> Result<String, Error> {
        let name = sandbox_name(&config)?;
        tracing::Span::current().record("pod", &name);
        check(&config, &handler)?;
        let id = new_id()?;
        self.index().reserve("sandbox", &name, &id)?;
        let sandbox = Arc::new(self.new_sandbox(&id, config, handler));
        let made = self.make_sandbox(&sandbox).await;
        if let Err(error) = made {
            match self.tear_down(&sandbox).await.and_then(|()| discard(&sandbox.directory)) {
                Ok(()) => self.index().release(&id),
                Err(left) => {
                    tracing::warn!(
                        sandbox = id,
                        error = left.chain(),
                        "a sandbox that did not come up is not gone"
                    );
                    self.index().add_sandbox(sandbox);
                }
            }
            return Err(error);
        }
        self.index().add_sandbox(sandbox.clone());
        self.tell_sandbox(&sandbox, ContainerEventType::ContainerCreatedEvent);
        self.tell_sandbox(&sandbox, ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    fn new_sandbox(&self, id: &str, config: v1::PodSandboxConfig, handler: String) -> Sandbox {
        let asked = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        let record = SandboxRecord {
            id: id.to_owned(),
            boot_id: self.boot_id.clone(),
            created_at: now_ns(),
            phase: SandboxPhase::Creating,
            cgroup_parent: self.config.cgroup_parent(&asked, id),
            owns_cgroup_parent: asked.is_empty(),
            handler,
            config,
            supervisor: None,
            network: None,
        };
        Sandbox::new(self.config.sandboxes().join(id), record)
    }

    async fn make_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let record = sandbox.record();
        make_directories(&[&sandbox.directory, &sandbox.directory.join("containers")])?;
        // Written before anything is acquired: a crash from here on is found and undone.
        sandbox.update(|_| {})?;
        let options = namespace_options(&record.config);
        let user = user_namespace(&options)?;
        let shares_ipc = options.ipc() == CriMode::Node;
        files::prepare(&sandbox.directory, &record.config, shares_ipc, user.as_ref())?;
        let set_up = self.set_up(sandbox, &record, user);
        let supervisor = Supervisor::spawn(&self.exe.path, &set_up).await?;
        sandbox.set_supervisor(Some(supervisor.clone()));
        sandbox.update(|record| record.supervisor = Some(supervisor.process().clone()))?;
        if options.network() != CriMode::Node {
            let attachment = network::attachment(&record, Some(supervisor.process()));
            let network = self.cni.add(&attachment).await;
            let network = network.map_err(|source| Error::Network { sandbox: sandbox.id.clone(), source })?;
            sandbox.update(|record| {
                record.network = Some(network);
                record.phase = SandboxPhase::Ready;
            })?;
        } else {
            sandbox.update(|record| record.phase = SandboxPhase::Ready)?;
        }
        self.watch_sandbox(sandbox, &supervisor);
        Ok(())
    }

    fn set_up(&self, sandbox: &Sandbox, record: &SandboxRecord, user: Option<UserPlan>) -> Setup {
        let options = namespace_options(&record.config);
        let mode =
            |mode: CriMode| if mode == CriMode::Node { NamespaceMode::Node } else { NamespaceMode::Pod };
        let uts = if shares_host_uts(&record.config) { NamespaceMode::Node } else { NamespaceMode::Pod };
        let pid = match options.pid() {
            CriMode::Pod => PidMode::Pod,
            CriMode::Node => PidMode::Node,
            CriMode::Container | CriMode::Target => PidMode::Container,
        };
        let linux = record.config.linux.clone().unwrap_or_default();
        let sysctls: BTreeMap<String, String> = linux.sysctls.into_iter().collect();
        Setup {
            sandbox_id: sandbox.id.clone(),
            directory: sandbox.directory.clone(),
            namespaces: PodNamespaces {
                network: mode(options.network()),
                ipc: mode(options.ipc()),
                uts,
                pid,
            },
            user,
            hostname: Some(record.config.hostname.clone()).filter(|name| !name.is_empty()),
            sysctls,
            cgroup: Some(self.config.supervisor_cgroup(&sandbox.id)),
            oom_score_adj: Some(-998),
        }
    }

    /// Stops every container, frees the network. Unknown ids are stopped already.
    pub(crate) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let sandbox = match self.index().sandbox(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        let _busy = sandbox.busy.lock().await;
        self.stop_found_sandbox(&sandbox).await
    }

    pub(crate) async fn stop_found_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        if sandbox.record().phase == SandboxPhase::NotReady {
            return Ok(());
        }
        sandbox.update(|record| record.phase = SandboxPhase::Stopping)?;
        self.tear_down(sandbox).await?;
        sandbox.update(|record| {
            record.phase = SandboxPhase::NotReady;
            record.supervisor = None;
        })?;
        self.tell_sandbox(sandbox, ContainerEventType::ContainerStoppedEvent);
        Ok(())
    }

    /// Stops the sandbox, removes its containers and its records. Unknown ids are removed already.
    pub(crate) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let sandbox = match self.index().sandbox(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        let _busy = sandbox.busy.lock().await;
        self.stop_found_sandbox(&sandbox).await?;
        let containers = self.index().containers_of(&sandbox.id);
        for container in containers {
            self.remove_found_container(&container).await?;
        }
        discard(&sandbox.directory)?;
        self.tell_sandbox(&sandbox, ContainerEventType::ContainerDeletedEvent);
        self.index().remove_sandbox(&sandbox.id);
        Ok(())
    }

    /// Gives back everything that a sandbox holds but its records and its containers' layers. Idempotent and resumable:
    /// each step succeeds when there is nothing to do, a step that fails does not keep the others from being done.
    pub(crate) async fn tear_down(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let record = sandbox.record();
        let mut problems = Vec::new();
        let mut note = |what: &str, error: Option<String>| {
            problems.extend(error.map(|error| format!("{what}: {error}")));
        };
        // The address stays leased until the link has vanished with the namespace.
        if namespace_options(&record.config).network() != CriMode::Node {
            // A pid that is another process's by now leads to another network namespace.
            let process = record.supervisor.as_ref().filter(|process| process.is_alive());
            let released = self.cni.del(&network::attachment(&record, process)).await;
            note("network", released.err().map(|error| chain(&error)));
        }
        let containers = self.index().containers_of(&sandbox.id);
        let ended = match sandbox.supervisor().filter(|supervisor| !supervisor.is_dead()) {
            Some(supervisor) => tokio::time::timeout(PATIENCE, supervisor.shutdown())
                .await
                .inspect_err(|_| {
                    tracing::warn!(
                        sandbox = sandbox.id,
                        "a supervisor does not end, and is killed with its containers"
                    )
                })
                .ok(),
            None => None,
        };
        match ended {
            Some(ended) => note("supervisor", ended.err().map(|error| chain(&error))),
            None => note("processes", self.kill_unsupervised(sandbox).await.err().map(|error| error.chain())),
        }
        sandbox.set_supervisor(None);
        for container in &containers {
            note(&container.id, self.settle_exit(container).err().map(|error| error.chain()));
        }
        note("shared memory", files::release(&sandbox.directory).err().map(|error| error.chain()));
        let mut cgroups: Vec<String> = containers.iter().map(|container| container.record().cgroup).collect();
        if record.owns_cgroup_parent {
            cgroups.push(record.cgroup_parent.clone());
        }
        cgroups.push(self.config.supervisor_cgroup(&sandbox.id));
        for cgroup in cgroups {
            note(&cgroup, self.remove_cgroup(&cgroup).await.err().map(|error| chain(&error)));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Teardown { what: format!("sandbox {}", sandbox.id), problems: problems.join("; ") })
    }

    /// A supervisor that is not reachable may still live (a crash between its start and its record), and its containers
    /// do when it is dead.
    async fn kill_unsupervised(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let record = sandbox.record();
        let mut cgroups = vec![self.config.supervisor_cgroup(&record.id)];
        if record.owns_cgroup_parent {
            cgroups.push(record.cgroup_parent.clone());
        }
        // By their specs: also those whose records say nothing.
        for directory in directories(&sandbox.directory.join("containers")) {
            let spec = read_spec(&directory).ok();
            let path = spec.and_then(|spec| spec.linux().as_ref()?.cgroups_path().clone());
            cgroups.extend(path.map(|path| path.display().to_string()));
        }
        for path in cgroups {
            let fail = |error: host::cgroup::CgroupError| Error::Teardown {
                what: path.clone(),
                problems: chain(&error),
            };
            let cgroup = self.cgroups.open(&path).map_err(fail)?;
            if cgroup.exists() {
                kill_pod(&cgroup).await.map_err(fail)?;
            }
        }
        Ok(())
    }

    /// The last process may still be on its way out when its parent knows of its end: the kernel is asked again for a
    /// bounded time.
    pub(crate) async fn remove_cgroup(&self, path: &str) -> Result<(), host::cgroup::CgroupError> {
        let cgroup = self.cgroups.open(path)?;
        let mut pause = std::time::Duration::from_micros(200);
        for _ in 0..12 {
            if cgroup.remove().is_ok() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        cgroup.remove()
    }

    /// Hears of exits, and of the supervisor's death.
    pub(crate) fn watch_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>, supervisor: &Supervisor) {
        let mut events = supervisor.events();
        let (runtime, sandbox, supervisor) = (Arc::downgrade(self), sandbox.clone(), supervisor.clone());
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Some(runtime) = runtime.upgrade() else { return };
                let oci::supervisor::protocol::Event::Exited { container, exit } = event;
                runtime.record_exit(&container, &exit);
            }
            supervisor.died().await;
            if let Some(runtime) = runtime.upgrade() {
                // Boxed, as it is a part of each pod's task otherwise, from its start on.
                Box::pin(runtime.mourn(&sandbox)).await;
            }
        });
    }

    /// The supervisor ended: on our order, or it died and left containers that nobody supervises. Those are killed.
    async fn mourn(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let _busy = sandbox.busy.lock().await;
        if sandbox.record().phase != SandboxPhase::Ready {
            return;
        }
        tracing::warn!(sandbox = sandbox.id, "the supervisor died; its containers are killed");
        if let Err(error) = self.stop_found_sandbox(sandbox).await {
            tracing::error!(
                sandbox = sandbox.id,
                error = error.chain(),
                "cannot clean up after a dead supervisor"
            );
        }
    }
}

/// The name under which a sandbox is known: as containerd builds it.
pub(crate) fn sandbox_name(config: &v1::PodSandboxConfig) -> Result<String, Error> {
    let metadata =
        config.metadata.as_ref().ok_or_else(|| Error::Invalid("sandbox config has no metadata".into()))?;
    if metadata.name.is_empty() {
        return Err(Error::Invalid("sandbox metadata has no name".into()));
    }
    Ok(format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt))
}

fn check(config: &v1::PodSandboxConfig, handler: &str) -> Result<(), Error> {
    handlers::check(handler)?;
    user_namespace(&namespace_options(config))?;
    Ok(())
}

/// Removes a record's directory; one that is gone is no error.
fn discard(directory: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

//! What a former process left: running pods are taken over, half-done steps finished or undone, the rest removed.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use host::error::chain;
use tokio::task::JoinSet;

use crate::error::{Error, OpenError};
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord, read};
use crate::runtime::Runtime;
use crate::sandboxes::sandbox_name;
use crate::state::{Container, Sandbox};
use crate::supervisor::{ConnectError, Supervisor};

impl Runtime {
    /// Compares the records with reality. What cannot be recovered is logged, and does not keep the rest from working.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<(), OpenError> {
        // Together: a supervisor that does not answer keeps none of the others waiting.
        let mut recoveries = JoinSet::new();
        for directory in directories(&self.config.sandboxes()) {
            let Some(record) = self.record_of(&directory) else { continue };
            let runtime = Arc::clone(self);
            recoveries.spawn(async move {
                let id = record.id.clone();
                if let Err(error) = runtime.recover_sandbox(&directory, record).await {
                    tracing::error!(sandbox = id, error = error.chain(), "a sandbox cannot be recovered");
                }
            });
        }
        while recoveries.join_next().await.is_some() {}
        let known: BTreeSet<String> =
            self.index().containers().iter().map(|container| container.id.clone()).collect();
        for directory in directories(&self.config.root.join("containers")) {
            if !directory.file_name().is_some_and(|name| known.contains(&*name.to_string_lossy())) {
                remove_orphan(&directory);
            }
        }
        let records =
            self.index().sandboxes().into_iter().map(|sandbox| sandbox.record()).collect::<Vec<_>>();
        let ready = records.into_iter().filter(|record| record.phase == SandboxPhase::Ready);
        let live: BTreeSet<String> = ready.map(|record| record.id).collect();
        self.cni.reconcile(&live).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "addresses of former sandboxes may stay leased");
        });
        // Nobody waits for plugins that only look.
        tokio::spawn(self.clone().tell_of_broken_networks(live));
        self.images.collect().await?;
        Ok(())
    }

    /// What is known of the sandbox in that directory; nothing where nothing was acquired.
    fn record_of(&self, directory: &Path) -> Option<SandboxRecord> {
        match read::<SandboxRecord>(directory) {
            Ok(Some(record)) => Some(record),
            Ok(None) => {
                remove_orphan(directory);
                None
            }
            Err(error) => {
                let id = directory.file_name().unwrap_or_default().to_string_lossy();
                tracing::error!(sandbox = %id, error = chain(&error), "ending a sandbox whose record is not understood");
                Some(SandboxRecord::of_directory(&id, self.config.cgroup_parent("", &id)))
            }
        }
    }

    async fn recover_sandbox(self: &Arc<Self>, directory: &Path, record: SandboxRecord) -> Result<(), Error> {
        let sandbox = Arc::new(Sandbox::new(directory.to_owned(), record.clone()));
        let name = sandbox_name(&record.config)?;
        self.index().reserve("sandbox", &name, &record.id)?;
        self.index().add_sandbox(sandbox.clone());
        let understood = self.recover_containers(&sandbox);
        if let Err(error) = &understood {
            let error = error.chain();
            tracing::error!(
                sandbox = record.id,
                error,
                "ending a sandbox with a container that is not understood"
            );
        }
        let supervisor = self.find_supervisor(&record, directory).await;
        sandbox.set_supervisor(supervisor.clone());
        match (record.phase, supervisor) {
            (SandboxPhase::Ready, Some(supervisor)) if understood.is_ok() => {
                self.adopt(&sandbox, &supervisor).await?;
                tracing::info!(sandbox = record.id, "took over a running sandbox");
            }
            (SandboxPhase::NotReady, _) => {}
            (SandboxPhase::Creating, _) => {
                tracing::info!(sandbox = record.id, "undoing a sandbox that was not finished");
                self.remove_sandbox(&record.id).await?;
            }
            (SandboxPhase::Ready | SandboxPhase::Stopping, _) => {
                tracing::info!(sandbox = record.id, "finishing the stop of a sandbox");
                self.stop_found_sandbox(&sandbox).await?;
            }
        }
        Ok(())
    }

    /// The supervisor of a sandbox, if it lives. One of which the record does not tell yet is found by its socket.
    async fn find_supervisor(&self, record: &SandboxRecord, directory: &Path) -> Option<Supervisor> {
        let known = match &record.supervisor {
            Some(process) if record.boot_id == self.boot_id => Some(process),
            None if record.phase == SandboxPhase::Creating => None,
            _ => return None,
        };
        match Supervisor::connect(directory, known).await {
            Ok(supervisor) => return Some(supervisor),
            Err(ConnectError::Gone { pid }) => {
                tracing::info!(sandbox = record.id, pid, "the supervisor is gone")
            }
            Err(error) => {
                tracing::warn!(
                    sandbox = record.id,
                    error = chain(&error),
                    "a supervisor does not answer, and is ended"
                );
            }
        }
        None
    }

    fn recover_containers(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        for directory in directories(&sandbox.directory.join("containers")) {
            let Some(record) = read::<ContainerRecord>(&directory)? else {
                remove_orphan(&directory);
                continue;
            };
            // The spec is written last: without it nobody was told that the container exists. Its layer goes with the orphans.
            if !directory.join("config.json").exists() {
                tracing::info!(container = record.id, "undoing a container that was not finished");
                remove_orphan(&directory);
                continue;
            }
            let metadata = record.config.metadata.clone().unwrap_or_default();
            let name = format!("{}_{}_{}", metadata.name, sandbox.id, metadata.attempt);
            self.index().reserve("container", &name, &record.id)?;
            let hold = self.images.hold(&record.layers());
            self.index().add_container(Arc::new(Container::new(sandbox.clone(), record, None, vec![hold])));
        }
        Ok(())
    }

    /// The supervisor knows what runs; a start that it never got leaves the container as it was made.
    async fn adopt(self: &Arc<Self>, sandbox: &Arc<Sandbox>, supervisor: &Supervisor) -> Result<(), Error> {
        let listed = supervisor.list().await;
        let listed = listed
            .map_err(|source| Error::Supervisor { what: format!("list sandbox {}", sandbox.id), source })?;
        let containers = self.index().containers_of(&sandbox.id);
        for container in containers {
            let known = listed.iter().find(|status| status.container == container.id);
            match known {
                Some(status) => {
                    container.advance(|phase| match phase {
                        ContainerPhase::Starting | ContainerPhase::Created => Some(ContainerPhase::Running {
                            pid: status.started.pid,
                            started_at: status.started.started_at,
                        }),
                        _ => None,
                    })?;
                    if let Some(exit) = &status.exit {
                        self.record_exit(&container.id, exit);
                    }
                }
                None => {
                    let mut back = false;
                    container.advance(|phase| {
                        back = *phase == ContainerPhase::Starting;
                        back.then_some(ContainerPhase::Created)
                    })?;
                    if !back {
                        self.settle_exit(&container)?;
                    }
                }
            }
        }
        self.watch_sandbox(sandbox, supervisor);
        Ok(())
    }
}

/// The directories in a directory, in order; none where it cannot be read.
pub(crate) fn directories(parent: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> =
        std::fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

fn remove_orphan(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory) {
        tracing::warn!(directory = %directory.display(), %error, "an orphaned directory stays");
    }
}

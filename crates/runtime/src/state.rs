//! What runs, in memory: sandboxes and containers by id and by name.
//!
//! One operation at a time changes a sandbox (its `busy` lock); readers see the record as it was last changed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci::plan::LaunchPlan;
use tokio::sync::watch;

use crate::error::Error;
use crate::images::Hold;
use crate::record::{ContainerPhase, ContainerRecord, SandboxRecord};
use crate::supervisor::Supervisor;

/// A sandbox of this node.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    /// `<state>/sandboxes/<id>`.
    pub(crate) directory: PathBuf,
    record: Mutex<SandboxRecord>,
    supervisor: Mutex<Option<Supervisor>>,
    /// Held by CreateContainer, StopPodSandbox and RemovePodSandbox.
    pub(crate) busy: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub(crate) fn new(directory: PathBuf, record: SandboxRecord) -> Self {
        Self {
            id: record.id.clone(),
            directory,
            record: Mutex::new(record),
            supervisor: Mutex::new(None),
            busy: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn record(&self) -> SandboxRecord {
        lock(&self.record).clone()
    }

    /// Changes the record on disk first, then in memory.
    pub(crate) fn update(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), Error> {
        let mut record = lock(&self.record);
        let mut next = record.clone();
        change(&mut next);
        next.write(&self.directory)?;
        *record = next;
        Ok(())
    }

    pub(crate) fn supervisor(&self) -> Option<Supervisor> {
        lock(&self.supervisor).clone()
    }

    pub(crate) fn set_supervisor(&self, supervisor: Option<Supervisor>) {
        *lock(&self.supervisor) = supervisor;
    }

    /// `<state>/sandboxes/<id>/containers/<id>`.
    pub(crate) fn container_directory(&self, id: &str) -> PathBuf {
        self.directory.join("containers").join(id)
    }
}

/// A container of this node.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) directory: PathBuf,
    record: Mutex<ContainerRecord>,
    /// What StartContainer sends to the supervisor; gone once it is sent.
    pub(crate) plan: Mutex<Option<LaunchPlan>>,
    /// Keep the layers of its images.
    _holds: Vec<Hold>,
    exited: watch::Sender<bool>,
    telling: Mutex<()>,
    /// Held by StartContainer, StopContainer and RemoveContainer.
    pub(crate) busy: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hold")
    }
}

impl Container {
    pub(crate) fn new(
        sandbox: Arc<Sandbox>,
        record: ContainerRecord,
        plan: Option<LaunchPlan>,
        holds: Vec<Hold>,
    ) -> Self {
        let exited = matches!(record.phase, ContainerPhase::Exited(_));
        Self {
            id: record.id.clone(),
            directory: sandbox.container_directory(&record.id),
            sandbox,
            record: Mutex::new(record),
            plan: Mutex::new(plan),
            _holds: holds,
            exited: watch::Sender::new(exited),
            telling: Mutex::default(),
            busy: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn record(&self) -> ContainerRecord {
        lock(&self.record).clone()
    }

    /// Held while the phase changes and that is told: its start and its end come from different tasks.
    pub(crate) fn telling(&self) -> MutexGuard<'_, ()> {
        lock(&self.telling)
    }

    pub(crate) fn phase(&self) -> ContainerPhase {
        lock(&self.record).phase.clone()
    }

    /// Changes the phase on disk first, then in memory; `None` leaves it. Gives whether it changed.
    pub(crate) fn advance(
        &self,
        change: impl FnOnce(&ContainerPhase) -> Option<ContainerPhase>,
    ) -> Result<bool, Error> {
        let mut record = lock(&self.record);
        let Some(phase) = change(&record.phase) else { return Ok(false) };
        let mut next = record.clone();
        next.phase = phase;
        let written = next.write(&self.directory);
        // An exit is a fact, whatever the disk says; the supervisor's exit file tells it after a crash.
        let exited = matches!(next.phase, ContainerPhase::Exited(_));
        if exited || written.is_ok() {
            *record = next;
        }
        drop(record);
        if exited {
            self.exited.send_replace(true);
        }
        written?;
        Ok(true)
    }

    /// Changes anything but the phase, on disk first.
    pub(crate) fn change(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<(), Error> {
        let mut record = lock(&self.record);
        let mut next = record.clone();
        change(&mut next);
        next.write(&self.directory)?;
        *record = next;
        Ok(())
    }

    /// Waits until it has exited.
    pub(crate) async fn wait_exited(&self) {
        let mut exited = self.exited.subscribe();
        // The sender lives as long as `self`.
        let _ = exited.wait_for(|exited| *exited).await;
    }

    pub(crate) fn take_plan(&self) -> Option<LaunchPlan> {
        lock(&self.plan).take()
    }
}

/// Everything by id, and which names are taken.
#[derive(Debug, Default)]
pub(crate) struct Index {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    names: BTreeMap<String, String>,
}

impl Index {
    /// Takes a name for an id.
    pub(crate) fn reserve(&mut self, kind: &'static str, name: &str, id: &str) -> Result<(), Error> {
        match self.names.get(name) {
            Some(owner) if owner != id => {
                Err(Error::Reserved { kind, name: name.to_owned(), id: owner.clone() })
            }
            _ => {
                self.names.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    /// Frees every name of an id.
    pub(crate) fn release(&mut self, id: &str) {
        self.names.retain(|_, owner| owner != id);
    }

    pub(crate) fn add_sandbox(&mut self, sandbox: Arc<Sandbox>) {
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
    }

    pub(crate) fn add_container(&mut self, container: Arc<Container>) {
        self.containers.insert(container.id.clone(), container);
    }

    pub(crate) fn remove_sandbox(&mut self, id: &str) {
        self.sandboxes.remove(id);
        self.release(id);
    }

    pub(crate) fn remove_container(&mut self, id: &str) {
        self.containers.remove(id);
        self.release(id);
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes.values().cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.values().cloned().collect()
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers.values().filter(|container| container.sandbox.id == sandbox).cloned().collect()
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        find("sandbox", &self.sandboxes, id)
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        find("container", &self.containers, id)
    }
}

/// By the whole id, or by a beginning that only one has.
fn find<T>(kind: &'static str, all: &BTreeMap<String, Arc<T>>, id: &str) -> Result<Arc<T>, Error> {
    let not_found = || Error::NotFound { kind, id: id.to_owned() };
    if id.is_empty() {
        return Err(not_found());
    }
    let mut matching = all.range(id.to_owned()..).take_while(|(known, _)| known.starts_with(id));
    match (matching.next(), matching.next()) {
        (None, _) => Err(not_found()),
        (Some((known, found)), _) if known == id => Ok(found.clone()),
        (Some((_, found)), None) => Ok(found.clone()),
        (Some(_), Some(_)) => Err(Error::Ambiguous { kind, id: id.to_owned() }),
    }
}

/// A poisoned lock means that another call panicked: what it guards is replaced as a whole, so it is still sound.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 64 hex digits from the kernel's random numbers.
pub(crate) fn new_id() -> Result<String, Error> {
    use std::fmt::Write as _;
    use std::io::Read as _;
    let path = "/dev/urandom";
    let mut bytes = [0_u8; 32];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(Error::io("read", path))?;
    Ok(bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_id_finds_only_what_is_unique() {
        let all: BTreeMap<String, Arc<u8>> = [("abc1", 1), ("abc2", 2), ("b", 3), ("bb", 4)]
            .map(|(id, value)| (id.to_owned(), Arc::new(value)))
            .into();
        let found =
            |id: &str| find("container", &all, id).map(|value| *value).map_err(|error| error.to_string());
        assert_eq!(found("abc1"), Ok(1));
        assert_eq!(found("b"), Ok(3), "a whole id is found although another begins with it");
        assert!(found("abc").expect_err("two").contains("not unique"));
        assert!(found("x").expect_err("none").contains("not found"));
        assert!(found("").expect_err("none").contains("not found"));
    }

    #[test]
    fn a_name_is_reserved_until_its_owner_goes() {
        let mut index = Index::default();
        index.reserve("sandbox", "web", "1").expect("free");
        index.reserve("sandbox", "web", "1").expect("its own");
        assert!(
            index.reserve("sandbox", "web", "2").expect_err("taken").to_string().contains("reserved for 1")
        );
        index.release("1");
        index.reserve("sandbox", "web", "2").expect("free again");
    }
}

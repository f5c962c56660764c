//! What of a pod must survive a restart of the agent: its manifest, when it started, where it is on its way, back-offs,
//! verdicts, hooks. So that a restart flips nothing, and a pod whose manifest goes meanwhile still ends in good order.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

use super::Worker;
use crate::pod::plan::{Memory, WorkerState};

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    pod: Option<v1::Pod>,
    start_time: i64,
    deletion: Option<i64>,
    state: WorkerState,
    memory: Memory,
    status: Option<v1::PodStatus>,
}

/// Whether a former agent wrote down that it runs this pod.
pub(crate) fn is_remembered(state_dir: &Path, uid: &str) -> bool {
    state_dir.join(format!("{uid}.json")).exists()
}

/// The pods that a former agent of this boot remembered in [`crate::Config::state_dir`].
#[must_use]
pub fn remembered_pods(state_dir: &Path) -> Vec<Arc<v1::Pod>> {
    read_all(state_dir).filter_map(|record| record.pod).map(Arc::new).collect()
}

/// Those of them that it was not about to end.
#[must_use]
pub fn wanted_pods(state_dir: &Path) -> Vec<Arc<v1::Pod>> {
    let wanted = |state: &WorkerState| match state {
        WorkerState::Syncing | WorkerState::Completing { .. } => true,
        WorkerState::Terminating { .. } | WorkerState::Finished => false,
    };
    let records = read_all(state_dir).filter(|record| wanted(&record.state));
    records.filter_map(|record| record.pod).map(Arc::new).collect()
}

fn read_all(state_dir: &Path) -> impl Iterator<Item = Record> {
    records(state_dir).filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
}

/// Forgets what was remembered in another boot than `boot_id`: nothing of that runs, its times are of another clock, and only the API
/// server knows what has become of its pods meanwhile.
///
/// # Errors
/// When the directory cannot be read or written.
pub fn forget_other_boots(state_dir: &Path, boot_id: &str) -> std::io::Result<()> {
    let path = state_dir.join("boot-id");
    let then = match std::fs::read_to_string(&path) {
        Ok(then) => Some(then),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if then.as_deref() == Some(boot_id) {
        return Ok(());
    }
    host::path::make_directory(state_dir, 0o700)?;
    // A directory that names no boot is of an agent that did not write it down yet.
    if then.is_some() {
        for path in records(state_dir) {
            std::fs::remove_file(path)?;
        }
    }
    host::state_file::write_atomic(&path, boot_id.as_bytes(), 0o600)
}

fn records(state_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(state_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"))
}

impl Worker {
    pub(super) fn record_path(&self) -> PathBuf {
        self.node.record_path(&self.pod.uid)
    }

    /// Takes up what a former agent remembered; nothing when there is nothing.
    pub(super) fn recall(&mut self) {
        // What another kubelet told of the pod, until there is a record of ours.
        self.former = self.pod.source.status.clone().filter(|status| status.start_time.is_some());
        let Ok(text) = std::fs::read(self.record_path()) else { return };
        let Ok(record) = serde_json::from_slice::<Record>(&text) else { return };
        self.start_time = record.start_time;
        self.deletion = record.deletion;
        self.state = record.state;
        self.memory = record.memory;
        self.former = record.status;
        self.written = text;
    }

    /// Writes it down where it changed.
    pub(super) fn remember(&mut self) {
        let record = Record {
            pod: Some((*self.pod.source).clone()),
            start_time: self.start_time,
            deletion: self.deletion,
            state: self.state,
            memory: self.memory.clone(),
            status: self.former.clone(),
        };
        let Ok(text) = serde_json::to_vec(&record) else { return };
        if self.written == text {
            return;
        }
        match host::state_file::write_atomic(&self.record_path(), &text, 0o600) {
            Ok(()) => self.written = text,
            Err(error) => {
                tracing::warn!(pod = self.pod.name, %error, "the pod's record cannot be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_another_boot_are_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let state_dir = temp.path().join("kubelet");
        let remembered = || {
            let names = remembered_pods(&state_dir).into_iter().map(|pod| pod.metadata.name.clone().unwrap());
            names.collect::<Vec<_>>()
        };
        let write = |uid: &str| {
            let record = serde_json::json!({ "pod": { "metadata": { "name": uid, "uid": uid } } });
            std::fs::write(state_dir.join(format!("{uid}.json")), record.to_string()).unwrap();
        };
        forget_other_boots(&state_dir, "one").unwrap();
        write("a");
        forget_other_boots(&state_dir, "one").unwrap();
        assert_eq!(remembered(), ["a"]);
        assert!(is_remembered(&state_dir, "a"));
        forget_other_boots(&state_dir, "two").unwrap();
        assert!(remembered().is_empty() && !is_remembered(&state_dir, "a"));
        write("b");
        forget_other_boots(&state_dir, "two").unwrap();
        assert_eq!(remembered(), ["b"]);
        // Of an agent that named no boot.
        std::fs::remove_file(state_dir.join("boot-id")).unwrap();
        forget_other_boots(&state_dir, "two").unwrap();
        assert_eq!(remembered(), ["b"]);
    }
}

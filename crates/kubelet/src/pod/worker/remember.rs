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
    let entries = std::fs::read_dir(state_dir).into_iter().flatten().flatten();
    let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let records = entries.map(|entry| entry.path()).filter(is_record);
    let pods =
        records.filter_map(|path| serde_json::from_slice::<Record>(&std::fs::read(path).ok()?).ok()?.pod);
    pods.map(Arc::new).collect()
}

impl Worker {
    pub(super) fn record_path(&self) -> PathBuf {
        self.node.config.state_dir.join(format!("{}.json", self.pod.uid))
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

//! What of a pod must survive a restart of the agent: when it started, back-offs, verdicts. So that a restart flips nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Worker;
use crate::pod::back_off::BackOff;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    start_time: i64,
    back_offs: BTreeMap<String, BackOff>,
    ready: BTreeSet<String>,
    status: Option<k8s_openapi::api::core::v1::PodStatus>,
}

impl Worker {
    pub(super) fn record_path(&self) -> PathBuf {
        self.node.config.state_dir.join(format!("{}.json", self.pod.uid))
    }

    /// Takes up what a former agent remembered; nothing when there is nothing.
    pub(super) fn recall(&mut self) {
        let Ok(text) = std::fs::read(self.record_path()) else { return };
        let Ok(record) = serde_json::from_slice::<Record>(&text) else { return };
        self.start_time = record.start_time;
        self.memory.back_offs = record.back_offs;
        self.probers.ready = record.ready;
        self.former = record.status;
    }

    /// Writes it down where it changed.
    pub(super) fn remember(&self) {
        let record = Record {
            start_time: self.start_time,
            back_offs: self.memory.back_offs.clone(),
            ready: self.probers.ready.clone(),
            status: self.former.clone(),
        };
        let Ok(text) = serde_json::to_vec(&record) else { return };
        let path = self.record_path();
        if std::fs::read(&path).is_ok_and(|known| known == text) {
            return;
        }
        if let Err(error) = host::state_file::write_atomic(&path, &text, 0o600) {
            tracing::warn!(pod = self.pod.name, %error, "the pod's record cannot be written");
        }
    }
}

//! What is written down of sandboxes and containers: enough for a restarted agent, readable for people.
//!
//! Each record is replaced by rename, before what it describes is acquired. No fsync: after a boot nothing of it runs.

use std::path::{Path, PathBuf};

use cri::v1;
use host::process::ProcessId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Why a record could not be kept, or not be understood.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct RecordError {
    action: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// `<state>/sandboxes/<id>/record.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// 64 hex digits.
    pub id: String,
    /// The boot in which it was made.
    pub boot_id: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// What it is doing.
    pub phase: SandboxPhase,
    /// As the client sent it.
    pub config: v1::PodSandboxConfig,
    /// The runtime class's handler.
    pub handler: String,
    /// The parent of its containers' cgroups.
    pub cgroup_parent: String,
    /// Whether that parent is ours to remove.
    pub owns_cgroup_parent: bool,
    /// The process that holds its namespaces.
    pub supervisor: Option<ProcessId>,
    /// What CNI gave; nothing on the host's network.
    pub network: Option<cni::AddResult>,
}

/// The phases go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxPhase {
    /// RunPodSandbox is under way: found after a crash, it is torn down.
    Creating,
    /// Containers may be made.
    Ready,
    /// Being stopped: found after a crash, the stop goes on.
    Stopping,
    /// Stopped: only the record is left.
    NotReady,
}

/// `<state>/sandboxes/<id>/containers/<id>/record.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// 64 hex digits.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// As the client sent it.
    pub config: v1::ContainerConfig,
    /// `sha256:` and the digest of the image's config.
    pub image_id: String,
    /// Directories of the image's layers, the top one first.
    pub lower: Vec<PathBuf>,
    /// Layers of the images that it mounts as volumes: they stay as long as it does.
    #[serde(default)]
    pub volume_layers: Vec<PathBuf>,
    /// The log file; empty without one.
    pub log_path: String,
    /// What StopContainer sends first.
    pub stop_signal: i32,
    /// Its cgroup.
    pub cgroup: String,
    /// Who its process is.
    pub user: v1::LinuxContainerUser,
    /// What it is doing.
    pub phase: ContainerPhase,
}

/// The phases go one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// Made, not started.
    Created,
    /// StartContainer is under way: after a crash the supervisor knows whether it runs.
    Starting,
    /// Running.
    Running {
        /// Its process.
        pid: i32,
        /// Nanoseconds since 1970.
        started_at: i64,
    },
    /// Ended, or never started.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Its process, while it ran.
    pub pid: i32,
    /// Nanoseconds since 1970; 0 when it never started.
    pub started_at: i64,
    /// Nanoseconds since 1970.
    pub finished_at: i64,
    /// As a shell tells it.
    pub code: i32,
    /// CRI's reason: `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl SandboxRecord {
    /// What there is to know of a sandbox by its directory alone: enough for the teardown to find what it holds.
    pub(crate) fn of_directory(id: &str, cgroup_parent: String) -> Self {
        let metadata = v1::PodSandboxMetadata { name: id.to_owned(), ..Default::default() };
        Self {
            id: id.to_owned(),
            boot_id: String::new(),
            created_at: 0,
            phase: SandboxPhase::Creating,
            config: v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() },
            handler: String::new(),
            cgroup_parent,
            owns_cgroup_parent: true,
            supervisor: None,
            network: None,
        }
    }

    /// Replaces the record on disk.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), RecordError> {
        write(&directory.join("record.json"), self)
    }
}

impl ContainerRecord {
    /// Every layer that must not go while the container exists.
    pub(crate) fn layers(&self) -> Vec<PathBuf> {
        self.lower.iter().chain(&self.volume_layers).cloned().collect()
    }

    /// Replaces the record on disk.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), RecordError> {
        write(&directory.join("record.json"), self)
    }
}

fn write(path: &Path, record: &impl Serialize) -> Result<(), RecordError> {
    let fail = |source| RecordError { action: "write", path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(record).map_err(|error| fail(error.into()))?;
    host::state_file::write_atomic(path, &text, 0o600).map_err(fail)
}

/// Reads a record; nothing when there is none: then what it would describe was not acquired yet.
///
/// # Errors
/// When there is one and it cannot be read, or not understood: it may be another version's.
pub(crate) fn read<T: DeserializeOwned>(directory: &Path) -> Result<Option<T>, RecordError> {
    let path = directory.join("record.json");
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read,
    };
    let record = text.and_then(|text| Ok(serde_json::from_slice(&text)?));
    record.map(Some).map_err(|source| RecordError { action: "read", path, source })
}

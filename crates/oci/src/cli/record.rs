//! What is known of a container: `<root>/<id>/state.json`, in runc's names where runc has one. Written before the container is made.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use host::cgroup::{Cgroup, CgroupManager};
use host::process::ProcessId;
use host::state_file;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::CliError;
use super::args::Global;

/// The fifo at which a created container waits; that it exists means that nobody has started it.
pub(super) const FIFO: &str = "exec.fifo";
const STATE: &str = "state.json";
/// How long processes of a killed container may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) oci_version: String,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) created: String,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) cgroup_path: String,
    /// Whether its spec has hooks.
    #[serde(default)]
    pub(super) hooks: bool,
    /// What it is made from, for sessions and hooks to come: its bundle may change or go. In this file, as each further one costs a start a good part of a
    /// millisecond where the root is on a disk.
    #[serde(default)]
    pub(super) spec: Option<Spec>,
    /// `None` until there is one.
    pub(super) init: Option<ProcessId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Record {
    /// Makes the container's directory; that is what makes an id taken.
    pub(super) fn reserve(global: &Global, id: &str) -> Result<PathBuf, CliError> {
        use std::os::unix::fs::DirBuilderExt;
        let directory = global.root.join(id);
        let make = || std::fs::DirBuilder::new().mode(0o711).create(&directory);
        let outcome = match make() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                host::path::make_directory(&global.root, 0o700).map_err(|error| {
                    CliError::because(&format!("create {}", global.root.display()), &error)
                })?;
                make()
            }
            other => other,
        };
        match outcome {
            Ok(()) => Ok(directory),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(CliError::new("container with given ID already exists"))
            }
            Err(error) => Err(CliError::because(&format!("create {}", directory.display()), &error)),
        }
    }

    pub(super) fn load(global: &Global, id: &str) -> Result<Self, CliError> {
        let path = global.root.join(id).join(STATE);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(CliError::new("container does not exist"));
            }
            other => other.map_err(|error| CliError::because(&format!("read {}", path.display()), &error))?,
        };
        serde_json::from_slice(&text)
            .map_err(|error| CliError::because(&format!("parse {}", path.display()), &error))
    }

    pub(super) fn save(&self, global: &Global) -> Result<(), CliError> {
        let path = global.root.join(&self.id).join(STATE);
        let text = serde_json::to_vec(self).map_err(|error| CliError::because("write the state", &error))?;
        state_file::write_atomic(&path, &text, 0o600)
            .map_err(|error| CliError::because(&format!("write {}", path.display()), &error))
    }

    pub(super) fn status(&self, global: &Global) -> Status {
        match &self.init {
            None => Status::Creating,
            Some(init) if !init.is_alive() => Status::Stopped,
            Some(_) if global.root.join(&self.id).join(FIFO).exists() => Status::Created,
            Some(_) if self.is_frozen() => Status::Paused,
            Some(_) => Status::Running,
        }
    }

    fn is_frozen(&self) -> bool {
        let cgroup = CgroupManager::detect().and_then(|cgroups| cgroups.open(&self.cgroup_path));
        cgroup.is_ok_and(|cgroup| cgroup.is_frozen())
    }

    /// The container's cgroup.
    pub(super) fn cgroup(&self) -> Result<Cgroup, CliError> {
        CgroupManager::detect()
            .and_then(|cgroups| cgroups.open(&self.cgroup_path))
            .map_err(|error| CliError::because("open the cgroup", &error))
    }

    /// State as `state` and `list` print it (OCI runtime spec, `state`), with runc's additions.
    pub(super) fn state(&self, global: &Global, owner: &str) -> serde_json::Value {
        let status = self.status(global);
        let pid = match (&self.init, status) {
            (Some(init), Status::Created | Status::Running | Status::Paused) => init.pid,
            _ => 0,
        };
        let mut state = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "pid": pid,
            "status": status.name(),
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "created": self.created,
            "owner": owner,
        });
        if !self.annotations.is_empty() {
            state["annotations"] = serde_json::json!(self.annotations);
        }
        state
    }

    /// The spec that the container was made from.
    pub(super) fn spec(&self) -> Result<&Spec, CliError> {
        self.spec.as_ref().ok_or_else(|| {
            CliError::new("the record of the container has no spec; delete the container and make it anew")
        })
    }

    /// Removes cgroup and directory, killing what is still there. Gone already is fine.
    pub(super) fn destroy(&self, global: &Global, cgroups: &CgroupManager) -> Result<(), CliError> {
        let cgroup = cgroups.open(&self.cgroup_path).and_then(|cgroup| cgroup.destroy(PATIENCE));
        cgroup.map_err(|error| CliError::because("remove the cgroup", &error))?;
        remove_directory(&global.root.join(&self.id))
    }
}

/// Removes a container's directory: the known files and the directory itself, and the whole tree if there is more.
pub(super) fn remove_directory(directory: &Path) -> Result<(), CliError> {
    for name in [STATE, FIFO] {
        let _ = std::fs::remove_file(directory.join(name));
    }
    let outcome = match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => std::fs::remove_dir_all(directory),
        other => other,
    };
    match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(CliError::because(&format!("remove {}", directory.display()), &error))
        }
        _ => Ok(()),
    }
}

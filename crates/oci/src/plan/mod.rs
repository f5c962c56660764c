//! From an OCI runtime spec to a [`LaunchPlan`]. Pure: no file is opened, nothing is looked up.

mod types;

use std::path::PathBuf;

use host::cgroup::{DeviceRule, Limits};
use oci_spec::runtime::{Process, Spec};

pub use types::{
    Capabilities, CgroupPlan, DeviceNode, ExecPlan, ExecTarget, LaunchPlan, MountKind, MountPlan,
    ProcessPlan, Rootfs, SeccompPlan,
};

/// What the spec does not say.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// The container's root; `spec.root.path` is not looked at.
    pub rootfs: Rootfs,
    /// The cgroup path, instead of `spec.linux.cgroupsPath`. `None` takes the spec's.
    pub cgroup: Option<String>,
    /// A file with the compiled filter; else `spec.linux.seccomp` is compiled into the plan.
    pub seccomp: Option<PathBuf>,
    /// Namespaces that the starter already lives in for the container: entries of the spec with a path are then not joined but inherited.
    pub inherit: InheritedNamespaces,
    /// Relative bind sources count from here.
    pub bundle: PathBuf,
}

/// Which namespaces a container inherits from whoever starts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InheritedNamespaces {
    /// Network.
    pub net: bool,
    /// IPC.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// Process ids (children of the starter are in it).
    pub pid: bool,
}

/// Why a spec cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The field means something we do not do (yet).
    #[error("config.json field {field} is not supported: {reason}")]
    Unsupported {
        /// Path of the field in config.json.
        field: String,
        /// What exactly.
        reason: String,
    },
    /// The field has a value nobody could carry out.
    #[error("config.json field {field} is invalid: {reason}")]
    Invalid {
        /// Path of the field in config.json.
        field: String,
        /// What exactly.
        reason: String,
    },
}

/// Checks a spec and turns it into a plan.
pub fn plan_launch(spec: &Spec, options: &LaunchOptions) -> Result<LaunchPlan, PlanError> {
    let _ = (spec, options, Limits::default(), DeviceRule::char);
    Err(PlanError::Unsupported { field: "root".into(), reason: "under construction".into() })
}

/// Turns the process of an exec session into a plan. `seccomp` as in [`LaunchOptions`].
pub fn plan_exec(
    process: &Process,
    cgroup: Option<String>,
    seccomp: Option<SeccompPlan>,
) -> Result<ExecPlan, PlanError> {
    let _ = (process, cgroup, seccomp);
    Err(PlanError::Unsupported { field: "process".into(), reason: "under construction".into() })
}

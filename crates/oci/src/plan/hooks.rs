//! Lifecycle hooks: what is run beside the container, and what it is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, Spec};
use serde::{Deserialize, Serialize};

use super::PlanError;

/// The hooks of a container, and what stays the same in the state that each reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HooksPlan {
    /// By point in the container's life.
    pub lists: BTreeMap<HookPoint, Vec<HookPlan>>,
    /// `ociVersion` of the state.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Annotations of the spec.
    pub annotations: BTreeMap<String, String>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// Absolute path: on the host, of `startContainer` in the container.
    pub path: PathBuf,
    /// All arguments, the name first.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<String>,
    /// Seconds after which it is killed.
    pub timeout: Option<u64>,
}

/// Points in a container's life (OCI runtime spec, lifecycle).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookPoint {
    /// By the starter, when the namespaces are there.
    Prestart,
    /// By the starter, after those.
    CreateRuntime,
    /// In the container's mount namespace, before its root is entered.
    CreateContainer,
    /// In the container, before its program.
    StartContainer,
    /// By the starter, when the program runs.
    Poststart,
    /// By whoever deletes the container.
    Poststop,
}

impl HookPoint {
    /// As config.json has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The status that a hook at this point is told.
    pub fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

impl HooksPlan {
    /// The hooks at one point.
    pub fn at(&self, point: HookPoint) -> &[HookPlan] {
        self.lists.get(&point).map_or(&[], Vec::as_slice)
    }

    /// The state that hooks at this point read; `pid` is the init as they see it.
    pub fn state(&self, point: HookPoint, pid: i32) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": self.oci_version, "id": self.id, "status": point.status(), "pid": pid, "bundle": self.bundle,
        });
        if !self.annotations.is_empty() {
            state["annotations"] = serde_json::json!(self.annotations);
        }
        state
    }
}

/// `None` when the spec has no hooks.
pub fn plan_hooks(spec: &Spec, id: Option<&str>, bundle: &Path) -> Result<Option<HooksPlan>, PlanError> {
    let mut lists = BTreeMap::new();
    for (point, hooks) in spec.hooks().iter().flat_map(points) {
        let hooks = hooks.as_deref().unwrap_or(&[]);
        if !hooks.is_empty() {
            let hooks = hooks.iter().map(|hook| plan_hook(point, hook)).collect::<Result<_, _>>()?;
            lists.insert(point, hooks);
        }
    }
    if lists.is_empty() {
        return Ok(None);
    }
    let Some(id) = id else { return Err(PlanError::unsupported("hooks", "hooks of a container of CRI")) };
    let annotations = spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(Some(HooksPlan {
        lists,
        oci_version: spec.version().clone(),
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        annotations,
    }))
}

fn points(hooks: &Hooks) -> [(HookPoint, &Option<Vec<Hook>>); 6] {
    [
        (HookPoint::Prestart, hooks.prestart()),
        (HookPoint::CreateRuntime, hooks.create_runtime()),
        (HookPoint::CreateContainer, hooks.create_container()),
        (HookPoint::StartContainer, hooks.start_container()),
        (HookPoint::Poststart, hooks.poststart()),
        (HookPoint::Poststop, hooks.poststop()),
    ]
}

fn plan_hook(point: HookPoint, hook: &Hook) -> Result<HookPlan, PlanError> {
    let field = format!("hooks.{}", point.name());
    let path = hook.path();
    if !path.is_absolute() {
        return Err(PlanError::invalid(&field, format!("{} is not an absolute path", path.display())));
    }
    let args = hook.args().clone().filter(|args| !args.is_empty());
    let args = args.unwrap_or_else(|| vec![path.to_string_lossy().into_owned()]);
    let env = hook.env().clone().unwrap_or_default();
    if args.iter().chain(&env).any(|text| text.contains('\0')) {
        return Err(PlanError::invalid(&field, "NUL in an argument or an environment variable"));
    }
    let timeout = match hook.timeout() {
        Some(seconds) if seconds <= 0 => {
            return Err(PlanError::invalid(&field, format!("a timeout of {seconds} s")));
        }
        timeout => timeout.map(i64::unsigned_abs),
    };
    Ok(HookPlan { path: path.clone(), args, env, timeout })
}

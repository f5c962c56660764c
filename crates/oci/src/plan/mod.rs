//! From an OCI runtime spec to a [`LaunchPlan`]. Pure: no file is opened, nothing is looked up. What it does not do is refused by the
//! name of the field, never dropped.

mod capability;
mod hooks;
mod mounts;
mod priority;
mod process;
mod refuse;
mod resources;
mod types;
mod user;

use std::path::{Path, PathBuf};

use host::cgroup::Limits;
use host::namespace::Namespace;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, LinuxResources, Process, Spec,
};

pub use capability::{CAPABILITY_NAMES, capability_mask, capability_names, known_to_kernel};
pub use hooks::{HookPlan, HookPoint, HooksPlan, plan_hooks};
pub use host::user_namespace::IdMap;
pub use mounts::SUB_PATH_OPTION;
pub use types::{
    Capabilities, CgroupPlan, ClockOffset, DeviceNode, ExecPlan, ExecTarget, LaunchPlan, MountIds, MountKind,
    MountPlan, ProcessPlan, Rootfs, SeccompPlan, TerminalPlan, TerminalSize, UserPlan, WithoutRights,
};

#[cfg(test)]
pub(crate) use mounts::plan_mounts;

use crate::seccomp;

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
    /// The id that hooks are told. `None`: hooks are refused.
    pub hooks_for: Option<String>,
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

impl PlanError {
    fn unsupported(field: &str, reason: impl Into<String>) -> Self {
        Self::Unsupported { field: field.to_owned(), reason: reason.into() }
    }

    fn invalid(field: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.to_owned(), reason: reason.into() }
    }
}

/// A config.json as it was read.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// Its value.
    pub spec: Spec,
    /// Capabilities that it names and no kernel known here has: they are not in the value.
    pub unknown_capabilities: Vec<String>,
}

/// Reads config.json. Two flags of schedulers are spelled as the OCI runtime spec has them, which `oci_spec` does not know; and a capability
/// that it does not know is no reason not to run a container, which then has it not.
pub fn parse_spec(text: &[u8]) -> serde_json::Result<Parsed> {
    let error = match serde_json::from_slice(text) {
        Ok(spec) => return Ok(Parsed { spec, unknown_capabilities: Vec::new() }),
        Err(error) => error,
    };
    let mut value: serde_json::Value = serde_json::from_slice(text)?;
    let unknown_capabilities = capability::take_unknown(&mut value);
    let flags = value.pointer_mut("/process/scheduler/flags").and_then(serde_json::Value::as_array_mut);
    if flags.is_none() && unknown_capabilities.is_empty() {
        return Err(error);
    }
    for flag in flags.into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
    Ok(Parsed { spec: serde_json::from_value(value)?, unknown_capabilities })
}

/// Checks a spec and turns it into a plan.
pub fn plan_launch(spec: &Spec, options: &LaunchOptions) -> Result<LaunchPlan, PlanError> {
    refuse::whole_spec(spec)?;
    let none = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&none);
    refuse::linux(linux)?;
    let process = spec.process().as_ref().ok_or_else(|| PlanError::invalid("process", "it is missing"))?;
    let (new_namespaces, join_namespaces) = plan_namespaces(linux, options.inherit)?;
    let has =
        |kind: Namespace| new_namespaces.contains(&kind) || join_namespaces.iter().any(|join| join.0 == kind);
    let names = plan_names(spec, has(Namespace::Uts), options.inherit.uts)?;
    let reaches = Reach {
        net: has(Namespace::Net) || options.inherit.net,
        ipc: has(Namespace::Ipc) || options.inherit.ipc,
        uts: has(Namespace::Uts) || options.inherit.uts,
    };
    let filter = plan_filter(linux, options.seccomp.as_deref())?;
    let user = user::plan_user(linux, user::Origin::of(&new_namespaces, &join_namespaces), options)?;
    let mounts = mounts::plan_mounts(spec.mounts().as_deref().unwrap_or(&[]), &options.bundle)?;
    user::check_mounts(&mounts, user.as_ref())?;
    Ok(LaunchPlan {
        user,
        mounts,
        cgroup: plan_cgroup(linux, options.cgroup.as_deref())?,
        rootfs: options.rootfs.clone(),
        hooks: hooks::plan_hooks(spec, options.hooks_for.as_deref(), &options.bundle)?,
        readonly_rootfs: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        root_propagation: mounts::root_propagation(linux.rootfs_propagation().as_deref())?,
        devices: linux.devices().iter().flatten().map(plan_device).collect::<Result<_, _>>()?,
        masked_paths: absolute_paths("linux.maskedPaths", linux.masked_paths().as_deref())?,
        readonly_paths: absolute_paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?,
        sysctls: plan_sysctls(linux, reaches)?,
        hostname: names.0,
        domainname: names.1,
        clocks: plan_clocks(linux, &new_namespaces)?,
        process: process::plan_process(process, filter, linux)?,
        new_namespaces,
        join_namespaces,
    })
}

/// Turns the process of an exec session into a plan. `seccomp` is the container's filter.
pub fn plan_exec(
    process: &Process,
    cgroup: Option<String>,
    seccomp: Option<SeccompPlan>,
) -> Result<ExecPlan, PlanError> {
    Ok(ExecPlan { process: process::plan_process(process, seccomp, &Linux::default())?, cgroup })
}

/// Plans an exec session in a container that was started from `spec` and inherited nothing. Gives also the namespaces it joins.
pub fn plan_session(
    spec: &Spec,
    process: &Process,
    cgroup: Option<String>,
) -> Result<(ExecPlan, Vec<Namespace>), PlanError> {
    let none = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&none);
    let (new, join) = plan_namespaces(linux, InheritedNamespaces::default())?;
    let plan =
        ExecPlan { process: process::plan_process(process, plan_filter(linux, None)?, linux)?, cgroup };
    Ok((plan, new.into_iter().chain(join.into_iter().map(|(kind, _)| kind)).collect()))
}

/// Turns new resources of a running container into limits. Rules for devices are not among them: they stay as they are.
pub fn plan_update(resources: &LinuxResources) -> Result<Limits, PlanError> {
    Ok(Limits { devices: None, ..resources::plan_limits(Some(resources))? })
}

type NamespacePlan = (Vec<Namespace>, Vec<(Namespace, PathBuf)>);

fn plan_namespaces(linux: &Linux, inherit: InheritedNamespaces) -> Result<NamespacePlan, PlanError> {
    const FIELD: &str = "linux.namespaces";
    let mut new = Vec::new();
    let mut join: Vec<(Namespace, PathBuf)> = Vec::new();
    for entry in linux.namespaces().iter().flatten() {
        let (kind, inherited) = match entry.typ() {
            LinuxNamespaceType::Mount => (Namespace::Mnt, false),
            LinuxNamespaceType::Cgroup => (Namespace::Cgroup, false),
            LinuxNamespaceType::Uts => (Namespace::Uts, inherit.uts),
            LinuxNamespaceType::Ipc => (Namespace::Ipc, inherit.ipc),
            LinuxNamespaceType::Pid => (Namespace::Pid, inherit.pid),
            LinuxNamespaceType::Network => (Namespace::Net, inherit.net),
            LinuxNamespaceType::User => (Namespace::User, false),
            LinuxNamespaceType::Time => (Namespace::Time, false),
        };
        if new.contains(&kind) || join.iter().any(|(other, _)| *other == kind) {
            return Err(PlanError::invalid(FIELD, format!("two entries for {}", kind.file_name())));
        }
        match entry.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
            None => new.push(kind),
            Some(_) if inherited => {}
            Some(_) if kind == Namespace::Mnt => {
                return Err(PlanError::unsupported(FIELD, "joining a mount namespace by path"));
            }
            Some(path) if path.is_absolute() => join.push((kind, path.clone())),
            Some(path) => {
                return Err(PlanError::invalid(FIELD, format!("{} is not absolute", path.display())));
            }
        }
    }
    if !new.contains(&Namespace::Mnt) {
        return Err(PlanError::unsupported(FIELD, "a container without a mount namespace of its own"));
    }
    Ok((new, join))
}

/// Only a new namespace's clocks can be set.
fn plan_clocks(linux: &Linux, new: &[Namespace]) -> Result<Vec<ClockOffset>, PlanError> {
    const FIELD: &str = "linux.timeOffsets";
    let mut clocks = Vec::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(PlanError::invalid(FIELD, format!("there is no clock {clock:?}")));
        }
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        clocks.push(ClockOffset { clock: clock.clone(), seconds, nanoseconds });
    }
    if !clocks.is_empty() && !new.contains(&Namespace::Time) {
        return Err(PlanError::invalid(FIELD, "the container has no new time namespace"));
    }
    clocks.sort_by(|one, other| one.clock.cmp(&other.clock));
    Ok(clocks)
}

/// Host and domain name; in an inherited namespace its owner has set them already.
fn plan_names(
    spec: &Spec,
    own_uts: bool,
    inherited: bool,
) -> Result<(Option<String>, Option<String>), PlanError> {
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let (hostname, domainname) = (given(spec.hostname()), given(spec.domainname()));
    if own_uts {
        return Ok((hostname, domainname));
    }
    if !inherited && (hostname.is_some() || domainname.is_some()) {
        return Err(PlanError::invalid("hostname", "unable to set hostname without a private UTS namespace"));
    }
    Ok((None, None))
}

fn plan_cgroup(linux: &Linux, path: Option<&str>) -> Result<Option<CgroupPlan>, PlanError> {
    let limits = resources::plan_limits(linux.resources().as_ref())?;
    let from_spec = linux.cgroups_path().as_ref().map(|path| path.to_string_lossy().into_owned());
    let path = path.map(str::to_owned).or(from_spec).filter(|path| !path.is_empty());
    if let Some(path) = &path
        && path.contains(':')
    {
        return Err(PlanError::unsupported("linux.cgroupsPath", "systemd slices (slice:prefix:name)"));
    }
    // Without a cgroup it has the starter's devices, as long as it does not ask for others.
    let asks = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    let devices = limits.devices.clone().filter(|_| asks.is_none_or(Vec::is_empty));
    if path.is_none() && limits != (Limits { devices, ..Limits::default() }) {
        return Err(PlanError::invalid("linux.resources", "there are limits but no linux.cgroupsPath"));
    }
    Ok(path.map(|path| CgroupPlan { path, limits }))
}

/// The container's filter, for it and for every session in it: the spec's, or `file` with the spec's compiled.
pub fn plan_filter(linux: &Linux, file: Option<&Path>) -> Result<Option<SeccompPlan>, PlanError> {
    let unsupported =
        |error: seccomp::SeccompError| PlanError::unsupported("linux.seccomp", error.to_string());
    let given = linux.seccomp().as_ref();
    let flags =
        given.map_or(Ok(seccomp::default_flags()), |filter| seccomp::flags(filter).map_err(unsupported))?;
    if let Some(path) = file {
        return Ok(Some(SeccompPlan::File { path: path.to_owned(), flags }));
    }
    let Some(filter) = given else { return Ok(None) };
    let program = seccomp::compile(filter).map_err(unsupported)?;
    Ok(Some(SeccompPlan::Inline { program, flags }))
}

fn plan_device(device: &LinuxDevice) -> Result<DeviceNode, PlanError> {
    const FIELD: &str = "linux.devices";
    let invalid = |what: &str| PlanError::invalid(FIELD, format!("{}: {what}", device.path().display()));
    let file_type = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(invalid("type a is no kind of device node")),
    };
    if !device.path().is_absolute() {
        return Err(invalid("the path is not absolute"));
    }
    let number = |number: i64| u32::try_from(number).map_err(|_| invalid("a device number is out of range"));
    Ok(DeviceNode {
        path: device.path().clone(),
        file_type,
        major: number(device.major())?,
        minor: number(device.minor())?,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn absolute_paths(field: &str, paths: Option<&[String]>) -> Result<Vec<String>, PlanError> {
    let paths = paths.unwrap_or(&[]);
    match paths.iter().find(|path| !path.starts_with('/') || path.contains('\0')) {
        Some(path) => Err(PlanError::invalid(field, format!("{path:?} is not an absolute path"))),
        None => Ok(paths.to_vec()),
    }
}

/// Whether the container's view of a kind of namespace is not the host's.
#[derive(Clone, Copy)]
struct Reach {
    net: bool,
    ipc: bool,
    uts: bool,
}

/// Only parameters of namespaces that are not the host's may be set (cri-o CVE-2022-0811).
fn plan_sysctls(linux: &Linux, reach: Reach) -> Result<Vec<(String, String)>, PlanError> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
    ];
    let mut sysctls = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        // net/ipv4/conf/eth0.1/x and net.ipv4.conf.eth0/1.x mean the same: the first separator tells which.
        let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
        let swap = |c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        };
        let path: String = if slashes { name.clone() } else { name.chars().map(swap).collect() };
        let dotted = path.replace('/', ".");
        let allowed = (reach.net && path.starts_with("net/"))
            || (reach.ipc && (IPC.contains(&dotted.as_str()) || path.starts_with("fs/mqueue/")))
            || (reach.uts && (dotted == "kernel.hostname" || dotted == "kernel.domainname"));
        let clean = !path.split('/').any(|part| matches!(part, "" | "." | ".."));
        let plain = !value.contains(['\n', '\0']) && !name.contains(['\n', '\0']);
        if !(allowed && clean && plain) {
            let reason =
                format!("{name:?} is not a parameter of a namespace that the container has of its own");
            return Err(PlanError::invalid("linux.sysctl", reason));
        }
        sysctls.push((path, value.clone()));
    }
    sysctls.sort();
    Ok(sysctls)
}

#[cfg(test)]
pub(crate) mod tests;

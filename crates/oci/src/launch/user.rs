//! What a container with a user namespace of its own needs from its starter: the ids mapped, and everything of the host opened,
//! since the container's root may neither look into directories of the host nor make device nodes.

use std::io;
use std::os::fd::OwnedFd;

use host::mount::{self, Depth};

use super::LaunchError;
use super::dev;
use crate::plan::{IdMap, LaunchPlan, MountKind, Rootfs, UserPlan};

/// Detached copies of mounts of the host, made by the starter.
pub(super) struct Prepared {
    /// The container's root.
    pub(super) root: OwnedFd,
    /// Sources of binds, in the order of the plan's mounts.
    pub(super) sources: Vec<Option<OwnedFd>>,
    /// The devices that every container has, by name.
    pub(super) devices: Vec<(&'static str, OwnedFd)>,
}

/// Opens what the container is made of.
pub(super) fn prepare(plan: &LaunchPlan) -> Result<Prepared, LaunchError> {
    let clone = |path: &std::path::Path, depth| {
        let step = || format!("bind {}", path.display());
        mount::clone_path(path, depth).map_err(|source| LaunchError::Starter { step: step(), source })
    };
    let root = match &plan.rootfs {
        Rootfs::Directory(directory) => clone(directory, Depth::Recursive)?,
        Rootfs::Overlay { upper, .. } => {
            // The plan refuses it by the name of the field; this is for plans made elsewhere.
            let step = format!("mount an overlay on {} in a user namespace", upper.display());
            let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            return Err(LaunchError::Starter { step, source });
        }
    };
    let source = |kind: &MountKind| match kind {
        MountKind::Bind { source, recursive: true } => clone(source, Depth::Recursive).map(Some),
        MountKind::Bind { source, recursive: false } => clone(source, Depth::One).map(Some),
        MountKind::New { .. } | MountKind::Layers { .. } | MountKind::Cgroup => Ok(None),
    };
    let sources = plan.mounts.iter().map(|mount| source(&mount.kind)).collect::<Result<_, _>>()?;
    let device = |name: &'static str| {
        clone(&std::path::Path::new("/dev").join(name), Depth::One).map(|device| (name, device))
    };
    let devices = dev::DEFAULT_DEVICES.iter().map(|(name, ..)| device(name)).collect::<Result<_, _>>()?;
    Ok(Prepared { root, sources, devices })
}

/// Maps the ids of a new process that waits for it, and sets what it could not set itself.
pub(super) fn map_ids(pid: i32, user: &UserPlan, oom_score_adj: Option<i32>) -> Result<(), LaunchError> {
    let write = |name: &str, text: &str| {
        std::fs::write(format!("/proc/{pid}/{name}"), text)
            .map_err(|source| LaunchError::Starter { step: format!("write {name} {text:?}"), source })
    };
    write("uid_map", &lines(&user.uid))?;
    write("gid_map", &lines(&user.gid))?;
    match oom_score_adj.map(|score| write("oom_score_adj", &score.to_string())) {
        // As for other containers: lowering it needs CAP_SYS_RESOURCE.
        Some(Err(LaunchError::Starter { source, .. }))
            if matches!(source.raw_os_error(), Some(libc::EACCES | libc::EPERM)) =>
        {
            Ok(())
        }
        Some(outcome) => outcome,
        None => Ok(()),
    }
}

fn lines(maps: &[IdMap]) -> String {
    maps.iter().map(|map| format!("{} {} {}\n", map.container, map.host, map.size)).collect()
}

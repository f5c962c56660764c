//! User namespaces: which ids mean what.

use std::path::PathBuf;

use host::namespace::Namespace;
use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::{IdMap, LaunchOptions, MountPlan, PlanError, Rootfs, UserPlan};

/// Whose user namespace the container is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Its starter's.
    Inherited,
    /// One of its own.
    New,
    /// One with a path.
    Joined,
}

impl Origin {
    pub(super) fn of(new: &[Namespace], join: &[(Namespace, PathBuf)]) -> Self {
        if new.contains(&Namespace::User) {
            Self::New
        } else if join.iter().any(|(kind, _)| *kind == Namespace::User) {
            Self::Joined
        } else {
            Self::Inherited
        }
    }
}

/// `None` for a container without a user namespace of its own.
pub(super) fn plan_user(
    linux: &Linux,
    origin: Origin,
    options: &LaunchOptions,
) -> Result<Option<UserPlan>, PlanError> {
    let ids = UserPlan { uid: maps(linux.uid_mappings()), gid: maps(linux.gid_mappings()) };
    match origin {
        Origin::Inherited if ids == UserPlan::default() => Ok(None),
        Origin::Inherited => {
            let reason = "user namespace mappings specified, but user namespace isn't enabled in the config";
            Err(PlanError::invalid("linux.uidMappings", reason))
        }
        Origin::New if ids.uid.is_empty() || ids.gid.is_empty() => {
            let reason =
                "user namespaces enabled, but no namespace path to join nor mappings to apply specified";
            Err(PlanError::invalid("linux.uidMappings", reason))
        }
        Origin::New if matches!(options.rootfs, Rootfs::Overlay { .. }) => {
            let reason = "a user namespace of the container's own over image layers";
            Err(PlanError::unsupported("linux.namespaces", reason))
        }
        Origin::New | Origin::Joined => Ok(Some(ids)),
    }
}

/// A mount that is to show the container's ids needs a container that has such.
pub(super) fn check_mounts(mounts: &[MountPlan], user: Option<&UserPlan>) -> Result<(), PlanError> {
    let asks = |mount: &MountPlan| mount.ids.as_ref().is_some_and(|ids| ids.ids == UserPlan::default());
    match mounts.iter().position(asks) {
        Some(index) if user.is_none() => {
            let reason = "id-mapped mounts must have both uid and gid mappings specified";
            Err(PlanError::invalid(&format!("mounts[{index}].uidMappings"), reason))
        }
        _ => Ok(()),
    }
}

pub(super) fn maps(maps: &Option<Vec<LinuxIdMapping>>) -> Vec<IdMap> {
    let plan =
        |map: &LinuxIdMapping| IdMap { container: map.container_id(), host: map.host_id(), size: map.size() };
    maps.iter().flatten().map(plan).collect()
}

//! User namespaces: which ids mean what.

use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::{IdMap, LaunchOptions, PlanError, Rootfs, UserPlan};

/// `None` for a container without a user namespace of its own.
pub(super) fn plan_user(
    linux: &Linux,
    new: bool,
    joins: bool,
    options: &LaunchOptions,
) -> Result<Option<UserPlan>, PlanError> {
    let (uid, gid) = (linux.uid_mappings(), linux.gid_mappings());
    let given = |maps: &Option<Vec<LinuxIdMapping>>| maps.as_ref().is_some_and(|maps| !maps.is_empty());
    if !new {
        if given(uid) || given(gid) {
            let reason = "user namespace mappings specified, but USER namespace isn't enabled in the config";
            return Err(PlanError::invalid("linux.uidMappings", reason));
        }
        return Ok(None);
    }
    if !given(uid) || !given(gid) {
        let reason = "user namespaces enabled, but no user or group mapping found";
        return Err(PlanError::invalid("linux.uidMappings", reason));
    }
    if joins || options.inherit != super::InheritedNamespaces::default() {
        let reason = "a user namespace beside namespaces that are joined by path";
        return Err(PlanError::unsupported("linux.namespaces", reason));
    }
    if matches!(options.rootfs, Rootfs::Overlay { .. }) {
        return Err(PlanError::unsupported("linux.namespaces", "a user namespace over image layers"));
    }
    if linux.devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(PlanError::unsupported("linux.devices", "device nodes in a user namespace"));
    }
    let plan = |maps: &Option<Vec<LinuxIdMapping>>| maps.iter().flatten().map(plan_map).collect();
    Ok(Some(UserPlan { uid: plan(uid), gid: plan(gid) }))
}

fn plan_map(map: &LinuxIdMapping) -> IdMap {
    IdMap { container: map.container_id(), host: map.host_id(), size: map.size() }
}

//! What a container's status tells beside its state: resources, user, mounts. Pure.

use k8s_openapi::api::core::v1::{
    ContainerStatus, ContainerUser, LinuxContainerUser, PodStatus, VolumeMountStatus,
};

use crate::pod::model::{Container, Role};

/// What CRI tells of a container that decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Who its process is: user, group, supplemental groups.
    pub user: Option<(i64, i64, Vec<i64>)>,
    /// The signal that ends it; empty where the runtime does not say.
    pub stop_signal: String,
}

/// Tells what is known of a container that there is.
pub(super) fn add(status: &mut ContainerStatus, container: &Container, details: &Details) {
    let resources = container.spec.resources.clone().unwrap_or_default();
    status.allocated_resources.clone_from(&resources.requests);
    status.resources = Some(resources);
    status.user = details.user.clone().map(|(uid, gid, groups)| {
        let linux = LinuxContainerUser { uid, gid, supplemental_groups: Some(groups) };
        ContainerUser { linux: Some(linux) }
    });
    status.stop_signal = Some(details.stop_signal.clone()).filter(|signal| !signal.is_empty());
}

/// How the container's volumes are mounted; a read-only one with all below it only where the runtime can.
pub(super) fn mounts(container: &Container, recursive_read_only: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.spec.volume_mounts.as_ref()?.iter().map(|mount| {
        let asked = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        let mode = if asked && recursive_read_only { "Enabled" } else { "Disabled" };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only,
            recursive_read_only: mount.read_only.unwrap_or(false).then(|| mode.to_owned()),
            volume_status: None,
        }
    });
    Some(mounts.collect())
}

/// What was told before of the containers of that kind.
pub(super) fn former_statuses(role: Role, former: Option<&PodStatus>) -> &[ContainerStatus] {
    let known = former.and_then(|former| match role {
        Role::Init | Role::Sidecar => former.init_container_statuses.as_deref(),
        Role::Main => former.container_statuses.as_deref(),
        Role::Ephemeral => former.ephemeral_container_statuses.as_deref(),
    });
    known.unwrap_or_default()
}

/// What was told once of a container's mounts stays: they do not change while it runs.
pub(super) fn keep_mounts(statuses: &mut [ContainerStatus], role: Role, former: Option<&PodStatus>) {
    let known = former_statuses(role, former);
    for status in statuses.iter_mut().filter(|status| status.container_id.is_some()) {
        let same = known.iter().find(|one| one.container_id == status.container_id);
        if let Some(mounts) = same.and_then(|same| same.volume_mounts.clone()) {
            status.volume_mounts = Some(mounts);
        }
    }
}

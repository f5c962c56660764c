//! Containers with a user namespace: the ids mapped, and everything of the host opened, since the container's root may neither look
//! into directories of the host nor make device nodes.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use host::mount::{self, Depth, MountAttributes, Parameter};
use host::namespace::Namespace;
use host::user_namespace;
use rustix::fs::{Mode, OFlags};

use super::report::{Failure, Step};
use super::rootfs::{self, Tree};
use super::{Joins, LaunchError, dev};
use crate::plan::{LaunchPlan, MountKind, Rootfs, UserPlan};

/// For each mount of a plan the user namespace that stands for its ids, if it shows others than are on disk.
pub(super) type MountNamespaces = Vec<Option<Rc<OwnedFd>>>;

/// Detached copies of mounts of the host, made where the host's root may still do so.
pub(super) struct Prepared {
    /// The container's root.
    pub(super) root: OwnedFd,
    /// Sources of binds and images, in the order of the plan's mounts.
    pub(super) sources: Vec<Option<OwnedFd>>,
    /// The devices that every container has, by name.
    pub(super) devices: Vec<(&'static str, OwnedFd)>,
    /// Those of the plan, in its order.
    pub(super) nodes: Vec<OwnedFd>,
}

/// Maps the ids of a new process that waits for it.
pub(super) fn map_ids(pid: i32, user: &UserPlan) -> Result<(), LaunchError> {
    user_namespace::write_maps(pid, &user.uid, &user.gid).map_err(|source| LaunchError::Starter {
        step: "map the ids of the user namespace".to_owned(),
        source,
    })
}

/// The user namespaces for the ids of mounts; each mapping is made once.
pub(super) fn open_mount_ids(plan: &LaunchPlan, joins: &Joins) -> Result<MountNamespaces, LaunchError> {
    let failed = |step: &str| {
        let step = step.to_owned();
        move |source| LaunchError::Starter { step, source }
    };
    let joined = joins.iter().find(|(kind, _)| *kind == Namespace::User).map(|(_, fd)| fd);
    let own = plan.user.clone().unwrap_or_default();
    let mut made: Vec<(UserPlan, Rc<OwnedFd>)> = Vec::new();
    let mut open = |wanted: &UserPlan| {
        let wanted = if *wanted == UserPlan::default() { &own } else { wanted };
        if let Some((_, fd)) = made.iter().find(|(ids, _)| ids == wanted) {
            return Ok(fd.clone());
        }
        let fd = match joined.filter(|_| *wanted == own) {
            Some(joined) => joined.try_clone().map_err(failed("copy a descriptor"))?,
            None => user_namespace::make(&wanted.uid, &wanted.gid)
                .map_err(failed("make a user namespace for the ids of a mount"))?,
        };
        let fd = Rc::new(fd);
        made.push((wanted.clone(), fd.clone()));
        Ok(fd)
    };
    plan.mounts.iter().map(|mount| mount.ids.as_ref().map(|ids| open(&ids.ids)).transpose()).collect()
}

/// Opens what the container is made of, in a mount namespace of the caller's own. `namespace` is the one that it joins, if it does.
pub(super) fn prepare(
    plan: &LaunchPlan,
    mount_ids: &MountNamespaces,
    namespace: Option<&OwnedFd>,
) -> Result<Prepared, Failure> {
    let mut sources = rootfs::clone_sources(&plan.mounts, mount_ids)?;
    // Sources keep their peers; nothing else that happens here shows on the host.
    let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
    mount::set_attributes(open_directory(Path::new("/"))?, Depth::Recursive, private)
        .step(|| "make mounts private".to_owned())?;
    if let Some(namespace) = namespace {
        shift_layers(plan, namespace)?;
    }
    let root = match rootfs::root_tree(&plan.rootfs)? {
        Tree::Detached(root) => root,
        Tree::Attached(root) => {
            mount::clone_fd(&root, Depth::One).step(|| "take the root off its place".to_owned())?
        }
    };
    let scratch = rootfs::scratch(&plan.rootfs);
    for (planned, source) in plan.mounts.iter().zip(&mut sources) {
        if matches!(planned.kind, MountKind::Layers { .. }) {
            *source = Some(rootfs::image_tree(planned, scratch)?);
        }
    }
    let device = |name: &'static str| {
        let path = Path::new("/dev").join(name);
        let device = mount::clone_path(&path, Depth::One).step(|| format!("bind {}", path.display()))?;
        Ok((name, device))
    };
    let devices =
        dev::DEFAULT_DEVICES.iter().map(|(name, ..)| device(name)).collect::<Result<_, Failure>>()?;
    Ok(Prepared { root, sources, devices, nodes: make_nodes(plan)? })
}

/// Covers the directories in which image layers lie by copies of themselves that show the ids of the namespace. The layers' paths lead
/// there then, in this mount namespace.
fn shift_layers(plan: &LaunchPlan, namespace: &OwnedFd) -> Result<(), Failure> {
    for directory in layer_directories(plan) {
        let step =
            || format!("map the ids of the layers in {} (can its file system do it?)", directory.display());
        let tree = mount::clone_path(directory, Depth::One).step(step)?;
        mount::map_ids(&tree, Depth::One, namespace).step(step)?;
        mount::attach(&tree, open_directory(directory)?).step(step)?;
    }
    Ok(())
}

/// Each directory that has layers of the plan in it, once.
fn layer_directories(plan: &LaunchPlan) -> BTreeSet<&Path> {
    let root = match &plan.rootfs {
        Rootfs::Overlay { lower, .. } => lower.as_slice(),
        Rootfs::Directory(_) => &[],
    };
    let volumes = plan.mounts.iter().flat_map(|mount| match &mount.kind {
        MountKind::Layers { lower, .. } => lower.as_slice(),
        MountKind::Bind { .. } | MountKind::New { .. } | MountKind::Cgroup => &[],
    });
    root.iter().chain(volumes).filter_map(|layer| layer.parent()).collect()
}

/// Device nodes on a file system of the host's root: elsewhere they could not be opened.
fn make_nodes(plan: &LaunchPlan) -> Result<Vec<OwnedFd>, Failure> {
    if plan.devices.is_empty() {
        return Ok(Vec::new());
    }
    let step = || "make a file system for device nodes".to_owned();
    let tmpfs = mount::new_filesystem("tmpfs", "tmpfs", &[Parameter::String("mode", "755")], 0).step(step)?;
    // Only what is attached can be cloned. The root of this process stays what it is below it.
    mount::attach(&tmpfs, open_directory(Path::new("/"))?).step(step)?;
    let user = plan.user.clone().unwrap_or_default();
    dev::make_nodes_by_number(&tmpfs, &plan.devices, |uid, gid| (user.host_uid(uid), user.host_gid(gid)))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step(|| format!("open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shifted_by_the_directory_that_has_them() {
        let plan = crate::plan::tests::overlay(&["/r/snapshots/2", "/r/snapshots/1", "/other/3"]);
        let expect: BTreeSet<&Path> = [Path::new("/other"), Path::new("/r/snapshots")].into();
        assert_eq!(layer_directories(&plan), expect);
    }
}

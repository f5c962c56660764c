//! Mounts and their options.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::{MountIds, MountKind, MountPlan, PlanError, UserPlan, user};

const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;

/// What one option does to the attributes of a mount.
struct Attribute {
    set: u64,
    clear: u64,
}

pub(crate) fn plan_mounts(mounts: &[Mount], bundle: &Path) -> Result<Vec<MountPlan>, PlanError> {
    mounts.iter().enumerate().map(|(index, mount)| plan_mount(index, mount, bundle)).collect()
}

fn plan_mount(index: usize, mount: &Mount, bundle: &Path) -> Result<MountPlan, PlanError> {
    let field = format!("mounts[{index}]");
    let target = Path::new("/").join(mount.destination());
    if target.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(PlanError::invalid(&format!("{field}.destination"), "it contains .."));
    }
    let mut plan = MountPlan {
        target,
        kind: MountKind::Cgroup,
        set: 0,
        clear: 0,
        set_recursive: 0,
        clear_recursive: 0,
        propagation: 0,
        propagation_recursive: false,
        ids: None,
    };
    let mut rest = Rest::default();
    for option in mount.options().iter().flatten() {
        apply(option, &mut plan, &mut rest, &format!("{field}.options"))?;
    }
    let rest_ids = rest.ids;
    let kind = mount.typ().as_deref().unwrap_or("");
    if rest.copy_up && kind != "tmpfs" {
        return Err(PlanError::unsupported(&format!("{field}.options"), "tmpcopyup on what is no tmpfs"));
    }
    let source = mount.source().clone().unwrap_or_default();
    plan.kind = if rest.bind.is_some() || kind == "bind" || kind == "rbind" {
        if source.as_os_str().is_empty() {
            return Err(PlanError::invalid(&format!("{field}.source"), "a bind mount needs one"));
        }
        let recursive = rest.bind.unwrap_or(kind == "rbind");
        if let Some((name, _)) = rest.data.first() {
            return Err(PlanError::unsupported(
                &format!("{field}.options"),
                format!("{name:?} on a bind mount"),
            ));
        }
        MountKind::Bind { source: bundle.join(source), recursive }
    } else {
        new_filesystem(kind, &source, rest, &field)?
    };
    plan.ids = ids(mount, rest_ids, &plan.kind, &field)?;
    Ok(plan)
}

/// By mappings, or by an option that asks for those of the container.
fn ids(
    mount: &Mount,
    option: Option<bool>,
    kind: &MountKind,
    field: &str,
) -> Result<Option<MountIds>, PlanError> {
    let ids = UserPlan { uid: user::maps(mount.uid_mappings()), gid: user::maps(mount.gid_mappings()) };
    let field = format!("{field}.uidMappings");
    if ids == UserPlan::default() && option.is_none() {
        return Ok(None);
    }
    if !matches!(kind, MountKind::Bind { .. }) {
        return Err(PlanError::invalid(&field, "id-mapped mounts are only supported for bind-mounts"));
    }
    if ids.uid.is_empty() != ids.gid.is_empty() {
        let reason = "id-mapped mounts must have both uid and gid mappings specified";
        return Err(PlanError::invalid(&field, reason));
    }
    Ok(Some(MountIds { ids, recursive: option.unwrap_or(false) }))
}

/// The option with which podwright's runtime says that only a part of an image is wanted.
pub const SUB_PATH_OPTION: &str = "x-podwright-sub-path";

fn new_filesystem(kind: &str, source: &Path, rest: Rest, field: &str) -> Result<MountKind, PlanError> {
    match kind {
        "overlay" if is_image(&rest) => Ok(layers(rest)),
        "cgroup" | "cgroup2" => Ok(MountKind::Cgroup),
        "" => Err(PlanError::invalid(&format!("{field}.type"), "it is missing")),
        _ => Ok(MountKind::New {
            filesystem: kind.to_owned(),
            source: if source.as_os_str().is_empty() {
                kind.to_owned()
            } else {
                source.to_string_lossy().into_owned()
            },
            options: rest.data,
            copy_up: rest.copy_up,
        }),
    }
}

fn is_image(rest: &Rest) -> bool {
    let known = |name: &str| matches!(name, "lowerdir+" | SUB_PATH_OPTION);
    rest.data.iter().any(|(name, _)| name == "lowerdir+") && rest.data.iter().all(|(name, _)| known(name))
}

fn layers(rest: Rest) -> MountKind {
    let mut lower = Vec::new();
    let mut sub_path = None;
    for (name, value) in rest.data {
        let path = PathBuf::from(value.unwrap_or_default());
        if name == SUB_PATH_OPTION {
            sub_path = Some(path);
        } else {
            lower.push(path);
        }
    }
    MountKind::Layers { lower, sub_path }
}

/// What options say beside attributes.
#[derive(Default)]
struct Rest {
    /// Some(recursive).
    bind: Option<bool>,
    /// Some(recursive).
    ids: Option<bool>,
    copy_up: bool,
    data: Vec<(String, Option<String>)>,
}

fn apply(option: &str, plan: &mut MountPlan, rest: &mut Rest, field: &str) -> Result<(), PlanError> {
    if let Some(attribute) = attribute(option) {
        plan.clear = (plan.clear & !attribute.set) | attribute.clear;
        plan.set = (plan.set & !attribute.clear) | attribute.set;
        return Ok(());
    }
    if let Some(attribute) = option.strip_prefix('r').and_then(attribute)
        && option != "ro"
    {
        plan.clear_recursive = (plan.clear_recursive & !attribute.set) | attribute.clear;
        plan.set_recursive = (plan.set_recursive & !attribute.clear) | attribute.set;
        return Ok(());
    }
    if let Some((propagation, recursive)) = propagation(option) {
        plan.propagation = propagation;
        plan.propagation_recursive = recursive;
        return Ok(());
    }
    match option {
        "" | "defaults" => {}
        "bind" => rest.bind = Some(false),
        "rbind" => rest.bind = Some(true),
        "idmap" => rest.ids = Some(false),
        "ridmap" => rest.ids = Some(true),
        "tmpcopyup" => rest.copy_up = true,
        "remount" => return Err(PlanError::unsupported(field, option)),
        _ if option.contains('\0') => return Err(PlanError::invalid(field, "NUL in an option")),
        _ => rest.data.push(match option.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (option.to_owned(), None),
        }),
    }
    Ok(())
}

fn attribute(option: &str) -> Option<Attribute> {
    let set = |set| Some(Attribute { set, clear: 0 });
    let clear = |clear| Some(Attribute { set: 0, clear });
    // The three access time behaviours are one field, not three bits.
    let atime = |set| Some(Attribute { set, clear: ATIME_MASK });
    match option {
        "ro" => set(libc::MOUNT_ATTR_RDONLY),
        "rw" => clear(libc::MOUNT_ATTR_RDONLY),
        "nosuid" => set(libc::MOUNT_ATTR_NOSUID),
        "suid" => clear(libc::MOUNT_ATTR_NOSUID),
        "nodev" => set(libc::MOUNT_ATTR_NODEV),
        "dev" => clear(libc::MOUNT_ATTR_NODEV),
        "noexec" => set(libc::MOUNT_ATTR_NOEXEC),
        "exec" => clear(libc::MOUNT_ATTR_NOEXEC),
        "noatime" => atime(libc::MOUNT_ATTR_NOATIME),
        "strictatime" => atime(libc::MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "nostrictatime" => atime(libc::MOUNT_ATTR_RELATIME),
        "norelatime" => atime(libc::MOUNT_ATTR_STRICTATIME),
        "nodiratime" => set(libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => clear(libc::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => set(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => clear(libc::MOUNT_ATTR_NOSYMFOLLOW),
        _ => None,
    }
}

fn propagation(option: &str) -> Option<(u64, bool)> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) if propagation_flag(name).is_some() => (name, true),
        _ => (option, false),
    };
    propagation_flag(name).map(|flag| (flag, recursive))
}

fn propagation_flag(name: &str) -> Option<u64> {
    match name {
        "private" => Some(libc::MS_PRIVATE),
        "slave" => Some(libc::MS_SLAVE),
        "shared" => Some(libc::MS_SHARED),
        "unbindable" => Some(libc::MS_UNBINDABLE),
        _ => None,
    }
}

/// linux.rootfsPropagation; private where nothing is said.
pub(super) fn root_propagation(name: Option<&str>) -> Result<u64, PlanError> {
    match name.filter(|name| !name.is_empty()) {
        None => Ok(libc::MS_PRIVATE),
        Some(name) => propagation(name)
            .map(|(flag, _)| flag)
            .ok_or_else(|| PlanError::invalid("linux.rootfsPropagation", format!("{name:?}"))),
    }
}

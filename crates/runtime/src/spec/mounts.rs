//! What is mounted in a container: the kernel's file systems, the sandbox's files, the client's volumes.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use cri::v1;
use cri::v1::{MountPropagation, NamespaceMode};
use oci_spec::runtime::Mount;

use super::{Request, SpecError, user_namespace};

/// In the order in which they are mounted: what lies below another comes after it.
pub(super) fn render(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = kernel_file_systems(security);
    let options = security.namespace_options.clone().unwrap_or_default();
    if request.user_namespace.is_some() && options.network() == NamespaceMode::Node {
        // A sysfs shows a network namespace, and only its owner may mount it: so it is the node's, to read only.
        mounts.retain(|mount| mount.destination() != Path::new("/sys"));
        mounts.push(bind("/sys", Path::new("/sys"), &["rbind", "rro", "nosuid", "nodev", "noexec"]));
    }
    mounts.extend(sandbox_files(request, security));
    let mut asked = Vec::new();
    for mount in &request.config.mounts {
        asked.push(client_mount(mount, request)?);
    }
    // A volume at a default's place replaces it.
    mounts.retain(|default| {
        !asked.iter().any(|mount: &Mount| clean(mount.destination()) == clean(default.destination()))
    });
    mounts.extend(asked);
    mounts.sort_by_key(|mount| clean(mount.destination()).components().count());
    Ok(mounts)
}

fn kernel_file_systems(security: &v1::LinuxContainerSecurityContext) -> Vec<Mount> {
    let sys = if security.privileged { "rw" } else { "ro" };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]),
    ]
}

/// `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` and `/dev/shm`: one of each per sandbox.
fn sandbox_files(request: &Request<'_>, security: &v1::LinuxContainerSecurityContext) -> Vec<Mount> {
    let access = if security.readonly_rootfs { "ro" } else { "rw" };
    let mut mounts: Vec<Mount> = ["hostname", "hosts", "resolv.conf"]
        .into_iter()
        .map(|name| {
            let source = request.sandbox_directory.join(name);
            bind(&format!("/etc/{name}"), &source, &["rbind", "rprivate", access])
        })
        .collect();
    let options = security.namespace_options.clone().unwrap_or_default();
    let shm = match options.ipc() {
        NamespaceMode::Node => PathBuf::from("/dev/shm"),
        _ => request.sandbox_directory.join("shm"),
    };
    mounts.push(bind("/dev/shm", &shm, &["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"]));
    mounts
}

fn client_mount(asked: &v1::Mount, request: &Request<'_>) -> Result<Mount, SpecError> {
    let target = &asked.container_path;
    if !target.starts_with('/') {
        return Err(SpecError::Invalid(format!("mount target {target:?} is not an absolute path")));
    }
    if let Some(image) = asked.image.as_ref().filter(|image| !image.image.is_empty()) {
        return image_mount(asked, &image.image, request.image_volumes);
    }
    if !asked.image_sub_path.is_empty() {
        return Err(SpecError::Invalid(format!("mount at {target} has an image_sub_path and no image")));
    }
    if asked.host_path.is_empty() {
        return Err(SpecError::Invalid(format!("mount at {target} has no host path")));
    }
    let propagation = match asked.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    let mut options = vec!["rbind", propagation];
    if asked.recursive_read_only {
        if !asked.readonly || asked.propagation() != MountPropagation::PropagationPrivate {
            let message =
                format!("mount at {target}: recursive_read_only needs readonly and private propagation");
            return Err(SpecError::Invalid(message));
        }
        options.push("rro");
    } else {
        options.push(if asked.readonly { "ro" } else { "rw" });
    }
    let mut mount = bind(target, Path::new(&asked.host_path), &options);
    mount
        .set_uid_mappings(user_namespace::of_mount(&asked.uid_mappings))
        .set_gid_mappings(user_namespace::of_mount(&asked.gid_mappings));
    Ok(mount)
}

/// An image as a volume: only to read, and nothing in it can be run or is a device.
fn image_mount(
    asked: &v1::Mount,
    image: &str,
    layers: &BTreeMap<String, Vec<PathBuf>>,
) -> Result<Mount, SpecError> {
    let target = &asked.container_path;
    let invalid = |problem: String| Err(SpecError::Invalid(format!("mount at {target}: {problem}")));
    if !asked.host_path.is_empty() {
        return invalid("an image and a host path exclude each other".into());
    }
    let part = Path::new(&asked.image_sub_path);
    if part.is_absolute() || part.components().any(|component| component == Component::ParentDir) {
        return invalid(format!("image_sub_path {:?} leaves the image", asked.image_sub_path));
    }
    let Some(layers) = layers.get(image).filter(|layers| !layers.is_empty()) else {
        return invalid(format!("image {image:?} is empty or not there"));
    };
    let mut options: Vec<String> = ["ro", "nosuid", "nodev", "noexec", "rprivate"].map(str::to_owned).into();
    options.extend(layers.iter().map(|layer| format!("lowerdir+={}", layer.display())));
    if !asked.image_sub_path.is_empty() {
        options.push(format!("{}={}", oci::plan::SUB_PATH_OPTION, asked.image_sub_path));
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Ok(mount(target, "overlay", "overlay", &options))
}

/// A volume that passes mounts on needs a root that does.
pub(super) fn root_propagation(config: &v1::ContainerConfig) -> Option<&'static str> {
    let asked = |wanted: MountPropagation| config.mounts.iter().any(|mount| mount.propagation() == wanted);
    if asked(MountPropagation::PropagationBidirectional) {
        Some("rshared")
    } else if asked(MountPropagation::PropagationHostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

fn bind(target: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = mount(target, "bind", "", options);
    mount.set_source(Some(source.to_owned()));
    mount
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(target.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_an_overlay_of_its_layers_that_nothing_writes_to() {
        let layers = BTreeMap::from([("i".to_owned(), vec!["/l/2".into(), "/l/1".into()])]);
        let asked = |part: &str| v1::Mount {
            container_path: "/v".into(),
            image: Some(v1::ImageSpec { image: "i".into(), ..Default::default() }),
            image_sub_path: part.into(),
            ..Default::default()
        };
        let made = image_mount(&asked("a/b"), "i", &layers).expect("made");
        let options = made.options().clone().unwrap_or_default();
        let expect = [
            "ro",
            "nosuid",
            "nodev",
            "noexec",
            "rprivate",
            "lowerdir+=/l/2",
            "lowerdir+=/l/1",
            "x-podwright-sub-path=a/b",
        ];
        assert_eq!((made.typ().as_deref(), options), (Some("overlay"), expect.map(str::to_owned).to_vec()));
        for (part, image, expect) in [
            ("../x", "i", "leaves the image"),
            ("/x", "i", "leaves the image"),
            ("", "none", "is empty or not there"),
        ] {
            let error = image_mount(&asked(part), image, &layers).expect_err(expect);
            assert!(error.to_string().contains(expect), "{error}");
        }
    }
}

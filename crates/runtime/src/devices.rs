//! The device nodes of this machine that containers ask for, as they are at that moment: devices come and go.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use cri::v1;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use crate::error::Error;

/// What a container may do with one device, and where it has its node.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    /// As in the container.
    pub(crate) node: LinuxDevice,
    /// Of `r`, `w` and `m`.
    pub(crate) permissions: String,
}

/// The device nodes that these devices of CRI stand for; a directory stands for all in it.
///
/// # Errors
/// When a path is no device, or holds none.
pub(crate) fn granted(asked: &[v1::Device]) -> Result<Vec<Granted>, Error> {
    let mut granted = Vec::new();
    for device in asked {
        let host = Path::new(&device.host_path);
        let found = match host.metadata() {
            Ok(metadata) if metadata.is_dir() => below(host),
            Ok(metadata) => node(host, &metadata).into_iter().collect(),
            Err(error) => return Err(Error::Invalid(format!("device {:?}: {error}", device.host_path))),
        };
        if found.is_empty() {
            return Err(Error::Invalid(format!("device {:?}: not a device node", device.host_path)));
        }
        for mut node in found {
            let inside = node.path().strip_prefix(host).unwrap_or(Path::new(""));
            let mut path = PathBuf::from(&device.container_path);
            path.extend(inside.iter());
            node.set_path(path);
            granted.push(Granted { node, permissions: device.permissions.clone() });
        }
    }
    Ok(granted)
}

/// Every device node in /dev, but for those that each container has of its own.
pub(crate) fn all() -> Vec<LinuxDevice> {
    below(Path::new("/dev"))
}

fn below(directory: &Path) -> Vec<LinuxDevice> {
    let own = ["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console"];
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let paths = std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in paths.filter(|path| !own.iter().any(|own| path.as_os_str() == *own)) {
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => pending.push(path),
                Ok(metadata) => found.extend(node(&path, &metadata)),
                Err(_) => {}
            }
        }
    }
    found.sort_by(|a, b| a.path().cmp(b.path()));
    found
}

fn node(path: &Path, metadata: &Metadata) -> Option<LinuxDevice> {
    let typ = match metadata.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        _ => return None,
    };
    let mut device = LinuxDevice::default();
    device
        .set_path(path.to_owned())
        .set_typ(typ)
        .set_major(i64::from(rustix::fs::major(metadata.rdev())))
        .set_minor(i64::from(rustix::fs::minor(metadata.rdev())))
        .set_file_mode(Some(metadata.mode() & 0o777))
        .set_uid(Some(metadata.uid()))
        .set_gid(Some(metadata.gid()));
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str) -> Vec<v1::Device> {
        vec![v1::Device { host_path: host.into(), container_path: "/dev/x".into(), permissions: "rw".into() }]
    }

    #[test]
    fn a_node_is_granted_under_its_path_inside_and_what_is_none_is_refused() {
        let granted = super::granted(&asked("/dev/null")).expect("a device");
        let [Granted { node, permissions }] = granted.as_slice() else { panic!("{granted:?}") };
        assert_eq!((node.path().to_str(), node.major(), node.minor()), (Some("/dev/x"), 1, 3));
        assert_eq!(permissions, "rw");
        let empty = tempfile::tempdir().expect("a directory");
        for (path, words) in [
            ("/dev/no-such-device", "\"/dev/no-such-device\": No such file"),
            ("/etc/hostname", "not a device node"),
            (empty.path().to_str().expect("text"), "not a device node"),
        ] {
            let error = super::granted(&asked(path)).expect_err(path).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}

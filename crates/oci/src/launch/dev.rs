//! The container's /dev: a fresh tmpfs that is filled before anything can see it, so that no link of the image is ever followed
//! (runc CVE-2026-41579).

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use host::path::{self, Leaf};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::report::{Failure, Step};
use crate::plan::DeviceNode;

/// Devices every container has (OCI runtime spec, default devices).
pub(super) const DEFAULT_DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// Fills a tmpfs that is not attached yet. Mount points for what usually lies below are made too, as the mount may be read-only later.
/// `Nodes::Bound` leaves empty files for [`bind`].
pub(super) fn fill(dev: &OwnedFd, nodes: Nodes) -> Result<(), Failure> {
    for (name, major, minor) in DEFAULT_DEVICES {
        if nodes == Nodes::Bound {
            rustix::fs::mknodat(dev, name, FileType::RegularFile, Mode::from_raw_mode(0o666), 0)
                .step(|| format!("make /dev/{name}"))?;
            continue;
        }
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(dev, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number)
            .step(|| format!("make /dev/{name}"))?;
    }
    for (name, target) in LINKS {
        // The kernel's own image of memory is linked only where the machine has it.
        if name == "core" && !Path::new(target).exists() {
            continue;
        }
        rustix::fs::symlinkat(target, dev, name).step(|| format!("link /dev/{name}"))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).step(|| format!("make /dev/{name}"))?;
    }
    Ok(())
}

/// What the devices are that every container has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Nodes {
    /// Nodes of its own.
    Made,
    /// The host's: in a user namespace nobody makes nodes.
    Bound,
}

/// Attaches the host's devices to the files that [`fill`] has left, once /dev is where it belongs.
pub(super) fn bind(dev: &OwnedFd, devices: &[(&'static str, OwnedFd)]) -> Result<(), Failure> {
    for (name, device) in devices {
        let step = || format!("bind /dev/{name}");
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = rustix::fs::openat(dev, *name, flags, Mode::empty()).step(step)?;
        host::mount::attach(device, &target).step(step)?;
    }
    Ok(())
}

/// Makes the device nodes of the spec, in root.
pub(super) fn make_nodes(root: &OwnedFd, devices: &[DeviceNode]) -> Result<(), Failure> {
    devices.iter().try_for_each(|device| make_node(root, device))
}

/// Makes the nodes of the spec in a directory of nobody's, by their number in the list, for [`bind_nodes`]. They belong to whom
/// `owner` says, by the ids of the spec.
pub(super) fn make_nodes_by_number(
    directory: &OwnedFd,
    devices: &[DeviceNode],
    owner: impl Fn(u32, u32) -> (u32, u32),
) -> Result<Vec<OwnedFd>, Failure> {
    let make = |(number, device): (usize, &DeviceNode)| {
        let step = || format!("make device {}", device.path.display());
        let name = number.to_string();
        let (uid, gid) = owner(device.uid, device.gid);
        let (path, device) = (PathBuf::from("/").join(&name), DeviceNode { uid, gid, ..device.clone() });
        make_node(directory, &DeviceNode { path, ..device })?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(directory, &name, flags, Mode::empty()).step(step)?;
        host::mount::clone_fd(&node, host::mount::Depth::One).step(step)
    };
    devices.iter().enumerate().map(make).collect()
}

/// Attaches the nodes that [`make_nodes_by_number`] has made where the spec wants them.
pub(super) fn bind_nodes(root: &OwnedFd, devices: &[DeviceNode], nodes: &[OwnedFd]) -> Result<(), Failure> {
    for (device, node) in devices.iter().zip(nodes) {
        let step = || format!("bind device {}", device.path.display());
        let target = path::make_in_root(root, &device.path, Leaf::File).step(step)?;
        host::mount::attach(node, &target).step(step)?;
    }
    Ok(())
}

fn make_node(root: &OwnedFd, device: &DeviceNode) -> Result<(), Failure> {
    let step = || format!("make device {}", device.path.display());
    let invalid = || std::io::Error::from_raw_os_error(libc::EINVAL);
    let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(Failure::step(step(), &invalid()));
    };
    let parent = path::make_in_root(root, parent, Leaf::Directory).step(step)?;
    let kind = FileType::from_raw_mode(device.file_type);
    let number = rustix::fs::makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode);
    let make = || rustix::fs::mknodat(&parent, name, kind, mode, number);
    match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty()).step(step)?;
            make().step(step)?;
        }
        other => other.step(step)?,
    }
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).step(step)?;
    }
    Ok(())
}

//! A part of a volume for one container, opened by the kernel below the volume and mounted by that descriptor: no path is
//! looked up twice, so that nobody can exchange it in between (CVE-2017-1002101, CVE-2021-25741).

use std::io;
use std::path::Path;

use host::mount::{self, Depth};
use host::path::{self, make_directory};
use rustix::fs::{FileType, Mode, OFlags};

use super::PRIVATE;

/// Mounts `sub_path` of `volume` on `target`, which lies where only the kubelet writes. A missing directory is made, with the
/// permissions of the volume.
///
/// # Errors
/// EXDEV when the way leaves the volume.
pub(super) fn mount(volume: &Path, sub_path: &Path, target: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags, Mode::empty())?;
    let mode = rustix::fs::fstat(&root)?.st_mode & 0o7777;
    let found = path::make_beneath(&root, sub_path, mode)?;
    let tree = mount::clone_fd(&found, Depth::One)?;
    let is_directory = path::file_type(&found)? == FileType::Directory;
    mount::attach(&tree, make_point(target, is_directory)?)
}

/// An empty mount point of the right kind: what a former attempt mounted or left there goes.
fn make_point(target: &Path, is_directory: bool) -> io::Result<rustix::fd::OwnedFd> {
    while target.symlink_metadata().is_ok() && mount::is_mount_point(target)? {
        mount::detach(target)?;
    }
    if let Some(parent) = target.parent() {
        make_directory(parent, PRIVATE)?;
    }
    match target.symlink_metadata() {
        Ok(found) if found.is_dir() && !is_directory => std::fs::remove_dir(target)?,
        Ok(found) if !found.is_dir() && is_directory => std::fs::remove_file(target)?,
        _ => {}
    }
    if is_directory {
        make_directory(target, 0o755)?;
    } else {
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(target)?;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(target, flags, Mode::empty())?)
}

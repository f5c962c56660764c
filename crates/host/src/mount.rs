//! Mounts by file descriptor (open_tree, move_mount, fsopen, mount_setattr): made detached, attached to a descriptor, never by a path
//! that could be swapped in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::sys;
pub use crate::sys::MountAttributes;

/// Whether an operation is about one mount or also about those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// This mount.
    One,
    /// This mount and all below.
    Recursive,
}

/// A detached copy of the mount that shows `path` (a bind mount that is nowhere yet). Follows symlinks, as the host's paths are trusted.
pub fn clone_path(path: &Path, depth: Depth) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(CWD, path, clone_flags(depth))?)
}

/// A detached copy of the mount that shows what an open descriptor stands on.
pub fn clone_fd(file: impl AsFd, depth: Depth) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(file, "", clone_flags(depth) | OpenTreeFlags::AT_EMPTY_PATH)?)
}

fn clone_flags(depth: Depth) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if depth == Depth::Recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Attaches a detached mount on top of what `target` stands on.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Changes attributes or propagation of the mount that `fd` stands on.
pub fn set_attributes(fd: impl AsFd, depth: Depth, attributes: MountAttributes) -> io::Result<()> {
    sys::mount_setattr(fd.as_fd(), depth == Depth::Recursive, attributes)
}

/// Whether the kernel can change the attributes of a whole tree of mounts (Linux 5.12): asked without changing anything.
pub fn has_recursive_attributes() -> bool {
    use rustix::fs::{Mode, OFlags};
    let Ok(root) = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    else {
        return false;
    };
    // Nothing to set and nothing to clear succeeds, also without the right to mount.
    set_attributes(root, Depth::Recursive, MountAttributes::default()).is_ok()
}

/// A parameter of a new file system.
#[derive(Debug, Clone, Copy)]
pub enum Parameter<'a> {
    /// A flag such as `nr_inodes` has none of.
    Flag(&'a str),
    /// A name with a value.
    String(&'a str, &'a str),
}

/// A detached mount of a new instance of a file system. `attributes` are `MOUNT_ATTR_*`.
pub fn new_filesystem(
    kind: &str,
    source: &str,
    parameters: &[Parameter<'_>],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    rustix::mount::fsconfig_set_string(context, "source", source)?;
    for parameter in parameters {
        match *parameter {
            Parameter::Flag(name) => rustix::mount::fsconfig_set_flag(context, name)?,
            Parameter::String(name, value) => rustix::mount::fsconfig_set_string(context, name, value)?,
        }
    }
    finish(context, attributes)
}

fn finish(context: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    rustix::mount::fsconfig_create(context)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    Ok(rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A detached overlay mount. `lower` has the topmost layer first.
///
/// Kernels before 6.8 have no `lowerdir+`, and take only 256 bytes in one fsconfig string: `None` says that the caller must use
/// [`overlay_at`], which then also tells what else may be wrong.
pub fn overlay(lower: &[PathBuf], upper: &Path, work: &Path) -> io::Result<Option<OwnedFd>> {
    match overlay_by_layer(lower, upper, work) {
        Ok(mount) => Ok(Some(mount)),
        // Depending on its age a kernel refuses the unknown name at once or when the file system is made.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

fn overlay_by_layer(lower: &[PathBuf], upper: &Path, work: &Path) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    rustix::mount::fsconfig_set_string(context, "source", "overlay")?;
    for layer in lower {
        rustix::mount::fsconfig_set_string(context, "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_set_string(context, "upperdir", upper)?;
    rustix::mount::fsconfig_set_string(context, "workdir", work)?;
    finish(context, 0)
}

/// Mounts an overlay on a directory by mount(2), for kernels without `lowerdir+`.
pub fn overlay_at(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut options = b"lowerdir=".to_vec();
    for (index, layer) in lower.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        escape(layer.as_os_str().as_bytes(), &mut options);
    }
    for (name, path) in [(&b",upperdir="[..], upper), (&b",workdir="[..], work)] {
        options.extend_from_slice(name);
        escape(path.as_os_str().as_bytes(), &mut options);
    }
    let options = std::ffi::CString::new(options).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    if options.as_bytes().len() >= 4096 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        rustix::mount::MountFlags::empty(),
        Some(options.as_c_str()),
    )?;
    Ok(())
}

/// Colons and commas separate, backslashes escape.
fn escape(path: &[u8], into: &mut Vec<u8>) {
    for byte in path {
        if matches!(byte, b':' | b',' | b'\\') {
            into.push(b'\\');
        }
        into.push(*byte);
    }
}

/// Unmounts now from the view of new lookups, later in fact. Not mounted is fine.
pub fn detach(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the directory the caller stands in its root and drops the old root with everything on it.
pub fn pivot_to_working_directory() -> io::Result<()> {
    // The old root lands on top of the new one, at the same place, and goes by the same name.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

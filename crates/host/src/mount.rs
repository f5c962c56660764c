//! Mounts by file descriptor (open_tree, move_mount, fsopen, mount_setattr): made detached, attached to a descriptor, never by a path
//! that could be swapped in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
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

/// Shows ids as `namespace` maps them: what lies on disk under an id of the namespace shows under the id that it is outside. Only of a
/// detached mount whose ids were not mapped before; EINVAL where its file system cannot do it.
pub fn map_ids(mount: impl AsFd, depth: Depth, namespace: impl AsFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let userns_fd = namespace.as_fd().as_raw_fd() as u64;
    set_attributes(
        mount,
        depth,
        MountAttributes { set: libc::MOUNT_ATTR_IDMAP, userns_fd, ..Default::default() },
    )
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

/// What an overlay writes to.
#[derive(Debug, Clone, Copy)]
pub struct Upper<'a> {
    /// The layer.
    pub directory: &'a Path,
    /// The kernel's own directory beside it.
    pub work: &'a Path,
}

/// A detached overlay mount. `lower` has the topmost layer first; without an upper layer nothing can be written, and there are
/// at least two.
///
/// Kernels before 6.8 have no `lowerdir+`, and take only 256 bytes in one fsconfig string: `None` says that the caller must use
/// [`overlay_at`], which then also tells what else may be wrong.
pub fn overlay(lower: &[PathBuf], upper: Option<Upper<'_>>) -> io::Result<Option<OwnedFd>> {
    match overlay_by_layer(lower, upper) {
        Ok(mount) => Ok(Some(mount)),
        // Depending on its age a kernel refuses the unknown name at once or when the file system is made.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

fn overlay_by_layer(lower: &[PathBuf], upper: Option<Upper<'_>>) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    rustix::mount::fsconfig_set_string(context, "source", "overlay")?;
    for layer in lower {
        rustix::mount::fsconfig_set_string(context, "lowerdir+", layer)?;
    }
    if let Some(upper) = upper {
        rustix::mount::fsconfig_set_string(context, "upperdir", upper.directory)?;
        rustix::mount::fsconfig_set_string(context, "workdir", upper.work)?;
    }
    finish(context, 0)
}

/// Mounts an overlay on a directory by mount(2), for kernels without `lowerdir+`.
pub fn overlay_at(lower: &[PathBuf], upper: Option<Upper<'_>>, target: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut options = b"lowerdir=".to_vec();
    for (index, layer) in lower.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        escape(layer.as_os_str().as_bytes(), &mut options);
    }
    let writable =
        upper.map(|upper| [(&b",upperdir="[..], upper.directory), (&b",workdir="[..], upper.work)]);
    for (name, path) in writable.into_iter().flatten() {
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

/// Says whether something is mounted on `path` itself.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Unmounts everything below `directory`, innermost first; on an error something still is mounted there, and the directory
/// must not be removed with what is in it.
pub fn detach_below(directory: &Path) -> io::Result<()> {
    let directory = match directory.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for point in mounts_below(&std::fs::read_to_string("/proc/self/mountinfo")?, &directory) {
        detach(&point)?;
    }
    match mounts_below(&std::fs::read_to_string("/proc/self/mountinfo")?, &directory).first() {
        Some(point) => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{} is still mounted", point.display())))
        }
        None => Ok(()),
    }
}

/// The mount points below `directory`, innermost first, from the text of `/proc/self/mountinfo`.
#[must_use]
pub fn mounts_below(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> =
        points.filter(|point| point.starts_with(directory) && point != directory).collect();
    below.reverse();
    below
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Makes the directory the caller stands in its root and drops the old root with everything on it.
pub fn pivot_to_working_directory() -> io::Result<()> {
    // The old root lands on top of the new one, at the same place, and goes by the same name.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_innermost_first_and_names_with_spaces_too() {
        let text = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:5 / /s rw - tmpfs x rw
31 30 0:6 / /s/a rw - tmpfs x rw
32 31 0:7 / /s/a/with\\040space rw - tmpfs x rw
33 22 0:8 / /sother rw - tmpfs x rw
";
        let expect: Vec<PathBuf> = vec!["/s/a/with space".into(), "/s/a".into()];
        assert_eq!(mounts_below(text, Path::new("/s")), expect);
        assert_eq!(mounts_below(text, Path::new("/x")), Vec::<PathBuf>::new());
        assert!(is_mount_point(Path::new("/proc")).unwrap() && !is_mount_point(Path::new("/etc")).unwrap());
    }
}

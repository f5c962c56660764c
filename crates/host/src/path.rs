//! Paths that cannot leave a root: resolved by the kernel with openat2, step by step where something must be made. And directories of our
//! own, which not everybody may enter.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// What [`make_in_root`] leaves at the end of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaf {
    /// A directory.
    Directory,
    /// An empty regular file.
    File,
}

/// Makes the directory, and those that lead to it with the same mode; what is there keeps its own.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Opens `path` as if `root` were `/`: symlinks and `..` stay inside, magic links of procfs are refused.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    resolve(root.as_fd(), path.as_os_str(), flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` below `root`; a symlink or `..` that would leave it is EXDEV.
pub fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    resolve(root.as_fd(), path.as_os_str(), flags, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` below `root` without following any symlink and without crossing a mount: for writes to a procfs that must be ours.
pub fn open_strict(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve_flags = ResolveFlags::BENEATH
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV;
    resolve(root.as_fd(), path.as_os_str(), flags, resolve_flags)
}

/// Opens `path` in root as an O_PATH descriptor, making what is missing (mode 0755) inside the root.
pub fn make_in_root(root: impl AsFd, path: &Path, leaf: Leaf) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    match open_in_root(root, path, OFlags::PATH) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other,
    }
    let names = normal_names(path)?;
    let Some((last, above)) = names.split_last() else {
        return open_in_root(root, Path::new("/"), OFlags::PATH);
    };
    let mut reached = std::path::PathBuf::from("/");
    for name in above {
        reached.push(name);
        drop(make_one(root, &reached, Leaf::Directory)?);
    }
    reached.push(last);
    make_one(root, &reached, leaf)
}

/// Opens `path` below `root` as an O_PATH descriptor, making missing directories with that mode. A symlink or `..` that would
/// leave `root` is an error at every step, whatever others change there meanwhile.
pub fn make_beneath(root: impl AsFd, path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    let missing = |error: &io::Error| error.raw_os_error() == Some(libc::ENOENT);
    match open_beneath(root, path, OFlags::PATH) {
        Err(error) if missing(&error) => {}
        other => return other,
    }
    let mut reached = std::path::PathBuf::new();
    let mut parent = open_beneath(root, Path::new("."), OFlags::PATH | OFlags::DIRECTORY)?;
    for name in normal_names(path)? {
        reached.push(name);
        parent = match open_beneath(root, &reached, OFlags::PATH) {
            Err(error) if missing(&error) => {
                match rustix::fs::mkdirat(&parent, name, Mode::empty()) {
                    // Its mode whatever the umask, and the group's bit that it inherits.
                    Ok(()) => give_mode(&parent, name, mode)?,
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open_beneath(root, &reached, OFlags::PATH)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

fn give_mode(parent: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let made = resolve(parent.as_fd(), name, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
    Ok(rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?)
}

/// Makes the last component of `path`; everything above exists. A dangling symlink there is an error: nothing is made through it.
fn make_one(root: BorrowedFd<'_>, path: &Path, leaf: Leaf) -> io::Result<OwnedFd> {
    match open_in_root(root, path, OFlags::PATH) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other,
    }
    let parent =
        open_in_root(root, path.parent().unwrap_or(Path::new("/")), OFlags::PATH | OFlags::DIRECTORY)?;
    let name = path.file_name().unwrap_or_default();
    let made = match leaf {
        Leaf::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        Leaf::File => rustix::fs::mknodat(
            &parent,
            name,
            rustix::fs::FileType::RegularFile,
            Mode::from_raw_mode(0o644),
            0,
        ),
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let opened = resolve(parent.as_fd(), name, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
    Ok(opened)
}

/// The names of an absolute or relative path; `..` is refused where something is to be made.
fn normal_names(path: &Path) -> io::Result<Vec<&OsStr>> {
    path.components()
        .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        })
        .collect()
}

/// Says whether the last component of `path` in `root` is a symlink.
pub fn is_symlink_in_root(root: impl AsFd, path: &Path) -> io::Result<bool> {
    let opened = match open_in_root(root, path, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(opened) => opened,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(file_type(&opened)? == rustix::fs::FileType::Symlink)
}

/// The type of an open file.
pub fn file_type(file: impl AsFd) -> io::Result<rustix::fs::FileType> {
    let stat = rustix::fs::fstat(file)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode))
}

/// Reads the link text of a symlink opened with O_PATH | O_NOFOLLOW.
pub fn read_link(link: impl AsFd) -> io::Result<std::ffi::CString> {
    Ok(rustix::fs::readlinkat(link, "", Vec::new())?)
}

/// Removes a name below an open directory; gone already is fine.
pub fn unlink_at(directory: impl AsFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn resolve(root: BorrowedFd<'_>, path: &OsStr, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    // EAGAIN: something was renamed during the lookup and the kernel could not prove that `..` stayed inside.
    for _ in 0..128 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn links_and_dots_stay_inside_the_root() {
        let (dir, fd) = root();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", dir.path().join("absolute")).unwrap();
        symlink("../../../../etc/passwd", dir.path().join("dots")).unwrap();
        for name in ["absolute", "dots", "/../../etc/passwd"] {
            let mut text = String::new();
            let file = open_in_root(&fd, Path::new(name), OFlags::RDONLY).unwrap();
            std::io::Read::read_to_string(&mut std::fs::File::from(file), &mut text).unwrap();
            assert_eq!(text, "inside", "{name}");
        }
        assert!(open_beneath(&fd, Path::new("absolute"), OFlags::PATH).is_err());
    }

    #[test]
    fn makes_missing_directories_through_links_only_inside_the_root() {
        let (dir, fd) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        assert!(
            make_in_root(&fd, Path::new("out/new"), Leaf::Directory).is_err(),
            "a dangling link is refused"
        );
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        make_in_root(&fd, Path::new("/a/b/file"), Leaf::File).unwrap();
        assert!(dir.path().join("a/b/file").is_file());
        assert!(make_in_root(&fd, Path::new("/x/../y"), Leaf::Directory).is_err());
    }

    #[test]
    fn directories_are_made_beneath_and_never_through_a_link_that_leaves() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, fd) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        symlink("inside", dir.path().join("in")).unwrap();
        std::fs::create_dir(dir.path().join("inside")).unwrap();
        make_beneath(&fd, Path::new("in/a/b"), 0o777).unwrap();
        let mode = dir.path().join("inside/a/b").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777);
        for path in ["out", "out/x", "../x", "in/../../x", "/etc", "in/a/../../../x"] {
            assert!(make_beneath(&fd, Path::new(path), 0o777).is_err(), "{path}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

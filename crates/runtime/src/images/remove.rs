//! Deletes a directory tree of any depth with a fixed stack and few descriptors: an image may nest deeper than recursion can go.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::ImageError;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Deletes `path` and everything below it, following no symlink; gone already is fine.
pub(super) fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let parent = match sys::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    match sys::unlinkat(&parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => Ok(remove_tree(parent.as_fd(), name)?),
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Deletes the directory `name` of `parent`. Directories below it are first moved up into it, so the depth never grows.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let top = sys::openat(parent, name, DIRECTORY, Mode::empty())?;
    let mut moved = 0_u64;
    loop {
        let children = names(top.as_fd())?;
        if children.is_empty() {
            break;
        }
        for child in children {
            match sys::unlinkat(&top, &child, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => flatten(top.as_fd(), &child, &mut moved)?,
                other => other?,
            }
        }
    }
    drop(top);
    sys::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Empties and removes the directory `name` of `top`; its own directories become children of `top`.
fn flatten(top: BorrowedFd<'_>, name: &OsStr, moved: &mut u64) -> Result<(), Errno> {
    let directory = sys::openat(top, name, DIRECTORY, Mode::empty())?;
    for child in names(directory.as_fd())? {
        match sys::unlinkat(&directory, &child, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => loop {
                *moved += 1;
                let free = format!(".removed-{moved}");
                match sys::renameat_with(&directory, &child, top, &free, RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => {}
                    other => break other?,
                }
            },
            other => other?,
        }
    }
    sys::unlinkat(top, name, AtFlags::REMOVEDIR)
}

/// A directory that is deleted with everything in it when this is dropped.
pub(super) struct Sweep(PathBuf);

impl Sweep {
    /// Makes a fresh directory in `parent`.
    pub(super) fn create(parent: &Path) -> Result<Self, ImageError> {
        match tempfile::Builder::new().prefix("new-").tempdir_in(parent) {
            Ok(directory) => Ok(Self(directory.keep())),
            Err(error) => Err(ImageError::io("create a directory in", parent, error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        if let Err(error) = remove_path(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "left a directory to be deleted at the next start");
        }
    }
}

fn names(directory: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in sys::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_or_descriptor_limit_is_deleted() {
        let root = tempfile::tempdir().expect("temp dir");
        let mut at = sys::open(root.path(), DIRECTORY, Mode::empty()).expect("open");
        sys::mkdirat(&at, "top", Mode::RWXU).expect("mkdir");
        at = sys::openat(&at, "top", DIRECTORY, Mode::empty()).expect("open");
        for _ in 0..30_000 {
            sys::mkdirat(&at, "d", Mode::RWXU).expect("mkdir");
            at = sys::openat(&at, "d", DIRECTORY, Mode::empty()).expect("open");
        }
        drop(at);
        remove_path(&root.path().join("top")).expect("removed");
        assert!(!root.path().join("top").exists());
    }
}

//! Reading and writing control files, with errors that name the file.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::CgroupError;

pub(super) enum Filesystem {
    Cgroup2,
    Other,
}

pub(super) fn filesystem(path: &Path) -> Result<Filesystem, CgroupError> {
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    let stat = rustix::fs::statfs(path).map_err(|_| CgroupError::NotMounted(path.to_owned()))?;
    Ok(if stat.f_type as u64 == CGROUP2_SUPER_MAGIC { Filesystem::Cgroup2 } else { Filesystem::Other })
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(|source| error("read", path, source))
}

/// Files of procfs have no size, so that reading them by the standard library takes many small steps.
pub(super) fn read_proc(path: &Path) -> Result<String, CgroupError> {
    use std::io::Read;
    let mut text = String::with_capacity(4096);
    let read = std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| text).map_err(|source| error("read", path, source))
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, CgroupError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        // ENODEV: the cgroup was removed while we read.
        Err(source) if is_gone(&source) => Ok(None),
        Err(source) => Err(error("read", path, source)),
    }
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    write_raw(path, value).map_err(|source| CgroupError::Write {
        file: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Returns false when there is no such file.
pub(super) fn write_if_there(path: &Path, value: &str) -> Result<bool, CgroupError> {
    match write_raw(path, value) {
        Ok(()) => Ok(true),
        Err(source) if is_gone(&source) => Ok(false),
        Err(source) => Err(CgroupError::Write { file: path.to_owned(), value: value.to_owned(), source }),
    }
}

/// Several lines, each in a write of its own as v1 device files want them.
pub(super) fn write_each(path: &Path, values: &[String]) -> Result<(), CgroupError> {
    let file = open_write(path)?;
    for value in values {
        rustix::io::write(&file, value.as_bytes()).map_err(|source| CgroupError::Write {
            file: path.to_owned(),
            value: value.clone(),
            source: source.into(),
        })?;
    }
    Ok(())
}

fn write_raw(path: &Path, value: &str) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

pub(super) fn open_write(path: &Path) -> Result<OwnedFd, CgroupError> {
    rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| error("open", path, source.into()))
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| error("open", path, source.into()))
}

/// Makes a directory and those above it. Calls `made` for each new one, topmost first.
pub(super) fn make_directories(
    path: &Path,
    made: &mut dyn FnMut(&Path) -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => made(path),
        Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            let parent = path.parent().ok_or_else(|| error("create", path, Errno::NOENT.into()))?;
            make_directories(parent, made)?;
            match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
                Ok(()) => made(path),
                Err(Errno::EXIST) => Ok(()),
                Err(source) => Err(error("create", path, source.into())),
            }
        }
        Err(source) => Err(error("create", path, source.into())),
    }
}

/// Removes a cgroup directory and those below it, deepest first.
pub(super) fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(source) => return Err(error("remove", path, source.into())),
    }
    for child in subdirectories(path) {
        remove_tree(&child)?;
    }
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(source) => Err(error("remove", path, source.into())),
    }
}

pub(super) fn subdirectories(path: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

pub(super) fn error(action: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::File { action, path: path.to_owned(), source }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

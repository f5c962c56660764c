//! Copies a directory of the container's root into a new tmpfs that will lie on it (`tmpcopyup`). Nobody else can change either.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

const FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = FLAGS.union(OFlags::DIRECTORY);

/// Everything in the directory; links are copied, never followed.
pub(super) fn contents(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let listed = fs::openat(from, ".", DIRECTORY, Mode::empty())?;
    for entry in Dir::read_from(&listed)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            copy(&listed, to, name)?;
        }
    }
    Ok(())
}

/// Owner, mode and times of a directory.
pub(super) fn attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let stat = fs::fstat(from)?;
    give(&fs::openat(to, ".", DIRECTORY, Mode::empty())?, &stat)
}

fn copy(from: &OwnedFd, to: impl AsFd, name: &CStr) -> io::Result<()> {
    let to = to.as_fd();
    let stat = fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let private = Mode::RUSR | Mode::WUSR;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            fs::mkdirat(to, name, Mode::RWXU)?;
            let copied = fs::openat(to, name, DIRECTORY, Mode::empty())?;
            contents(fs::openat(from, name, DIRECTORY, Mode::empty())?, &copied)?;
            give(&copied, &stat)
        }
        FileType::RegularFile => {
            let mut original = File::from(fs::openat(from, name, FLAGS, Mode::empty())?);
            let flags = FLAGS | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut copied = File::from(fs::openat(to, name, flags, private)?);
            io::copy(&mut original, &mut copied)?;
            give(&copied.into(), &stat)
        }
        FileType::Symlink => {
            fs::symlinkat(fs::readlinkat(from, name, Vec::new())?, to, name)?;
            give_named(to, name, &stat)
        }
        kind => {
            fs::mknodat(to, name, kind, private, stat.st_rdev)?;
            give_named(to, name, &stat)?;
            Ok(fs::chmodat(to, name, mode(&stat), AtFlags::empty())?)
        }
    }
}

fn give(copied: &OwnedFd, stat: &Stat) -> io::Result<()> {
    fs::fchown(copied, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    // After the owner: changing that clears set-id bits.
    fs::fchmod(copied, mode(stat))?;
    Ok(fs::futimens(copied, &times(stat))?)
}

/// What is not opened: a link, a device.
fn give_named(to: impl AsFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fs::chownat(&to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

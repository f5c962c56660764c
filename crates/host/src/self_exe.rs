//! A copy of the running program that nothing reached through `/proc/PID/exe` can write to (runc CVE-2019-5736).

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::mount::{self, Depth, MountAttributes};
use crate::sys;

/// Opens the running program for execution through a read-only, detached clone of its mount; where that is not possible, as a sealed
/// copy in memory.
pub fn open() -> io::Result<OwnedFd> {
    match read_only_clone() {
        Ok(fd) => Ok(fd),
        Err(_) => sealed_copy(),
    }
}

fn read_only_clone() -> io::Result<OwnedFd> {
    let exe = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let tree = match mount::clone_fd(&exe, Depth::One) {
        Ok(tree) => tree,
        // After a change of mount namespace the program still lies on a mount of the old one; by its path it may be found in the new one.
        Err(_) => mount::clone_fd(same_file_by_path(&exe)?, Depth::One)?,
    };
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    mount::set_attributes(&tree, Depth::One, MountAttributes { set, ..MountAttributes::default() })?;
    Ok(tree)
}

fn same_file_by_path(exe: &OwnedFd) -> io::Result<OwnedFd> {
    let path = rustix::fs::readlink("/proc/self/exe", Vec::new())?;
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let (wanted, stat) = (rustix::fs::fstat(exe)?, rustix::fs::fstat(&found)?);
    if (wanted.st_dev, wanted.st_ino) == (stat.st_dev, stat.st_ino) {
        return Ok(found);
    }
    Err(io::Error::from_raw_os_error(libc::ESTALE))
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::EXEC;
    let copy = match rustix::fs::memfd_create("podwright", flags) {
        // MFD_EXEC is younger than memfd itself.
        Err(rustix::io::Errno::INVAL) => {
            rustix::fs::memfd_create("podwright", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?
        }
        other => other?,
    };
    let mut copy = File::from(copy);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// Says whether the running program already is such a copy (or lies on a read-only mount).
pub fn is_sealed() -> io::Result<bool> {
    let exe = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if let Ok(stat) = rustix::fs::fstatvfs(&exe)
        && stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)
    {
        return Ok(true);
    }
    let name = rustix::fs::readlink("/proc/self/exe", Vec::new())?;
    if !name.as_bytes().starts_with(b"/memfd:") {
        return Ok(false);
    }
    let seals = rustix::fs::fcntl_get_seals(File::open("/proc/self/exe")?.as_fd())?;
    Ok(seals.contains(SealFlags::WRITE))
}

/// Replaces the running program by a sealed copy of itself with the same arguments and environment, unless it is one already.
/// Returns only if it is, or on an error.
pub fn reexec_sealed() -> io::Result<()> {
    use std::os::unix::ffi::OsStringExt;
    if is_sealed()? {
        return Ok(());
    }
    let exe = open()?;
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let argv: Vec<CString> = std::env::args_os()
        .map(|arg| CString::new(arg.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(invalid)?;
    let env: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')))
        .collect::<Result<_, _>>()
        .map_err(invalid)?;
    let argv: Vec<&CStr> = argv.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = env.iter().map(CString::as_c_str).collect();
    Err(sys::exec_fd(exe.as_fd(), &argv, &env))
}

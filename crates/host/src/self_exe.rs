//! A copy of the running program that nothing reached through `/proc/PID/exe` can write to (runc CVE-2019-5736).

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::ops::Range;
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

/// Lets go of this program's code as far as it was mapped: after a start most of it is not needed again. It stays in the page cache for
/// as long as the kernel likes, and what runs is mapped again, page by page.
pub fn forget_code() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let exe = std::fs::read_link("/proc/self/exe")?;
    code_of(&maps, &exe.to_string_lossy()).into_iter().try_for_each(sys::forget_code)
}

/// Mappings of a file that can be executed and not be written.
fn code_of(maps: &str, file: &str) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let mut words = line.splitn(6, ' ');
        let (addresses, rights) = (words.next()?, words.next()?);
        let name = words.nth(3)?.trim_start();
        let (start, end) = addresses.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        (rights == "r-xp" && name == file).then_some(number(start)?..number(end)?)
    };
    maps.lines().filter_map(range).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_programs_code_is_let_go_of() {
        let maps = "00200000-00863000 r--p 00000000 fe:00 12  /usr/bin/podwright\n\
            00863000-028c8000 r-xp 00662000 fe:00 12                         /usr/bin/podwright\n\
            028c8000-028cd000 rwxp 026c6000 fe:00 12                         /usr/bin/podwright\n\
            7f0000000000-7f0000001000 r-xp 00000000 00:00 0                  [vdso]\n\
            7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n";
        let found = code_of(maps, "/usr/bin/podwright");
        let bounds: Vec<_> = found.iter().map(|code| (code.start, code.end)).collect();
        assert_eq!(bounds, [(0x0086_3000, 0x028c_8000)]);
        forget_code().unwrap();
        assert_eq!(code_of(maps, "/usr/bin/other"), []);
    }
}

//! Working directory, environment, finding and executing the program. Runs inside the container's root.

use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;

use host::{path, sys};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::report::{Failure, Step};
use crate::plan::ProcessPlan;

/// A program that was found.
pub(super) struct Found(CString);

/// Enters the working directory. Magic links of procfs are refused: they lead to descriptors, not to paths (CVE-2024-21626).
pub(super) fn change_directory(directory: &Path) -> Result<(), Failure> {
    let step = || format!("chdir to cwd ({directory:?}) set in config.json");
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step(step)?;
    let opened = path::open_in_root(&root, directory, OFlags::PATH | OFlags::DIRECTORY).step(step)?;
    rustix::process::fchdir(&opened).step(step)
}

/// The kernel's own view of where this process stands: outside the root there is no path.
pub(super) fn check_directory() -> Result<(), Failure> {
    let step = || "current working directory is outside of container mount namespace root".to_owned();
    let current = rustix::process::getcwd(Vec::new()).step(step)?;
    if current.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(Failure::step(step(), &io::Error::from_raw_os_error(libc::ENOENT)))
}

/// The environment, with HOME from the image's passwd where it is not given.
pub(super) fn environment(process: &ProcessPlan) -> Vec<CString> {
    let mut env: Vec<CString> =
        process.env.iter().filter_map(|entry| CString::new(entry.as_str()).ok()).collect();
    let has_home = process.env.iter().any(|entry| entry.starts_with("HOME=") && entry.len() > 5);
    if !has_home {
        env.retain(|entry| !entry.as_bytes().starts_with(b"HOME="));
        let home = home_of(process.uid).unwrap_or_else(|| "/".to_owned());
        env.extend(CString::new(format!("HOME={home}")).ok());
    }
    env
}

/// Field 6 of the passwd line with this uid. A passwd over 1 MiB, or one that is no regular file, is not read.
fn home_of(uid: u32) -> Option<String> {
    use std::io::Read;
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let file = path::open_in_root(&root, Path::new("/etc/passwd"), OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    if path::file_type(&file).ok()? != FileType::RegularFile {
        return None;
    }
    let mut text = String::new();
    std::fs::File::from(file).take(1 << 20).read_to_string(&mut text).ok()?;
    let uid = uid.to_string();
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').nth(5).filter(|home| !home.is_empty()).map(str::to_owned)
}

/// Finds the program as the process's own user sees it, with the texts of Go's exec package, which tools match on.
pub(super) fn find(process: &ProcessPlan, env: &[CString]) -> Result<Found, Failure> {
    let name = process.args.first().map_or("", String::as_str);
    if name.contains('/') {
        let program = c_string(name.as_bytes())?;
        return match executable(&program) {
            Ok(()) => Ok(Found(program)),
            Err(errno) => Err(Failure::exec(reason(errno), errno.raw_os_error())),
        };
    }
    let path = env.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
    for directory in path.split(|byte| *byte == b':').filter(|directory| directory.starts_with(b"/")) {
        let candidate = c_string(&[directory, name.as_bytes()].join(&b'/'))?;
        if executable(&candidate).is_ok() {
            return Ok(Found(candidate));
        }
    }
    Err(Failure::exec("executable file not found in $PATH", libc::ENOENT))
}

fn executable(program: &CStr) -> Result<(), Errno> {
    let stat = rustix::fs::stat(program)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    // Root may do much, but not execute what nobody may.
    rustix::fs::accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS)
}

/// Executes; comes back only with what went wrong.
pub(super) fn execute(program: &Found, process: &ProcessPlan, env: &[CString]) -> Failure {
    let args: Result<Vec<CString>, _> = process.args.iter().map(|arg| CString::new(arg.as_str())).collect();
    let Ok(args) = args else { return Failure::exec("invalid argument", libc::EINVAL) };
    let args: Vec<&CStr> = args.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = env.iter().map(CString::as_c_str).collect();
    let error = sys::exec(&program.0, &args, &env);
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    Failure::exec(reason(Errno::from_raw_os_error(errno)), errno)
}

fn reason(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "no such file or directory".to_owned(),
        Errno::ACCESS | Errno::PERM => "permission denied".to_owned(),
        Errno::ISDIR => "is a directory".to_owned(),
        Errno::NOEXEC => "exec format error".to_owned(),
        Errno::NOTDIR => "not a directory".to_owned(),
        other => io::Error::from(other).to_string(),
    }
}

fn c_string(bytes: &[u8]) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| Failure::exec("invalid argument", libc::EINVAL))
}

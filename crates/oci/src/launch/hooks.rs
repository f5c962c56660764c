//! Runs lifecycle hooks: programs that read the container's state from their standard input. Single-threaded callers only.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use host::process::{self, Exit};
use host::sys::{self, Forked};
use rustix::fs::{MemfdFlags, SeekFrom};

use crate::plan::{HookPlan, HookPoint, HooksPlan};

/// How much of a failed hook's output is told.
const TOLD: usize = 1024;

/// Why a hook has failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be run.
    #[error("run {} hook #{index}", point.name())]
    Run {
        /// Which list.
        point: HookPoint,
        /// Which of the list.
        index: usize,
        /// Why not.
        source: io::Error,
    },
    /// It said so.
    #[error("error running {} hook #{index}: {reason}, stdout: {stdout}, stderr: {stderr}", point.name())]
    Failed {
        /// Which list.
        point: HookPoint,
        /// Which of the list.
        index: usize,
        /// How it ended.
        reason: String,
        /// What it wrote.
        stdout: String,
        /// What it wrote.
        stderr: String,
    },
}

/// Runs the hooks at one point in order, up to the first that fails. `pid` is the container's init as they see it.
pub fn run(hooks: &HooksPlan, point: HookPoint, pid: i32) -> Result<(), HookError> {
    let state = hooks.state(point, pid).to_string();
    for (index, hook) in hooks.at(point).iter().enumerate() {
        let outcome = run_one(hook, &state).map_err(|source| HookError::Run { point, index, source })?;
        if let Some((reason, [stdout, stderr])) = outcome {
            return Err(HookError::Failed { point, index, reason, stdout, stderr });
        }
    }
    Ok(())
}

/// Nothing when it succeeded; else how it ended, and its output.
fn run_one(hook: &HookPlan, state: &str) -> io::Result<Option<(String, [String; 2])>> {
    let stdin = memory()?;
    rustix::io::write(&stdin, state.as_bytes())?;
    rustix::fs::seek(&stdin, SeekFrom::Start(0))?;
    let (stdout, stderr) = (memory()?, memory()?);
    let pidfd = match sys::fork_into(0, None)? {
        Forked::Child => {
            let error = execute(hook, [&stdin, &stdout, &stderr]);
            let _ = rustix::io::write(&stderr, error.to_string().as_bytes());
            sys::exit_now(127)
        }
        Forked::Parent { pidfd, .. } => pidfd,
    };
    let reason = match wait(&pidfd, hook.timeout)? {
        Some(Exit::Code(0)) => return Ok(None),
        Some(Exit::Code(code)) => format!("exit status {code}"),
        Some(Exit::Signal(signal)) => format!("signal {signal}"),
        None => "it ran out of time".to_owned(),
    };
    Ok(Some((reason, [written(&stdout), written(&stderr)])))
}

/// A file in memory has an end, as a reader of the state expects, and never makes a writer wait.
fn memory() -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?)
}

fn execute(hook: &HookPlan, streams: [&OwnedFd; 3]) -> io::Error {
    let prepare = || -> io::Result<(CString, Vec<CString>, Vec<CString>)> {
        sys::reset_signals();
        rustix::process::setsid()?;
        let [stdin, stdout, stderr] = streams.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 64));
        rustix::stdio::dup2_stdin(stdin?)?;
        rustix::stdio::dup2_stdout(stdout?)?;
        rustix::stdio::dup2_stderr(stderr?)?;
        sys::close_on_exec_from(3)?;
        let strings = |list: &[String]| list.iter().map(|text| Ok(CString::new(text.as_str())?)).collect();
        let path = CString::new(hook.path.as_os_str().as_bytes())?;
        let (args, env): (io::Result<Vec<_>>, io::Result<Vec<_>>) = (strings(&hook.args), strings(&hook.env));
        Ok((path, args?, env?))
    };
    match prepare() {
        Ok((path, args, env)) => {
            let args: Vec<&CStr> = args.iter().map(CString::as_c_str).collect();
            let env: Vec<&CStr> = env.iter().map(CString::as_c_str).collect();
            sys::exec(&path, &args, &env)
        }
        Err(error) => error,
    }
}

/// `None` when it was killed because its time was over.
fn wait(pidfd: &OwnedFd, timeout: Option<u64>) -> io::Result<Option<Exit>> {
    if let Some(seconds) = timeout
        && !process::wait_ended(pidfd, Duration::from_secs(seconds))?
    {
        process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL)?;
        process::wait(pidfd.as_fd())?;
        return Ok(None);
    }
    process::wait(pidfd.as_fd()).map(Some)
}

fn written(file: &OwnedFd) -> String {
    let mut buffer = [0_u8; TOLD];
    let length = rustix::io::pread(file, &mut buffer, 0).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
}

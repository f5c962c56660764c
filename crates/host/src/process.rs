//! Processes by pidfd, and identities of processes that survive in records. A pid alone is never trusted.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::sys;

/// What identifies one process for good: pids are reused, start times are not within one boot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Pid in the namespace of whoever recorded it.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` at the time of recording.
    pub boot_id: String,
}

/// What a process is doing, as far as its identity matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs (or sleeps, or is stopped).
    Alive,
    /// It ended, and nobody has collected it yet.
    Zombie,
    /// It is gone, or its pid belongs to another process now.
    Gone,
}

impl ProcessId {
    /// Records the identity of a process that is known to be this one now (our own child, or held by a pidfd).
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)?, boot_id: boot_id()? })
    }

    /// Says whether this very process still runs.
    pub fn liveness(&self) -> Liveness {
        if boot_id().is_ok_and(|now| now != self.boot_id) {
            return Liveness::Gone;
        }
        match read_stat(self.pid) {
            Ok(stat) if stat.start_time != self.start_time => Liveness::Gone,
            Ok(stat) if matches!(stat.state, b'Z' | b'X') => Liveness::Zombie,
            Ok(_) => Liveness::Alive,
            Err(_) => Liveness::Gone,
        }
    }

    /// Says whether this very process still runs and is no zombie.
    pub fn is_alive(&self) -> bool {
        self.liveness() == Liveness::Alive
    }

    /// Opens a pidfd that certainly belongs to this process; `None` when it is gone.
    pub fn pidfd(&self) -> io::Result<Option<OwnedFd>> {
        let Some(fd) = pidfd_open(self.pid)? else { return Ok(None) };
        // Checked after opening: from here on the pid cannot have been reused unseen.
        Ok((self.liveness() != Liveness::Gone).then_some(fd))
    }
}

/// Opens a pidfd, `None` when no such process exists.
pub fn pidfd_open(pid: i32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The pid behind a pidfd, in the caller's pid namespace.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    // -1 when the process was collected, 0 when it is in no namespace of ours.
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Sends a signal (any number the kernel knows, real-time ones too) through a pidfd. A process that is gone is not an error: returns false.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<bool> {
    match sys::pidfd_send_signal(pidfd, signal) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By `exit` with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The one number that shells and runtimes report: the code, or 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Waits for a child through its pidfd and collects it.
pub fn wait(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    loop {
        match sys::waitid_pidfd(pidfd, libc::WEXITED) {
            Ok(Some(exit)) => return Ok(exit),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Collects a child if it has ended, without waiting.
pub fn try_wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    sys::waitid_pidfd(pidfd, libc::WEXITED | libc::WNOHANG)
}

/// Start time of a process in clock ticks since boot.
pub fn start_time(pid: i32) -> io::Result<u64> {
    Ok(read_stat(pid)?.start_time)
}

/// Whether systemd is this machine's first process: sd_booted(3).
pub fn is_booted_by_systemd() -> bool {
    std::path::Path::new("/run/systemd/system").is_dir()
}

/// The identity of this boot. Read once: it cannot change under a running process.
pub fn boot_id() -> io::Result<String> {
    static BOOT_ID: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id.clone());
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT_ID.get_or_init(|| id).clone())
}

struct Stat {
    state: u8,
    start_time: u64,
}

fn read_stat(pid: i32) -> io::Result<Stat> {
    use std::io::Read;
    let mut buffer = [0_u8; 1024];
    let length = std::fs::File::open(format!("/proc/{pid}/stat"))?.read(&mut buffer)?;
    parse_stat(&buffer[..length]).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Parses state and start time. The name in parentheses may hold anything, so fields count from the last `)`.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = stat[after_name..].split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    let start_time = std::str::from_utf8(fields.nth(18)?).ok()?.trim().parse().ok()?;
    Some(Stat { state, start_time })
}

/// Waits until the process behind a pidfd has ended, without collecting it; false when the timeout passed first.
pub fn wait_ended(pidfd: &OwnedFd, timeout: std::time::Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let timespec = Timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut fds, Some(&timespec)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line =
            b"42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1000 1 18446744073709551615";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.start_time), (b'S', 777));
    }

    #[test]
    fn own_process_is_alive_and_the_same_pid_with_another_start_time_is_gone() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive());
        assert_eq!(ProcessId { start_time: me.start_time + 1, ..me.clone() }.liveness(), Liveness::Gone);
        assert_eq!(ProcessId { boot_id: "another".into(), ..me }.liveness(), Liveness::Gone);
    }
}

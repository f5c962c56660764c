//! A process that a test started on one of its hosts, and the test's own clock.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// Whose pid [`Daemon::pid`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// `nsenter` replaces itself by the program.
    Replaced,
    /// `nsenter` waits for the program, which is its child: a process namespace is entered by forking only.
    Waits,
}

/// A process started by a test; it is killed with the value.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    front: Front,
}

impl Daemon {
    /// Starts it; what it writes is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(name: &str, command: &mut Command, log: PathBuf, front: Front) -> Result<Self> {
        let file =
            std::fs::File::options().create(true).append(true).open(&log).context("open the daemon's log")?;
        let child = command
            .stdout(file.try_clone().context("clone the log's descriptor")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log, front })
    }

    /// The program's pid.
    ///
    /// # Panics
    /// When it does not come to life, on a host with a process namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match self.front {
            Front::Replaced => self.child.id(),
            Front::Waits => {
                child_of(self.child.id()).unwrap_or_else(|| panic!("{} runs: {}", self.name, self.log()))
            }
        }
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it writes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Waits until `ready` gives a value; fails early when the daemon ends.
    ///
    /// # Errors
    /// When the daemon ended or 30 s have passed: with its log.
    pub fn wait_until<T>(&mut self, what: &str, ready: impl FnMut() -> Option<T>) -> Result<T> {
        self.wait_within(Duration::from_secs(30), what, ready)
    }

    /// As [`wait_until`](Self::wait_until), for `limit`.
    ///
    /// # Errors
    /// As there.
    pub fn wait_within<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let deadline = now() + limit;
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait().context("look at the daemon")? {
                bail!("{} ended ({status}) before {what}:\n{}", self.name, self.log());
            }
            if now() > deadline {
                bail!("{} was not {what} after {} s:\n{}", self.name, limit.as_secs(), self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends SIGKILL and waits for the end: what a crash looks like.
    pub fn kill(&mut self) {
        if self.signal(Signal::KILL).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// When it does not end within 30 s.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_ended()
    }

    /// Waits for the end, which somebody has asked it for.
    ///
    /// # Errors
    /// When it does not end within 30 s.
    pub fn wait_ended(&mut self) -> Result<ExitStatus> {
        let deadline = now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().context("look at the daemon")? {
                return Ok(status);
            }
            if now() > deadline {
                bail!("{} did not end in 30 s:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to the program; SIGSTOP makes it hang.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = match self.front {
            Front::Replaced => self.child.id(),
            Front::Waits => child_of(self.child.id()).context("it has ended")?,
        };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid")?;
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("send {signal:?} to {}, which wrote\n{}", self.name, self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The one child of `parent`, which is about to fork.
pub(crate) fn child_of(parent: u32) -> Option<u32> {
    let deadline = now() + Duration::from_secs(5);
    let (children, status) =
        (format!("/proc/{parent}/task/{parent}/children"), format!("/proc/{parent}/stat"));
    loop {
        if let Some(child) = std::fs::read_to_string(&children).ok()?.split_whitespace().next() {
            return child.parse().ok();
        }
        let ended = std::fs::read_to_string(&status).is_ok_and(|stat| stat.contains(") Z "));
        if ended || now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[expect(clippy::disallowed_methods, reason = "bounds of waits in the harness")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

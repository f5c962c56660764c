//! A machine for one test: a network and mount namespace with no link to this machine's own interfaces.
//!
//! It has what a node has: `lo` up, an address on a veth pair whose other end stays inside, a default route, IP
//! forwarding, and an empty `/run`. It ends with the value, or with the test process: its first process waits on a pipe.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The node address inside every test host (TEST-NET-1: never routed anywhere).
pub const NODE_ADDRESS: &str = "192.0.2.2";

const SET_UP: &str = "set -e
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
ip link add up0 type veth peer name gw0
ip address add 192.0.2.2/24 dev up0
ip link set gw0 up
ip link set up0 up
ip route add default via 192.0.2.1 dev up0
echo 1 > /proc/sys/net/ipv4/ip_forward
echo ready
exec cat";

/// See the module.
pub struct TestHost {
    directory: TempDir,
    holder: Child,
}

impl TestHost {
    /// Makes the namespaces and a short temporary directory (socket paths end at 108 bytes).
    ///
    /// # Errors
    /// When this process is not root, or `unshare` and `ip` are missing.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pw-")
            .tempdir_in("/tmp")
            .context("create the host's directory")?;
        let mut holder = program("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", SET_UP])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let mut line = String::new();
        let stdout = holder.stdout.take().context("the holder's stdout is piped")?;
        BufReader::new(stdout).read_line(&mut line).context("read from the holder")?;
        if line.trim() != "ready" {
            let status = holder.wait().context("wait for the holder")?;
            bail!("set up the test host's namespaces: {status}; this needs root");
        }
        Ok(Self { directory, holder })
    }

    /// The host's directory: visible from inside and outside.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The pid of the process that holds the namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that will run inside the host.
    #[must_use]
    pub fn command(&self, name: impl AsRef<OsStr>) -> Command {
        let mut command = program("nsenter");
        command
            .arg(format!("--target={}", self.holder.id()))
            .args(["--net", "--mount", "--"])
            .arg(name.as_ref());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command inside the host and gives its standard output.
    ///
    /// # Errors
    /// When it cannot be started, or ends with another code than 0: with everything that it wrote.
    pub fn run(&self, name: impl AsRef<OsStr>, arguments: &[&str]) -> Result<String> {
        output_of(self.command(name).args(arguments))
    }

    /// Starts a daemon inside the host; what it writes goes to `NAME.log` in the host's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Daemon> {
        let log = self.path().join(format!("{name}.log"));
        let file =
            std::fs::File::options().create(true).append(true).open(&log).context("open the daemon's log")?;
        let child = command
            .stdout(file.try_clone().context("clone the log's descriptor")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Daemon { name: name.to_owned(), child, log })
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// A process started by a test; it is killed with the value.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Its pid (`nsenter` replaces itself by the program).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` gives a value; fails early when the daemon ends.
    ///
    /// # Errors
    /// When the daemon ended or 30 s have passed: with its log.
    pub fn wait_until<T>(&mut self, what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = now() + Duration::from_secs(30);
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait().context("look at the daemon")? {
                bail!("{} ended ({status}) before {what}:\n{}", self.name, self.log());
            }
            if now() > deadline {
                bail!("{} was not {what} after 30 s:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends SIGKILL and waits for the end: what a crash looks like.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// When it does not end within 30 s.
    pub fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        let pid =
            i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).context("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .with_context(|| format!("send SIGTERM to {}, which wrote\n{}", self.name, self.log()))?;
        let deadline = now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().context("look at the daemon")? {
                return Ok(status);
            }
            if now() > deadline {
                bail!("{} did not end 30 s after SIGTERM:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Polls `check` until it gives a value; for what no event tells a test.
///
/// # Errors
/// When 60 s have passed.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = now() + Duration::from_secs(60);
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if now() > deadline {
            bail!("still not so after 60 s: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `command` and gives its standard output.
///
/// # Errors
/// When it cannot be started, or ends with another code than 0: with everything that it wrote.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, text_of(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Standard output and error of a finished command, for messages.
#[must_use]
pub fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The one place where stories start processes.
#[expect(clippy::disallowed_methods, reason = "stories drive real programs")]
#[must_use]
pub fn program(name: impl AsRef<OsStr>) -> Command {
    Command::new(name)
}

#[expect(clippy::disallowed_methods, reason = "bounds of waits in the harness")]
fn now() -> Instant {
    Instant::now()
}

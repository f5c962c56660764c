//! A machine for one test: a network and mount namespace with no link to this machine's own interfaces.
//!
//! It has what a node has: `lo` up, an address on a veth pair whose other end stays inside, a default route, IP
//! forwarding, and an empty `/run`. It ends with the value, or with the test process: its first process waits on a pipe.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

pub use crate::daemon::Daemon;
use crate::daemon::{Front, child_of, now};

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

const MACHINE: &str = include_str!("lab/machine.sh");

/// See the module.
pub struct TestHost {
    directory: TempDir,
    holder: Child,
    /// The process whose namespaces commands enter.
    inside: u32,
    namespaces: &'static [&'static str],
    front: Front,
}

impl TestHost {
    /// Makes the namespaces and a short temporary directory (socket paths end at 108 bytes).
    ///
    /// # Errors
    /// When this process is not root, or `unshare` and `ip` are missing.
    pub fn new() -> Result<Self> {
        Self::new_in(Path::new("/tmp"))
    }

    /// The same with the directory in `parent`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_in(parent: &Path) -> Result<Self> {
        let mut holder = program("unshare");
        holder.args(["--net", "--mount", "--propagation", "private", "sh", "-c", SET_UP]);
        let (directory, holder) = hold(directory(parent)?, &mut holder)?;
        let inside = holder.id();
        Ok(Self { directory, holder, inside, namespaces: &["--net", "--mount"], front: Front::Replaced })
    }

    /// A machine of a lab, with no link yet: also processes, its name and IPC are its own, and `/etc`, `/opt`, `/run`,
    /// `/var/lib` and `/var/log` are private. When it ends, its processes and the cgroups `cgroup` end with it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn machine(name: &str, cgroup: &str) -> Result<Self> {
        let directory = directory(Path::new("/tmp"))?;
        let mut holder = program("bash");
        // In a process group of its own: it must live to tidy up when Ctrl-C ends the test.
        holder.args(["-c", MACHINE, "machine"]).arg(directory.path()).args([name, cgroup]).process_group(0);
        let (directory, holder) = hold(directory, &mut holder)?;
        let unshare = child_of(holder.id()).context("find unshare")?;
        let inside = child_of(unshare).context("find the machine's first process")?;
        let namespaces = &["--net", "--mount", "--pid", "--uts", "--ipc"];
        Ok(Self { directory, holder, inside, namespaces, front: Front::Waits })
    }

    /// The host's directory: visible from inside and outside.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The pid of the process that holds the namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inside
    }

    /// A command that will run inside the host.
    #[must_use]
    pub fn command(&self, name: impl AsRef<OsStr>) -> Command {
        let mut command = program("nsenter");
        command.arg(format!("--target={}", self.inside)).args(self.namespaces).arg("--").arg(name.as_ref());
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

    /// A connection from inside the host: a socket stays in the network in which it was made.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        let inside = || {
            enter_network(self.inside)?;
            TcpStream::connect(address).with_context(|| format!("connect to {address}"))
        };
        // The thread is in that network for good.
        let thread = std::thread::scope(|scope| scope.spawn(inside).join());
        thread.map_err(|_| anyhow!("the client panicked"))?
    }

    /// Starts a daemon inside the host; what it writes goes to `NAME.log` in the host's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Daemon> {
        Daemon::start(name, command, self.path().join(format!("{name}.log")), self.front)
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Moves this thread into the network of process `pid`, for good.
///
/// # Errors
/// When there is no such process, or this one is not root.
pub fn enter_network(pid: u32) -> Result<()> {
    let network = File::open(format!("/proc/{pid}/ns/net")).context("open the host's network")?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .context("enter the host's network")
}

fn directory(parent: &Path) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("pw-").tempdir_in(parent).context("create the host's directory")
}

/// Starts the process that holds the namespaces, and waits until they are set up.
fn hold(directory: TempDir, command: &mut Command) -> Result<(TempDir, Child)> {
    let mut holder =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start the host's holder")?;
    let mut line = String::new();
    let stdout = holder.stdout.take().context("the holder's stdout is piped")?;
    BufReader::new(stdout).read_line(&mut line).context("read from the holder")?;
    if line.trim() != "ready" {
        let status = holder.wait().context("wait for the holder")?;
        bail!("set up the test host's namespaces: {status}; this needs root");
    }
    Ok((directory, holder))
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

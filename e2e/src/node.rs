//! Our own node on a test host: `podwright run` or `podwright runtime`, with every path inside the host's directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::parts;
use crate::test_host::{Daemon, TestHost, output_of};

/// A running podwright.
pub struct Node {
    /// The CRI socket.
    pub socket: PathBuf,
    cgroup_root: String,
    directory: PathBuf,
    arguments: Vec<String>,
    daemon: Daemon,
}

impl Node {
    /// Starts `podwright runtime` and waits until its CRI answers.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn runtime(host: &TestHost) -> Result<Self> {
        Self::start(host, &["runtime".to_owned()])
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn runtime_with(host: &TestHost, flags: &[&str]) -> Result<Self> {
        let words = ["runtime"].into_iter().chain(flags.iter().copied());
        Self::start(host, &words.map(str::to_owned).collect::<Vec<_>>())
    }

    /// Starts `podwright run -f MANIFESTS`, waits until its CRI answers.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn run(host: &TestHost, manifests: &Path) -> Result<Self> {
        Self::run_with(host, manifests, &[])
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn run_with(host: &TestHost, manifests: &Path, flags: &[&str]) -> Result<Self> {
        let mut command = vec!["run".to_owned(), "-f".to_owned(), manifests.display().to_string()];
        command.extend(flags.iter().map(|&flag| flag.to_owned()));
        Self::start(host, &command)
    }

    fn start(host: &TestHost, command: &[String]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup_root = format!("/podwright-e2e-{}-{count}", std::process::id());
        let directory = host.path().to_owned();
        let mut arguments = command.to_vec();
        arguments.extend(common_flags(&directory, &cgroup_root));
        let daemon = host.spawn("podwright", host.command(parts::podwright()).args(&arguments))?;
        let mut node = Self { socket: directory.join("pw.sock"), cgroup_root, directory, arguments, daemon };
        node.wait_ready(host)?;
        Ok(node)
    }

    fn wait_ready(&mut self, host: &TestHost) -> Result<()> {
        let endpoint = format!("unix://{}", self.socket.display());
        let crictl = parts::tool("crictl");
        self.daemon
            .wait_until("ready", || host.run(&crictl, &["--runtime-endpoint", &endpoint, "version"]).ok())
            .map(drop)
    }

    /// The agent's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// What the agent logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// The cgroup under which everything of this node lies, in every hierarchy.
    #[must_use]
    pub fn cgroup_root(&self) -> &str {
        &self.cgroup_root
    }

    /// `<state>` of this node.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The process that supervises a sandbox, as its record names it.
    ///
    /// # Errors
    /// When there is no such record, or no supervisor in it.
    pub fn supervisor(&self, sandbox: &str) -> Result<u32> {
        let path = self.state().join("sandboxes").join(sandbox).join("record.json");
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let record: Value = serde_json::from_slice(&text)?;
        let pid = record["supervisor"]["pid"].as_u64().context("a supervisor")?;
        Ok(u32::try_from(pid)?)
    }

    /// Imports an OCI layout as `podwright image import` does it. Pinned: this machine's disk may be full enough for images to go.
    ///
    /// # Errors
    /// When the command fails.
    pub fn import(&self, host: &TestHost, layout: &Path) -> Result<()> {
        let layout = layout.to_string_lossy();
        output_of(&mut self.command(host, &["image", "import", "--pin", &layout])).map(drop)
    }

    /// `podwright ARGUMENTS…` with this node's paths.
    #[must_use]
    pub fn command(&self, host: &TestHost, arguments: &[&str]) -> Command {
        let mut command = host.command(parts::podwright());
        command.args(arguments).args(common_flags(&self.directory, &self.cgroup_root));
        command
    }

    /// The v1 List that `podwright status -o json` prints.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn status(&self, host: &TestHost) -> Result<Value> {
        let text = output_of(&mut self.command(host, &["status", "-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("parse the status: {text}"))
    }

    /// Kills the agent as a crash would.
    pub fn crash(&mut self) {
        self.daemon.kill();
    }

    /// Starts the agent again with the same flags.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn restart(&mut self, host: &TestHost) -> Result<()> {
        self.daemon = host.spawn("podwright", host.command(parts::podwright()).args(&self.arguments))?;
        self.wait_ready(host)
    }

    /// Ends the agent and removes every trace with `podwright reset`.
    ///
    /// # Panics
    /// When reset fails: what a test leaves behind is a bug. Not while another panic is on its way.
    pub fn reset(mut self, host: &TestHost) {
        let ended = self.daemon.terminate();
        let reset = output_of(&mut self.command(host, &["reset", "--force"]));
        if !std::thread::panicking() {
            ended.unwrap_or_else(|error| panic!("end the agent: {error:#}"));
            reset.unwrap_or_else(|error| panic!("reset the node: {error:#}"));
        } else {
            #[expect(clippy::print_stderr, reason = "what the agent logged tells why a story failed")]
            {
                eprintln!("--- the agent's log ---\n{}", self.daemon.log());
            }
        }
    }
}

fn common_flags(directory: &Path, cgroup_root: &str) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    [
        ("--root", path("root")),
        ("--state", path("state")),
        ("--listen", path("pw.sock")),
        ("--cni-conf-dir", path("net.d-empty")),
        ("--registry-config-dir", path("certs.d")),
        ("--cgroup-root", cgroup_root.to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

//! OCI bundles with a busybox root, and a runtime with runc's command line to run them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::parts;
use crate::test_host::{output_of, program};

/// Which implementation of runc's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OciRuntime {
    /// `podwright oci`.
    Podwright,
    /// runc 1.5: the reference.
    Runc,
}

/// A bundle in a temporary directory of its own, and the runtime that runs it.
pub struct Bundle {
    /// Which runtime.
    pub runtime: OciRuntime,
    /// The container's id; the cgroup has the same name.
    pub id: String,
    /// The spec, to be changed before the container is made.
    pub spec: Value,
    directory: TempDir,
}

impl Bundle {
    /// A bundle whose process is `/bin/sh -c SCRIPT`, as `runc spec` writes it but without a terminal.
    ///
    /// # Errors
    /// When busybox or runc is missing.
    pub fn new(runtime: OciRuntime, script: &str) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("pw-oci-").tempdir_in("/tmp").context("create a directory")?;
        busybox_root(&directory.path().join("rootfs"))?;
        output_of(program(parts::tool("runc")).args(["spec", "--bundle"]).arg(directory.path()))?;
        let text =
            std::fs::read_to_string(directory.path().join("config.json")).context("read config.json")?;
        let mut spec: Value = serde_json::from_str(&text).context("parse config.json")?;
        let id =
            directory.path().file_name().map(|name| name.to_string_lossy().into_owned()).context("a name")?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        spec["linux"]["cgroupsPath"] = json!(format!("/podwright-oci-{id}"));
        Ok(Self { runtime, id, spec, directory })
    }

    /// The container's root directory on this machine.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// The bundle's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes the spec, then gives `run`, `create`, `start`, … with this bundle's root directory before them.
    ///
    /// # Errors
    /// When config.json cannot be written.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        std::fs::write(self.path().join("config.json"), self.spec.to_string())
            .context("write config.json")?;
        let mut command = match self.runtime {
            OciRuntime::Podwright => {
                let mut command = program(parts::podwright());
                command.arg("oci");
                command
            }
            OciRuntime::Runc => program(parts::tool("runc")),
        };
        command
            .arg("--root")
            .arg(self.path().join("state"))
            .args(arguments)
            .stdin(std::process::Stdio::null());
        Ok(command)
    }

    /// `run` to its end.
    ///
    /// # Errors
    /// When the runtime cannot be started.
    pub fn run(&self) -> Result<Output> {
        let bundle = self.path().display().to_string();
        self.command(&["run", "--bundle", &bundle, &self.id])?.output().context("start the runtime")
    }

    /// `create`, with the container's output in `output.log` of the bundle.
    ///
    /// # Errors
    /// When the container cannot be made: with the runtime's output.
    pub fn create(&self) -> Result<()> {
        let bundle = self.path().display().to_string();
        let log = std::fs::File::create(self.path().join("output.log")).context("create output.log")?;
        let pid_file = self.path().join("pid").display().to_string();
        let mut command =
            self.command(&["create", "--bundle", &bundle, "--pid-file", &pid_file, &self.id])?;
        let status = command.stdout(log.try_clone()?).stderr(log).status().context("start the runtime")?;
        anyhow::ensure!(status.success(), "create: {status}\n{}", self.output());
        Ok(())
    }

    /// What the created container wrote.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.path().join("output.log")).unwrap_or_default()
    }

    /// `state`, parsed.
    ///
    /// # Errors
    /// When the command fails: an unknown container.
    pub fn state(&self) -> Result<Value> {
        let text = output_of(&mut self.command(&["state", &self.id])?)?;
        serde_json::from_str(&text).with_context(|| format!("parse the state {text}"))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Ok(mut command) = self.command(&["delete", "--force", &self.id]) {
            let _ = command.output();
        }
    }
}

/// A root directory with busybox, a link for each of its applets, and a few files that stories want.
///
/// # Errors
/// When Debian's busybox-static is not installed.
pub fn busybox_root(rootfs: &Path) -> Result<()> {
    let bin = rootfs.join("bin");
    std::fs::create_dir_all(&bin).context("create the root")?;
    std::fs::copy("/bin/busybox", bin.join("busybox")).context("copy /bin/busybox (busybox-static)")?;
    for applet in output_of(program("/bin/busybox").arg("--list"))?.lines().filter(|&name| name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).context("link an applet")?;
    }
    for directory in ["etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir_all(rootfs.join(directory)).context("create a directory")?;
    }
    std::fs::write(rootfs.join("etc/not-executable"), "#!/bin/sh\n").context("write a file")
}

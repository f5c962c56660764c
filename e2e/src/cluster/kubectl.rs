//! kubectl against the cluster, run on the control plane's machine as its admin would.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Cluster;
use crate::parts;
use crate::test_host::text_of;

impl Cluster {
    /// kubectl as a command, to be run with pipes of one's own.
    #[must_use]
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        self.kubectl_command_as("admin", arguments)
    }

    /// Runs kubectl and gives its standard output.
    ///
    /// # Errors
    /// When it fails: with what it wrote.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_as("admin", arguments, None)
    }

    /// Runs kubectl with `-o json` and gives the object.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.kubectl(&all)?).context("parse what kubectl printed")
    }

    /// `kubectl apply` of manifests.
    ///
    /// # Errors
    /// When the API server does not take them: with what it said.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_as("admin", &["apply", "-f", "-"], Some(manifests)).map(drop)
    }

    /// Runs kubectl with a kubeconfig file of the control plane's (`admin`, `super-admin`), and something to read.
    ///
    /// # Errors
    /// When it fails: with what it wrote.
    pub fn kubectl_as(&self, who: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut command = self.kubectl_command_as(who, arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().context("start kubectl")?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes()).context("write to kubectl")?;
        }
        let output = child.wait_with_output().context("wait for kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}\n{}", arguments.join(" "), output.status, text_of(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn kubectl_command_as(&self, who: &str, arguments: &[&str]) -> Command {
        let host = &self.control_plane.machine().host;
        let mut command = host.command(parts::tool("kubectl"));
        command
            .env("KUBECONFIG", self.control_plane.pki().join(format!("{who}.conf")))
            // Where it keeps what it learned of the API.
            .env("HOME", host.path())
            .args(arguments);
        command
    }
}

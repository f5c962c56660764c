//! A CRI server under test: ours, or containerd as the reference that tells whether a story itself is right.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use serde_json::Value;
use tonic::transport::Channel;

use crate::test_host::{TestHost, output_of};
use crate::{containerd, image, node, parts};

/// Which implementation serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// `podwright runtime`.
    Podwright,
    /// containerd 2.4 with runc 1.5 and upstream's CNI plugins.
    Containerd,
}

/// A running CRI server on a host of its own, with the busybox image present.
pub struct CriServer {
    /// Which one it is.
    pub implementation: Implementation,
    daemon: Option<ServerProcess>,
    /// The machine it runs on; dropped last.
    pub host: TestHost,
}

enum ServerProcess {
    Podwright(node::Node),
    Containerd(containerd::Containerd),
}

impl CriServer {
    /// Starts a server on a new host and imports [`image::BUSYBOX`].
    ///
    /// # Errors
    /// When a part is missing or does not come up.
    pub fn start(implementation: Implementation) -> Result<Self> {
        Self::start_on(TestHost::new()?, implementation)
    }

    /// Starts a server on `host` and imports [`image::BUSYBOX`].
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_on(host: TestHost, implementation: Implementation) -> Result<Self> {
        if implementation == Implementation::Podwright {
            return Self::podwright_with(host, &[]);
        }
        let layout = image::busybox(host.path())?;
        let containerd = containerd::Containerd::start(&host)?;
        containerd.import(&host, &layout, image::BUSYBOX)?;
        Ok(Self { implementation, daemon: Some(ServerProcess::Containerd(containerd)), host })
    }

    /// Starts ours on `host` with more flags and imports [`image::BUSYBOX`].
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn podwright_with(host: TestHost, flags: &[&str]) -> Result<Self> {
        let layout = image::busybox(host.path())?;
        let node = node::Node::runtime_with(&host, flags)?;
        node.import(&host, &layout)?;
        let daemon = Some(ServerProcess::Podwright(node));
        Ok(Self { implementation: Implementation::Podwright, daemon, host })
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        match self.daemon.as_ref() {
            Some(ServerProcess::Podwright(node)) => node.socket.clone(),
            Some(ServerProcess::Containerd(containerd)) => containerd.socket.clone(),
            None => unreachable!("the daemon lives as long as the server"),
        }
    }

    /// The daemon's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match self.daemon.as_ref() {
            Some(ServerProcess::Podwright(node)) => node.pid(),
            Some(ServerProcess::Containerd(containerd)) => containerd.pid(),
            None => unreachable!("the daemon lives as long as the server"),
        }
    }

    /// The directory of a containerd `certs.d` tree that the server reads.
    #[must_use]
    pub fn registry_config_dir(&self) -> PathBuf {
        self.host.path().join("certs.d")
    }

    /// Our node, when it is ours.
    pub fn node(&mut self) -> Option<&mut node::Node> {
        match self.daemon.as_mut() {
            Some(ServerProcess::Podwright(node)) => Some(node),
            _ => None,
        }
    }

    /// `podwright ARGUMENTS…` with our node's paths.
    ///
    /// # Errors
    /// When the server is not ours.
    pub fn podwright(&self, arguments: &[&str]) -> Result<std::process::Command> {
        match self.daemon.as_ref() {
            Some(ServerProcess::Podwright(node)) => Ok(node.command(&self.host, arguments)),
            _ => anyhow::bail!("the server is not ours"),
        }
    }

    /// Kills our agent as a crash would, and starts it again.
    ///
    /// # Errors
    /// When the server is not ours, or does not come up.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.node().context("only our own agent is killed")?.crash();
        self.restart()
    }

    /// Starts our agent again after it was killed.
    ///
    /// # Errors
    /// When the server is not ours, or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        let Self { daemon: Some(ServerProcess::Podwright(node)), host, .. } = self else {
            anyhow::bail!("only our own agent is started again");
        };
        node.restart(host)
    }

    /// Runs crictl against the server and gives its standard output.
    ///
    /// # Errors
    /// When crictl fails: with its output.
    pub fn crictl(&self, arguments: &[&str]) -> Result<String> {
        output_of(&mut self.crictl_command(arguments))
    }

    /// Runs crictl and parses its standard output as JSON.
    ///
    /// # Errors
    /// When crictl fails or prints something else.
    pub fn crictl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.crictl(arguments)?;
        serde_json::from_str(&text)
            .with_context(|| format!("parse the output of crictl {arguments:?}: {text}"))
    }

    /// A crictl command against the server, to be run inside the host.
    #[must_use]
    pub fn crictl_command(&self, arguments: &[&str]) -> std::process::Command {
        let endpoint = format!("unix://{}", self.socket().display());
        let mut command = self.host.command(parts::tool("crictl"));
        command
            .args(["--timeout", "60s", "--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint])
            .args(arguments);
        command
    }

    /// Clients for both services. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When nothing listens.
    pub async fn clients(&self) -> Result<(RuntimeServiceClient<Channel>, ImageServiceClient<Channel>)> {
        clients(&self.socket()).await
    }
}

impl Drop for CriServer {
    fn drop(&mut self) {
        match self.daemon.take() {
            Some(ServerProcess::Podwright(node)) => node.reset(&self.host),
            Some(ServerProcess::Containerd(containerd)) => containerd.stop(&self.host),
            None => {}
        }
    }
}

/// Clients for both services behind `socket`.
///
/// # Errors
/// When nothing listens.
pub async fn clients(socket: &Path) -> Result<(RuntimeServiceClient<Channel>, ImageServiceClient<Channel>)> {
    let channel =
        cri::connect(&format!("unix://{}", socket.display())).await.context("connect to the CRI socket")?;
    Ok((RuntimeServiceClient::new(channel.clone()), ImageServiceClient::new(channel)))
}

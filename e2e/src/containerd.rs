//! containerd 2.4 with runc 1.5 and upstream's CNI plugins on a test host: the reference.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::test_host::{Daemon, TestHost, eventually, program};
use crate::{image, parts};

/// The sandbox image: containerd does not start a pod without one.
const PAUSE: &str = "registry.test/pause:1";

/// A running containerd.
pub struct Containerd {
    /// Its socket, for CRI and `ctr`.
    pub socket: PathBuf,
    daemon: Daemon,
}

impl Containerd {
    /// Starts containerd and waits until its CRI answers.
    ///
    /// # Errors
    /// When a part is missing or it does not come up: with its log.
    pub fn start(host: &TestHost) -> Result<Self> {
        Self::start_with(host, &parts::tool("runc"))
    }

    /// [`Self::start`] with another program in runc's place.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(host: &TestHost, runc: &Path) -> Result<Self> {
        Self::start_as(host, runc, &parts::upstream_cni(), &reference_network(host.path()))
    }

    /// [`Self::start`] with other CNI plugins and their conflist.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_network(host: &TestHost, cni: &Path, conflist: &serde_json::Value) -> Result<Self> {
        Self::start_as(host, &parts::tool("runc"), cni, conflist)
    }

    /// Starts containerd without a network: its CRI says so until [`write_network`] gives one.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_without_network(host: &TestHost) -> Result<Self> {
        std::fs::create_dir_all(net_d(host)).context("create net.d")?;
        Self::launch(host, &parts::tool("runc"), &parts::upstream_cni())
    }

    fn start_as(host: &TestHost, runc: &Path, cni: &Path, conflist: &serde_json::Value) -> Result<Self> {
        write_network(host, conflist)?;
        Self::launch(host, runc, cni)
    }

    fn launch(host: &TestHost, runc: &Path, cni: &Path) -> Result<Self> {
        let socket = host.path().join("c.sock");
        let config = host.path().join("containerd.toml");
        std::fs::write(&config, config_text(host.path(), runc, cni))
            .context("write containerd's configuration")?;
        let mut containerd = Self { socket, daemon: spawn(host)? };
        containerd.wait_ready(host)?;
        let pause = host.path().join("pause.oci");
        let config =
            image::ImageConfig { entrypoint: vec!["/pause".into()], ..image::ImageConfig::default() };
        let layer = image::Layer::default().file("pause", 0o755, crate::program::pause()?)?;
        image::write_layout(&pause, PAUSE, vec![layer], &config)?;
        containerd.import(host, &pause, PAUSE)?;
        Ok(containerd)
    }

    /// Kills containerd as a crash would, and starts it again.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn crash(&mut self, host: &TestHost) -> Result<()> {
        self.daemon.kill();
        self.daemon = spawn(host)?;
        self.wait_ready(host)
    }

    fn wait_ready(&mut self, host: &TestHost) -> Result<()> {
        let endpoint = format!("unix://{}", self.socket.display());
        let crictl = parts::tool("crictl");
        let version = || host.run(&crictl, &["--runtime-endpoint", &endpoint, "version"]).ok();
        self.daemon.wait_until("ready", version).map(drop)
    }

    /// containerd's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Imports an OCI layout, as the name that its index gives.
    ///
    /// # Errors
    /// When `tar` or `ctr` fails.
    pub fn import(&self, host: &TestHost, layout: &Path, name: &str) -> Result<()> {
        let archive = layout.with_extension("tar");
        crate::test_host::output_of(program("tar").arg("-C").arg(layout).arg("-cf").arg(&archive).args([
            "oci-layout",
            "index.json",
            "blobs",
        ]))?;
        let socket = self.socket.to_string_lossy().into_owned();
        let archive_text = archive.to_string_lossy().into_owned();
        host.run(
            parts::tool("ctr"),
            &["--address", &socket, "-n", "k8s.io", "images", "import", &archive_text],
        )?;
        std::fs::remove_file(&archive).context("remove the archive")?;
        // CRI learns of it by an event.
        let endpoint = format!("unix://{}", self.socket.display());
        let crictl = parts::tool("crictl");
        eventually("CRI knows the image", || {
            let known = host.run(&crictl, &["--runtime-endpoint", &endpoint, "images", "-q", name]);
            known.ok().filter(|ids| !ids.is_empty())
        })
        .map(drop)
    }

    /// Removes every pod, then stops containerd.
    pub fn stop(mut self, host: &TestHost) {
        let endpoint = format!("unix://{}", self.socket.display());
        let crictl = parts::tool("crictl");
        let removed = eventually("every pod is removed", || {
            host.run(&crictl, &["--timeout", "60s", "--runtime-endpoint", &endpoint, "rmp", "-af"]).ok()
        });
        if removed.is_err() {
            #[expect(clippy::print_stderr, reason = "a test's last words")]
            {
                eprintln!("containerd did not remove its pods:\n{}", self.daemon.log());
            }
        }
        let _ = self.daemon.terminate();
        remove_cgroups();
    }
}

/// containerd leaves the parent of its pods' cgroups behind. Another containerd may still use it: then it stays.
fn remove_cgroups() {
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
    for hierarchy in hierarchies.flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join("k8s.io"));
    }
    let _ = std::fs::remove_dir("/sys/fs/cgroup/k8s.io");
}

fn config_text(directory: &Path, runc: &Path, cni: &Path) -> String {
    let dir = directory.display();
    let runc = runc.display();
    let cni = cni.display();
    format!(
        r#"version = 3
root = "{dir}/containerd/root"
state = "{dir}/containerd/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]

[grpc]
  address = "{dir}/c.sock"

[ttrpc]
  address = "{dir}/t.sock"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true

  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"

    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = "{runc}"

  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{cni}"]
    conf_dir = "{dir}/net.d"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"

  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE}"

  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "{dir}/certs.d"
"#
    )
}

/// The network that our built-in default also gives: bridge, host-local, masquerade, host ports.
fn reference_network(directory: &Path) -> serde_json::Value {
    serde_json::json!({
        "cniVersion": "1.0.0", "name": "reference",
        "plugins": [{
            "type": "bridge", "bridge": "ctr0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": directory.join("cni-data"),
                "ranges": [[{ "subnet": "10.85.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }, { "type": "portmap", "capabilities": { "portMappings": true } }],
    })
}

/// Gives the containerd of `host` a network, or another one.
///
/// # Errors
/// When the conflist cannot be written.
pub fn write_network(host: &TestHost, conflist: &serde_json::Value) -> Result<()> {
    let net_d = net_d(host);
    std::fs::create_dir_all(&net_d).context("create net.d")?;
    let temporary = net_d.join(".new");
    std::fs::write(&temporary, conflist.to_string()).context("write the conflist")?;
    std::fs::rename(temporary, net_d.join("10-net.conflist")).context("write the conflist")
}

/// As the configuration file in the host's directory says.
fn spawn(host: &TestHost) -> Result<Daemon> {
    let tools = parts::tool("containerd").parent().map(Path::to_owned).unwrap_or_default();
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = host.command(parts::tool("containerd"));
    command.env("PATH", path).arg("--config").arg(host.path().join("containerd.toml"));
    host.spawn("containerd", &mut command)
}

fn net_d(host: &TestHost) -> PathBuf {
    host.path().join("net.d")
}

//! Debian's docker-registry on the loopback of a test host, filled by skopeo.

use std::path::Path;

use anyhow::{Context, Result};

use crate::test_host::{Daemon, TestHost};

/// A registry on `127.0.0.1:5000` of its host.
pub struct Registry {
    daemon: Daemon,
}

impl Registry {
    /// Where it listens, inside the host.
    pub const ADDRESS: &str = "127.0.0.1:5000";

    /// Starts the registry and waits until it listens.
    ///
    /// # Errors
    /// When Debian's docker-registry is not installed, or does not come up.
    pub fn start(host: &TestHost) -> Result<Self> {
        Self::serve(host, &host.path().join("registry"))
    }

    /// As [`Registry::start`], with its files in `storage`.
    ///
    /// # Errors
    /// As there.
    pub fn serve(host: &TestHost, storage: &Path) -> Result<Self> {
        let config = host.path().join("registry.yml");
        std::fs::create_dir_all(storage).context("create the registry's storage")?;
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {}\n",
            storage.display(),
            Self::ADDRESS
        );
        std::fs::write(&config, text).context("write the registry's configuration")?;
        let mut daemon = host.spawn("registry", host.command("docker-registry").arg("serve").arg(&config))?;
        let url = format!("http://{}/v2/", Self::ADDRESS);
        daemon.wait_until("listening", || host.run("curl", &["-sf", &url]).ok())?;
        Ok(Self { daemon })
    }

    /// Pushes the one image of an OCI layout as `name` (`repository:tag`).
    ///
    /// # Errors
    /// When skopeo fails: with its output.
    pub fn push(&self, host: &TestHost, layout: &Path, name: &str) -> Result<()> {
        let from = format!("oci:{}", layout.display());
        let to = format!("docker://{}/{name}", Self::ADDRESS);
        let copied = host
            .run("skopeo", &["--insecure-policy", "copy", "--dest-tls-verify=false", "--all", &from, &to]);
        copied.map(drop).with_context(|| format!("push {name}; the registry said:\n{}", self.daemon.log()))
    }
}

/// Writes a `certs.d` tree in which `registry` is served by plain HTTP at `server`, and otherwise as itself.
///
/// # Errors
/// When the files cannot be written.
pub fn write_mirror(certs_d: &Path, registry: &str, server: &str) -> Result<()> {
    write_hosts(certs_d, registry, &format!("https://{registry}"), server)
}

/// As [`write_mirror`], but nothing else is asked when `server` does not have an image.
///
/// # Errors
/// When the files cannot be written.
pub fn write_only_mirror(certs_d: &Path, registry: &str, server: &str) -> Result<()> {
    write_hosts(certs_d, registry, &format!("http://{server}"), server)
}

fn write_hosts(certs_d: &Path, registry: &str, fallback: &str, server: &str) -> Result<()> {
    let directory = certs_d.join(registry);
    std::fs::create_dir_all(&directory).context("create the mirror's directory")?;
    let text = format!(
        "server = \"{fallback}\"\n\n[host.\"http://{server}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    std::fs::write(directory.join("hosts.toml"), text).context("write hosts.toml")
}

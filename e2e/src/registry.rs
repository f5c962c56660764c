//! Debian's docker-registry on a test host, filled by skopeo.

use std::path::Path;

use anyhow::{Context, Result};

use crate::test_host::{Daemon, TestHost};

/// A running registry, by default on `127.0.0.1:5000` of its host.
pub struct Registry {
    daemon: Daemon,
    address: String,
}

impl Registry {
    /// Where it listens, inside the host, when nothing else is said.
    pub const ADDRESS: &str = "127.0.0.1:5000";
    /// Who may use one with a password, and the password.
    pub const USER: (&str, &str) = ("pod", "s3cr3t-w0rd");

    /// Starts the registry and waits until it listens.
    ///
    /// # Errors
    /// When Debian's docker-registry is not installed, or does not come up.
    pub fn start(host: &TestHost) -> Result<Self> {
        Self::serve(host, &host.path().join("registry"))
    }

    /// The same with a password: the registry lets in [`Self::USER`] only.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_password(host: &TestHost) -> Result<Self> {
        Self::serve_with_password_at(host, Self::ADDRESS, &host.path().join("registry"))
    }

    /// The same on another address of the host, with its files in `storage`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn serve_with_password_at(host: &TestHost, address: &str, storage: &Path) -> Result<Self> {
        let file = host.path().join("htpasswd");
        // bcrypt of the password.
        let line = "pod:$2b$05$abcdefghijklmnopqrstuuswOJ.QUCpuyZO9HSy3fJrzByYtDTJTK\n";
        std::fs::write(&file, line).context("write the passwords")?;
        Self::serve_with(
            host,
            address,
            storage,
            &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display()),
        )
    }

    /// As [`Registry::start`], with its files in `storage`.
    ///
    /// # Errors
    /// As there.
    pub fn serve(host: &TestHost, storage: &Path) -> Result<Self> {
        Self::serve_at(host, Self::ADDRESS, storage)
    }

    /// As [`Registry::serve`], on another address of the host.
    ///
    /// # Errors
    /// As there.
    pub fn serve_at(host: &TestHost, address: &str, storage: &Path) -> Result<Self> {
        Self::serve_with(host, address, storage, "")
    }

    fn serve_with(host: &TestHost, address: &str, storage: &Path, more: &str) -> Result<Self> {
        // One host may have several.
        let config = host.path().join(format!("registry-{address}.yml"));
        std::fs::create_dir_all(storage).context("create the registry's storage")?;
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n{more}",
            storage.display(),
        );
        std::fs::write(&config, text).context("write the registry's configuration")?;
        let mut daemon = host.spawn("registry", host.command("docker-registry").arg("serve").arg(&config))?;
        let url = format!("http://{address}/v2/");
        daemon.wait_until("listening", || host.run("curl", &["-s", &url]).ok())?;
        Ok(Self { daemon, address: address.to_owned() })
    }

    /// Pushes the one image of an OCI layout as `name` (`repository:tag`).
    ///
    /// # Errors
    /// When skopeo fails: with its output.
    pub fn push(&self, host: &TestHost, layout: &Path, name: &str) -> Result<()> {
        let from = format!("oci:{}", layout.display());
        let to = format!("docker://{}/{name}", self.address);
        // A registry without a password does not mind one.
        let creds = format!("{}:{}", Self::USER.0, Self::USER.1);
        let copied = host.run(
            "skopeo",
            &[
                "--insecure-policy",
                "copy",
                "--dest-tls-verify=false",
                "--dest-creds",
                &creds,
                "--all",
                &from,
                &to,
            ],
        );
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

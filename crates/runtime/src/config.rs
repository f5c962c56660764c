//! What a runtime is told at its start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where everything of a runtime lies, and how its pods are connected.
#[derive(Clone, Debug)]
pub struct Config {
    /// Images and the writable layers of containers: survives a boot.
    pub root: PathBuf,
    /// Records and sockets of what runs: gone at boot.
    pub state: PathBuf,
    /// The cgroup (from the mount point) under which pods without a parent of their own and all supervisors lie.
    pub cgroup_root: String,
    /// A containerd `certs.d` tree of `hosts.toml`; need not exist.
    pub registry_config_dir: PathBuf,
    /// Where exec, attach and port-forward sessions are served: a loopback address; port 0 takes a free one.
    pub streaming_address: SocketAddr,
    /// The pods' network.
    pub cni: cni::ClientConfig,
}

impl Config {
    /// `<state>/sandboxes`: one directory per sandbox.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// `<state>/seccomp`: compiled filters.
    pub(crate) fn filters(&self) -> PathBuf {
        self.state.join("seccomp")
    }

    /// `<root>/containers/<id>`: a container's writable layer.
    pub(crate) fn layer(&self, container: &str) -> PathBuf {
        self.root.join("containers").join(container)
    }

    /// The parent of a pod's containers: what the kubelet asks for, else one of our own.
    pub(crate) fn cgroup_parent(&self, asked: &str, sandbox: &str) -> String {
        match asked {
            "" => format!("{}/{sandbox}", self.cgroup_root.trim_end_matches('/')),
            parent => parent.trim_end_matches('/').to_owned(),
        }
    }

    /// The supervisor's leaf: outside the pod's cgroup, so that killing the pod spares it.
    pub(crate) fn supervisor_cgroup(&self, sandbox: &str) -> String {
        format!(
            "{}/supervisors/{}",
            self.cgroup_root.trim_end_matches('/'),
            &sandbox[..13.min(sandbox.len())]
        )
    }
}

/// Whether a relative path stays below where it starts: for log paths, which clients give.
pub(crate) fn is_plain_relative(path: &Path) -> bool {
    path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

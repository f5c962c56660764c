//! What a runtime is told at its start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::images::Auth;

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
    /// What a pull that brings no credentials shows.
    pub node_logins: NodeLogins,
    /// Where exec, attach and port-forward sessions are served: a loopback address; port 0 takes a free one.
    pub streaming_address: SocketAddr,
    /// The pods' network.
    pub cni: cni::ClientConfig,
}

/// Finds the node's own credentials for an image, in the order in which they are tried.
#[derive(Clone)]
pub struct NodeLogins(Arc<Find>);

type Find = dyn Fn(&str) -> Vec<Auth> + Send + Sync;

impl NodeLogins {
    /// Asks `find` anew for each pull.
    pub fn new(find: impl Fn(&str) -> Vec<Auth> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    /// What a pull is tried with, in turn. What the request brings wins; an empty message brings nothing.
    pub(crate) fn tries(&self, brought: Option<Auth>, image: &str) -> Vec<Option<Auth>> {
        if let Some(brought) = brought.filter(|auth| *auth != Auth::default()) {
            return vec![Some(brought)];
        }
        let own: Vec<_> = (self.0)(image).into_iter().map(Some).collect();
        if own.is_empty() { vec![None] } else { own }
    }
}

impl std::fmt::Debug for NodeLogins {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("NodeLogins")
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_a_request_brings_wins_over_the_node_s() {
        let user = |name: &str| Auth { username: name.to_owned(), ..Auth::default() };
        let logins = NodeLogins::new(move |image| match image {
            "known" => vec![user("first"), user("second")],
            _ => Vec::new(),
        });
        for (brought, image, expect) in [
            (Some(user("pod")), "known", &[Some("pod")][..]),
            (Some(Auth::default()), "known", &[Some("first"), Some("second")]),
            (None, "known", &[Some("first"), Some("second")]),
            (None, "other", &[None]),
        ] {
            let tries = logins.tries(brought, image);
            let tries: Vec<Option<&str>> =
                tries.iter().map(|auth| auth.as_ref().map(|auth| auth.username.as_str())).collect();
            assert_eq!(tries, expect, "{image}");
        }
    }
}

//! A place of its own for the demo: network and mount namespace, a directory that vanishes with them, and a
//! network in which a node can live. The host's network, firewall and mounts stay as they are.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use host::namespace::{Namespace, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// The demo node's address; 192.0.2.0/24 is for documentation, nobody's real network.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Where its default route leads: nobody is there.
pub(crate) const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The namespaces this process lives in from now on, and its directory.
#[derive(Debug)]
pub(crate) struct Isolation {
    dir: PathBuf,
}

impl Isolation {
    /// Leaves the host's network and mount namespace. The process must have one thread.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("podwright-demo-").tempdir().context("make a directory")?;
        unshare(&[Namespace::Net, Namespace::Mnt]).context("leave the host's network and mount namespace")?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).context("keep mounts to ourselves")?;
        // A container's writable layer cannot lie on an overlay, and /tmp may be one: a tmpfs always can.
        rustix::mount::mount("podwright-demo", dir.path(), "tmpfs", MountFlags::empty(), c"mode=0700")
            .with_context(|| format!("mount a tmpfs at {}", dir.path().display()))?;
        Ok(Self { dir: dir.keep() })
    }

    /// A tmpfs that only this demo sees.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the directory away.
    pub(crate) fn leave(self) -> anyhow::Result<()> {
        rustix::mount::unmount(&self.dir, UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", self.dir.display()))?;
        std::fs::remove_dir(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }
}

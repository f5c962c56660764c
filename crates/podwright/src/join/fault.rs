//! Why a machine did not join, each with its exit code.

use std::path::PathBuf;

use kubelet::join::JoinError;

/// What `podwright join` ends with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// What kubelet and cluster found.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// It is a node already.
    #[error("this machine is the node {name} of {server} already ({}): `podwright agent` runs it, `podwright reset` ends that", kubeconfig.display())]
    Joined {
        /// Its name.
        name: String,
        /// The API server.
        server: String,
        /// By what it is known.
        kubeconfig: PathBuf,
    },
    /// It belongs to another cluster.
    #[error("{} is the certificate authority of another cluster: this machine belongs to that one; `podwright reset` or `kubeadm reset` ends that", path.display())]
    OtherCluster {
        /// The authority's file.
        path: PathBuf,
    },
    /// The machine has no systemd.
    #[error(
        "--systemd: this machine was not started by systemd; leave the flag out to run the agent in this process"
    )]
    NoSystemd,
}

impl Fault {
    /// 10 and more: [`main`](crate) has the others.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Join(error) => of(error),
            Self::Joined { .. } | Self::OtherCluster { .. } => 16,
            Self::NoSystemd => 20,
        }
    }
}

fn of(error: &JoinError) -> u8 {
    match error {
        JoinError::Unreachable { .. } => 10,
        JoinError::TokenUnknown { .. } | JoinError::Unauthorized { .. } => 11,
        JoinError::TokenWrong { .. } => 12,
        JoinError::PinMismatch { .. } | JoinError::Untrusted { .. } => 13,
        JoinError::Clock { .. } => 14,
        JoinError::NameTaken { .. } => 15,
        JoinError::Certificate(_) => 17,
        JoinError::NoClusterInfo { .. } | JoinError::Unusable { .. } => 18,
        JoinError::Forbidden { .. } | JoinError::Api { .. } => 19,
        JoinError::Write { .. } => 21,
    }
}

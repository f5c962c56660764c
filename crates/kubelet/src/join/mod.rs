//! Joining a cluster with a bootstrap token, as `kubeadm join` does it: finding the cluster without trusting the network, and
//! checking that this machine can be its node. What is found is returned; files are the caller's business.
//!
//! ```text
//!   HOST:6443, token, pins ─► cluster-info, unverified ─► signature by the token ─► pin of the CA ─► the same, verified
//!                                                                                                       │
//!   node's name free? ◄─ kubelet-config ◄─ certificate by CSR ◄──────── client with the token ◄─────────┘
//! ```
//!
//! Upstream: cmd/kubeadm/app/discovery, cmd/kubeadm/app/phases/kubelet.

mod checks;
mod cluster_info;
mod discovery;
mod error;
mod jws;
mod pin;
pub mod rights;
mod token;
mod trouble;

pub use checks::Joining;
pub use cluster_info::{Cluster, server_of};
pub use discovery::{Found, Trust, by_file, by_token};
pub use error::JoinError;
pub use pin::CaPin;
pub use token::BootstrapToken;

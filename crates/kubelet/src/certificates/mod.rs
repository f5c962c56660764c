//! The node's own certificates: asked of the cluster by CertificateSigningRequests, kept where the stock kubelet keeps them,
//! and renewed while the node runs.
//!
//! ```text
//!   bootstrap ──token──► CSR ──► kubelet-client-current.pem ◄──┐
//!                                   │ 70–90 % of its life      │
//!                                   └────────► rotation ──CSR──┘──► new connections of the API's client
//!                                      (expired: bootstrap again)
//!   addresses of the node ──► serving ──CSR──► kubelet-server-current.pem ──► the kubelet's own TLS
//! ```
//!
//! Upstream: k8s.io/client-go/util/certificate, pkg/kubelet/certificate.

mod bootstrap;
mod identity;
mod issue;
mod renewal;
mod rotation;
mod serving;
mod store;
mod template;
#[cfg(test)]
pub(crate) mod tests_support;

pub use bootstrap::{Bootstrap, BootstrapError, kubeconfig_of, needs_bootstrap};
pub use identity::{Identity, IdentityError, Leaf, Validity};
pub use issue::{IssueError, issue};
pub use rotation::{Renewal, Rotation, rotate, tell_end};
pub use serving::keep_serving;
pub use store::{Store, StoreError};
pub use template::{Purpose, user_of};

/// How long one request for a certificate is waited for, as upstream.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15 * 60);

/// What the machine's clock says, in seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    crate::time::wall_ns() / 1_000_000_000
}

/// A number from 0 to 1 by chance.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    let drawn = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    // Without randomness everybody comes at the middle.
    if drawn.is_err() { 0.5 } else { f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX) }
}

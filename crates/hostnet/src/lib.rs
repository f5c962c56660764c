//! The door to the network: netlink, conntrack, and the one netfilter writer to which cni and proxy submit the chains they
//! own.
//!
//! It decides nothing about pods or Services.

pub mod conntrack;
pub mod link;
pub mod monitor;
pub mod netfilter;
mod netlink;
pub mod route;
pub mod vxlan;

/// How errors are told in one line, for those who have them from here.
pub use host::error::chain;

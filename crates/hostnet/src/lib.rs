//! The door to the network: netlink, and the one netfilter writer to which cni and proxy submit the chains they own.
//!
//! It decides nothing about pods or Services.

pub mod link;
pub mod netfilter;

//! The CNI client of the runtime, and the bundled plugins: bridge, host-local and loopback, in process and as binaries.
//!
//! Follows the CNI specification 1.1.0. Foreign plugin binaries are refused by name for now.

pub mod bridge;
mod client;
mod config;
mod error;
pub mod host_local;
pub mod loopback;
mod plugin;
mod result;

pub use client::{Attachment, Client, ClientConfig, DefaultNetwork};
pub use config::{NetworkConfig, VERSIONS};
pub use error::{CniError, Code};
/// The netfilter writer's handle, for callers that only pass it on.
pub use hostnet::netfilter::WriterHandle;
pub use plugin::plugin_main;
pub use result::{AddResult, Interface, IpConfig, Route};

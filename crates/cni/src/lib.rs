//! The CNI client of the runtime, and the bundled plugins: bridge, host-local, portmap, firewall and loopback, in process
//! and as binaries.
//!
//! Follows the CNI specification 1.1.0. A bundled plugin runs in process where it can do what its configuration asks for;
//! everything else is done by the programs in the CNI binary directories.

mod alone;
pub mod bridge;
mod cache;
mod client;
mod config;
mod error;
mod exec;
mod firewall;
pub mod host_local;
pub mod loopback;
mod plugin;
mod portmap;
mod result;
mod rules;
mod steps;

pub use client::{Attachment, Checked, Client, ClientConfig, DefaultNetwork, Undeleted};
pub use config::{NetworkConfig, VERSIONS};
pub use error::{CniError, Code};
/// The netfilter writer's handle, for callers that only pass it on.
pub use hostnet::netfilter::WriterHandle;
pub use plugin::plugin_main;
pub use result::{AddResult, Interface, IpConfig, Route};

//! Implements CRI: images, sandboxes, containers, logs, sessions, statistics; takes over what an earlier process left.
//!
//! It knows no Kubernetes API: pods are what CRI calls sandboxes, and what a container is for is the client's business.

mod config;
mod containers;
mod devices;
mod error;
mod events;
mod files;
mod handlers;
pub mod images;
mod inspect;
mod listing;
mod network;
mod network_check;
mod record;
mod recovery;
mod runtime;
mod sandboxes;
mod service;
mod spec;
mod state;
mod stats;
mod status;
mod streaming;
pub mod supervisor;
mod update;

pub use config::{Config, NodeLogins};
pub use error::{Error, OpenError};
pub use record::{ContainerPhase, ContainerRecord, Exit, SandboxPhase, SandboxRecord};
pub use runtime::Runtime;

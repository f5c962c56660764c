//! Where Services and endpoints come from: on a standalone node from manifests and the node's own pods, in a cluster from the
//! API server.

mod allocate;
pub(crate) mod cluster;
mod endpoints;
mod services;
mod state;

pub(crate) use allocate::{Allocations, Ranges};
pub(crate) use services::plan;
pub(crate) use state::{read, write};

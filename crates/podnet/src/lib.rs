//! Pods of other nodes: Node objects become routes, or a VXLAN where nodes are not neighbours.
//!
//! ```text
//!  Nodes ────────watch─┐
//!  links, addresses ───┴► plan ─► Plan ─► routes, VXLAN device and peers
//!                                    └──► the one netfilter writer: no NAT between pods
//! ```
//! It knows nothing of pods, only of the ranges that nodes have. What it makes outlives the agent, as pods do; it is marked, so
//! that a later agent finds and changes it. While the API server is away, everything stays.

mod apply;
mod backend;
mod member;
mod plan;
mod rules;
mod run;
mod word;

pub use apply::remove;
pub use backend::{Backend, pod_mtu};
pub use member::Member;
pub use plan::{OnLink, Overlay, Plan, Refusal, plan};
pub use rules::render_rules;
pub use run::{Config, PodnetError, run};

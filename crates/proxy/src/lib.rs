//! Services and endpoints into netfilter rules.
//!
//! ```text
//! manifests ─► source ─┐ allocation (ClusterIPs, NodePorts, written down)
//! ready pods ──────────┴► ServiceMap ─► render_rules ─► Ruleset ─► the one netfilter writer
//!                              │                                  └─► stale UDP flows are deleted
//!                              └──────► ProxyReport
//! ```
//! It programs nothing itself and knows nothing of how pods get their addresses.

mod flows;
mod model;
mod names;
mod report;
mod rules;
mod run;
mod source;

pub use model::{
    Affinity, Endpoint, ExternalPolicy, NodeFacts, Protocol, ServiceMap, ServicePort, ServicePortName,
};
pub use report::{Problem, ProxyReport};
pub use rules::render_rules;
pub use run::{Config, LocalPod, ProxyError, run};

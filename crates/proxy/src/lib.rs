//! Services and endpoints into netfilter rules.
//!
//! ```text
//! manifests  ─► source ─┐ allocation (ClusterIPs, NodePorts, written down)
//! ready pods ───────────┤
//! API server ─► source ─┴► ServiceMap ─► render_rules ─► Ruleset ─► the one netfilter writer
//!                               │                                  └─► stale UDP flows are deleted
//!                               └──────► ProxyReport
//! ```
//! It programs nothing itself and knows nothing of how pods get their addresses.

mod cluster;
mod flows;
mod health;
mod model;
mod names;
mod program;
mod report;
mod rules;
mod run;
mod source;
mod standalone;

pub use cluster::{Cluster, Mode, NodeNetwork, Switch, switch};
pub use model::{
    Affinity, Endpoint, NodeFacts, Protocol, ServiceMap, ServicePort, ServicePortName, TrafficPolicy,
};
pub use report::{Problem, ProxyReport};
pub use rules::render_rules;
pub use run::{Config, LocalPod, ProxyError, Source, run};
pub use source::cluster::ExternalIps;
pub use standalone::Manifests;

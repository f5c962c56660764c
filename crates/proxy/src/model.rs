//! What rules are rendered from, wherever it came from: Service ports and the endpoints behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use manifest::ObjectKey;

/// A Service port's name in rules and comments: `namespace/service:port`, or `namespace/service` for a port without name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectKey,
    /// The port's name; empty when it has none.
    pub port: String,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port.as_str() {
            "" => write!(f, "{}", self.service),
            port => write!(f, "{}:{port}", self.service),
        }
    }
}

/// A transport protocol that rules are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
}

impl Protocol {
    /// As iptables writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
        }
    }
}

/// Where a connection may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// The port it listens on.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ip, self.port)
    }
}

/// One port of a Service, and who answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The Service's address.
    pub cluster_ip: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// The same on every address of the node.
    pub node_port: Option<u16>,
    /// Ready endpoints.
    pub endpoints: BTreeSet<Endpoint>,
}

/// Every Service port that rules are made for.
pub type ServiceMap = BTreeMap<ServicePortName, ServicePort>;

/// What rules need to know of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The addresses of pods: traffic to a ClusterIP from elsewhere is masqueraded. Without it nothing is known to be local.
    pub pod_cidr: Option<Ipv4Net>,
}

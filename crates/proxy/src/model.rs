//! What rules are rendered from, wherever it came from: Service ports and the endpoints behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
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
    /// UDP.
    Udp,
}

impl Protocol {
    /// The protocol that a manifest names; none when rules are not made for it.
    #[must_use]
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    /// As iptables writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Where a connection may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's address.
    pub ip: IpAddr,
    /// The port it listens on.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port).fmt(f)
    }
}

/// Whether a client keeps its endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Each connection goes to any endpoint.
    #[default]
    None,
    /// A client's connections go to the same endpoint until it was silent for that many seconds.
    ClientIp(u32),
}

/// Who serves connections from outside the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalPolicy {
    /// Every endpoint; the connection comes from the node's address.
    #[default]
    Cluster,
    /// The node's own endpoints; they see the client's address.
    Local,
}

/// One port of a Service in one family, and who answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The Service's address.
    pub cluster_ip: IpAddr,
    /// Its port.
    pub port: u16,
    /// The same on every address of the node.
    pub node_port: Option<u16>,
    /// Whether a client keeps its endpoint.
    pub affinity: Affinity,
    /// Who serves connections from outside.
    pub external: ExternalPolicy,
    /// Ready endpoints.
    pub endpoints: BTreeSet<Endpoint>,
}

/// Every Service port of one family that rules are made for.
pub type ServiceMap = BTreeMap<ServicePortName, ServicePort>;

/// What rules of one family need to know of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The addresses of pods: traffic to a ClusterIP from elsewhere is masqueraded. Without it nothing is known to be local.
    pub pod_cidr: Option<IpNet>,
}

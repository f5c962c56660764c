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
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol that a manifest names; none when rules are not made for it.
    #[must_use]
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// As iptables writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
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

/// Who serves connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every endpoint. What comes from outside the cluster then comes from the node's address.
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
    /// Addresses that somebody routes to the nodes.
    pub external_ips: BTreeSet<IpAddr>,
    /// Addresses of a load balancer that delivers packets as they came (`ipMode: VIP`).
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// Who may use the load balancer's addresses; everyone when there are none.
    pub source_ranges: BTreeSet<IpNet>,
    /// The port at which a load balancer asks whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
    /// Whether a client keeps its endpoint.
    pub affinity: Affinity,
    /// Who serves connections from outside.
    pub external: TrafficPolicy,
    /// Who serves connections from inside the cluster.
    pub internal: TrafficPolicy,
    /// Whoever takes connections, on any node.
    pub endpoints: BTreeSet<Endpoint>,
    /// Those of this node. Not always some of `endpoints`: where this node's pods are all ending, they still take what is
    /// meant for this node. Where there are any, `endpoints` are not empty.
    pub local: BTreeSet<Endpoint>,
}

impl ServicePort {
    /// A port with nothing but a ClusterIP, and nobody there.
    #[must_use]
    pub fn new(cluster_ip: IpAddr, port: u16) -> Self {
        Self {
            cluster_ip,
            port,
            node_port: None,
            external_ips: BTreeSet::new(),
            load_balancer_ips: BTreeSet::new(),
            source_ranges: BTreeSet::new(),
            health_check_node_port: None,
            affinity: Affinity::None,
            external: TrafficPolicy::Cluster,
            internal: TrafficPolicy::Cluster,
            endpoints: BTreeSet::new(),
            local: BTreeSet::new(),
        }
    }

    /// Whether it is reached from outside the cluster at all.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    /// Whoever takes connections by a policy.
    #[must_use]
    pub fn of(&self, policy: TrafficPolicy) -> &BTreeSet<Endpoint> {
        match policy {
            TrafficPolicy::Cluster => &self.endpoints,
            TrafficPolicy::Local => &self.local,
        }
    }

    /// Whether somebody takes connections, here or elsewhere.
    #[must_use]
    pub fn has_endpoints(&self) -> bool {
        !self.endpoints.is_empty()
    }
}

/// Every Service port of one family that rules are made for.
pub type ServiceMap = BTreeMap<ServicePortName, ServicePort>;

/// What rules of one family need to know of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The addresses of pods: traffic to a ClusterIP from elsewhere is masqueraded. Without it nothing is known to be local.
    pub pod_cidr: Option<IpNet>,
    /// The node's own addresses of the family: where they lie in a load balancer's source ranges, the node may use it.
    pub addresses: BTreeSet<IpAddr>,
}

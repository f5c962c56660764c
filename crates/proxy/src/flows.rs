//! Which of the kernel's UDP flows are stale: they go where no endpoint of their Service is. Pure.
//!
//! Decided from what is served and what is tracked, never from what has changed: after a restart nothing is deleted that
//! is right, and nothing stays that went wrong while nobody looked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use hostnet::conntrack::Flow;
use ipnet::IpNet;

use crate::model::{Endpoint, Protocol, ServiceMap, ServicePort};

/// Whose flows are ours to judge.
#[derive(Clone, Debug)]
pub(crate) struct Territory {
    /// The addresses of Services.
    pub(crate) services: Addresses,
    /// The addresses of pods.
    pub(crate) pods: Addresses,
    /// The ports of NodePort Services.
    pub(crate) node_ports: RangeInclusive<u16>,
}

/// Some addresses: a range that is known, or one by one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    /// All of it.
    pub(crate) range: Option<IpNet>,
    /// These too.
    pub(crate) known: BTreeSet<IpAddr>,
}

impl Addresses {
    fn contain(&self, address: IpAddr) -> bool {
        self.range.is_some_and(|range| range.contains(&address)) || self.known.contains(&address)
    }
}

/// The addresses of Services and of endpoints in a map.
pub(crate) fn addresses(services: &ServiceMap) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    let addresses = services.values().flat_map(own_addresses);
    let endpoints = services.values().flat_map(|port| port.endpoints.union(&port.local));
    (addresses.collect(), endpoints.map(|endpoint| endpoint.ip).collect())
}

/// Every address but the node's at which a Service port is reached.
fn own_addresses(port: &ServicePort) -> impl Iterator<Item = IpAddr> {
    let others = port.external_ips.iter().chain(&port.load_balancer_ips).copied();
    std::iter::once(port.cluster_ip).chain(others)
}

/// The flows to delete.
pub(crate) fn stale(flows: &[Flow], services: &ServiceMap, territory: &Territory) -> Vec<Flow> {
    let mut addresses: BTreeMap<(IpAddr, u16), &ServicePort> = BTreeMap::new();
    let mut node_ports: BTreeMap<u16, &ServicePort> = BTreeMap::new();
    let udp = services.iter().filter(|(name, _)| name.protocol == Protocol::Udp);
    for (_, port) in udp {
        addresses.extend(own_addresses(port).map(|address| ((address, port.port), port)));
        node_ports.extend(port.node_port.map(|number| (number, port)));
    }
    let takes =
        |port: &ServicePort, end: Endpoint| port.endpoints.contains(&end) || port.local.contains(&end);
    let is_stale = |flow: &&Flow| {
        let (address, port) = flow.destination;
        let answers = Endpoint { ip: flow.answers.0, port: flow.answers.1 };
        // Also what went past the rules, before there were any: only to where somebody answers now.
        if let Some(port) = addresses.get(&flow.destination) {
            return (flow.is_translated() || port.has_endpoints()) && !takes(port, answers);
        }
        if !flow.is_translated() || territory.services.contain(address) {
            return flow.is_translated();
        }
        // To an address of the node: what is translated to a pod is a NodePort's; a host port lies outside the range.
        match node_ports.get(&port) {
            Some(port) => !takes(port, answers),
            None => {
                let ours = territory.node_ports.contains(&port) && territory.pods.contain(answers.ip);
                ours && !territory.pods.contain(address)
            }
        }
    };
    flows.iter().filter(is_stale).cloned().collect()
}

#[cfg(test)]
mod tests {
    use manifest::ObjectKey;

    use super::*;
    use crate::model::ServicePortName;

    fn end(text: &str) -> (IpAddr, u16) {
        let address: std::net::SocketAddr = text.parse().expect("an address with a port");
        (address.ip(), address.port())
    }

    fn check(destination: &str, answers: &str, endpoints: &[&str], expect: bool) {
        let name = ServicePortName {
            service: ObjectKey::new("default", "dns"),
            port: String::new(),
            protocol: Protocol::Udp,
        };
        // Of a Service that was deleted, where nobody knows the range.
        let formerly = BTreeSet::from([[172, 20, 0, 7].into()]);
        let endpoints = endpoints.iter().map(|text| end(text)).map(|(ip, port)| Endpoint { ip, port });
        let port = ServicePort {
            node_port: Some(30053),
            load_balancer_ips: [[203, 0, 113, 1].into()].into(),
            endpoints: endpoints.collect(),
            ..ServicePort::new([10, 96, 0, 10].into(), 53)
        };
        let territory = Territory {
            services: Addresses { range: Some("10.96.0.0/16".parse().expect("a range")), known: formerly },
            pods: Addresses { range: Some("10.85.0.0/16".parse().expect("a range")), known: BTreeSet::new() },
            node_ports: 30000..=32767,
        };
        let flow = Flow::example(end("192.0.2.9:4000"), end(destination), end(answers));
        let found = stale(&[flow], &ServiceMap::from([(name, port)]), &territory);
        assert_eq!(!found.is_empty(), expect, "{destination} -> {answers}");
    }

    #[test]
    fn a_flow_to_an_endpoint_that_is_gone_is_stale() {
        check("10.96.0.10:53", "10.85.0.2:53", &["10.85.0.2:53", "10.85.0.3:53"], false);
        check("10.96.0.10:53", "10.85.0.4:53", &["10.85.0.2:53"], true);
        check("10.96.0.10:53", "10.85.0.2:54", &["10.85.0.2:53"], true);
        check("192.0.2.1:30053", "10.85.0.4:53", &["10.85.0.2:53"], true);
        check("192.0.2.1:30053", "10.85.0.2:53", &["10.85.0.2:53"], false);
    }

    #[test]
    fn scaling_to_zero_and_deleting_a_service_leave_nothing() {
        check("10.96.0.10:53", "10.85.0.4:53", &[], true);
        check("192.0.2.1:30053", "10.85.0.4:53", &[], true);
        check("10.96.0.99:53", "10.85.0.4:53", &["10.85.0.2:53"], true);
        check("192.0.2.1:30099", "10.85.0.4:53", &["10.85.0.2:53"], true);
        check("172.20.0.7:53", "10.85.0.4:53", &["10.85.0.2:53"], true);
    }

    #[test]
    fn a_load_balancer_s_address_is_a_service_s_too() {
        check("203.0.113.1:53", "10.85.0.4:53", &["10.85.0.2:53"], true);
        check("203.0.113.1:53", "10.85.0.2:53", &["10.85.0.2:53"], false);
    }

    #[test]
    fn a_flow_that_began_before_there_were_endpoints_is_stale_once_there_are() {
        check("10.96.0.10:53", "10.96.0.10:53", &["10.85.0.2:53"], true);
        check("10.96.0.10:53", "10.96.0.10:53", &[], false);
    }

    #[test]
    fn flows_of_others_are_left_alone() {
        check("10.85.0.2:53", "10.85.0.2:53", &[], false);
        check("10.85.0.2:30099", "10.85.0.2:30099", &[], false);
        check("192.0.2.1:8053", "10.85.0.4:53", &[], false);
        check("192.0.2.1:30099", "192.0.2.1:30099", &[], false);
        check("198.51.100.1:53", "198.51.100.1:53", &[], false);
    }
}

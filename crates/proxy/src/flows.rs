//! Which of the kernel's UDP flows are stale: they go where no endpoint of their Service is. Pure.
//!
//! Decided from what is served and what is tracked, never from what has changed: after a restart nothing is deleted that
//! is right, and nothing stays that went wrong while nobody looked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use hostnet::conntrack::Flow;
use ipnet::IpNet;

use crate::model::{Endpoint, Protocol, ServiceMap};

/// Whose flows are ours to judge.
#[derive(Clone, Debug)]
pub(crate) struct Territory {
    /// The addresses of Services.
    pub(crate) services: Option<IpNet>,
    /// The addresses of pods.
    pub(crate) pods: Option<IpNet>,
    /// The ports of NodePort Services.
    pub(crate) node_ports: RangeInclusive<u16>,
}

/// The flows to delete.
pub(crate) fn stale(flows: &[Flow], services: &ServiceMap, territory: &Territory) -> Vec<Flow> {
    let mut cluster_ips: BTreeMap<(IpAddr, u16), &BTreeSet<Endpoint>> = BTreeMap::new();
    let mut node_ports: BTreeMap<u16, &BTreeSet<Endpoint>> = BTreeMap::new();
    let udp = services.iter().filter(|(name, _)| name.protocol == Protocol::Udp);
    for (_, port) in udp {
        cluster_ips.insert((port.cluster_ip, port.port), &port.endpoints);
        node_ports.extend(port.node_port.map(|number| (number, &port.endpoints)));
    }
    let is_stale = |flow: &&Flow| {
        let (address, port) = flow.destination;
        let answers = Endpoint { ip: flow.answers.0, port: flow.answers.1 };
        if within(territory.services, address) {
            // Also what went past the rules, before there were any: only to where somebody answers now.
            return match cluster_ips.get(&flow.destination) {
                Some(endpoints) => {
                    (flow.is_translated() || !endpoints.is_empty()) && !endpoints.contains(&answers)
                }
                None => flow.is_translated(),
            };
        }
        // To an address of the node: what is translated to a pod is a NodePort's; a host port lies outside the range.
        let ours = territory.node_ports.contains(&port) && within(territory.pods, answers.ip);
        match node_ports.get(&port) {
            Some(endpoints) if flow.is_translated() => ours && !endpoints.contains(&answers),
            Some(_) => false,
            None => ours && flow.is_translated() && !within(territory.pods, address),
        }
    };
    flows.iter().filter(is_stale).cloned().collect()
}

fn within(net: Option<IpNet>, address: IpAddr) -> bool {
    net.is_some_and(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use manifest::ObjectKey;

    use super::*;
    use crate::model::{Affinity, ExternalPolicy, ServicePort, ServicePortName};

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
        let endpoints = endpoints.iter().map(|text| end(text)).map(|(ip, port)| Endpoint { ip, port });
        let port = ServicePort {
            cluster_ip: [10, 96, 0, 10].into(),
            port: 53,
            node_port: Some(30053),
            affinity: Affinity::None,
            external: ExternalPolicy::Cluster,
            endpoints: endpoints.collect(),
        };
        let territory = Territory {
            services: Some("10.96.0.0/16".parse().expect("a range")),
            pods: Some("10.85.0.0/16".parse().expect("a range")),
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

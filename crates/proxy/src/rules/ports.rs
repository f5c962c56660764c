//! The chains of one Service port and of its endpoints.

use std::collections::BTreeSet;

use hostnet::netfilter::{Ruleset, Table};

use super::{quoted, to_cluster_ip, words};
use crate::model::{Affinity, Endpoint, NodeFacts, ServicePort, ServicePortName, TrafficPolicy};
use crate::names::{endpoint_chain, external_chain, firewall_chain, local_chain, service_chain};

/// The chain that spreads connections over whoever takes them by a policy.
pub(super) fn policy_chain(name: &ServicePortName, policy: TrafficPolicy) -> String {
    match policy {
        TrafficPolicy::Cluster => service_chain(name),
        TrafficPolicy::Local => local_chain(name),
    }
}

/// Whether what comes for a load balancer's address is asked where it comes from.
pub(super) fn is_guarded(port: &ServicePort) -> bool {
    port.has_endpoints() && !port.load_balancer_ips.is_empty() && !port.source_ranges.is_empty()
}

/// A port that somebody answers.
pub(super) fn render_port(rules: &mut Ruleset, name: &ServicePortName, port: &ServicePort, node: &NodeFacts) {
    let mut reachable: BTreeSet<&Endpoint> = BTreeSet::new();
    for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        let endpoints = port.of(policy);
        if endpoints.is_empty() || !is_used(port, policy) {
            continue;
        }
        let mut spread = Vec::new();
        if let Some(pods) = node.pod_cidr.filter(|_| port.internal == policy) {
            // From elsewhere: the answer has to come back through this node.
            let comment = quoted(&format!("{name} cluster IP"));
            let from = format!("! -s {pods} -j KUBE-MARK-MASQ");
            spread.push(words(&[&comment, &to_cluster_ip(name, port), &from]));
        }
        spread.extend(spread_over(name, port.affinity, endpoints));
        rules.chain(Table::Nat, &policy_chain(name, policy), spread);
        reachable.extend(endpoints);
    }
    for endpoint in reachable {
        rules.chain(
            Table::Nat,
            &endpoint_chain(name, endpoint),
            endpoint_rules(name, port.affinity, endpoint),
        );
    }
    if port.is_external() {
        rules.chain(Table::Nat, &external_chain(name), external_rules(name, port, node));
    }
    if is_guarded(port) {
        rules.chain(Table::Nat, &firewall_chain(name), firewall_rules(name, port, node));
    }
}

/// Where only this node's endpoints serve outsiders, what comes from the cluster itself still goes to all of them.
fn is_used(port: &ServicePort, policy: TrafficPolicy) -> bool {
    port.internal == policy
        || port.is_external() && (policy == TrafficPolicy::Cluster || port.external == policy)
}

fn endpoint_rules(name: &ServicePortName, affinity: Affinity, endpoint: &Endpoint) -> Vec<String> {
    let chain = endpoint_chain(name, endpoint);
    let comment = quoted(&name.to_string());
    let protocol = name.protocol.name();
    let remember = match affinity {
        Affinity::None => String::new(),
        Affinity::ClientIp(_) => format!("-m recent --name {chain} --set --rsource"),
    };
    let translate = format!("-m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}");
    vec![
        // A pod that reaches itself would not take its own address for the Service's answer.
        words(&[&comment, &format!("-s {} -j KUBE-MARK-MASQ", endpoint.ip)]),
        words(&[&comment, &remember, &translate]),
    ]
}

/// What comes from outside the cluster.
fn external_rules(name: &ServicePortName, port: &ServicePort, node: &NodeFacts) -> Vec<String> {
    let mut lines = match port.external {
        TrafficPolicy::Cluster => {
            let comment = quoted(&format!("masquerade traffic for {name} external destinations"));
            vec![words(&[&comment, "-j KUBE-MARK-MASQ"])]
        }
        TrafficPolicy::Local => from_inside(name, node),
    };
    if !port.of(port.external).is_empty() {
        lines.push(format!("-j {}", policy_chain(name, port.external)));
    }
    lines
}

/// Connections from outside go to the node's own endpoints as they came; what comes from the cluster may go to any.
fn from_inside(name: &ServicePortName, node: &NodeFacts) -> Vec<String> {
    let service = service_chain(name);
    let mut lines = Vec::new();
    if let Some(pods) = node.pod_cidr {
        let comment = quoted(&format!("pod traffic for {name} external destinations"));
        lines.push(words(&[&comment, &format!("-s {pods} -j {service}")]));
    }
    let comment = quoted(&format!("masquerade LOCAL traffic for {name} external destinations"));
    lines.push(words(&[&comment, "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"]));
    let comment = quoted(&format!("route LOCAL traffic for {name} external destinations"));
    lines.push(words(&[&comment, &format!("-m addrtype --src-type LOCAL -j {service}")]));
    lines
}

/// Who may use a load balancer's addresses; everyone else comes to the end, and is dropped in the filter table.
fn firewall_rules(name: &ServicePortName, port: &ServicePort, node: &NodeFacts) -> Vec<String> {
    let comment = quoted(&format!("{name} loadbalancer IP"));
    let allow = |from: String| words(&[&comment, &format!("-s {from} -j {}", external_chain(name))]);
    let mut lines: Vec<String> = port.source_ranges.iter().map(|range| allow(range.to_string())).collect();
    let mut own = node.addresses.iter();
    if own.any(|address| port.source_ranges.iter().any(|range| range.contains(address))) {
        // A node that has the address itself comes from it.
        lines.extend(port.load_balancer_ips.iter().map(|ip| allow(ip.to_string())));
    }
    lines.push(quoted(&format!("other traffic to {name} will be dropped by KUBE-PROXY-FIREWALL")));
    lines
}

/// First to the endpoint that the client had, then to each with the same probability.
fn spread_over(name: &ServicePortName, affinity: Affinity, endpoints: &BTreeSet<Endpoint>) -> Vec<String> {
    let to = |endpoint| (endpoint_chain(name, endpoint), quoted(&format!("{name} -> {endpoint}")));
    let mut lines = Vec::new();
    if let Affinity::ClientIp(seconds) = affinity {
        lines.extend(endpoints.iter().map(|endpoint| {
            let (chain, comment) = to(endpoint);
            let known = format!("-m recent --name {chain} --rcheck --seconds {seconds} --reap --rsource");
            words(&[&comment, &known, &format!("-j {chain}")])
        }));
    }
    let count = endpoints.len();
    lines.extend(endpoints.iter().enumerate().map(|(index, endpoint)| {
        let (chain, comment) = to(endpoint);
        let probability = match count - index {
            1 => String::new(),
            left => format!("-m statistic --mode random --probability {}", probability(left)),
        };
        words(&[&comment, &probability, &format!("-j {chain}")])
    }));
    lines
}

/// The share of the first of `left` endpoints.
pub(super) fn probability(left: usize) -> String {
    format!("{:.10}", 1.0 / left as f64)
}

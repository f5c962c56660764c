//! The chains in which Services are looked up: where a packet's destination decides who takes it, or that nobody does.

use std::net::IpAddr;

use hostnet::netfilter::{Family, Ruleset, Table};

use super::ports::{is_guarded, policy_chain};
use super::{node_addresses, quoted, to_address, to_cluster_ip, to_port, words};
use crate::model::{ServicePort, ServicePortName, TrafficPolicy};
use crate::names::{external_chain, firewall_chain};

/// See the module.
#[derive(Default)]
pub(super) struct Portals {
    nat_services: Vec<String>,
    nat_node_ports: Vec<String>,
    filter_services: Vec<String>,
    filter_external: Vec<String>,
    filter_node_ports: Vec<String>,
    filter_firewall: Vec<String>,
}

/// Why nobody takes a connection.
struct Refusal {
    comment: String,
    target: &'static str,
}

impl Portals {
    /// Adds one port's ways in.
    pub(super) fn add(&mut self, name: &ServicePortName, port: &ServicePort, family: Family) {
        match refusal(name, port, port.internal) {
            None => {
                let comment = quoted(&format!("{name} cluster IP"));
                let chain = policy_chain(name, port.internal);
                self.accept(&comment, &to_cluster_ip(name, port), &chain);
            }
            Some(Refusal { comment, target }) => {
                let line = words(&[&comment, &to_cluster_ip(name, port), "-j", target]);
                self.filter_services.push(line);
            }
        }
        let external = refusal(name, port, port.external);
        for &address in &port.external_ips {
            let comment = quoted(&format!("{name} external IP"));
            self.outside(name, port, address, (&comment, &external_chain(name)), external.as_ref());
        }
        for &address in &port.load_balancer_ips {
            let comment = quoted(&format!("{name} loadbalancer IP"));
            let chain = if is_guarded(port) { firewall_chain(name) } else { external_chain(name) };
            self.outside(name, port, address, (&comment, &chain), external.as_ref());
            if is_guarded(port) {
                let comment = quoted(&format!("{name} traffic not accepted by {chain}"));
                let line = words(&[&comment, &to_address(name, address, port.port), "-j DROP"]);
                self.filter_firewall.push(line);
            }
        }
        self.node_port(name, port, external.as_ref(), family);
    }

    fn accept(&mut self, comment: &str, destination: &str, chain: &str) {
        self.nat_services.push(words(&[comment, destination, "-j", chain]));
    }

    /// An address by which outsiders come.
    fn outside(
        &mut self,
        name: &ServicePortName,
        port: &ServicePort,
        address: IpAddr,
        (comment, chain): (&str, &str),
        refusal: Option<&Refusal>,
    ) {
        let destination = to_address(name, address, port.port);
        if port.has_endpoints() {
            self.accept(comment, &destination, chain);
        }
        if let Some(Refusal { comment, target }) = refusal {
            self.filter_external.push(words(&[comment, &destination, "-j", target]));
        }
    }

    fn node_port(
        &mut self,
        name: &ServicePortName,
        port: &ServicePort,
        refusal: Option<&Refusal>,
        family: Family,
    ) {
        if let Some(number) = port.node_port {
            let destination = to_port(name, number);
            if port.has_endpoints() {
                let comment = quoted(&name.to_string());
                self.nat_node_ports.push(words(&[&comment, &destination, "-j", &external_chain(name)]));
            }
            if let Some(Refusal { comment, target }) = refusal {
                let line = words(&[comment, node_addresses(family), &destination, "-j", target]);
                self.filter_external.push(line);
            }
        }
        if let Some(number) = port.health_check_node_port {
            let comment = quoted(&format!("{name} health check node port"));
            let line = words(&[&comment, &format!("-m tcp -p tcp --dport {number} -j ACCEPT")]);
            self.filter_node_ports.push(line);
        }
    }

    /// The chains, complete.
    pub(super) fn render(mut self, rules: &mut Ruleset, family: Family) {
        // The last rule: an address of the node that is no Service's.
        let comment = quoted("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
        self.nat_services.push(words(&[&comment, node_addresses(family), "-j KUBE-NODEPORTS"]));
        rules.chain(Table::Nat, "KUBE-SERVICES", self.nat_services);
        rules.chain(Table::Nat, "KUBE-NODEPORTS", self.nat_node_ports);
        rules.chain(Table::Filter, "KUBE-SERVICES", self.filter_services);
        rules.chain(Table::Filter, "KUBE-EXTERNAL-SERVICES", self.filter_external);
        rules.chain(Table::Filter, "KUBE-NODEPORTS", self.filter_node_ports);
        rules.chain(Table::Filter, "KUBE-PROXY-FIREWALL", self.filter_firewall);
    }
}

/// Without endpoints a connection is refused at once instead of running into nothing. Where others have some it is dropped:
/// a load balancer that has not yet seen that this node has none tries again, elsewhere.
fn refusal(name: &ServicePortName, port: &ServicePort, policy: TrafficPolicy) -> Option<Refusal> {
    let (what, target) = match (port.has_endpoints(), port.of(policy).is_empty()) {
        (false, _) => ("no endpoints", "REJECT"),
        (true, true) => ("no local endpoints", "DROP"),
        (true, false) => return None,
    };
    Some(Refusal { comment: quoted(&format!("{name} has {what}")), target })
}

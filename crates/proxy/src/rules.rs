//! From Service ports to netfilter rules, in kube-proxy's chains and shapes. Pure.
//!
//! ```text
//! PREROUTING, OUTPUT ─► KUBE-SERVICES ─► KUBE-SVC-… ─► KUBE-SEP-… ─► DNAT
//!                            └─► KUBE-NODEPORTS ─► KUBE-EXT-… ─┘ (marked, to be masqueraded)
//!                                                      └─► KUBE-SVL-… where the client's address is to be seen
//! POSTROUTING ─► KUBE-POSTROUTING ─► MASQUERADE what is marked
//! ```
//! NodePorts do not answer on 127.0.0.0/8: that needs `route_localnet`, which opens the node's loopback to its
//! neighbours (CVE-2020-8558).

use hostnet::netfilter::{Family, Position, Ruleset, Table};

use crate::model::{Affinity, ExternalPolicy, NodeFacts, ServiceMap, ServicePort, ServicePortName};
use crate::names::{endpoint_chain, external_chain, local_chain, service_chain};

/// The mark of packets that leave with the node's address.
const MARK: &str = "0x4000";
/// How jumps are narrowed to the first packet of a connection.
const NEW: &str = "-m conntrack --ctstate NEW";

/// Every address of the node but its loopback.
fn node_addresses(family: Family) -> &'static str {
    match family {
        Family::V4 => "-m addrtype --dst-type LOCAL ! -d 127.0.0.0/8",
        Family::V6 => "-m addrtype --dst-type LOCAL ! -d ::1/128",
    }
}

struct Jump {
    table: Table,
    builtin: &'static str,
    chain: &'static str,
    matches: &'static str,
    comment: &'static str,
}

const fn jump(
    table: Table,
    builtin: &'static str,
    chain: &'static str,
    matches: &'static str,
    comment: &'static str,
) -> Jump {
    Jump { table, builtin, chain, matches, comment }
}

const PORTALS: &str = "kubernetes service portals";
const EXTERNAL: &str = "kubernetes externally-visible service portals";

/// The jumps into our chains, in the order in which a packet meets them.
const JUMPS: [Jump; 10] = [
    jump(Table::Filter, "INPUT", "KUBE-NODEPORTS", "", "kubernetes health check service ports"),
    jump(Table::Filter, "INPUT", "KUBE-EXTERNAL-SERVICES", NEW, EXTERNAL),
    jump(Table::Filter, "INPUT", "KUBE-FIREWALL", "", ""),
    jump(Table::Filter, "FORWARD", "KUBE-FORWARD", "", "kubernetes forwarding rules"),
    jump(Table::Filter, "FORWARD", "KUBE-SERVICES", NEW, PORTALS),
    jump(Table::Filter, "FORWARD", "KUBE-EXTERNAL-SERVICES", NEW, EXTERNAL),
    jump(Table::Filter, "OUTPUT", "KUBE-SERVICES", NEW, PORTALS),
    jump(Table::Filter, "OUTPUT", "KUBE-FIREWALL", "", ""),
    jump(Table::Nat, "PREROUTING", "KUBE-SERVICES", "", PORTALS),
    jump(Table::Nat, "OUTPUT", "KUBE-SERVICES", "", PORTALS),
];

/// The rules that make `services` of one family reachable on a node.
#[must_use]
pub fn render_rules(family: Family, services: &ServiceMap, node: &NodeFacts) -> Ruleset {
    let mut rules = Ruleset::default();
    let fits = |jump: &&Jump| family == Family::V4 || jump.chain != "KUBE-FIREWALL";
    for jump in JUMPS.iter().filter(fits) {
        let comment = if jump.comment.is_empty() { String::new() } else { quoted(jump.comment) };
        let rule = words(&[jump.matches, &comment, "-j", jump.chain]);
        rules.hook(jump.table, jump.builtin, &rule, Position::First);
    }
    let postrouting = words(&[&quoted("kubernetes postrouting rules"), "-j KUBE-POSTROUTING"]);
    rules.hook(Table::Nat, "POSTROUTING", &postrouting, Position::First);
    render_fixed(&mut rules, family);

    let mut portals = Portals::default();
    for (name, port) in services {
        if port.endpoints.is_empty() {
            portals.reject(name, port, family);
        } else {
            portals.accept(name, port);
            render_port(&mut rules, name, port, node);
        }
    }
    // The last rule: an address of the node that is no Service's.
    let comment = quoted("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
    portals.nat_services.push(words(&[&comment, node_addresses(family), "-j KUBE-NODEPORTS"]));
    rules.chain(Table::Nat, "KUBE-SERVICES", portals.nat_services);
    rules.chain(Table::Nat, "KUBE-NODEPORTS", portals.nat_node_ports);
    rules.chain(Table::Filter, "KUBE-SERVICES", portals.filter_services);
    rules.chain(Table::Filter, "KUBE-EXTERNAL-SERVICES", portals.filter_external);
    rules
}

/// What is there whatever the Services are.
fn render_fixed(rules: &mut Ruleset, family: Family) {
    let mut chain = |table, name, lines: &[&str]| {
        rules.chain(table, name, lines.iter().map(|&line| line.to_owned()).collect());
    };
    chain(Table::Nat, "KUBE-MARK-MASQ", &[&format!("-j MARK --or-mark {MARK}")]);
    chain(
        Table::Nat,
        "KUBE-POSTROUTING",
        &[
            &format!("-m mark ! --mark {MARK}/{MARK} -j RETURN"),
            // The mark goes, so that a packet that is wrapped and sent again is not masqueraded twice.
            &format!("-j MARK --xor-mark {MARK}"),
            &words(&[&quoted("kubernetes service traffic requiring SNAT"), "-j MASQUERADE --random-fully"]),
        ],
    );
    chain(
        Table::Filter,
        "KUBE-FORWARD",
        &[
            // Not translated back, such a packet would reset the connection of a pod (kubernetes#74839).
            "-m conntrack --ctstate INVALID -j DROP",
            &words(&[
                &quoted("kubernetes forwarding rules"),
                &format!("-m mark --mark {MARK}/{MARK} -j ACCEPT"),
            ]),
            &words(&[
                &quoted("kubernetes forwarding conntrack rule"),
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            ]),
        ],
    );
    if family == Family::V4 {
        chain(
            Table::Filter,
            "KUBE-FIREWALL",
            &[&words(&[
                &quoted("block incoming localnet connections"),
                "-d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
            ])],
        );
    }
    chain(Table::Filter, "KUBE-NODEPORTS", &[]);
}

/// The chains in which Services are looked up.
#[derive(Default)]
struct Portals {
    nat_services: Vec<String>,
    nat_node_ports: Vec<String>,
    filter_services: Vec<String>,
    filter_external: Vec<String>,
}

impl Portals {
    fn accept(&mut self, name: &ServicePortName, port: &ServicePort) {
        let comment = quoted(&format!("{name} cluster IP"));
        let target = format!("-j {}", service_chain(name));
        self.nat_services.push(words(&[&comment, &to_cluster_ip(name, port), &target]));
        if let Some(node_port) = port.node_port {
            let target = format!("-j {}", external_chain(name));
            let line = words(&[&quoted(&name.to_string()), &to_port(name, node_port), &target]);
            self.nat_node_ports.push(line);
        }
    }

    /// Without endpoints a connection is refused at once instead of running into nothing.
    fn reject(&mut self, name: &ServicePortName, port: &ServicePort, family: Family) {
        let comment = quoted(&format!("{name} has no endpoints"));
        self.filter_services.push(words(&[&comment, &to_cluster_ip(name, port), "-j REJECT"]));
        if let Some(node_port) = port.node_port {
            let line = words(&[&comment, node_addresses(family), &to_port(name, node_port), "-j REJECT"]);
            self.filter_external.push(line);
        }
    }
}

/// The chains of one Service port and its endpoints.
fn render_port(rules: &mut Ruleset, name: &ServicePortName, port: &ServicePort, node: &NodeFacts) {
    for endpoint in &port.endpoints {
        let chain = endpoint_chain(name, endpoint);
        let comment = quoted(&name.to_string());
        let protocol = name.protocol.name();
        let remember = match port.affinity {
            Affinity::None => String::new(),
            Affinity::ClientIp(_) => format!("-m recent --name {chain} --set --rsource"),
        };
        let lines = vec![
            // A pod that reaches itself would not take its own address for the Service's answer.
            words(&[&comment, &format!("-s {} -j KUBE-MARK-MASQ", endpoint.ip)]),
            words(&[
                &comment,
                &remember,
                &format!("-m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"),
            ]),
        ];
        rules.chain(Table::Nat, &chain, lines);
    }
    let service = service_chain(name);
    let mut spread = Vec::new();
    if let Some(pods) = node.pod_cidr {
        // From elsewhere: the answer has to come back through this node.
        let comment = quoted(&format!("{name} cluster IP"));
        let from = format!("! -s {pods} -j KUBE-MARK-MASQ");
        spread.push(words(&[&comment, &to_cluster_ip(name, port), &from]));
    }
    spread.extend(spread_over(name, port));
    rules.chain(Table::Nat, &service, spread);
    if port.node_port.is_none() {
        return;
    }
    match port.external {
        ExternalPolicy::Cluster => {
            let comment = quoted(&format!("masquerade traffic for {name} external destinations"));
            let lines = vec![words(&[&comment, "-j KUBE-MARK-MASQ"]), format!("-j {service}")];
            rules.chain(Table::Nat, &external_chain(name), lines);
        }
        ExternalPolicy::Local => {
            let local = local_chain(name);
            rules.chain(Table::Nat, &local, spread_over(name, port));
            rules.chain(Table::Nat, &external_chain(name), keep_client(name, &service, &local, node));
        }
    }
}

/// Connections from outside go to the node's own endpoints as they came; what comes from the cluster may go to any.
fn keep_client(name: &ServicePortName, service: &str, local: &str, node: &NodeFacts) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(pods) = node.pod_cidr {
        let comment = quoted(&format!("pod traffic for {name} external destinations"));
        lines.push(words(&[&comment, &format!("-s {pods} -j {service}")]));
    }
    let comment = quoted(&format!("masquerade LOCAL traffic for {name} external destinations"));
    lines.push(words(&[&comment, "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"]));
    let comment = quoted(&format!("route LOCAL traffic for {name} external destinations"));
    lines.push(words(&[&comment, &format!("-m addrtype --src-type LOCAL -j {service}")]));
    lines.push(format!("-j {local}"));
    lines
}

/// First to the endpoint that the client had, then to each with the same probability.
fn spread_over(name: &ServicePortName, port: &ServicePort) -> Vec<String> {
    let to = |endpoint| (endpoint_chain(name, endpoint), quoted(&format!("{name} -> {endpoint}")));
    let mut lines = Vec::new();
    if let Affinity::ClientIp(seconds) = port.affinity {
        lines.extend(port.endpoints.iter().map(|endpoint| {
            let (chain, comment) = to(endpoint);
            let known = format!("-m recent --name {chain} --rcheck --seconds {seconds} --reap --rsource");
            words(&[&comment, &known, &format!("-j {chain}")])
        }));
    }
    let count = port.endpoints.len();
    lines.extend(port.endpoints.iter().enumerate().map(|(index, endpoint)| {
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
fn probability(left: usize) -> String {
    format!("{:.10}", 1.0 / left as f64)
}

fn to_cluster_ip(name: &ServicePortName, port: &ServicePort) -> String {
    let protocol = name.protocol.name();
    format!("-m {protocol} -p {protocol} -d {} --dport {}", port.cluster_ip, port.port)
}

fn to_port(name: &ServicePortName, port: u16) -> String {
    let protocol = name.protocol.name();
    format!("-m {protocol} -p {protocol} --dport {port}")
}

/// A comment, as iptables-save would write it: in quotes when it has spaces.
fn quoted(comment: &str) -> String {
    match comment.contains(' ') {
        true => format!("-m comment --comment \"{comment}\""),
        false => format!("-m comment --comment {comment}"),
    }
}

fn words(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests;

//! From Service ports to netfilter rules, in kube-proxy's chains and shapes. Pure.
//!
//! ```text
//! PREROUTING, OUTPUT ─► KUBE-SERVICES ─► KUBE-SVC-… ─► KUBE-SEP-… ─► DNAT
//!                            └─► KUBE-NODEPORTS ─► KUBE-EXT-… ─┘ (marked, to be masqueraded)
//!                                                      └─► KUBE-SVL-… where the client's address is to be seen
//! POSTROUTING ─► KUBE-POSTROUTING ─► MASQUERADE what is marked
//! ```
//! A load balancer's address with source ranges passes KUBE-FW-… first; what that does not let through meets
//! KUBE-PROXY-FIREWALL, which drops it.
//!
//! NodePorts do not answer on 127.0.0.0/8: that needs `route_localnet`, which opens the node's loopback to its
//! neighbours (CVE-2020-8558).

mod portals;
mod ports;

use std::net::IpAddr;

use hostnet::netfilter::{Family, Position, Ruleset, Table};

use crate::model::{NodeFacts, ServiceMap, ServicePort, ServicePortName};
use portals::Portals;
use ports::render_port;

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
const FIREWALL: &str = "kubernetes load balancer firewall";

/// The jumps into our chains, in the order in which a packet meets them.
const JUMPS: [Jump; 13] = [
    jump(Table::Filter, "INPUT", "KUBE-PROXY-FIREWALL", NEW, FIREWALL),
    jump(Table::Filter, "INPUT", "KUBE-NODEPORTS", "", "kubernetes health check service ports"),
    jump(Table::Filter, "INPUT", "KUBE-EXTERNAL-SERVICES", NEW, EXTERNAL),
    jump(Table::Filter, "INPUT", "KUBE-FIREWALL", "", ""),
    jump(Table::Filter, "FORWARD", "KUBE-PROXY-FIREWALL", NEW, FIREWALL),
    jump(Table::Filter, "FORWARD", "KUBE-FORWARD", "", "kubernetes forwarding rules"),
    jump(Table::Filter, "FORWARD", "KUBE-SERVICES", NEW, PORTALS),
    jump(Table::Filter, "FORWARD", "KUBE-EXTERNAL-SERVICES", NEW, EXTERNAL),
    jump(Table::Filter, "OUTPUT", "KUBE-PROXY-FIREWALL", NEW, FIREWALL),
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
        portals.add(name, port, family);
        if port.has_endpoints() {
            render_port(&mut rules, name, port, node);
        }
    }
    portals.render(&mut rules, family);
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
}

fn to_address(name: &ServicePortName, address: IpAddr, port: u16) -> String {
    let protocol = name.protocol.name();
    format!("-m {protocol} -p {protocol} -d {address} --dport {port}")
}

fn to_cluster_ip(name: &ServicePortName, port: &ServicePort) -> String {
    to_address(name, port.cluster_ip, port.port)
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

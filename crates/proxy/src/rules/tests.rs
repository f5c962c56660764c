//! Golden files, and the laws that rules obey.

use super::ports::probability;
use super::*;
use crate::model::{Affinity, Endpoint, Protocol, TrafficPolicy};
use crate::names::service_chain;
use hostnet::netfilter::render_restore;
use ipnet::IpNet;
use manifest::ObjectKey;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

const NODE: NodeFacts = NodeFacts {
    pod_cidr: Some(IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(10, 85, 0, 0)), 16)),
    addresses: BTreeSet::new(),
};

fn port(service: &str, port: &str) -> ServicePortName {
    let (namespace, name) = service.split_once('/').expect("namespace/name");
    ServicePortName {
        service: ObjectKey::new(namespace, name),
        port: port.to_owned(),
        protocol: Protocol::Tcp,
    }
}

fn to(last: u8, port: u16, node_port: Option<u16>, endpoints: &[u8]) -> ServicePort {
    let endpoints = endpoints.iter().map(|&last| Endpoint { ip: [10, 85, 0, last].into(), port: 8080 });
    let endpoints: BTreeSet<Endpoint> = endpoints.collect();
    ServicePort {
        node_port,
        local: endpoints.clone(),
        endpoints,
        ..ServicePort::new([10, 96, 0, last].into(), port)
    }
}

fn all(rules: &Ruleset) -> String {
    render_restore(&Ruleset::default(), rules).expect("there are rules")
}

fn golden(name: &str, family: Family, services: &ServiceMap, node: &NodeFacts) {
    let path = format!("{}/tests/golden/{name}.rules", env!("CARGO_MANIFEST_DIR"));
    let found = all(&render_rules(family, services, node));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expect = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expect, "{path} differs; UPDATE_GOLDEN=1 rewrites it");
}

#[test]
fn no_services() {
    golden("none", Family::V4, &ServiceMap::new(), &NODE);
}

#[test]
fn cluster_ips_node_ports_and_services_without_endpoints() {
    let services = ServiceMap::from([
        (port("default/web", "http"), to(1, 80, Some(30080), &[2, 3, 4])),
        (port("default/one", ""), to(2, 443, None, &[2])),
        (port("ns/empty", "http"), to(3, 80, Some(30081), &[])),
    ]);
    golden("services", Family::V4, &services, &NODE);
}

#[test]
fn without_a_pod_range_nothing_is_masqueraded_on_the_way_to_a_cluster_ip() {
    let services = ServiceMap::from([(port("default/web", "http"), to(1, 80, None, &[2, 3]))]);
    golden("no_pod_cidr", Family::V4, &services, &NodeFacts::default());
}

#[test]
fn udp_affinity_and_local_traffic_are_in_kube_proxy_s_words() {
    let mut web = to(1, 80, Some(30080), &[2, 3]);
    (web.affinity, web.external) = (Affinity::ClientIp(10_800), TrafficPolicy::Local);
    let mut dns = port("default/dns", "dns");
    dns.protocol = Protocol::Udp;
    let services =
        ServiceMap::from([(port("default/web", "http"), web), (dns, to(2, 53, Some(30053), &[2]))]);
    golden("affinity_local_udp", Family::V4, &services, &NODE);
}

#[test]
fn ipv6_services_have_the_same_chains() {
    let service = ServicePort {
        cluster_ip: "fd00:96::1".parse().unwrap(),
        endpoints: ["fd00:85::2", "fd00:85::3"]
            .map(|ip| Endpoint { ip: ip.parse().unwrap(), port: 8080 })
            .into(),
        ..to(1, 80, Some(30080), &[])
    };
    let empty = ServicePort { cluster_ip: "fd00:96::2".parse().unwrap(), ..to(2, 80, Some(30081), &[]) };
    let services = ServiceMap::from([(port("default/web", "http"), service), (port("ns/empty", ""), empty)]);
    let node = NodeFacts { pod_cidr: Some("fd00:85::/64".parse().unwrap()), ..NodeFacts::default() };
    golden("ipv6", Family::V6, &services, &node);
}

#[test]
fn local_policies_drop_what_others_could_serve_and_take_pods_and_the_node_everywhere() {
    let local = |last, endpoints: &[u8], here: &[u8]| ServicePort {
        local: to(0, 0, None, here).endpoints,
        external: TrafficPolicy::Local,
        internal: TrafficPolicy::Local,
        health_check_node_port: Some(31000 + u16::from(last)),
        load_balancer_ips: [[203, 0, 113, last].into()].into(),
        ..to(last, 80, Some(30080 + u16::from(last)), endpoints)
    };
    let inside = ServicePort { internal: TrafficPolicy::Local, ..to(4, 80, None, &[2, 3]) };
    let services = ServiceMap::from([
        (port("default/both", "http"), local(1, &[2, 3], &[3])),
        (port("default/elsewhere", "http"), local(2, &[2], &[])),
        (port("default/nowhere", "http"), local(3, &[], &[])),
        (port("default/inside", ""), ServicePort { local: to(0, 0, None, &[3]).endpoints, ..inside.clone() }),
        (port("default/outside", ""), ServicePort { local: BTreeSet::new(), ..inside }),
    ]);
    golden("local", Family::V4, &services, &NODE);
}

#[test]
fn load_balancers_external_ips_and_source_ranges_are_in_kube_proxy_s_words() {
    let balanced = |last, ranges: &[&str]| ServicePort {
        external_ips: [[198, 51, 100, last].into()].into(),
        load_balancer_ips: [[203, 0, 113, last].into()].into(),
        source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        ..to(last, 80, None, &[2])
    };
    let services = ServiceMap::from([
        (port("default/open", ""), balanced(1, &[])),
        (port("default/guarded", ""), balanced(2, &["192.0.2.0/24", "172.16.0.0/12"])),
        (
            port("default/empty", ""),
            ServicePort { endpoints: BTreeSet::new(), ..balanced(3, &["192.0.2.0/24"]) },
        ),
    ]);
    let node = NodeFacts { addresses: [[192, 0, 2, 1].into()].into(), ..NODE };
    golden("load_balancer", Family::V4, &services, &node);
}

#[test]
fn sctp_has_the_same_chains() {
    let mut sctp = port("default/sip", "");
    sctp.protocol = Protocol::Sctp;
    let services = ServiceMap::from([(sctp, to(1, 5060, Some(30060), &[2, 3]))]);
    golden("sctp", Family::V4, &services, &NODE);
}

#[test]
fn probabilities_have_the_ten_digits_of_kube_proxy() {
    let found: Vec<String> = (2..5).map(probability).collect();
    assert_eq!(found, ["0.5000000000", "0.3333333333", "0.2500000000"]);
}

fn services() -> impl Strategy<Value = Vec<(ServicePortName, ServicePort)>> {
    let endpoints = proptest::collection::btree_set(2u8..60, 0..12);
    let ways = (proptest::option::of(30000u16..32767), 0..8u8, 0..4u8, 0..4u8);
    let service = ("[a-c]{1,2}", "[ab]?", 1u8..250, ways, endpoints);
    proptest::collection::vec(service, 0..12).prop_map(|services| {
        let mut seen = BTreeSet::new();
        let ports = services.into_iter().map(|(name, port_name, ip, ways, endpoints)| {
            let (node_port, outside, policies, here) = ways;
            let endpoints: Vec<u8> = endpoints.into_iter().collect();
            let policy =
                |bit| if policies & bit == 0 { TrafficPolicy::Cluster } else { TrafficPolicy::Local };
            let mut made = to(ip, 80, node_port, &endpoints);
            made.local.retain(|endpoint| endpoint.ip.to_canonical().is_ipv4() && here > 0);
            (made.internal, made.external) = (policy(1), policy(2));
            let some = |bit, address: [u8; 4]| (outside & bit != 0).then(|| IpAddr::from(address));
            made.external_ips.extend(some(1, [198, 51, 100, ip]));
            made.load_balancer_ips.extend(some(2, [203, 0, 113, ip]));
            made.source_ranges.extend((outside & 4 != 0).then(|| "192.0.2.0/24".parse::<IpNet>().unwrap()));
            (port(&format!("ns/{name}"), &port_name), made)
        });
        ports.filter(|(name, _)| seen.insert(name.clone())).collect()
    })
}

proptest! {
    #[test]
    fn rendering_is_order_independent(mut services in services()) {
        let one = render_rules(Family::V4, &services.iter().cloned().collect(), &NODE);
        services.reverse();
        prop_assert_eq!(one, render_rules(Family::V4, &services.into_iter().collect(), &NODE));
    }

    #[test]
    fn every_endpoint_gets_the_same_share(services in services()) {
        let services: ServiceMap = services.into_iter().collect();
        let rules = render_rules(Family::V4, &services, &NODE);
        let by_all = |port: &ServicePort| port.internal == TrafficPolicy::Cluster && port.has_endpoints();
        for (name, port) in services.iter().filter(|(_, port)| by_all(port)) {
            let lines = rules.rules(Table::Nat, &service_chain(name)).expect("its chain");
            let mut left = 1.0;
            let mut shares = Vec::new();
            for line in lines.iter().filter(|line| line.contains("KUBE-SEP-")) {
                let words: Vec<&str> = line.split(' ').collect();
                let at = words.iter().position(|word| *word == "--probability");
                let chance = at.map_or(1.0, |at| words[at + 1].parse::<f64>().expect("a number"));
                shares.push(left * chance);
                left *= 1.0 - chance;
            }
            prop_assert_eq!(shares.len(), port.endpoints.len());
            for share in shares {
                prop_assert!((share - 1.0 / port.endpoints.len() as f64).abs() < 1e-8);
            }
        }
    }

    #[test]
    fn a_step_from_one_state_to_another_ends_where_a_fresh_start_does(
        before in services(), after in services(),
    ) {
        let before = render_rules(Family::V4, &before.into_iter().collect(), &NODE);
        let after = render_rules(Family::V4, &after.into_iter().collect(), &NODE);
        let mut kernel = Kernel::default();
        kernel.apply(&all(&before));
        if let Some(step) = render_restore(&before, &after) {
            kernel.apply(&step);
        }
        let mut fresh = Kernel::default();
        fresh.apply(&all(&after));
        prop_assert_eq!(kernel, fresh);
    }

    #[test]
    fn every_jump_has_a_chain_and_every_chain_a_jump(services in services()) {
        let rules = render_rules(Family::V4, &services.into_iter().collect(), &NODE);
        for table in Table::ALL {
            let names: BTreeSet<&str> = rules.chains(table).map(|(name, _)| name).collect();
            let lines = rules.chains(table).flat_map(|(_, lines)| lines);
            let hooks = rules.hooks(table).iter().map(|hook| &hook.rule);
            let targets: BTreeSet<&str> = lines
                .chain(hooks)
                .filter_map(|line| line.split(' ').skip_while(|word| *word != "-j").nth(1))
                .filter(|target| target.starts_with("KUBE-"))
                .collect();
            let mut targets = targets;
            if table == Table::Nat && !targets.contains("KUBE-MARK-MASQ") {
                // Without Services nothing is marked.
                targets.insert("KUBE-MARK-MASQ");
            }
            prop_assert_eq!(names, targets);
        }
    }
}

/// What iptables-restore --noflush does, as far as our input goes.
#[derive(Debug, Default, PartialEq)]
struct Kernel {
    chains: std::collections::BTreeMap<(String, String), Vec<String>>,
}

impl Kernel {
    fn apply(&mut self, input: &str) {
        let mut table = String::new();
        for line in input.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().expect("a name");
                self.chains.insert((table.clone(), name.to_owned()), Vec::new());
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' '))
            {
                self.chains.entry((table.clone(), chain.to_owned())).or_default().push(rule.to_owned());
            } else if let Some(rest) = line.strip_prefix("-I ") {
                let (chain, rule) = rest.split_once(" 1 ").expect("a position");
                let chain = self.chains.entry((table.clone(), chain.to_owned())).or_default();
                chain.insert(0, rule.to_owned());
            } else if let Some(name) = line.strip_prefix("-X ") {
                let gone = self.chains.remove(&(table.clone(), name.to_owned()));
                assert_eq!(gone, Some(Vec::new()), "{name} is empty");
            } else {
                assert_eq!(line, "COMMIT");
            }
        }
    }
}

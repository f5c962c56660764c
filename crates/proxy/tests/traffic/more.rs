//! UDP, IPv6, affinity, local traffic, and rules that somebody else flushes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::network::{Backend, Network, isolated, run, tracked};
use crate::serving::Proxy;
use crate::tally;

const CLUSTER_IP: &str = "10.96.0.50";
const CLUSTER_IP_V6: &str = "fd00:96::50";

/// A dual-stack Service of TCP and UDP; `extra` goes into its spec.
fn web(extra: &Value) -> [(&'static str, Value); 1] {
    let mut spec = json!({"type": "NodePort", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP, CLUSTER_IP_V6],
        "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"}, "ports": [
            {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "http", "nodePort": 30053}]});
    for (key, value) in extra.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    [("web", spec)]
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address with a port")
}

fn pod_of(answer: std::io::Result<String>) -> String {
    let answer = answer.expect("an answer");
    answer.split_once(' ').expect("pod and peer").0.to_owned()
}

/// Runs a story with each backend.
macro_rules! stories {
    ($($story:ident: $nft:ident, $legacy:ident;)*) => {$(
        #[test]
        #[ignore = "needs root"]
        fn $nft() { isolated(concat!("more::", stringify!($nft)), Backend::Nft, $story); }

        #[test]
        #[ignore = "needs root"]
        fn $legacy() { isolated(concat!("more::", stringify!($legacy)), Backend::Legacy, $story); }
    )*};
}

stories! {
    udp: udp_clients_follow_the_endpoints_with_nft, udp_clients_follow_the_endpoints_with_legacy;
    ipv6: ipv6_services_answer_with_nft, ipv6_services_answer_with_legacy;
    affinity: a_client_keeps_its_endpoint_and_its_address_with_nft, a_client_keeps_its_endpoint_and_its_address_with_legacy;
    flush: flushed_rules_come_back_with_nft, flushed_rules_come_back_with_legacy;
    edits: rules_after_many_edits_are_those_of_a_fresh_start_with_nft, rules_after_many_edits_are_those_of_a_fresh_start_with_legacy;
}

/// A client that goes on sending from one port is never left with a pod that is gone.
fn udp() {
    let network = Network::new(2);
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Proxy::start(dir.path(), &web(&json!({})));
    for address in [format!("{CLUSTER_IP}:53"), format!("[{CLUSTER_IP_V6}]:53"), "192.0.2.1:30053".to_owned()]
    {
        node.pods(&[(1, true), (2, true)]);
        let client = network.client().udp(at(&address));
        let first = pod_of(client.ask());
        assert_eq!(pod_of(client.ask()), first, "a flow stays where it is");

        // Its endpoint goes: the other one answers the very next packet.
        let gone = if first == "pod-1" { 1 } else { 2 };
        let other = 3 - gone;
        node.pods(&[(gone, false), (other, true)]);
        assert_eq!(pod_of(client.ask()), format!("pod-{other}"), "{address}");

        // None is left: refused, and nothing of it is tracked. One comes back: answered.
        node.pods(&[(gone, false), (other, false)]);
        assert_eq!(client.ask().expect_err("nobody").kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(tracked(client.port()), Vec::<String>::new(), "{address}");
        node.pods(&[(gone, true), (other, false)]);
        assert_eq!(pod_of(client.ask()), first);
    }

    // An unrelated flow is nobody's business, also when the Service is deleted.
    let direct = network.client().udp(at("10.85.0.11:8080"));
    pod_of(direct.ask());
    node.pods(&[(1, true), (2, true)]);
    let client = network.client().udp(at(&format!("{CLUSTER_IP}:53")));
    pod_of(client.ask());
    assert_eq!(tracked(client.port()).len(), 1);

    // A restart deletes nothing that is right.
    node.stop();
    let mut node = Proxy::start(dir.path(), &web(&json!({})));
    let before = tracked(client.port());
    node.pods(&[(1, true), (2, true)]);
    assert_eq!(tracked(client.port()).len(), before.len());
    node.services(&[]);
    assert_eq!(tracked(client.port()), Vec::<String>::new());
    assert_eq!(tracked(direct.port()).len(), 1);
    node.clear();
}

fn ipv6() {
    let network = Network::new(2);
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Proxy::start(dir.path(), &web(&json!({})));
    node.pods(&[(1, true), (2, true)]);
    for address in [format!("[{CLUSTER_IP_V6}]:80"), "[2001:db8::1]:30080".to_owned()] {
        let (answers, seen_from) = tally(network.client().ask(at(&address), 60));
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert_eq!(seen_from.keys().collect::<Vec<_>>(), ["fd00:85::1"], "{address}");
        assert_eq!(tally(network.node().ask(at(&address), 40)).0.len(), 2, "from the node");
    }
    // From a pod: the other one sees its address; through the Service it also reaches itself.
    let answers = network.pod(1).ask(at(&format!("[{CLUSTER_IP_V6}]:80")), 40);
    let seen: BTreeSet<&str> = answers.iter().map(String::as_str).collect();
    assert_eq!(seen, BTreeSet::from(["pod-1 fd00:85::1", "pod-2 fd00:85::11"]));
    node.pods(&[(1, false), (2, false)]);
    let refused = network.client().refusal(at(&format!("[{CLUSTER_IP_V6}]:80")));
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    node.clear();
    assert_eq!(network.rules(), Vec::<String>::new());
}

fn affinity() {
    let network = Network::new(3);
    let dir = tempfile::tempdir().expect("a directory");
    let extra = json!({"sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local"});
    let mut node = Proxy::start(dir.path(), &web(&extra));
    node.pods(&[(1, true), (2, true), (3, true)]);
    for address in [format!("{CLUSTER_IP}:80"), "192.0.2.1:30080".to_owned(), format!("[{CLUSTER_IP_V6}]:80")]
    {
        let answers = tally(network.client().ask(at(&address), 30)).0;
        assert_eq!(answers.len(), 1, "{address}: {answers:?}");
    }
    let seen_from = tally(network.client().ask(at("192.0.2.1:30080"), 3)).1;
    assert_eq!(seen_from.keys().collect::<Vec<_>>(), ["192.0.2.2"], "pods see the client itself");
    // From the node and from a pod the NodePort answers too.
    assert_eq!(tally(network.node().ask(at("192.0.2.1:30080"), 5)).0.len(), 1);
    assert_eq!(tally(network.pod(1).ask(at("192.0.2.1:30080"), 5)).0.len(), 1);
    node.clear();
}

fn flush() {
    let network = Network::new(2);
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Proxy::start(dir.path(), &web(&json!({})));
    node.pods(&[(1, true), (2, true)]);
    let whole = network.rules();
    run("iptables -t nat -N OTHERS");
    for damage in [
        "iptables -t nat -F",
        "iptables -F KUBE-FORWARD",
        "iptables -t nat -D PREROUTING 1",
        "ip6tables -t nat -F KUBE-SERVICES",
    ] {
        run(damage);
        assert_ne!(network.rules(), whole, "{damage}");
        let mut patience = 100;
        while network.rules() != whole {
            patience -= 1;
            assert!(patience > 0, "not put back: {damage}\n{:#?}", network.rules());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
    assert_eq!(tally(network.client().ask(at(&format!("{CLUSTER_IP}:80")), 30)).0.len(), 2);
    // What is nobody's of ours stays as it is.
    run("iptables -t nat -X OTHERS");
    // And the next change meets what is really there.
    node.pods(&[(1, true), (2, false)]);
    assert_eq!(tally(network.client().ask(at(&format!("{CLUSTER_IP}:80")), 10)).0.len(), 1);
    node.clear();
}

fn edits() {
    let network = Network::new(3);
    let dir = tempfile::tempdir().expect("a directory");
    let variants =
        [json!({}), json!({"sessionAffinity": "ClientIP"}), json!({"externalTrafficPolicy": "Local"})];
    let mut node = Proxy::start(dir.path(), &web(&variants[0]));
    // A linear congruence is random enough, and the same in every run.
    let mut state = 1_u32;
    let mut next = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    for _ in 0..12 {
        node.services(&web(&variants[next(3) as usize]));
        let pods: Vec<(u8, bool)> = (1..=3).map(|number| (number, next(3) > 0)).collect();
        node.pods(&pods);
    }
    let last = variants[next(3) as usize].clone();
    node.services(&web(&last));
    node.pods(&[(1, true), (2, false), (3, true)]);
    let edited = network.rules();
    node.clear();
    assert_eq!(network.rules(), Vec::<String>::new());
    let fresh_dir = tempfile::tempdir().expect("a directory");
    let mut fresh = Proxy::start(fresh_dir.path(), &web(&last));
    fresh.pods(&[(1, true), (2, false), (3, true)]);
    assert_eq!(edited, network.rules());
    fresh.clear();
}

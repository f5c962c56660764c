//! Services with real connections: a node, three pods and a client in network namespaces of the test's own, and the
//! machine's iptables with either backend.

mod more;
mod network;
mod serving;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use network::{Backend, Network, isolated};
use serving::Proxy;

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 50);
const EMPTY_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 51);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GATEWAY: &str = "10.85.0.1";

#[test]
#[ignore = "needs root"]
fn services_answer_with_iptables_nft() {
    isolated("services_answer_with_iptables_nft", Backend::Nft, story);
}

#[test]
#[ignore = "needs root"]
fn services_answer_with_iptables_legacy() {
    isolated("services_answer_with_iptables_legacy", Backend::Legacy, story);
}

fn story() {
    let network = Network::new(3);
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Proxy::start(dir.path(), &wanted());
    node.pods(&[(1, true), (2, true), (3, true)]);
    let cluster_ip = SocketAddr::from((CLUSTER_IP, 80));
    let node_port = SocketAddr::from((NODE, 30080));

    // From elsewhere: evenly spread, and the answer comes back through the node.
    for address in [cluster_ip, node_port] {
        let (answers, seen_from) = tally(network.client().ask(address, 300));
        assert_eq!(answers.len(), 3, "{answers:?}");
        // Binomial(300, 1/3): six standard deviations around 100.
        assert!(answers.values().all(|count| (51..=149).contains(count)), "{answers:?}");
        assert_eq!(seen_from.keys().collect::<Vec<_>>(), [GATEWAY]);
    }

    // From the node itself.
    for address in [cluster_ip, node_port] {
        assert_eq!(tally(network.node().ask(address, 60)).0.len(), 3);
    }

    // From a pod: the others see its own address; through the Service it also reaches itself.
    let answers = network.pod(1).ask(cluster_ip, 90);
    for (pod, from) in answers.iter().map(|answer| answer.split_once(' ').expect("pod and peer")) {
        let expect = if pod == "pod-1" { GATEWAY } else { "10.85.0.11" };
        assert_eq!(from, expect, "{pod}");
    }
    assert_eq!(tally(answers).0.len(), 3);

    // Without endpoints: refused at once, wherever it comes from.
    for address in [SocketAddr::from((EMPTY_IP, 80)), SocketAddr::from((NODE, 30081))] {
        for (name, place) in [("client", network.client()), ("node", network.node()), ("pod", network.pod(1))]
        {
            assert_eq!(
                place.refusal(address),
                std::io::ErrorKind::ConnectionRefused,
                "{address} from {name}"
            );
        }
    }

    // Endpoints that change take effect, one change at a time and down to none.
    node.pods(&[(1, true), (2, false), (3, true)]);
    let answers = tally(network.client().ask(cluster_ip, 60)).0;
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["pod-1", "pod-3"]);
    node.pods(&[(1, false), (2, false)]);
    assert_eq!(network.client().refusal(cluster_ip), std::io::ErrorKind::ConnectionRefused);
    node.pods(&[(2, true)]);
    assert_eq!(tally(network.client().ask(node_port, 10)).0.keys().collect::<Vec<_>>(), ["pod-2"]);

    // A restarted proxy goes on with what is there, and `clear` leaves nothing.
    let before = network.rules();
    node.stop();
    assert_eq!(network.rules(), before, "the rules outlive the proxy");
    let mut node = Proxy::start(dir.path(), &wanted());
    node.pods(&[(2, true)]);
    assert_eq!(network.rules(), before);
    assert_eq!(tally(network.client().ask(cluster_ip, 10)).0.keys().collect::<Vec<_>>(), ["pod-2"]);
    node.clear();
    assert_eq!(network.rules(), Vec::<String>::new());
}

/// How often each pod answered, and from where it saw the client.
fn tally(answers: Vec<String>) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let (mut pods, mut from) = (BTreeMap::new(), BTreeMap::new());
    for answer in answers {
        let (pod, peer) = answer.split_once(' ').expect("pod and peer");
        *pods.entry(pod.to_owned()).or_default() += 1;
        *from.entry(peer.to_owned()).or_default() += 1;
    }
    (pods, from)
}

fn wanted() -> [(&'static str, Value); 2] {
    [("web", CLUSTER_IP, 30080), ("empty", EMPTY_IP, 30081)].map(|(name, ip, node_port)| {
        let spec = json!({"type": "NodePort", "clusterIP": ip.to_string(), "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": node_port}]});
        (name, spec)
    })
}

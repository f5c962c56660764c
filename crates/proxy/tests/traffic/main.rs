//! Services with real connections: a node, three pods and a client in network namespaces of the test's own, and the
//! machine's iptables with either backend.

mod network;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hostnet::netfilter::{Family, Writer, WriterConfig};
use k8s_openapi::api::core::v1::Service;
use manifest::{Loaded, ObjectKey};
use proxy::{Config, LocalPod, ProxyReport};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use network::{Backend, Network, isolated};

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
    let mut node = Proxy::start(dir.path());
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
    let mut node = Proxy::start(dir.path());
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

/// A running proxy with its inputs.
struct Proxy {
    runtime: tokio::runtime::Runtime,
    pods: watch::Sender<Arc<Vec<LocalPod>>>,
    report: watch::Receiver<Arc<ProxyReport>>,
    writer: hostnet::netfilter::WriterHandle,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), proxy::ProxyError>>,
    _desired: watch::Sender<Arc<Loaded>>,
}

impl Proxy {
    fn start(dir: &std::path::Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (desired, loaded) = watch::channel(Arc::new(wanted()));
        let (pods, local) = watch::channel(Arc::default());
        let (reports, report) = watch::channel(Arc::default());
        let (stop, stopped) = oneshot::channel();
        let config = Config {
            service_cidr: "10.96.0.0/16".parse().expect("a range"),
            node_port_range: 30000..=32767,
            state_file: dir.join("services.json"),
            pod_cidr: Some("10.85.0.0/16".parse().expect("a range")),
            node_name: "node".to_owned(),
        };
        let writer = runtime.block_on(async { Writer::spawn(WriterConfig { family: Family::V4 }) });
        let running = proxy::run(config, loaded, local, writer.clone(), reports, async move {
            // Told, or dropped: both end it.
            let _ = stopped.await;
        });
        let task = runtime.spawn(running);
        Self { runtime, pods, report, writer, stop, task, _desired: desired }
    }

    /// Makes these the pods, ready or not, and waits until the proxy has told that it serves them.
    fn pods(&mut self, pods: &[(u8, bool)]) {
        let local: Vec<LocalPod> = pods.iter().map(|(number, ready)| pod(*number, *ready)).collect();
        self.pods.send_replace(Arc::new(local));
        let wanted: Vec<(String, bool)> =
            pods.iter().map(|(number, ready)| (format!("pod-{number}"), *ready)).collect();
        let served = self.report.wait_for(|report| {
            let slices = report.endpoints.iter().filter(|slice| {
                slice
                    .metadata
                    .labels
                    .as_ref()
                    .is_some_and(|labels| labels["kubernetes.io/service-name"] == "web")
            });
            let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten()).map(|endpoint| {
                let name = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
                (name.unwrap_or_default(), ready.unwrap_or_default())
            });
            endpoints.collect::<Vec<_>>() == wanted
        });
        let served = self.runtime.block_on(served).expect("the proxy runs").clone();
        assert_eq!(served.problems, []);
    }

    fn stop(self) {
        // The receiver may have gone: then it has stopped.
        let _ = self.stop.send(());
        self.runtime.block_on(self.task).expect("it did not panic").expect("it stopped");
    }

    fn clear(self) {
        let writer = self.writer.clone();
        self.runtime.block_on(writer.clear()).expect("cleared");
    }
}

fn pod(number: u8, ready: bool) -> LocalPod {
    LocalPod {
        namespace: "default".to_owned(),
        name: format!("pod-{number}"),
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        ips: vec![IpAddr::from([10, 85, 0, 10 + number])],
        ready,
        ports: BTreeMap::from([("http".to_owned(), network::PORT)]),
    }
}

fn wanted() -> Loaded {
    let mut loaded = Loaded::default();
    for (name, ip, node_port) in [("web", CLUSTER_IP, 30080), ("empty", EMPTY_IP, 30081)] {
        let value = json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIP": ip.to_string(), "selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": node_port}]},
        });
        let mut service: Service = serde_json::from_value(value).expect("a Service");
        manifest::default_service(&mut service);
        loaded.objects.services.insert(ObjectKey::new("default", name), Arc::new(service));
    }
    loaded
}

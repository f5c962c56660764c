//! The proxy as an agent runs it, with made-up pods and Services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hostnet::netfilter::{Owner, Writer};
use k8s_openapi::api::core::v1::Service;
use manifest::{Loaded, ObjectKey};
use proxy::{Config, LocalPod, Manifests, Protocol, ProxyReport, Source};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use crate::network::PORT;

/// A running proxy with its inputs.
pub(crate) struct Proxy {
    runtime: tokio::runtime::Runtime,
    pods: watch::Sender<Arc<Vec<LocalPod>>>,
    report: watch::Receiver<Arc<ProxyReport>>,
    writer: hostnet::netfilter::WriterHandle,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), proxy::ProxyError>>,
    desired: watch::Sender<Arc<Loaded>>,
    generation: i64,
}

impl Proxy {
    pub(crate) fn start(dir: &Path, services: &[(&str, Value)]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (desired, loaded) = watch::channel(Arc::new(loaded_of(services, 0)));
        let (pods, local) = watch::channel(Arc::default());
        let (reports, report) = watch::channel(Arc::default());
        let (stop, stopped) = oneshot::channel();
        let config = Config { node_port_range: 30000..=32767, node_name: "node".to_owned() };
        let source = Manifests {
            desired: loaded,
            pods: local,
            service_cidrs: ["10.96.0.0/16", "fd00:96::/112"].map(|net| net.parse().expect("a range")).into(),
            state_file: dir.join("services.json"),
            pod_cidrs: ["10.85.0.0/16", "fd00:85::/64"].map(|net| net.parse().expect("a range")).into(),
        };
        let writer = runtime.block_on(async { Writer::spawn() });
        let running = proxy::run(config, Source::Manifests(source), writer.clone(), reports, async move {
            // Told, or dropped: both end it.
            let _ = stopped.await;
        });
        let task = runtime.spawn(running);
        Self { runtime, pods, report, writer, stop, task, desired, generation: 0 }
    }

    /// Makes these the pods, ready or not, and waits until the proxy has told that it serves them.
    pub(crate) fn pods(&mut self, pods: &[(u8, bool)]) {
        let local: Vec<LocalPod> = pods.iter().map(|(number, ready)| pod(*number, *ready)).collect();
        self.pods.send_replace(Arc::new(local));
        let mut wanted: Vec<(String, bool)> =
            pods.iter().map(|(number, ready)| (format!("pod-{number}"), *ready)).collect();
        wanted.sort();
        let served = self.report.wait_for(|report| {
            let slices = report.endpoints.iter().filter(|slice| {
                slice
                    .metadata
                    .labels
                    .as_ref()
                    .is_some_and(|labels| labels["kubernetes.io/service-name"] == "web")
                    && slice.address_type == "IPv4"
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

    /// Makes these the Services, and waits until the proxy has told that it serves them.
    pub(crate) fn services(&mut self, services: &[(&str, Value)]) {
        self.generation += 1;
        self.desired.send_replace(Arc::new(loaded_of(services, self.generation)));
        let (count, generation) = (services.len(), Some(self.generation));
        let served = self.report.wait_for(|report| {
            let mut known = report.services.iter().map(|service| service.metadata.generation);
            known.len() == count && known.all(|known| known == generation)
        });
        let served = self.runtime.block_on(served).expect("the proxy runs").clone();
        assert_eq!(served.problems, []);
    }

    pub(crate) fn stop(self) {
        // The receiver may have gone: then it has stopped.
        let _ = self.stop.send(());
        self.runtime.block_on(self.task).expect("it did not panic").expect("it stopped");
    }

    pub(crate) fn clear(self) {
        let writer = self.writer.clone();
        self.runtime.block_on(writer.clear(&Owner::ALL)).expect("cleared");
    }
}

fn pod(number: u8, ready: bool) -> LocalPod {
    LocalPod {
        namespace: "default".to_owned(),
        name: format!("pod-{number}"),
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        ips: vec![
            IpAddr::from([10, 85, 0, 10 + number]),
            IpAddr::from([0xfd00, 0x85, 0, 0, 0, 0, 0, 0x10 + u16::from(number)]),
        ],
        ready,
        ports: [Protocol::Tcp, Protocol::Udp].map(|protocol| ((protocol, "http".to_owned()), PORT)).into(),
    }
}

/// Services of the namespace `default` from their specs.
fn loaded_of(services: &[(&str, Value)], generation: i64) -> Loaded {
    let mut loaded = Loaded::default();
    for (name, spec) in services {
        let value = json!({"metadata": {"name": name, "namespace": "default", "generation": generation}, "spec": spec});
        let mut service: Service = serde_json::from_value(value).expect("a Service");
        manifest::default_service(&mut service);
        loaded.objects.services.insert(ObjectKey::new("default", *name), Arc::new(service));
    }
    loaded
}

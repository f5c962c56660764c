//! `/metrics`: what the kubelet knows of itself, under upstream's names. Upstream: pkg/kubelet/metrics, pkg/kubelet/server/metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cri::v1 as crv1;
use cri::v1::ContainerState;
use tokio::sync::watch;

use super::exposition::Kind::{Counter, Gauge, Histogram as Distribution};
use super::exposition::{Histogram, Page};
use crate::api::KUBELET_VERSION;
use crate::cri_requests::POD_UID;
use crate::report::NodeReport;
use crate::time::wall_ns;

/// Upper bounds of the time that a pod takes to get ready, in seconds.
const STARTS: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0];
/// Upper bounds of the time that a request takes, in seconds. Upstream: prometheus.DefBuckets.
const REQUESTS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What is counted.
pub(in crate::server) struct Own {
    state: Mutex<State>,
    /// When the process was started, in nanoseconds since 1970.
    started: i64,
}

struct State {
    requests: BTreeMap<Request, (u64, Histogram)>,
    starts: Histogram,
    /// Uids of pods whose start was counted.
    counted: BTreeSet<String>,
}

/// Method and first part of the path.
type Request = (&'static str, &'static str);

/// Counts every start as it comes to its end, for ever.
pub(in crate::server) async fn count_starts(
    own: &Own,
    mut reports: watch::Receiver<Arc<NodeReport>>,
) -> Infallible {
    loop {
        own.learn(&reports.borrow_and_update().clone());
        if reports.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What the runtime has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct Running {
    pods: usize,
    by_state: BTreeMap<&'static str, usize>,
}

impl Running {
    /// Counts containers by their state, and the pods of which any runs.
    pub(in crate::server) fn of(containers: &[crv1::Container]) -> Self {
        let mut by_state = BTreeMap::new();
        for container in containers {
            let state = match container.state() {
                ContainerState::ContainerCreated => "created",
                ContainerState::ContainerRunning => "running",
                ContainerState::ContainerExited => "exited",
                ContainerState::ContainerUnknown => "unknown",
            };
            *by_state.entry(state).or_default() += 1;
        }
        let running = containers.iter().filter(|one| one.state() == ContainerState::ContainerRunning);
        let pods: BTreeSet<_> = running.filter_map(|one| one.labels.get(POD_UID)).collect();
        Self { pods: pods.len(), by_state }
    }
}

impl Default for Own {
    fn default() -> Self {
        let state =
            State { requests: BTreeMap::new(), starts: Histogram::new(STARTS), counted: BTreeSet::new() };
        Self { state: Mutex::new(state), started: wall_ns() }
    }
}

impl Own {
    /// A request is being answered.
    pub(in crate::server) fn begin(&self, method: &hyper::Method, path: &str) -> Request {
        let request = (method_of(method), path_of(path));
        let mut state = self.lock();
        let (running, _) = state.requests.entry(request).or_insert_with(|| (0, Histogram::new(REQUESTS)));
        *running += 1;
        request
    }

    /// It was answered.
    pub(in crate::server) fn end(&self, request: Request, took: Duration) {
        if let Some((running, times)) = self.lock().requests.get_mut(&request) {
            *running = running.saturating_sub(1);
            times.observe(took.as_secs_f64());
        }
    }

    /// Counts the starts of pods that have come to their end.
    fn learn(&self, report: &NodeReport) {
        let mut state = self.lock();
        let State { starts, counted, .. } = &mut *state;
        for start in report.starts.iter().filter(|start| start.total > 0.0) {
            if counted.insert(start.uid.clone()) {
                starts.observe(start.total / 1000.0);
            }
        }
        counted.retain(|uid| report.starts.iter().any(|start| start.uid == *uid));
    }

    /// The page.
    pub(super) fn page(&self, node_name: &str, running: &Running) -> String {
        let mut page = Page::default();
        let state = self.lock();
        let help = "The release of Kubernetes whose kubelet this one is like, and what it is. The count is always 1.";
        page.family("kubernetes_build_info", Gauge, help);
        page.sample("kubernetes_build_info", &[("git_version", KUBELET_VERSION)], 1, None);
        page.family("kubelet_node_name", Gauge, "The node's name. The count is always 1.");
        page.sample("kubelet_node_name", &[("node", node_name)], 1, None);
        page.single(
            "kubelet_running_pods",
            Gauge,
            "Number of pods that have a running container",
            running.pods,
        );
        let name = "kubelet_running_containers";
        page.family(name, Gauge, "Number of containers, by state");
        for (state, count) in &running.by_state {
            page.sample(name, &[("container_state", state)], count, None);
        }
        let name = "kubelet_pod_start_duration_seconds";
        page.family(
            name,
            Distribution,
            "Seconds from the kubelet seeing a pod for the first time to the pod being ready",
        );
        page.histogram(name, &[], &state.starts);
        requests(&mut page, &state.requests);
        drop(state);
        process(&mut page, self.started);
        page.into_text()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn requests(page: &mut Page, requests: &BTreeMap<Request, (u64, Histogram)>) {
    let labels = |(method, path): &Request| {
        let long = if ["exec", "attach", "portForward"].contains(path) { "true" } else { "false" };
        [("long_running", long), ("method", *method), ("path", *path), ("server_type", "readwrite")]
    };
    let name = "kubelet_http_requests_total";
    page.family(name, Counter, "Number of HTTP requests since the server was started");
    requests
        .iter()
        .for_each(|(request, (_, times))| page.sample(name, &labels(request), times.count(), None));
    let name = "kubelet_http_inflight_requests";
    page.family(name, Gauge, "Number of HTTP requests that are being answered");
    requests.iter().for_each(|(request, (running, _))| page.sample(name, &labels(request), running, None));
    let name = "kubelet_http_requests_duration_seconds";
    page.family(name, Distribution, "Seconds until an HTTP request was answered, the body not included");
    requests.iter().for_each(|(request, (_, times))| page.histogram(name, &labels(request), times));
}

/// What every program that Prometheus watches tells of itself.
fn process(page: &mut Page, started: i64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in brackets, may hold anything; the third field is behind it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field =
        |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a time of years is exact")]
    let cpu = (field(14) + field(15)) as f64 / rustix::param::clock_ticks_per_second().max(1) as f64;
    page.single("process_cpu_seconds_total", Counter, "User and system CPU time, in seconds", cpu);
    let pages = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    page.single("process_resident_memory_bytes", Gauge, "Resident memory, in bytes", field(24) * pages);
    page.single("process_virtual_memory_bytes", Gauge, "Virtual memory, in bytes", field(23));
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    page.single("process_open_fds", Gauge, "Number of open file descriptors", open);
    let help = "When the kubelet was started, in seconds since 1970";
    page.single("process_start_time_seconds", Gauge, help, started / 1_000_000_000);
}

fn method_of(method: &hyper::Method) -> &'static str {
    let known = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// Whoever asks for what is not there makes no new series.
fn path_of(path: &str) -> &'static str {
    const KNOWN: [&str; 16] = [
        "metrics/cadvisor",
        "metrics/probes",
        "metrics/resource",
        "attach",
        "configz",
        "containerLogs",
        "exec",
        "healthz",
        "metrics",
        "pods",
        "portForward",
        "run",
        "runningpods",
        "stats",
        "logs",
        "checkpoint",
    ];
    let path = path.trim_start_matches('/');
    let is_below =
        |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    KNOWN.into_iter().find(|root| is_below(root)).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::StartTimes;

    #[test]
    fn requests_are_counted_by_method_and_path() {
        let own = Own::default();
        let one = own.begin(&hyper::Method::GET, "/metrics/resource");
        own.begin(&hyper::Method::POST, "/exec/n/p/c");
        own.begin(&hyper::Method::GET, "/what/ever");
        own.end(one, Duration::from_millis(7));
        let page = own.page("box", &Running::default());
        for line in [
            "kubelet_http_requests_total{long_running=\"false\",method=\"GET\",path=\"metrics/resource\",server_type=\"readwrite\"} 1",
            "kubelet_http_inflight_requests{long_running=\"true\",method=\"POST\",path=\"exec\",server_type=\"readwrite\"} 1",
            "kubelet_http_inflight_requests{long_running=\"false\",method=\"GET\",path=\"other\",server_type=\"readwrite\"} 1",
            "kubelet_node_name{node=\"box\"} 1",
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\n{page}");
        }
    }

    #[test]
    fn a_start_is_counted_once_and_only_when_it_is_over() {
        let own = Own::default();
        let report = |total| {
            let start = StartTimes { uid: "u".into(), total, ..StartTimes::default() };
            NodeReport { starts: vec![start], ..NodeReport::default() }
        };
        [0.0, 1500.0, 1500.0].into_iter().for_each(|total| own.learn(&report(total)));
        own.learn(&NodeReport::default());
        let page = own.page("box", &Running::default());
        assert!(page.contains("kubelet_pod_start_duration_seconds_sum 1.5\n"), "{page}");
        assert!(page.contains("kubelet_pod_start_duration_seconds_count 1\n"), "{page}");
    }

    #[test]
    fn a_pod_runs_when_one_of_its_containers_does() {
        let container = |uid: &str, state: ContainerState| crv1::Container {
            labels: std::collections::HashMap::from([(POD_UID.to_owned(), uid.to_owned())]),
            state: state.into(),
            ..crv1::Container::default()
        };
        let running = ContainerState::ContainerRunning;
        let all = [
            container("a", running),
            container("a", running),
            container("b", ContainerState::ContainerExited),
        ];
        let expect = Running { pods: 1, by_state: BTreeMap::from([("running", 2), ("exited", 1)]) };
        assert_eq!(Running::of(&all), expect);
    }
}

//! What containers and sandboxes use: read when somebody asks, and CPU time also every ten seconds, so that a rate is known.
//!
//! Nothing is kept on disk: after a restart of the agent the counters go on, because they are the kernel's.

mod layer;
mod metrics;
mod network;
mod rate;
mod render;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::v1;
use cri::v1::NamespaceMode;
use host::cgroup::Usage;

use crate::error::Error;
use crate::listing::{has_labels, matches_id};
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::runtime::{Runtime, now_ns};
use crate::spec::namespace_options;
use crate::state::{Container, Sandbox, lock};
use layer::LayerUsage;
use metrics::Descriptors;
use network::Interface;
use rate::{Rate, Sample};

pub(crate) use metrics::descriptors;

/// How often CPU time is sampled without being asked.
const SAMPLING: Duration = Duration::from_secs(10);
/// How old the size of a writable layer may be: to walk a large one takes long.
const LAYER_AGE: i64 = 10_000_000_000;

/// What is remembered between two questions, by the id of a container or a sandbox.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    rates: Mutex<BTreeMap<String, Rate>>,
    layers: Mutex<BTreeMap<String, (i64, LayerUsage)>>,
}

/// What was read of a container.
#[derive(Debug)]
pub(crate) struct ContainerReading {
    record: ContainerRecord,
    /// Nanoseconds since 1970.
    at: i64,
    /// While it runs.
    usage: Option<Usage>,
    nano_cores: Option<u64>,
    /// Read for metrics only.
    descriptors: Descriptors,
    layer: LayerUsage,
}

/// What was read of a sandbox.
#[derive(Debug)]
pub(crate) struct SandboxReading {
    record: SandboxRecord,
    at: i64,
    usage: Option<Usage>,
    nano_cores: Option<u64>,
    /// None on the node's own network.
    interfaces: Option<Vec<Interface>>,
    containers: Vec<ContainerReading>,
}

impl Runtime {
    /// ContainerStats.
    pub(crate) async fn container_stats(self: &Arc<Self>, id: &str) -> Result<v1::ContainerStats, Error> {
        let container = self.index().container(id)?;
        self.blocking(move |runtime| {
            render::container(&runtime.read_container(&container), &runtime.image_mountpoint())
        })
        .await
    }

    /// ListContainerStats.
    pub(crate) async fn list_container_stats(
        self: &Arc<Self>,
        filter: v1::ContainerStatsFilter,
    ) -> Result<Vec<v1::ContainerStats>, Error> {
        let wanted = |record: &ContainerRecord| {
            matches_id(&record.id, &filter.id)
                && matches_id(&record.sandbox_id, &filter.pod_sandbox_id)
                && has_labels(&record.config.labels, &filter.label_selector)
        };
        let mut containers = self.index().containers();
        containers.retain(|container| wanted(&container.record()));
        self.blocking(move |runtime| {
            let mountpoint = runtime.image_mountpoint();
            let stats = |one: &Arc<Container>| render::container(&runtime.read_container(one), &mountpoint);
            containers.iter().map(stats).collect()
        })
        .await
    }

    /// PodSandboxStats.
    pub(crate) async fn sandbox_stats(self: &Arc<Self>, id: &str) -> Result<v1::PodSandboxStats, Error> {
        let sandbox = self.index().sandbox(id)?;
        self.blocking(move |runtime| {
            render::sandbox(&runtime.read_sandbox(&sandbox), &runtime.image_mountpoint())
        })
        .await
    }

    /// ListPodSandboxStats: of those that are ready.
    pub(crate) async fn list_sandbox_stats(
        self: &Arc<Self>,
        filter: v1::PodSandboxStatsFilter,
    ) -> Result<Vec<v1::PodSandboxStats>, Error> {
        let mut sandboxes = self.ready_sandboxes();
        sandboxes.retain(|sandbox| {
            matches_id(&sandbox.id, &filter.id)
                && has_labels(&sandbox.record().config.labels, &filter.label_selector)
        });
        self.blocking(move |runtime| {
            let mountpoint = runtime.image_mountpoint();
            sandboxes.iter().map(|one| render::sandbox(&runtime.read_sandbox(one), &mountpoint)).collect()
        })
        .await
    }

    /// ListPodSandboxMetrics: of those that are ready.
    pub(crate) async fn list_sandbox_metrics(self: &Arc<Self>) -> Result<Vec<v1::PodSandboxMetrics>, Error> {
        let sandboxes = self.ready_sandboxes();
        self.blocking(move |runtime| {
            let filesystem = metrics::Filesystem::of(&runtime.config.root);
            let metrics = |one: &Arc<Sandbox>| {
                let mut reading = runtime.read_sandbox(one);
                runtime.count_descriptors(&mut reading);
                metrics::sandbox(&reading, &filesystem)
            };
            sandboxes.iter().map(metrics).collect()
        })
        .await
    }

    /// Reads control files and walks layers off the threads that answer other calls.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let runtime = self.clone();
        let read = tokio::task::spawn_blocking(move || read(&runtime));
        read.await.map_err(|error| Error::WrongState(format!("reading statistics ended early: {error}")))
    }

    fn ready_sandboxes(&self) -> Vec<Arc<Sandbox>> {
        let mut sandboxes = self.index().sandboxes();
        sandboxes.retain(|sandbox| sandbox.record().phase == SandboxPhase::Ready);
        sandboxes
    }

    fn image_mountpoint(&self) -> String {
        self.images.usage().path.display().to_string()
    }

    fn read_container(&self, container: &Container) -> ContainerReading {
        let (record, at) = (container.record(), now_ns());
        let running = matches!(record.phase, ContainerPhase::Running { .. });
        let usage = running.then(|| self.read_cgroup(&record.cgroup)).flatten();
        let nano_cores = self.rate(&record.id, usage.as_ref(), at);
        let upper = self.config.layer(&record.id).join("upper");
        let layer = self.stats.layer(&record.id, at, || layer::measure(&upper));
        ContainerReading { record, at, usage, nano_cores, descriptors: Descriptors::default(), layer }
    }

    fn count_descriptors(&self, reading: &mut SandboxReading) {
        for container in &mut reading.containers {
            let cgroup = self.cgroups.open(&container.record.cgroup).ok();
            let pids = cgroup.and_then(|cgroup| cgroup.pids().ok()).unwrap_or_default();
            container.descriptors = Descriptors::of(&pids);
        }
    }

    fn read_sandbox(&self, sandbox: &Sandbox) -> SandboxReading {
        let (record, at) = (sandbox.record(), now_ns());
        let usage = self.read_cgroup(&record.cgroup_parent);
        let nano_cores = self.rate(&record.id, usage.as_ref(), at);
        let own_network = namespace_options(&record.config).network() != NamespaceMode::Node;
        let pid = record.supervisor.as_ref().filter(|_| own_network).map(|process| process.pid);
        let containers = self.index().containers_of(&record.id);
        SandboxReading {
            at,
            usage,
            nano_cores,
            interfaces: pid.map(network::read),
            containers: containers.iter().map(|container| self.read_container(container)).collect(),
            record,
        }
    }

    fn read_cgroup(&self, path: &str) -> Option<Usage> {
        self.cgroups.open(path).ok().filter(host::cgroup::Cgroup::exists).map(|cgroup| cgroup.usage())
    }

    fn rate(&self, id: &str, usage: Option<&Usage>, at: i64) -> Option<u64> {
        let cpu = usage?.cpu?.total;
        self.stats.sample(id, Sample { at, cpu })
    }

    /// Samples CPU time for as long as the runtime lives.
    pub(crate) fn start_sampling(self: &Arc<Self>) {
        let runtime = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SAMPLING);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(runtime) = runtime.upgrade() else { return };
                let sampled = runtime.blocking(|runtime| runtime.sample_all()).await;
                sampled.unwrap_or_else(|error| tracing::warn!(%error, "CPU use is not known"));
            }
        });
    }

    fn sample_all(&self) {
        let mut groups: BTreeMap<String, String> = BTreeMap::new();
        for sandbox in self.ready_sandboxes() {
            groups.insert(sandbox.id.clone(), sandbox.record().cgroup_parent);
        }
        for container in self.index().containers() {
            groups.insert(container.id.clone(), container.record().cgroup);
        }
        self.stats.keep(|id| groups.contains_key(id));
        for (id, path) in groups {
            let cpu = self.cgroups.open(&path).ok().and_then(|cgroup| cgroup.cpu_usage());
            if let Some(cpu) = cpu {
                self.stats.sample(&id, Sample { at: now_ns(), cpu: cpu.total });
            }
        }
    }
}

impl Stats {
    /// Adds a sample; gives the rate.
    fn sample(&self, id: &str, sample: Sample) -> Option<u64> {
        let mut rates = lock(&self.rates);
        let rate = rates.get(id).copied().unwrap_or_default().with(sample);
        rates.insert(id.to_owned(), rate);
        rate.nano_cores()
    }

    /// The size of a layer, measured again when it is too old.
    fn layer(&self, id: &str, at: i64, measure: impl FnOnce() -> LayerUsage) -> LayerUsage {
        let known = lock(&self.layers).get(id).copied();
        if let Some((then, usage)) = known
            && (0..LAYER_AGE).contains(&(at - then))
        {
            return usage;
        }
        let usage = measure();
        lock(&self.layers).insert(id.to_owned(), (at, usage));
        usage
    }

    /// Forgets what is gone.
    fn keep(&self, wanted: impl Fn(&str) -> bool) {
        lock(&self.rates).retain(|id, _| wanted(id));
        lock(&self.layers).retain(|id, _| wanted(id));
    }
}

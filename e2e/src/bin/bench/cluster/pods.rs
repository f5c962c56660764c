//! Pods made at once on one node: when each is Ready, and when all are gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::cluster::Cluster;
use e2e::cluster::images::BUSYBOX;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::api::with_client;
use crate::measure::now;

/// How long a batch may take for each of its steps.
const PATIENCE: Duration = Duration::from_secs(180);
const NAMESPACE: &str = "default";

/// What to run.
pub(super) struct Batch {
    node: String,
    name: String,
    count: usize,
    probe: Value,
}

/// What was seen by a watch.
pub(super) struct Times {
    /// From a pod's create to its Ready, each.
    pub(super) ready: Vec<Duration>,
    /// From the first create to the last Ready.
    pub(super) last_ready: Duration,
    /// From the first delete until no object is left.
    pub(super) all_gone: Duration,
}

impl Batch {
    /// That many pods without probes, of a name that nothing else has.
    pub(super) fn new(node: &str, count: usize) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("bench-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Self { node: node.to_owned(), name, count, probe: Value::Null }
    }

    /// The same with a liveness probe.
    pub(super) fn with_probe(self, probe: Value) -> Self {
        Self { probe, ..self }
    }

    /// A process that ends on SIGTERM, as servers do.
    fn pod(&self, number: usize) -> Result<Pod> {
        let mut container = json!({
            "name": "main", "image": BUSYBOX,
            "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"],
        });
        if !self.probe.is_null() {
            container["livenessProbe"] = self.probe.clone();
        }
        let pod = json!({
            "metadata": { "name": format!("{}-{number}", self.name), "labels": { "bench": self.name } },
            "spec": {
                "nodeSelector": { "kubernetes.io/hostname": self.node },
                "containers": [container],
            },
        });
        serde_json::from_value(pod).context("a pod")
    }
}

/// Makes the pods, waits until they are Ready, deletes them, waits until they are gone.
pub(super) fn run(cluster: &Cluster, batch: &Batch) -> Result<Times> {
    with_client(cluster, async |client| {
        let (ready, last_ready) = create(client.clone(), batch).await?;
        let all_gone = delete(client, batch).await?;
        Ok(Times { ready, last_ready, all_gone })
    })
}

/// Makes the pods, lets `work` be done while they run, and deletes them.
pub(super) fn while_running<T>(
    cluster: &Cluster,
    batch: &Batch,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    with_client(cluster, async |client| create(client, batch).await)?;
    let done = work();
    with_client(cluster, async |client| delete(client, batch).await)?;
    done
}

async fn create(client: Client, batch: &Batch) -> Result<(Vec<Duration>, Duration)> {
    let api: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let pods = (0..batch.count).map(|number| batch.pod(number)).collect::<Result<Vec<_>>>()?;
    let mut events = Events::of(&api, batch).await?;
    let begun = now();
    let create_one = async |pod: &Pod| {
        let created = now();
        api.create(&PostParams::default(), pod).await.map(|pod| (pod.name_any(), created))
    };
    let creating = futures::future::try_join_all(pods.iter().map(create_one));
    let watching = ready(&mut events, batch.count);
    let both = async { tokio::try_join!(async { creating.await.map_err(Into::into) }, watching) };
    let (created, seen) = bounded("Ready", batch, both).await?;
    let of = |(name, created): (String, Instant)| seen.get(&name).map(|seen| seen.duration_since(created));
    let each: Vec<Duration> = created.into_iter().filter_map(of).collect();
    let last = seen.values().max().context("a pod")?.duration_since(begun);
    Ok((each, last))
}

async fn ready(events: &mut Events<'_>, count: usize) -> Result<BTreeMap<String, Instant>> {
    let mut seen = BTreeMap::new();
    while seen.len() < count {
        match events.next().await? {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) if is_ready(&pod) => {
                seen.entry(pod.name_any()).or_insert_with(now);
            }
            _ => {}
        }
    }
    Ok(seen)
}

/// What becomes of a batch's pods. The API server ends a watch when it likes: it goes on where it was.
struct Events<'a> {
    api: &'a Api<Pod>,
    params: WatchParams,
    version: String,
    stream: BoxStream<'static, kube::Result<WatchEvent<Pod>>>,
}

impl<'a> Events<'a> {
    async fn of(api: &'a Api<Pod>, batch: &Batch) -> Result<Self> {
        let params = WatchParams::default().labels(&format!("bench={}", batch.name));
        let version = "0".to_owned();
        let stream = Box::pin(api.watch(&params, &version).await?);
        Ok(Self { api, params, version, stream })
    }

    async fn next(&mut self) -> Result<WatchEvent<Pod>> {
        loop {
            match self.stream.try_next().await? {
                Some(WatchEvent::Error(status)) => bail!("the watch broke: {status:?}"),
                Some(event) => {
                    if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) =
                        &event
                        && let Some(version) = pod.resource_version()
                    {
                        self.version = version;
                    }
                    return Ok(event);
                }
                None => self.stream = Box::pin(self.api.watch(&self.params, &self.version).await?),
            }
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn delete(client: Client, batch: &Batch) -> Result<Duration> {
    let api: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let mut events = Events::of(&api, batch).await?;
    let begun = now();
    let delete_one = async |number: usize| {
        let name = format!("{}-{number}", batch.name);
        api.delete(&name, &DeleteParams::default()).await.map(drop)
    };
    let deleting = futures::future::try_join_all((0..batch.count).map(delete_one));
    let watching = async {
        let mut left = batch.count;
        while left > 0 {
            if let WatchEvent::Deleted(_) = events.next().await? {
                left -= 1;
            }
        }
        Ok(begun.elapsed())
    };
    let both = async { tokio::try_join!(async { deleting.await.map_err(Into::into) }, watching) };
    bounded("gone", batch, both).await.map(|(_, gone)| gone)
}

async fn bounded<T>(what: &str, batch: &Batch, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Batch { count, node, .. } = batch;
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.with_context(|| format!("{count} pods on {node} were not {what} after {PATIENCE:?}"))?
}

//! Benchmarks of whole nodes: one control plane, `podwright agent` and the stock kubelet with containerd and kube-proxy as
//! nodes of it, and a hollow node that reports every pod Ready at once, which shows what of the time is the control plane's.

mod api;
mod hollow;
mod node_memory;
mod pods;
mod probe_cpu;

use anyhow::{Context, Result};
use e2e::cluster::{Cluster, ClusterNode, NodeKind};

use crate::measure::Row;
use hollow::Hollow;
use pods::Batch;

const PEER: &str = "kubelet 1.36 + containerd 2.4 + runc 1.5 + kube-proxy";

/// The two sides.
pub(crate) struct Sides {
    ours: ClusterNode,
    theirs: ClusterNode,
    cluster: Cluster,
}

impl Sides {
    /// Starts the cluster with both nodes, and runs one pod on each, so that the image is there.
    pub(crate) fn start() -> Result<Self> {
        let cluster = Cluster::start()?;
        let ours = cluster.node(NodeKind::Podwright, "ours")?;
        let theirs = cluster.node(NodeKind::Stock, "theirs")?;
        let sides = Self { ours, theirs, cluster };
        for node in sides.nodes() {
            pods::run(&sides.cluster, &Batch::new(node.name(), 1)).context("pull the image")?;
        }
        Ok(sides)
    }

    fn nodes(&self) -> [&ClusterNode; 2] {
        [&self.ours, &self.theirs]
    }

    /// Rows `pod-ready` and `pod-ready-net`: one pod after the other, the sides in turn.
    pub(crate) fn pod_ready(&self, n: usize) -> Result<Vec<Row>> {
        let _hollow = Hollow::start(&self.cluster)?;
        let names = [self.ours.name(), self.theirs.name(), hollow::NAME];
        let mut samples = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..n {
            for (name, samples) in names.into_iter().zip(&mut samples) {
                let times = pods::run(&self.cluster, &Batch::new(name, 1))?;
                samples.extend(times.ready);
            }
        }
        let [ours, theirs, hollow] = samples;
        let whole = Row::of_medians("pod-ready", PEER, &ours, &theirs);
        let floor = Row::of_medians("pod-ready", "a hollow node", &ours, &hollow).peer_value;
        let net = Row {
            bench: "pod-ready-net",
            ours: whole.ours - floor,
            peer_value: whole.peer_value - floor,
            ..whole
        };
        let hollow = Row { bench: "pod-ready-floor", peer: "a hollow node", peer_value: floor, ..whole };
        Ok(vec![whole, net, hollow])
    }

    /// Rows for that many pods at once: `pod-ready-N` (median), `pod-ready-N-last`, `pod-delete-N`; medians of three rounds.
    pub(crate) fn many(&self, count: usize, benches: [&'static str; 3]) -> Result<Vec<Row>> {
        let mut sides = [(); 2].map(|()| [const { Vec::new() }; 3]);
        for _ in 0..3 {
            for (node, samples) in self.nodes().into_iter().zip(&mut sides) {
                let times = pods::run(&self.cluster, &Batch::new(node.name(), count))?;
                samples[0].extend(&times.ready);
                samples[1].push(times.last_ready);
                samples[2].push(times.all_gone);
            }
        }
        let [ours, theirs] = sides;
        let rows = benches.into_iter().zip(ours.iter().zip(&theirs));
        Ok(rows.map(|(bench, (ours, theirs))| Row::of_medians(bench, PEER, ours, theirs)).collect())
    }

    /// Rows `node-memory-20` and `node-memory-100`.
    pub(crate) fn node_memory(&self) -> Result<Vec<Row>> {
        [(20, "node-memory-20"), (100, "node-memory-100")]
            .into_iter()
            .map(|(count, bench)| node_memory::with_pods(self, count, bench))
            .collect()
    }

    /// Row `probe-cpu`.
    pub(crate) fn probe_cpu(&self) -> Result<Row> {
        probe_cpu::of_exec(self, 20)
    }
}

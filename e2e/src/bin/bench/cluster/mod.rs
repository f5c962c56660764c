//! Benchmarks of whole nodes: one control plane, `podwright agent` and the stock kubelet with containerd and kube-proxy as
//! nodes of it, and a hollow node that reports every pod Ready at once, which shows what of the time is the control plane's.

mod api;
mod hollow;
mod node_memory;
mod node_ready;
mod pods;
mod probe_cpu;

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::cluster::{Cluster, ClusterNode, NodeKind};

use crate::measure::Row;
use hollow::Hollow;
use pods::Batch;

const PEER: &str = "kubelet 1.36 + containerd 2.4 + runc 1.5 + kube-proxy";

/// Names of rows: the whole, without the control plane's part, and that part.
pub(crate) type Names = [&'static str; 3];

/// One pod at a time.
const READY: Names = ["pod-ready", "pod-ready-net", "pod-ready-floor"];

/// Names of the rows of many pods at once.
pub(crate) struct Many {
    ready: Names,
    last: Names,
    gone: &'static str,
}

/// 20 at once.
pub(crate) const TWENTY: Many = Many {
    ready: ["pod-ready-20", "pod-ready-20-net", "pod-ready-20-floor"],
    last: ["pod-ready-20-last", "pod-ready-20-last-net", "pod-ready-20-last-floor"],
    gone: "pod-delete-20",
};

/// 100 at once.
pub(crate) const HUNDRED: Many = Many {
    ready: ["pod-ready-100", "pod-ready-100-net", "pod-ready-100-floor"],
    last: ["pod-ready-100-last", "pod-ready-100-last-net", "pod-ready-100-last-floor"],
    gone: "pod-delete-100",
};

/// The same measured on our node, theirs and the hollow one.
type Samples = [Vec<Duration>; 3];

fn rows([ours, theirs, hollow]: &Samples, [whole, net, floor]: &Names) -> [Row; 3] {
    let both = Row::of_medians(whole, PEER, ours, theirs);
    let floor = Row::of_medians(floor, "a hollow node", ours, hollow);
    let part = floor.peer_value;
    [both, Row { bench: net, ours: both.ours - part, peer_value: both.peer_value - part, ..both }, floor]
}

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

    /// Rows `pod-ready` and what of it is the control plane's: one pod after the other, the sides in turn.
    pub(crate) fn pod_ready(&self, n: usize) -> Result<Vec<Row>> {
        let [ready, _, _] = self.in_turn(n, 1)?;
        Ok(rows(&ready, &READY).into())
    }

    /// Rows for that many pods at once, and what of the first two is the control plane's: when each is Ready, when the
    /// last one is, when all are gone; medians of three rounds.
    pub(crate) fn many(&self, count: usize, benches: &Many) -> Result<Vec<Row>> {
        let [ready, last, [ours, theirs, _]] = self.in_turn(3, count)?;
        let mut all = Vec::from(rows(&ready, &benches.ready));
        all.extend(rows(&last, &benches.last));
        all.push(Row::of_medians(benches.gone, PEER, &ours, &theirs));
        Ok(all)
    }

    /// Each Ready, the last Ready, all gone.
    fn in_turn(&self, rounds: usize, count: usize) -> Result<[Samples; 3]> {
        let _hollow = Hollow::start(&self.cluster)?;
        let [mut ready, mut last, mut gone] = [(); 3].map(|()| Samples::default());
        for _ in 0..rounds {
            for (side, name) in [self.ours.name(), self.theirs.name(), hollow::NAME].into_iter().enumerate() {
                let times = pods::run(&self.cluster, &Batch::new(name, count))?;
                ready[side].extend(times.ready);
                last[side].push(times.last_ready);
                gone[side].push(times.all_gone);
                // The scheduler binds 100 pods at once and then 50 in a second, also after a pause that was too short for it: the next
                // side would measure that.
                std::thread::sleep(Duration::from_secs_f64(count as f64 / 25.0));
            }
        }
        Ok([ready, last, gone])
    }

    /// Row `node-ready`.
    pub(crate) fn node_ready(&self) -> Result<Row> {
        node_ready::of_starts(self, 5)
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

//! What an exec probe costs: CPU time of the whole machine with a probe each second in every pod, less the same without.

use std::time::Duration;

use anyhow::Result;
use e2e::cluster::ClusterNode;
use serde_json::json;

use super::pods::{self, Batch};
use super::{PEER, Sides};
use crate::measure::{Row, machine_ticks};
use crate::memory;

const WINDOW: Duration = Duration::from_secs(30);
/// Milliseconds in one tick of /proc/stat.
const TICK: f64 = 10.0;

/// Row `probe-cpu`: milliseconds of CPU for each probe that is due.
pub(super) fn of_exec(sides: &Sides, count: usize) -> Result<Row> {
    let due = count as f64 * WINDOW.as_secs_f64();
    let mut cost = [0.0; 2];
    for (node, cost) in sides.nodes().into_iter().zip(&mut cost) {
        let (without, with) = (spent(sides, node, count, false)?, spent(sides, node, count, true)?);
        *cost = (with - without) * TICK / due;
    }
    let [ours, theirs] = cost;
    Ok(Row { bench: "probe-cpu", unit: "ms", ours, peer: PEER, peer_value: theirs, n: due as usize })
}

/// Ticks of all cores in the window.
fn spent(sides: &Sides, node: &ClusterNode, count: usize, probed: bool) -> Result<f64> {
    let mut batch = Batch::new(node.name(), count);
    if probed {
        batch = batch.with_probe(json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 }));
    }
    pods::while_running(&sides.cluster, &batch, || {
        memory::settle();
        let before = machine_ticks()?;
        std::thread::sleep(WINDOW);
        Ok((machine_ticks()? - before) as f64)
    })
}

//! Memory of everything on a node but the workload: the proportional share of each process.

use anyhow::{Result, ensure};
use e2e::cluster::ClusterNode;

use super::pods::{self, Batch};
use super::{PEER, Sides};
use crate::measure::Row;
use crate::memory;

/// What is inside containers and is the runtime's nevertheless.
const PAUSE: &str = "pause";
/// The shell that holds a machine of the lab.
const HOLDER: &str = "bash";

/// The row of that many pods.
pub(super) fn with_pods(sides: &Sides, count: usize, bench: &'static str) -> Result<Row> {
    let mut measured = [0; 2];
    for (node, bytes) in sides.nodes().into_iter().zip(&mut measured) {
        let batch = Batch::new(node.name(), count);
        *bytes = pods::while_running(&sides.cluster, &batch, || {
            memory::settle();
            memory_of(node, count)
        })?;
    }
    let [ours, theirs] = measured.map(|bytes| bytes as f64 / memory::MIB);
    Ok(Row { bench, unit: "MiB", ours, peer: PEER, peer_value: theirs, n: 1 })
}

fn memory_of(node: &ClusterNode, count: usize) -> Result<u64> {
    let machine = namespace_of(node.machine.host.pid());
    let network = format!("/{}/", node.machine.cgroup.trim_matches('/'));
    let belongs = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        match name.trim_end() {
            HOLDER => false,
            PAUSE => cgroups.contains(&network),
            _ => namespace_of(*pid) == machine,
        }
    };
    let processes: Vec<u32> = memory::all_processes().filter(belongs).collect();
    ensure!(processes.len() > count, "only {} processes hold {count} pods", processes.len());
    memory::memory_of(&processes)
}

/// The process namespace: containers have their own.
fn namespace_of(pid: u32) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

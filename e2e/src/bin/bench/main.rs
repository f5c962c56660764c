//! Benchmarks of podwright against its peers, both in one run, sample by sample in turn, as ratios.
//!
//! A sample counts only if both sides did the same work: the container itself reports how it is confined and limited, its
//! first log line was written, and its address answers. Between samples the kernel's deferred work of the other side is
//! awaited, untimed. Called by `hack/bench.sh`.

mod cluster;
mod cri_pods;
mod disk;
mod exec_sync;
mod measure;
mod memory;
mod oci_run;
mod pull;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use measure::Row;

/// Name, and what it compares.
const BENCHES: [(&str, &str); 15] = [
    ("oci-run", "`oci run` of `true` with memory, cpu and pids limits, against runc"),
    ("oci-run-crun", "the same against crun"),
    (
        "cri-start",
        "RunPodSandbox + CreateContainer + StartContainer, image present, against containerd + runc",
    ),
    ("cri-stop", "StopContainer + StopPodSandbox + RemovePodSandbox, against containerd + runc"),
    (
        "cycle",
        "ms per start + stop cycle, sustained for 30 s, deferred work included, against containerd + runc",
    ),
    (
        "memory",
        "PSS of the runtime's processes, memfds included, with 0 and 50 pods, against containerd + shims",
    ),
    ("exec-sync", "latency and CPU time of ExecSync of `true`, against containerd + runc"),
    (
        "pull",
        "PullImage of 300 MB, over 10,000 files, in six layers (gzip, zstd), unpacked, from a registry on the loopback, against containerd",
    ),
    (
        "pod-ready",
        "create to Ready as a watch sees it, one pod at a time, against the stock kubelet; also without the control plane's share",
    ),
    ("pod-ready-20", "the same for 20 pods at once: median, and the last one"),
    ("pod-ready-100", "the same for 100 pods at once"),
    (
        "pod-delete-20",
        "delete of 20 pods that end on SIGTERM, until no object is left, against the stock kubelet",
    ),
    ("node-ready", "start of a node's agent to the node Ready, against the stock kubelet"),
    (
        "node-memory",
        "PSS of everything on a node but the workload, with 20 and 100 pods, against kubelet + containerd + shims + kube-proxy",
    ),
    (
        "probe-cpu",
        "CPU time of the whole machine for each exec probe, 20 pods with one each second, against the stock kubelet",
    ),
];

/// Those that need a cluster.
const OF_CLUSTERS: [&str; 7] =
    ["pod-ready", "pod-ready-20", "pod-ready-100", "pod-delete-20", "node-ready", "node-memory", "probe-cpu"];

fn main() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let mut rows = Vec::new();
    if arguments.wants("oci-run") {
        rows.push(oci_run::against_runc(50)?);
    }
    if arguments.wants("oci-run-crun") {
        rows.push(oci_run::against_crun(50)?);
    }
    if arguments.wants("cri-start") || arguments.wants("cri-stop") {
        let measured = cri_pods::start_and_stop(30)?;
        rows.extend(measured.into_iter().filter(|row| arguments.wants(row.bench)));
    }
    if arguments.wants("cycle") {
        rows.push(cri_pods::cycle()?);
    }
    if arguments.wants("memory") {
        rows.extend(memory::with_pods(50)?);
    }
    if arguments.wants("exec-sync") {
        rows.extend(exec_sync::of_true(500)?);
    }
    if arguments.wants("pull") {
        rows.push(pull::pull(5)?);
    }
    if OF_CLUSTERS.iter().any(|bench| arguments.wants(bench)) {
        rows.extend(of_clusters(&arguments)?);
    }
    print(&rows)?;
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows.iter().copied().map(Row::to_json).collect::<Vec<_>>())?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn of_clusters(arguments: &Arguments) -> Result<Vec<Row>> {
    // Rounds make and delete thousands of files: see the disk.
    let _disk = disk::Disk::for_machines()?;
    let sides = cluster::Sides::start()?;
    let mut rows = Vec::new();
    if arguments.wants("pod-ready") {
        rows.extend(sides.pod_ready(20)?);
    }
    if arguments.wants("pod-ready-20") || arguments.wants("pod-delete-20") {
        rows.extend(sides.many(20, &cluster::TWENTY)?);
    }
    if arguments.wants("pod-ready-100") {
        rows.extend(sides.many(100, &cluster::HUNDRED)?);
    }
    if arguments.wants("node-ready") {
        rows.push(sides.node_ready()?);
    }
    if arguments.wants("node-memory") {
        rows.extend(sides.node_memory()?);
    }
    if arguments.wants("probe-cpu") {
        rows.push(sides.probe_cpu()?);
    }
    Ok(rows)
}

struct Arguments {
    names: Vec<String>,
    json: Option<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self { names: Vec::new(), json: None };
        while let Some(word) = words.next() {
            if word == "--json" {
                parsed.json = Some(words.next().context("--json takes a file")?.into());
            } else if BENCHES.iter().any(|(name, _)| *name == word) {
                parsed.names.push(word);
            } else {
                let known: Vec<String> =
                    BENCHES.iter().map(|(name, what)| format!("  {name}: {what}")).collect();
                bail!("no benchmark is named {word:?}; there are\n{}", known.join("\n"));
            }
        }
        Ok(parsed)
    }

    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }
}

#[expect(clippy::print_stdout, reason = "the result of the program")]
fn print(rows: &[Row]) -> Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg").context("read the load")?;
    println!("load: {}", load.trim());
    println!("{:<24} {:>10} {:>10} {:>8} {:>4}  peer", "bench", "ours", "peer", "ratio", "n");
    for row in rows {
        println!(
            "{:<24} {:>7.2} {} {:>7.2} {} {:>7.1}x {:>4}  {}",
            row.bench,
            row.ours,
            row.unit,
            row.peer_value,
            row.unit,
            row.ratio(),
            row.n,
            row.peer
        );
    }
    Ok(())
}

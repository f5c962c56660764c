//! Pods over CRI: start, stop, and cycles of both, on podwright and on containerd with runc, each on a host of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cri::v1::{
    ContainerConfig, PodSandboxConfig, PodSandboxStatusRequest, RemovePodSandboxRequest,
    StopPodSandboxRequest,
};
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{self, Runtime};

use crate::measure::{Row, network_namespaces, settle, timed};

const PEER: &str = "containerd 2.4 + runc 1.5";

/// Once it would end on SIGTERM, the first thing that the container does is to tell how it is confined; then it waits.
const WORKLOAD: &str = "trap 'exit 0' TERM; echo $(grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapInh|CapPrm):' /proc/self/status | tr '\\n\\t' '  ') nofile $(ulimit -n) \
 memory $(cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null) \
 cpu $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu.max 2>/dev/null) \
 masked $(cat /proc/keys /proc/timer_list 2>/dev/null | wc -c) ro $(mount | grep -c '/proc/.*(ro') dev $(ls /dev | tr '\\n' ' '); \
 while :; do sleep 1000 & wait; done";

/// One side: its server and a client with a runtime of its own.
struct Side {
    server: CriServer,
    tokio: tokio::runtime::Runtime,
    client: Runtime,
}

/// A started pod.
struct Pod {
    config: PodSandboxConfig,
    sandbox: String,
    container_config: ContainerConfig,
    container: String,
}

impl Pod {
    /// Waits for the container's first log line: from then on it ends on SIGTERM.
    fn first_line(&self) -> Result<String> {
        let log = Path::new(&self.config.log_directory).join(&self.container_config.log_path);
        for _ in 0..60_000 {
            if let Some(text) = std::fs::read_to_string(&log).ok().filter(|text| text.ends_with('\n')) {
                return Ok(text);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        bail!("no line came into {} within 30 s", log.display())
    }
}

impl Side {
    fn new(implementation: Implementation) -> Result<Self> {
        let server = CriServer::start(implementation)?;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = tokio.block_on(server.clients())?.0;
        Ok(Self { server, tokio, client })
    }

    /// Requests are prepared before the clock starts.
    fn prepare(&self, name: &str) -> Result<Pod> {
        let config = requests::pod(self.server.host.path(), name);
        std::fs::create_dir_all(&config.log_directory)?;
        let container_config = requests::container("main", &["/bin/sh", "-c", WORKLOAD]);
        Ok(Pod { config, sandbox: String::new(), container_config, container: String::new() })
    }

    fn start(&mut self, pod: &mut Pod) -> Result<()> {
        let client = &mut self.client;
        self.tokio.block_on(async {
            pod.sandbox = requests::run_pod(client, &pod.config).await?;
            pod.container =
                requests::create(client, &pod.sandbox, &pod.config, &pod.container_config).await?;
            requests::start(client, &pod.container).await
        })
    }

    /// The container's own report, after checking that its address answers from the node.
    fn report(&mut self, pod: &Pod) -> Result<String> {
        let line = pod.first_line()?;
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.sandbox.clone(), verbose: false };
        let client = &mut self.client;
        let status = self
            .tokio
            .block_on(client.pod_sandbox_status(request))?
            .into_inner()
            .status
            .context("a status")?;
        let ip = status.network.context("a network")?.ip;
        self.server
            .host
            .run("/bin/busybox", &["ping", "-c", "1", "-w", "5", &ip])
            .context("reach the pod")?;
        let report = line.splitn(4, ' ').nth(3).context("a log line in the CRI format")?;
        Ok(report.to_owned())
    }

    fn stop(&mut self, pod: &Pod) -> Result<()> {
        let client = &mut self.client;
        self.tokio.block_on(async {
            requests::stop(client, &pod.container, 30).await?;
            client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() }).await?;
            client
                .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() })
                .await?;
            Ok(())
        })
    }
}

/// Rows `cri-start` and `cri-stop`.
pub(crate) fn start_and_stop(n: usize) -> Result<Vec<Row>> {
    let mut sides = [Side::new(Implementation::Podwright)?, Side::new(Implementation::Containerd)?];
    let baseline = network_namespaces();
    let mut starts = [Vec::new(), Vec::new()];
    let mut stops = [Vec::new(), Vec::new()];
    for sample in 0..n + 2 {
        let mut reports = Vec::new();
        for (side, (starts, stops)) in sides.iter_mut().zip(starts.iter_mut().zip(stops.iter_mut())) {
            settle(baseline);
            let mut pod = side.prepare(&format!("pod-{sample}"))?;
            let (start, ()) = timed(|| side.start(&mut pod))?;
            reports.push(side.report(&pod)?);
            let (stop, ()) = timed(|| side.stop(&pod))?;
            // The first ones warm the caches.
            if sample >= 2 {
                starts.push(start);
                stops.push(stop);
            }
        }
        ensure!(
            reports[0] == reports[1],
            "not the same work:\n--- ours\n{}--- {PEER}\n{}",
            reports[0],
            reports[1]
        );
    }
    settle(baseline);
    Ok(vec![
        Row::of_medians("cri-start", PEER, &starts[0], &starts[1]),
        Row::of_medians("cri-stop", PEER, &stops[0], &stops[1]),
    ])
}

/// Row `cycle`: the mean over 30 s of cycles (start, first log line, stop) one after the other, the last one's deferred work awaited
/// inside the time.
pub(crate) fn cycle() -> Result<Row> {
    let mut means = Vec::new();
    let mut count = 0;
    for implementation in [Implementation::Podwright, Implementation::Containerd] {
        let mut side = Side::new(implementation)?;
        let baseline = network_namespaces();
        let mut cycles = 0_u32;
        let (elapsed, ()) = timed(|| {
            let mut spent = Duration::ZERO;
            while spent < Duration::from_secs(30) {
                let mut pod = side.prepare(&format!("cycle-{cycles}"))?;
                let (one, ()) = timed(|| {
                    side.start(&mut pod)?;
                    pod.first_line()?;
                    side.stop(&pod)
                })?;
                spent += one;
                cycles += 1;
            }
            settle(baseline);
            Ok(())
        })?;
        means.push(elapsed.as_secs_f64() * 1e3 / f64::from(cycles));
        count = count.max(cycles as usize);
    }
    Ok(Row { bench: "cycle", unit: "ms", ours: means[0], peer: PEER, peer_value: means[1], n: count })
}

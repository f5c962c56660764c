//! ExecSync of `true` in a running container: how long one takes, and how much CPU time of the whole machine it costs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{self, Runtime};

use crate::measure::{Row, machine_ticks, now};

const PEER: &str = "containerd 2.4 + runc 1.5";
/// Sides take turns after so many.
const TURN: usize = 25;

struct Side {
    /// Dropped last: it ends the server.
    _server: CriServer,
    client: Runtime,
    container: String,
    latencies: Vec<Duration>,
    cpu_ticks: u64,
}

/// Rows `exec-sync` and `exec-sync-cpu`.
pub(crate) fn of_true(n: usize) -> Result<Vec<Row>> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut sides = [Implementation::Podwright, Implementation::Containerd]
        .into_iter()
        .map(|implementation| tokio.block_on(Side::new(implementation)))
        .collect::<Result<Vec<_>>>()?;
    // The first turn warms the caches.
    for turn in 0..=n / TURN {
        for side in &mut sides {
            tokio.block_on(side.turn())?;
            if turn == 0 {
                side.latencies.clear();
                side.cpu_ticks = 0;
            }
        }
    }
    let cpu = |side: &Side| side.cpu_ticks as f64 * 10.0 / side.latencies.len() as f64;
    let [ours, theirs] = sides.as_slice() else { unreachable!("there are two sides") };
    Ok(vec![
        Row::of_medians("exec-sync", PEER, &ours.latencies, &theirs.latencies),
        Row {
            bench: "exec-sync-cpu",
            unit: "ms",
            ours: cpu(ours),
            peer: PEER,
            peer_value: cpu(theirs),
            n: ours.latencies.len(),
        },
    ])
}

impl Side {
    async fn new(implementation: Implementation) -> Result<Self> {
        let server = CriServer::start(implementation)?;
        let mut client = server.clients().await?.0;
        let pod = requests::pod(server.host.path(), "exec");
        let sandbox = requests::run_pod(&mut client, &pod).await?;
        let mut config = requests::container("main", &["sleep", "100000"]);
        // What is measured is the runtime's work, not the container's quota.
        let linux = config.linux.as_mut().context("a Linux container")?;
        linux.resources.get_or_insert_default().cpu_quota = 0;
        let container = requests::create(&mut client, &sandbox, &pod, &config).await?;
        requests::start(&mut client, &container).await?;
        Ok(Self { _server: server, client, container, latencies: Vec::new(), cpu_ticks: 0 })
    }

    async fn turn(&mut self) -> Result<()> {
        let before = machine_ticks()?;
        for _ in 0..TURN {
            let start = now();
            let done = requests::exec(&mut self.client, &self.container, &["/bin/true"]).await?;
            self.latencies.push(start.elapsed());
            ensure!(done.exit_code == 0, "true ended with {}", done.exit_code);
        }
        self.cpu_ticks += machine_ticks()? - before;
        Ok(())
    }
}

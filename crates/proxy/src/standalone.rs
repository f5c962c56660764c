//! The loop of a standalone node: manifests and its own ready pods become Services with addresses that it gives out.

use std::path::PathBuf;
use std::sync::Arc;

use hostnet::chain;
use hostnet::netfilter::WriterHandle;
use ipnet::IpNet;
use manifest::Loaded;
use tokio::sync::watch;

use crate::program::{Programmer, Surroundings};
use crate::report::{Problem, ProxyReport};
use crate::run::{Config, LocalPod, Outcome, ProxyError, Retry};
use crate::source::{self, Allocations, Ranges};

/// Where a standalone node's Services come from, and what it gives them.
#[derive(Clone, Debug)]
pub struct Manifests {
    /// The Services of manifests.
    pub desired: watch::Receiver<Arc<Loaded>>,
    /// The node's pods.
    pub pods: watch::Receiver<Arc<Vec<LocalPod>>>,
    /// The addresses of Services: one range, or one of each family. The first one's family is preferred.
    pub service_cidrs: Vec<IpNet>,
    /// The addresses of pods, at most one range of each family: what comes from elsewhere is masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// Where allocations are written down.
    pub state_file: PathBuf,
}

/// Serves manifests until `stop`.
pub(crate) async fn run(
    config: Config,
    source: Manifests,
    writer: WriterHandle,
    report: watch::Sender<Arc<ProxyReport>>,
    stop: impl Future<Output = ()>,
) -> Result<(), ProxyError> {
    let (mut desired, mut pods) = (source.desired.clone(), source.pods.clone());
    let mut shell = Shell::open(config, source, writer)?;
    let mut retry = Retry::default();
    tokio::pin!(stop);
    loop {
        let (loaded, local) = (desired.borrow_and_update().clone(), pods.borrow_and_update().clone());
        let (now, outcome) = shell.round(&loaded, &local).await;
        tell(&report, now);
        retry.note(outcome);
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            changed = desired.changed() => changed.map_err(|_| ProxyError::SourceEnded)?,
            changed = pods.changed() => changed.map_err(|_| ProxyError::SourceEnded)?,
            () = retry.due() => {}
        }
    }
}

/// What is known between rounds.
struct Shell {
    config: Config,
    ranges: Ranges,
    around: Surroundings,
    state_file: PathBuf,
    allocations: Allocations,
    /// What the file says; without one nothing was ever served here.
    recorded: Option<Allocations>,
    programmer: Programmer,
}

impl Shell {
    fn open(config: Config, source: Manifests, writer: WriterHandle) -> Result<Self, ProxyError> {
        let state_file = source.state_file;
        let fail = |source| ProxyError::ReadState { path: state_file.clone(), source };
        let recorded = source::read(&state_file).map_err(fail)?;
        Ok(Self {
            allocations: recorded.clone().unwrap_or_default(),
            recorded,
            state_file,
            ranges: Ranges {
                service_cidrs: source.service_cidrs.clone(),
                node_ports: config.node_port_range.clone(),
            },
            around: Surroundings {
                service_cidrs: source.service_cidrs,
                pod_cidrs: source.pod_cidrs,
                node_addresses: Vec::new(),
            },
            programmer: Programmer::new(writer, config.node_port_range.clone()),
            config,
        })
    }

    /// Plans, records, programs.
    async fn round(&mut self, loaded: &Loaded, pods: &[LocalPod]) -> (ProxyReport, Outcome) {
        let services = &loaded.objects.services;
        let plan = source::plan(services, pods, &self.allocations, &self.ranges, &self.config.node_name);
        let mut report = plan.report;
        self.allocations = plan.allocations;
        let mut outcome = Outcome::Done;
        let mut failed = |message: String| {
            report.problems.push(Problem { service: None, field: None, message });
            outcome = Outcome::Retry;
        };
        // Recorded before it is used: after a crash no Service moves.
        if let Err(error) = self.record().await {
            failed(format!("the allocated addresses are not recorded: {}", chain(&error)));
        }
        if let Err(message) = self.programmer.serve(&plan.services, &self.around).await {
            failed(message);
        }
        (report, outcome)
    }

    async fn record(&mut self) -> std::io::Result<()> {
        if self.recorded.as_ref() == Some(&self.allocations) {
            return Ok(());
        }
        let (path, allocations) = (self.state_file.clone(), self.allocations.clone());
        let work =
            tokio::task::spawn_blocking(move || source::write(&path, &allocations).map(|()| allocations));
        self.recorded = Some(work.await.map_err(std::io::Error::other)??);
        Ok(())
    }
}

/// Publishes a report that says something new. Problems are in it; whoever reads it tells of them.
pub(crate) fn tell(report: &watch::Sender<Arc<ProxyReport>>, now: ProxyReport) {
    report.send_if_modified(|before| {
        let differs = **before != now;
        *before = Arc::new(now);
        differs
    });
}

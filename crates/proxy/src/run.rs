//! The loop: recompute when something changed, program, report.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostnet::conntrack::{self, ConntrackError};
use hostnet::netfilter::{Family, Owner, PerFamily, Ruleset, WriteError, WriterHandle};
use ipnet::IpNet;
use manifest::Loaded;
use tokio::sync::watch;

use crate::flows::{Territory, stale};
use crate::model::{NodeFacts, Protocol, ServiceMap};
use crate::report::{Problem, ProxyReport};
use crate::rules::render_rules;
use crate::source::{self, Allocations, Ranges};

/// How the proxy works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The addresses of Services: one range, or one of each family. The first one's family is preferred.
    pub service_cidrs: Vec<IpNet>,
    /// The ports of NodePort Services; upstream's are 30000 to 32767.
    pub node_port_range: RangeInclusive<u16>,
    /// Where allocations are written down.
    pub state_file: PathBuf,
    /// The addresses of pods on this node and others, at most one range of each family: what comes from elsewhere is
    /// masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// For the endpoints that are reported.
    pub node_name: String,
}

/// A pod of this node, as far as Services care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What selectors match.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether it takes traffic.
    pub ready: bool,
    /// Its containers' ports that have a name.
    pub ports: BTreeMap<(Protocol, String), u16>,
}

/// Why the proxy cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// What was allocated before cannot be read; guessing would move Services.
    #[error("read the allocated Service addresses in {}", path.display())]
    ReadState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The manifests or the pods are not told any more.
    #[error("the sources of Services and pods have ended")]
    SourceEnded,
}

/// Serves Services until `stop`. The rules stay: pods outlive the agent, and so do the ways to them.
///
/// # Errors
/// When recorded allocations cannot be read, or nothing tells of Services or pods any more.
pub async fn run(
    config: Config,
    mut desired: watch::Receiver<Arc<Loaded>>,
    mut pods: watch::Receiver<Arc<Vec<LocalPod>>>,
    writer: WriterHandle,
    report: watch::Sender<Arc<ProxyReport>>,
    stop: impl Future<Output = ()>,
) -> Result<(), ProxyError> {
    let mut shell = Shell::open(config, writer)?;
    let mut retry = RETRY_FIRST;
    tokio::pin!(stop);
    loop {
        let (loaded, local) = (desired.borrow_and_update().clone(), pods.borrow_and_update().clone());
        let (now, outcome) = shell.round(&loaded, &local).await;
        tell(&report, now);
        retry = match outcome {
            Outcome::Done => RETRY_FIRST,
            Outcome::Retry => (retry * 2).min(RETRY_LAST),
        };
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            changed = desired.changed() => changed.map_err(|_| ProxyError::SourceEnded)?,
            changed = pods.changed() => changed.map_err(|_| ProxyError::SourceEnded)?,
            () = tokio::time::sleep(retry), if outcome == Outcome::Retry => {}
        }
    }
}

/// What did not work is tried again after this long, then after twice as long…
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// … up to this.
const RETRY_LAST: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Retry,
}

/// What is known between rounds.
struct Shell {
    config: Config,
    writer: WriterHandle,
    allocations: Allocations,
    /// What the file says; without one nothing was ever served here.
    recorded: Option<Allocations>,
    /// What the writer has; none when that is not known.
    programmed: Option<PerFamily<Ruleset>>,
    /// For which Services stale UDP flows were looked for last.
    swept: Option<PerFamily<ServiceMap>>,
}

impl Shell {
    fn open(config: Config, writer: WriterHandle) -> Result<Self, ProxyError> {
        let fail = |source| ProxyError::ReadState { path: config.state_file.clone(), source };
        let recorded = source::read(&config.state_file).map_err(fail)?;
        let allocations = recorded.clone().unwrap_or_default();
        Ok(Self { writer, allocations, recorded, programmed: None, swept: None, config })
    }

    /// Plans, records, programs.
    async fn round(&mut self, loaded: &Loaded, pods: &[LocalPod]) -> (ProxyReport, Outcome) {
        let ranges = Ranges {
            service_cidrs: self.config.service_cidrs.clone(),
            node_ports: self.config.node_port_range.clone(),
        };
        let services = &loaded.objects.services;
        let plan = source::plan(services, pods, &self.allocations, &ranges, &self.config.node_name);
        let mut report = plan.report;
        let rules = self.rules(&plan.services);
        self.allocations = plan.allocations;
        let mut outcome = Outcome::Done;
        let mut failed = |what: &str, error: &dyn std::error::Error| {
            let message = format!("{what}: {}", chain(error));
            report.problems.push(Problem { service: None, field: None, message });
            outcome = Outcome::Retry;
        };
        // Recorded before it is used: after a crash no Service moves.
        if let Err(error) = self.record().await {
            failed("the allocated addresses are not recorded", &error);
        }
        if let Err(error) = self.program(rules).await {
            failed("the rules of Services are not programmed", &error);
        } else if let Err(error) = self.sweep(plan.services).await {
            // Only then: a packet that comes meanwhile must meet the new rules.
            failed("stale UDP flows of Services may be left", &error);
        }
        (report, outcome)
    }

    /// A family in which there are no Services has no rules.
    fn rules(&self, services: &PerFamily<ServiceMap>) -> PerFamily<Ruleset> {
        PerFamily::from_fn(|family| match of_family(&self.config.service_cidrs, family) {
            Some(_) => {
                let node = NodeFacts { pod_cidr: of_family(&self.config.pod_cidrs, family) };
                render_rules(family, services.of(family), &node)
            }
            None => Ruleset::default(),
        })
    }

    /// Deletes the UDP flows that no longer go to an endpoint of their Service.
    async fn sweep(&mut self, services: PerFamily<ServiceMap>) -> Result<(), ConntrackError> {
        let udp = PerFamily::from_fn(|family| only_udp(services.of(family)));
        if self.swept.as_ref() == Some(&udp) {
            return Ok(());
        }
        let territories = PerFamily::from_fn(|family| Territory {
            services: of_family(&self.config.service_cidrs, family),
            pods: of_family(&self.config.pod_cidrs, family),
            node_ports: self.config.node_port_range.clone(),
        });
        self.swept = None;
        let work = tokio::task::spawn_blocking(move || {
            for family in Family::ALL.into_iter().filter(|family| territories.of(*family).services.is_some())
            {
                let stale = stale(&conntrack::udp_flows(family)?, udp.of(family), territories.of(family));
                if !stale.is_empty() {
                    tracing::info!(
                        flows = stale.len(),
                        "deleting UDP flows that go to no endpoint of their Service"
                    );
                }
                conntrack::delete(&stale)?;
            }
            Ok(udp)
        });
        self.swept = match work.await {
            Ok(swept) => Some(swept?),
            // It panicked, or the runtime ends.
            Err(_) => None,
        };
        Ok(())
    }

    async fn record(&mut self) -> std::io::Result<()> {
        if self.recorded.as_ref() == Some(&self.allocations) {
            return Ok(());
        }
        let (path, allocations) = (self.config.state_file.clone(), self.allocations.clone());
        let work =
            tokio::task::spawn_blocking(move || source::write(&path, &allocations).map(|()| allocations));
        self.recorded = Some(work.await.map_err(std::io::Error::other)??);
        Ok(())
    }

    async fn program(&mut self, rules: PerFamily<Ruleset>) -> Result<(), WriteError> {
        if self.programmed.as_ref() == Some(&rules) {
            return Ok(());
        }
        self.programmed = None;
        self.writer.submit(Owner::Proxy, rules.clone()).await?;
        self.programmed = Some(rules);
        Ok(())
    }
}

fn of_family(nets: &[IpNet], family: Family) -> Option<IpNet> {
    nets.iter().copied().find(|net| Family::of(net.addr()) == family)
}

fn only_udp(services: &ServiceMap) -> ServiceMap {
    let udp = services.iter().filter(|(name, _)| name.protocol == Protocol::Udp);
    udp.map(|(name, port)| (name.clone(), port.clone())).collect()
}

/// Publishes a report that says something new. Problems are in it; whoever reads it tells of them.
fn tell(report: &watch::Sender<Arc<ProxyReport>>, now: ProxyReport) {
    report.send_if_modified(|before| {
        let differs = **before != now;
        *before = Arc::new(now);
        differs
    });
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

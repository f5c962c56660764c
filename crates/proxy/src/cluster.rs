//! The loop of a node in a cluster: the API server's Services and EndpointSlices become rules.
//!
//! ```text
//!  Services ───────watch─┐
//!  EndpointSlices ─watch─┴► stores ── both complete? switched on? ──► join ─► Programmer ─► health
//! ```
//! Before both lists are complete nothing is written, so that no Service is refused while its endpoints are on their way;
//! and what is written stays while the API server is away. Switched off it stops writing and leaves every chain to
//! kube-proxy, whose chains have the same names.

mod switch;
mod watched;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use apiserver::{News, Outage};
use futures::FutureExt;
use hostnet::netfilter::WriterHandle;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::Instant;

pub use self::switch::{Mode, Switch, switch};
use self::watched::Watched;
use crate::health::{Health, local_counts};
use crate::program::{Programmer, Surroundings};
use crate::report::{Problem, ProxyReport};
use crate::run::{Config, Outcome, ProxyError, Retry};
use crate::source::cluster::{Change, ExternalIps, Served, Slice, join, served, slice};
use crate::standalone::tell;

/// A cluster's proxy.
pub struct Cluster {
    /// The API server.
    pub client: kube::Client,
    /// What the node's network is like, as the Node object says.
    pub network: Receiver<NodeNetwork>,
    /// Whether it works at all.
    pub switch: Receiver<Switch>,
    /// Where `/healthz` and `/livez` are served; upstream's is `0.0.0.0:10256`. Only while it is switched on.
    pub healthz: Option<SocketAddr>,
    /// What becomes of `spec.externalIPs`.
    pub external_ips: ExternalIps,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds credentials.
        f.debug_struct("Cluster").field("healthz", &self.healthz).finish_non_exhaustive()
    }
}

/// The node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// The node's pods: what comes to a ClusterIP from elsewhere is masqueraded. Empty while the node has no range.
    pub pod_cidrs: Vec<IpNet>,
    /// The node's addresses.
    pub addresses: Vec<IpAddr>,
}

const AWAY: &str = "the API server does not answer; Services stay as they are";

/// A round that took long is not followed at once by the next: so much of the time is left to others…
const REST: u32 = 4;
/// … and no more than this.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Serves the cluster's Services until `stop`.
pub(crate) async fn run(
    config: Config,
    source: Cluster,
    writer: WriterHandle,
    report: Sender<Arc<ProxyReport>>,
    stop: impl Future<Output = ()>,
) -> Result<(), ProxyError> {
    let mut shell = Shell::open(config, source, writer, report);
    tokio::pin!(stop);
    loop {
        shell.catch_up();
        shell.round().await;
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            told = shell.wait() => told?,
        }
    }
}

/// What is known between rounds.
struct Shell {
    node_name: String,
    network: Receiver<NodeNetwork>,
    switch: Receiver<Switch>,
    services: Watched<Service, Served>,
    slices: Watched<EndpointSlice, Slice>,
    programmer: Programmer,
    health: Health,
    external_ips: ExternalIps,
    report: Sender<Arc<ProxyReport>>,
    outage: Outage,
    /// What is the matter with the rules.
    failed: Option<String>,
    /// What was done last.
    was: Switch,
    change: Change,
    retry: Retry,
    /// Not before: see [`REST`].
    earliest: Instant,
}

impl Shell {
    fn open(config: Config, source: Cluster, writer: WriterHandle, report: Sender<Arc<ProxyReport>>) -> Self {
        Self {
            services: Watched::new(&source.client, "services"),
            slices: Watched::new(&source.client, "endpointslices"),
            node_name: config.node_name,
            network: source.network,
            switch: source.switch,
            programmer: Programmer::new(writer, config.node_port_range),
            health: Health::new(source.healthz),
            external_ips: source.external_ips,
            report,
            outage: Outage::default(),
            failed: None,
            was: Switch::Off,
            change: Change::Some,
            retry: Retry::default(),
            earliest: Instant::now(),
        }
    }

    /// Waits until there may be something to do.
    async fn wait(&mut self) -> Result<(), ProxyError> {
        let node_name = self.node_name.as_str();
        tokio::select! {
            heard = self.services.watch.next() => {
                let change = self.services.take(heard.ok_or(ProxyError::SourceEnded)?, served);
                self.note(change);
            }
            heard = self.slices.watch.next() => {
                let reduce = |object: &EndpointSlice| slice(object, node_name);
                let change = self.slices.take(heard.ok_or(ProxyError::SourceEnded)?, reduce);
                self.note(change);
            }
            changed = self.network.changed() => {
                changed.map_err(|_| ProxyError::SourceEnded)?;
                self.note(Change::Some);
            }
            changed = self.switch.changed() => {
                changed.map_err(|_| ProxyError::SourceEnded)?;
                self.note(Change::Some);
            }
            () = self.retry.due() => self.note(Change::Some),
            () = self.outage.settled() => {}
            () = tokio::time::sleep_until(self.earliest), if self.change == Change::Some => {}
        }
        Ok(())
    }

    fn note(&mut self, change: Change) {
        if change == Change::Some && self.change == Change::Nothing {
            self.change = Change::Some;
            self.health.wants(self.is_on());
        }
    }

    /// Takes in whatever has arrived meanwhile: a burst of events makes one round.
    fn catch_up(&mut self) {
        let node_name = self.node_name.clone();
        while let Some(Some(heard)) = self.services.watch.next().now_or_never() {
            let change = self.services.take(heard, served);
            self.note(change);
        }
        while let Some(Some(heard)) = self.slices.watch.next().now_or_never() {
            let change = self.slices.take(heard, |object| slice(object, &node_name));
            self.note(change);
        }
    }

    fn is_on(&self) -> bool {
        *self.switch.borrow() == Switch::On
    }

    async fn round(&mut self) {
        let now = *self.switch.borrow_and_update();
        if now != self.was {
            self.turn(now).await;
        }
        let complete = self.services.store.is_complete() && self.slices.store.is_complete();
        if now == Switch::Off {
            self.failed = None;
        }
        let idle = self.change == Change::Nothing || Instant::now() < self.earliest;
        if now == Switch::Off || !complete || idle {
            return self.tell();
        }
        self.change = Change::Nothing;
        let began = Instant::now();
        let network = self.network.borrow_and_update().clone();
        let around = Surroundings {
            service_cidrs: Vec::new(),
            pod_cidrs: network.pod_cidrs,
            node_addresses: network.addresses,
        };
        let services = join(self.services.store.known(), self.slices.store.known(), self.external_ips);
        let outcome = self.programmer.serve(&services, &around).await;
        self.retry.note(if outcome.is_ok() { Outcome::Done } else { Outcome::Retry });
        self.health.served(outcome.is_ok(), local_counts(&services));
        self.failed = outcome.err();
        self.tell();
        self.earliest = Instant::now() + (began.elapsed() * REST).min(LONGEST_REST);
    }

    /// Begins to write, or leaves the chains to whoever writes them now.
    async fn turn(&mut self, now: Switch) {
        self.change = Change::Some;
        match now {
            Switch::On => {
                tracing::info!("the service proxy is on: it programs Services");
                self.health.open();
            }
            Switch::Off => {
                tracing::info!("the service proxy is off: its chains are left as they are, to kube-proxy");
                self.health.close();
                if let Err(error) = self.programmer.release().await {
                    tracing::warn!(error = hostnet::chain(&error), "release the chains of Services");
                }
            }
        }
        self.was = now;
    }

    /// Reports what is the matter, and says when the API server is back.
    fn tell(&mut self) {
        let silent = self.services.is_silent() || self.slices.is_silent();
        let forbidden = [self.services.forbidden(), self.slices.forbidden()];
        let is_back = self.outage.note(silent, Instant::now()) == News::Ended;
        if is_back && forbidden == [None, None] {
            tracing::info!("the API server tells of Services again");
        }
        // An API server that starts refuses everything before it has read who may do what.
        let (forbidden, away) = match self.outage {
            Outage::Over => (forbidden, None),
            Outage::Lasts | Outage::Settles { .. } => ([None, None], Some(AWAY.to_owned())),
        };
        let problems = forbidden.into_iter().chain([away, self.failed.clone()]);
        let problems = problems.flatten().map(|message| Problem { service: None, field: None, message });
        let mut problems: Vec<Problem> = problems.collect();
        if self.is_on() {
            problems.extend(self.external_ips.problems(self.services.store.known()));
        }
        tell(&self.report, ProxyReport { problems, ..ProxyReport::default() });
    }
}

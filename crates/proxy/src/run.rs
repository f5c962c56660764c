//! How the proxy is run: what it is told, wherever Services come from, and how it tries again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostnet::netfilter::WriterHandle;
use tokio::sync::watch;

use crate::cluster::{self, Cluster};
use crate::model::Protocol;
use crate::report::ProxyReport;
use crate::standalone::{self, Manifests};

/// How the proxy works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The ports of NodePort Services; upstream's are 30000 to 32767.
    pub node_port_range: RangeInclusive<u16>,
    /// Which endpoints are this node's.
    pub node_name: String,
}

/// Where Services and endpoints come from.
#[derive(Debug)]
pub enum Source {
    /// Manifests and the node's own pods.
    Manifests(Manifests),
    /// The API server.
    Cluster(Cluster),
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
    /// What the proxy is told from inside the agent is not told any more.
    #[error("the sources of Services and pods have ended")]
    SourceEnded,
}

/// Serves Services until `stop`. The rules stay: pods outlive the agent, and so do the ways to them.
///
/// # Errors
/// When recorded allocations cannot be read, or nothing tells of Services or pods any more.
pub async fn run(
    config: Config,
    source: Source,
    writer: WriterHandle,
    report: watch::Sender<Arc<ProxyReport>>,
    stop: impl Future<Output = ()>,
) -> Result<(), ProxyError> {
    match source {
        Source::Manifests(manifests) => standalone::run(config, manifests, writer, report, stop).await,
        Source::Cluster(cluster) => cluster::run(config, cluster, writer, report, stop).await,
    }
}

/// Whether a round did all it had to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Retry,
}

/// When a round that did not work is tried again: soon, then after twice as long each time.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    after: Option<Duration>,
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(500);
    const LAST: Duration = Duration::from_secs(30);

    pub(crate) fn note(&mut self, outcome: Outcome) {
        self.after = match (outcome, self.after) {
            (Outcome::Done, _) => None,
            (Outcome::Retry, None) => Some(Self::FIRST),
            (Outcome::Retry, Some(before)) => Some((before * 2).min(Self::LAST)),
        };
    }

    /// Comes when it is time; never, when there is nothing to try again.
    pub(crate) async fn due(&self) {
        match self.after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    }
}

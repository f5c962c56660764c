//! The loop: recompute when something changed, program, report.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use hostnet::netfilter::WriterHandle;
use ipnet::Ipv4Net;
use manifest::Loaded;
use tokio::sync::watch;

use crate::report::ProxyReport;

/// How the proxy works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The addresses of Services.
    pub service_cidr: Ipv4Net,
    /// The ports of NodePort Services; upstream's are 30000 to 32767.
    pub node_port_range: RangeInclusive<u16>,
    /// Where allocations are written down.
    pub state_file: PathBuf,
    /// The addresses of pods on this node and others: what comes from elsewhere is masqueraded.
    pub pod_cidr: Option<Ipv4Net>,
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
    /// Its containers' TCP ports that have a name.
    pub ports: BTreeMap<String, u16>,
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
/// When recorded allocations cannot be read.
pub async fn run(
    config: Config,
    desired: watch::Receiver<Arc<Loaded>>,
    pods: watch::Receiver<Arc<Vec<LocalPod>>>,
    writer: WriterHandle,
    report: watch::Sender<Arc<ProxyReport>>,
    stop: impl Future<Output = ()>,
) -> Result<(), ProxyError> {
    let _ = (config, desired, pods, writer, report);
    stop.await;
    Ok(())
}

//! The container runtime that the kubelet drives: our own in this process, or a foreign one behind its socket.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use cri::ConnectError;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::{CgroupDriver, RuntimeConfigRequest, VersionRequest, VersionResponse};
use hostnet::netfilter::WriterHandle;
use runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Parts, parts};
use crate::node::Node;

/// How long a foreign runtime may take to come up; both may be starting with the machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// A runtime that answers.
pub(super) struct Engine {
    /// A channel to its CRI server.
    pub(super) cri: Channel,
    /// Ours; none when it is a foreign one.
    pub(super) own: Option<Arc<Runtime>>,
}

impl Engine {
    /// Opens our runtime and serves it on the node's CRI socket until `stop`.
    pub(super) async fn own(
        node: &Node,
        networks: watch::Receiver<Option<cni::DefaultNetwork>>,
        writer: WriterHandle,
        servers: &mut Parts,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let runtime =
            Runtime::open(parts::runtime(node, networks), writer).await.context("open the runtime")?;
        for right in oci::launch::missing_rights() {
            tracing::warn!("{right}");
        }
        let listener = cri::bind(&node.listen)?;
        let (channel, in_memory) = cri::connect_in_memory();
        let (runtime_service, image_service) = (runtime.runtime_service(), runtime.image_service());
        let stopped = stop.clone().cancelled_owned();
        let serving = cri::serve(listener, in_memory, runtime_service, image_service, stopped);
        servers.spawn(async move { ("the CRI server", serving.await.map_err(Into::into)) });
        Ok(Self { cri: channel, own: Some(runtime) })
    }

    /// Connects to a foreign runtime, and waits until it answers.
    pub(super) async fn foreign(endpoint: &str, stop: &CancellationToken) -> anyhow::Result<Self> {
        let answer = tokio::time::timeout(PATIENCE, answer_of(endpoint));
        let (cri, version) = tokio::select! {
            answer = answer => answer.with_context(|| {
                format!("the container runtime did not answer on {endpoint} in {} s", PATIENCE.as_secs())
            })??,
            () = stop.cancelled() => bail!("told to stop while waiting for the runtime on {endpoint}"),
        };
        let VersionResponse { runtime_name, runtime_version, .. } = version;
        check_driver(&cri, &runtime_name).await?;
        tracing::info!(endpoint, runtime_name, runtime_version, "pods run on another runtime than ours");
        Ok(Self { cri, own: None })
    }
}

/// What the runtime says first; fails only where it never will.
async fn answer_of(endpoint: &str) -> anyhow::Result<(Channel, VersionResponse)> {
    let mut told = false;
    loop {
        let error = match reach(endpoint).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if matches!(error.downcast_ref(), Some(ConnectError::UnsupportedEndpoint { .. })) {
            return Err(error);
        }
        if !told {
            tracing::info!(endpoint, error = format!("{error:#}"), "waiting for the container runtime");
            told = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn reach(endpoint: &str) -> anyhow::Result<(Channel, VersionResponse)> {
    let cri = cri::connect(endpoint).await?;
    let version = RuntimeServiceClient::new(cri.clone()).version(VersionRequest::default()).await?;
    Ok((cri, version.into_inner()))
}

/// We make the cgroups of pods without systemd: a runtime that asks systemd for them would not find them.
async fn check_driver(cri: &Channel, runtime: &str) -> anyhow::Result<()> {
    let config = match RuntimeServiceClient::new(cri.clone()).runtime_config(RuntimeConfigRequest {}).await {
        Ok(config) => config.into_inner(),
        // Old ones do not tell.
        Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(()),
        Err(status) => return Err(status).context("ask the runtime for its cgroup driver"),
    };
    let driver = config.linux.map(|linux| linux.cgroup_driver());
    if driver == Some(CgroupDriver::Systemd) {
        bail!(
            "{runtime} uses the systemd cgroup driver, and this kubelet makes cgroups itself: \
             set cgroupfs there (containerd: SystemdCgroup = false)"
        );
    }
    Ok(())
}

//! A client of a lab's API server. The lab has no link to this machine: the client is on a thread in the control plane's
//! network.

use anyhow::{Result, anyhow};
use e2e::cluster::Cluster;
use e2e::test_host::enter_network;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Runs `work` with a client of the cluster's admin.
pub(super) fn with_client<T: Send>(
    cluster: &Cluster,
    work: impl AsyncFnOnce(Client) -> Result<T> + Send,
) -> Result<T> {
    let (pid, file) = place(cluster);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| on_this_thread(pid, &file, work));
        thread.join().map_err(|_| anyhow!("the client panicked"))?
    })
}

/// The machine to enter, and the admin's kubeconfig.
pub(super) fn place(cluster: &Cluster) -> (u32, std::path::PathBuf) {
    (cluster.control_plane.machine().host.pid(), cluster.control_plane.pki().join("admin.conf"))
}

/// Moves this thread into the network of process `pid`, for good.
pub(super) fn on_this_thread<T>(
    pid: u32,
    kubeconfig: &std::path::Path,
    work: impl AsyncFnOnce(Client) -> Result<T>,
) -> Result<T> {
    enter_network(pid)?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        work(Client::try_from(config)?).await
    })
}

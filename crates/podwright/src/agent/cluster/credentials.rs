//! Who the node is for the API server: credentials got by a bootstrap kubeconfig where there are none, and renewed.

use std::path::PathBuf;

use kube::Client;
use kubelet::api::Connection;
use kubelet::certificates::{
    Bootstrap, Renewal, Rotation, Store, needs_bootstrap, rotate, tell_end, user_of,
};
use tokio_util::sync::CancellationToken;

use super::super::Parts;
use crate::cli::AgentArgs;
use crate::config::Settings;
use crate::node::Node;

/// Where credentials come from.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    node: String,
    kubeconfig: PathBuf,
    bootstrap_kubeconfig: Option<PathBuf>,
    pki: PathBuf,
    rotate: bool,
}

impl Credentials {
    /// As command line and configuration have it.
    pub(super) fn of(args: &AgentArgs, node: &Node, settings: &Settings) -> Self {
        Self {
            node: node.name.clone(),
            kubeconfig: args.kubeconfig.clone(),
            bootstrap_kubeconfig: args.bootstrap_kubeconfig.clone(),
            pki: node.kubelet_dir.join("pki"),
            rotate: settings.certificates.rotate_client,
        }
    }

    /// The node's client, whose certificate is renewed for as long as the agent runs.
    pub(super) async fn connect(
        &self,
        callers: &mut Parts,
        stop: &CancellationToken,
    ) -> anyhow::Result<Client> {
        let store = Store::client(&self.pki);
        if let Some(bootstrap) = self.bootstrap()
            && needs_bootstrap(&self.kubeconfig, &store)
        {
            tokio::select! {
                () = bootstrap.run() => {}
                () = stop.cancelled() => anyhow::bail!("the agent was stopped before it had credentials"),
            }
        }
        let rotated = self.rotate.then(|| store.clone());
        let credentials = kubelet::api::Credentials { kubeconfig: self.kubeconfig.clone(), rotated };
        let connection = kubelet::api::connect_as(credentials).await?;
        let client = connection.client.clone();
        self.keep(callers, connection, store, stop);
        Ok(client)
    }

    fn bootstrap(&self) -> Option<Bootstrap> {
        Some(Bootstrap {
            node: self.node.clone(),
            bootstrap_kubeconfig: self.bootstrap_kubeconfig.clone()?,
            kubeconfig: self.kubeconfig.clone(),
            pki: self.pki.clone(),
        })
    }

    fn keep(&self, callers: &mut Parts, connection: Connection, store: Store, stop: &CancellationToken) {
        let Connection { client, reload, certificate } = connection;
        let Some(certificate) = certificate else {
            if self.rotate {
                tracing::info!("the kubeconfig has no client certificate: nothing is rotated");
            }
            return;
        };
        if certificate.name != user_of(&self.node) {
            tracing::warn!(
                user = certificate.name,
                node = self.node,
                "the certificate is not this node's: the API server will refuse most of what a node does"
            );
        }
        let (node, validity, bootstrap) = (self.node.clone(), certificate.validity, self.bootstrap());
        let cares = self.rotate || bootstrap.is_some();
        let renewal = if self.rotate { Renewal::InTime } else { Renewal::Late };
        let rotation = Rotation { node: node.clone(), store, validity, client, reload, renewal, bootstrap };
        let stop = stop.clone();
        callers.spawn(async move {
            tokio::select! {
                () = rotate(rotation), if cares => {}
                () = tell_end(node, validity), if !cares => {}
                () = stop.cancelled() => {}
            }
            ("the care for the client certificate", Ok(()))
        });
    }
}

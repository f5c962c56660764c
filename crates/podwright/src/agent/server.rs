//! Wiring of the kubelet's API: the configuration file's words, the certificate that is shown, and the two ports.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use kubelet::certificates::{Store, keep_serving};
use kubelet::server::{self, ServerConfig, ServerParts, ServingCertificate};
use kubelet::{NodeReport, ProbeCounts};
use manifest::Loaded;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::Parts;
use crate::config::{self, Settings};
use crate::node::Node;

/// How a node answers.
#[derive(Debug)]
pub(super) struct Serving {
    server: Option<ServerConfig>,
    healthz: Option<SocketAddr>,
    tls_files: Option<(PathBuf, PathBuf)>,
    /// Whether the cluster is asked for a certificate.
    by_request: bool,
    /// Where the node's certificates are kept.
    pki: PathBuf,
    node: Node,
}

/// What the API is answered from.
pub(super) struct Known {
    pub(super) client: kubelet::api::Client,
    pub(super) cri: Channel,
    pub(super) report: watch::Receiver<Arc<NodeReport>>,
    pub(super) desired: watch::Receiver<Arc<Loaded>>,
    pub(super) probes: ProbeCounts,
    /// The node's own object, whose addresses a certificate is for.
    pub(super) own: watch::Receiver<Option<Arc<v1::Node>>>,
}

impl Serving {
    /// As the configuration file has it.
    pub(super) fn of(node: &Node, settings: &Settings) -> Self {
        let server = settings.server.as_ref().map(|server| ServerConfig {
            node_name: node.name.clone(),
            address: server.address,
            tls: server::TlsConfig {
                min_version: match server.tls_min_version {
                    config::TlsVersion::V12 => server::TlsVersion::V12,
                    config::TlsVersion::V13 => server::TlsVersion::V13,
                },
                cipher_suites: server.tls_cipher_suites.clone(),
            },
            authentication: authentication(&settings.authentication),
            authorization: authorization(&settings.authorization),
            handlers: match server.debugging_handlers {
                true => server::Handlers::All,
                false => server::Handlers::NoDebugging,
            },
            pod_logs_dir: node.pod_logs_dir.clone(),
            // `/var/log` above `/var/log/pods`.
            system_logs: node.pod_logs_dir.parent().filter(|_| server.system_logs).map(Into::into),
            root_dir: node.kubelet_dir.clone(),
            cgroup_root: node.kubelet_cgroup.clone(),
            configuration: settings.in_force(node),
        });
        Self {
            server,
            healthz: settings.healthz,
            tls_files: settings.server.as_ref().and_then(|server| server.tls_files.clone()),
            by_request: settings.certificates.request_serving,
            pki: node.kubelet_dir.join("pki"),
            node: node.clone(),
        }
    }

    /// Serves until `stop`.
    pub(super) fn start(
        self,
        callers: &mut Parts,
        known: Known,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let stopped = || stop.clone().cancelled_owned();
        if let Some(address) = self.healthz {
            let serving = server::run_healthz(address, stopped());
            callers.spawn(async move { ("the health check", serving.await.map_err(Into::into)) });
        }
        let (sender, certificate) = watch::channel(self.certificate()?);
        self.renew(callers, &known, sender, stop);
        if let Some(config) = self.server {
            let Known { client, cri, report, desired, probes, own: _ } = known;
            let parts = ServerParts { certificate, client, cri, report, desired, probes };
            let serving = server::run(config, parts, stopped());
            callers.spawn(async move { ("the kubelet's API", serving.await.map_err(Into::into)) });
        }
        Ok(())
    }

    /// Shows what an admin replaces, or what the cluster signs; a self-signed certificate stays.
    fn renew(
        &self,
        callers: &mut Parts,
        known: &Known,
        sender: watch::Sender<ServingCertificate>,
        stop: &CancellationToken,
    ) {
        let (stop, what) = (stop.clone().cancelled_owned(), "the care for the serving certificate");
        if let Some((certificate, key)) = self.tls_files.clone() {
            callers.spawn(async move {
                tokio::select! {
                    Err(error) = server::follow_files(&certificate, &key, sender) => (what, Err(error.into())),
                    () = stop => (what, Ok(())),
                }
            });
        } else if self.by_request && self.server.is_some() {
            let (name, store) = (self.node.name.clone(), Store::serving(&self.pki));
            let asking = keep_serving(known.client.clone(), name, store, known.own.clone(), sender);
            callers.spawn(async move {
                tokio::select! {
                    () = asking => {}
                    () = stop => {}
                }
                (what, Ok(()))
            });
        }
    }

    /// An admin's, else a self-signed one: also until the cluster has signed one.
    fn certificate(&self) -> anyhow::Result<ServingCertificate> {
        Ok(match &self.tls_files {
            Some((certificate, key)) => server::from_files(certificate, key)?,
            None => server::self_signed(&self.pki, &self.node.name, self.node.address())?,
        })
    }
}

fn authentication(settings: &config::Authentication) -> server::Authentication {
    let config::Authentication { anonymous, webhook, client_ca_file } = settings.clone();
    server::Authentication { anonymous, webhook, client_ca_file }
}

fn authorization(settings: &config::Authorization) -> server::Authorization {
    match *settings {
        config::Authorization::AlwaysAllow => server::Authorization::AlwaysAllow,
        config::Authorization::Webhook { authorized_ttl, unauthorized_ttl } => {
            server::Authorization::Webhook { authorized_ttl, unauthorized_ttl }
        }
    }
}

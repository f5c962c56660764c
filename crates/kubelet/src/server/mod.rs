//! The kubelet's API on port 10250: logs, exec, attach and port-forward for kubectl, metrics for monitoring. Upstream:
//! pkg/kubelet/server.
//!
//! Nobody gets anything but 401 and 403 before the API server has said who they are and what they may; only `/healthz` on
//! its own loopback port is open. It decides nothing about pods: it reads the kubelet's report and asks the runtime.
//!
//! ```text
//!   connection ─► tls ─► authentication ─► authorization ─► route ─► logs, session (joined to the runtime's URL), pods, …
//! ```

mod authentication;
mod authorization;
mod cache;
mod certificate;
mod health;
mod logs;
mod metrics;
mod pieces;
mod pods;
mod query;
mod respond;
mod route;
mod session;
mod stats;
mod system_logs;
mod tls;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cri::v1::runtime_service_client::RuntimeServiceClient;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Client;
use manifest::Loaded;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

pub use authentication::Authentication;
pub use authorization::Authorization;
pub use certificate::{CertificateError, follow_files, from_files, self_signed};
pub use route::Handlers;
pub use tls::{ServingCertificate, TlsConfig, TlsVersion, serving_certificate};

use authentication::Authenticator;
use authorization::{Authorizer, Denied};
use respond::{Answer, text};
use route::{Missed, Route};

use crate::probe_counts::ProbeCounts;
use crate::report::NodeReport;

/// Connections at once; one more is closed.
const MAX_CONNECTIONS: usize = 2048;
/// How long a caller may take for TLS, and for the head of a request.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// How long the server looks away when it can accept nothing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A caller that vanished without a word is known by silence of about this long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How the API is served.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// About which node the API server is asked.
    pub node_name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// `tlsMinVersion` and `tlsCipherSuites`.
    pub tls: TlsConfig,
    /// Who calls.
    pub authentication: Authentication,
    /// What they may.
    pub authorization: Authorization,
    /// Which handlers there are.
    pub handlers: Handlers,
    /// `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    /// What `/logs/` shows; nothing without `enableSystemLogHandler`.
    pub system_logs: Option<PathBuf>,
    /// `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// The cgroup below which `kubepods` lies: what the node uses is what is used there.
    pub cgroup_root: String,
    /// What `/configz` tells: the configuration in force.
    pub configuration: serde_json::Value,
}

/// What the server is joined to.
pub struct ServerParts {
    /// The certificate that is shown; a new one counts from the next connection on.
    pub certificate: watch::Receiver<ServingCertificate>,
    /// The API server.
    pub client: Client,
    /// The runtime.
    pub cri: Channel,
    /// What the kubelet tells.
    pub report: watch::Receiver<Arc<NodeReport>>,
    /// Which pods are wanted.
    pub desired: watch::Receiver<Arc<Loaded>>,
    /// How probes went.
    pub probes: ProbeCounts,
}

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Somebody else may have the port.
    #[error("listen on {address} for the kubelet's API")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No cipher suite is left.
    #[error("use tlsMinVersion and tlsCipherSuites")]
    Tls(#[source] rustls::Error),
}

/// Serves until `stop` resolves; sessions end then, too.
///
/// # Errors
/// When the port is not free, or TLS cannot be spoken as it is configured.
pub async fn run(
    config: ServerConfig,
    parts: ServerParts,
    stop: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let clients = match config.authentication.client_ca_file {
        Some(_) => tls::ClientCertificates::Asked,
        None => tls::ClientCertificates::Ignored,
    };
    let tls = tls::server_config(&config.tls, parts.certificate, clients)?;
    let failed = |source| ServerError::Listen { address: config.address, source };
    let listener = TcpListener::bind(config.address).await.map_err(failed)?;
    let server = Arc::new(Server {
        authenticator: Authenticator::new(&config.authentication, parts.client.clone()),
        authorizer: Authorizer::new(&config.authorization, parts.client, config.node_name.clone()),
        node_name: config.node_name,
        root_dir: config.root_dir,
        cgroup_root: config.cgroup_root,
        configuration: config.configuration,
        probes: parts.probes,
        own: metrics::Own::default(),
        stats: stats::Stats::default(),
        handlers: config.handlers,
        pod_logs_dir: config.pod_logs_dir,
        system_logs: config.system_logs,
        log_watcher: logs::Watcher::default(),
        cri: parts.cri,
        report: parts.report,
        desired: parts.desired,
        sessions: TaskTracker::new(),
        stop: CancellationToken::new(),
    });
    let _ended_with_this = server.stop.clone().drop_guard();
    let starts = metrics::count_starts(&server.own, server.report.clone());
    tokio::select! {
        never = starts => match never {},
        never = accept(listener, TlsAcceptor::from(Arc::new(tls)), &server) => match never {},
        () = stop => Ok(()),
    }
}

pub use health::run as run_healthz;

/// What requests are answered from.
struct Server {
    authenticator: Authenticator,
    authorizer: Authorizer,
    handlers: Handlers,
    node_name: String,
    root_dir: PathBuf,
    cgroup_root: String,
    configuration: serde_json::Value,
    probes: ProbeCounts,
    own: metrics::Own,
    stats: stats::Stats,
    pod_logs_dir: PathBuf,
    system_logs: Option<PathBuf>,
    log_watcher: logs::Watcher,
    cri: Channel,
    report: watch::Receiver<Arc<NodeReport>>,
    desired: watch::Receiver<Arc<Loaded>>,
    sessions: TaskTracker,
    stop: CancellationToken,
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, server: &Arc<Server>) -> Infallible {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let (tls, server) = (tls.clone(), Arc::clone(server));
        let stop = server.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            serve_connection(stream, tls, server).await;
            drop(slot);
        }));
    }
}

async fn serve_connection(stream: TcpStream, tls: TlsAcceptor, server: Arc<Server>) {
    keep_alive(&stream);
    let stream = match tokio::time::timeout(REQUEST_TIME, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a caller's TLS"),
        Err(_) => return tracing::debug!("a caller's TLS takes too long"),
    };
    let (_, connection) = stream.get_ref();
    let is_http2 = connection.alpn_protocol() == Some(b"h2");
    let certificates: Arc<[CertificateDer<'static>]> =
        connection.peer_certificates().unwrap_or_default().into();
    let service = service_fn(move |request| {
        let (server, certificates) = (Arc::clone(&server), Arc::clone(&certificates));
        async move {
            let (request_kind, begun) =
                (server.own.begin(request.method(), request.uri().path()), Instant::now());
            let answer = server.answer(&certificates, request).await;
            server.own.end(request_kind, begun.elapsed());
            Ok::<_, Infallible>(answer)
        }
    });
    let io = TokioIo::new(stream);
    let served = if is_http2 {
        let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).max_concurrent_streams(250);
        http.serve_connection(io, service).await
    } else {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIME);
        http.serve_connection(io, service).with_upgrades().await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a caller's connection broke");
    }
}

/// What the kernel refuses of it is no reason not to serve.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEP_ALIVE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE / 3);
    let _ = sockopt::set_tcp_keepcnt(stream, 3);
    let _ = sockopt::set_tcp_user_timeout(stream, u32::try_from(2 * KEEP_ALIVE.as_millis()).unwrap_or(0));
}

impl Server {
    async fn answer(&self, certificates: &[CertificateDer<'static>], request: Request<Incoming>) -> Answer {
        let Some(user) = self.authenticator.caller(certificates, request.headers()).await else {
            return text(StatusCode::UNAUTHORIZED, "Unauthorized");
        };
        let attributes = authorization::attributes(request.method(), request.uri().path());
        match self.authorizer.may(&user, &attributes).await {
            Ok(()) => {}
            Err(Denied::Forbidden(reason)) => return text(StatusCode::FORBIDDEN, reason),
            Err(Denied::Unknown(reason)) => return text(StatusCode::INTERNAL_SERVER_ERROR, reason),
        }
        let path = request.uri().path().to_owned();
        match route::route(request.method(), &path, self.handlers) {
            Ok(route) => self.serve(route, request).await,
            Err(Missed::Path) => text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Err(Missed::Method) => text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
            Err(Missed::Disabled) => text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n"),
        }
    }

    async fn serve(&self, route: Route<'_>, request: Request<Incoming>) -> Answer {
        match route {
            Route::Healthz(check) => self.healthz(check, request.uri().query()),
            Route::Pods => pods::list(&pods::all(&self.report.borrow(), &self.desired.borrow())),
            Route::RunningPods => self.running_pods().await,
            Route::Logs(asked) => self.logs(&asked, request.uri().query()).await,
            Route::SystemLogs(path) => match &self.system_logs {
                Some(directory) => system_logs::answer(directory, path).await,
                None => text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n"),
            },
            Route::Exec(asked) => self.exec(&asked, request).await,
            Route::Attach(asked) => self.attach(&asked, request).await,
            Route::Run(asked) => self.run(&asked, &request).await,
            Route::PortForward(asked) => self.port_forward(&asked, request).await,
            Route::Metrics(which) => self.metrics(which).await,
            Route::StatsSummary => self.stats_summary(request.uri().query()).await,
            Route::Configz => respond::json(&serde_json::json!({ "kubeletconfig": self.configuration })),
        }
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        cri::runtime_client(&self.cri)
    }
}

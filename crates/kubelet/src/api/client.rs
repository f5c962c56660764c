//! A client of the API server from a kubeconfig: TLS by ring, names by hickory, because the C library's resolver cannot be used in
//! a static binary.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::ServiceBuilder;

/// How long one connection may take to come about.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file cannot be used.
    #[error("read the kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<kube::config::KubeconfigError>,
    },
    /// What the file names does not give a client.
    #[error("make a client of the kubeconfig {}", path.display())]
    Client {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<kube::Error>,
    },
}

/// A client with the server and the credentials of the kubeconfig's current context. Nothing is sent.
///
/// # Errors
/// When the file, or a file that it names, cannot be read or understood.
pub async fn connect(kubeconfig: &Path) -> Result<Client, ClientError> {
    let path = || kubeconfig.to_owned();
    let unreadable = |source| ClientError::Kubeconfig { path: path(), source: Box::new(source) };
    let file = Kubeconfig::read_from(kubeconfig).map_err(unreadable)?;
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(unreadable)?;
    config.connect_timeout = Some(CONNECT_PATIENCE);
    client(&config).map_err(|source| ClientError::Client { path: path(), source: Box::new(source) })
}

fn client(config: &Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new_with_resolver(Names::from_system());
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_PATIENCE));
    // A server that vanishes without a word: users know it by nodes that never come back.
    tcp.set_keepalive(Some(Duration::from_secs(15)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(3));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Names by hickory.
#[derive(Clone)]
struct Names(Option<Arc<TokioResolver>>);

impl Names {
    /// Reads the machine's resolver configuration; without one only addresses and localhost work.
    fn from_system() -> Self {
        let resolver = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
        Self(
            resolver
                .inspect_err(|error| tracing::warn!(%error, "no usable resolver configuration"))
                .ok()
                .map(Arc::new),
        )
    }
}

impl tower::Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.0.clone();
        Box::pin(async move {
            let name = name.as_str();
            if name == "localhost" {
                return Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))].into_iter());
            }
            let unresolved = |cause: String| std::io::Error::other(format!("cannot resolve {name}: {cause}"));
            let resolver = resolver.ok_or_else(|| unresolved("/etc/resolv.conf is not usable".to_owned()))?;
            let addresses = resolver.lookup_ip(name).await.map_err(|error| unresolved(error.to_string()))?;
            Ok(addresses.iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

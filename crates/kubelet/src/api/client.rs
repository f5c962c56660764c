//! A client of the API server from a kubeconfig: TLS by ring, names by the node's resolver.
//!
//! Its credentials can be replaced while it is used: requests that begin later use new connections with the new ones, and
//! what runs on old connections, watches above all, is left alone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Request;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{Client as HttpClient, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::ServiceBuilder;

use crate::certificates::{Leaf, Store, StoreError};
use crate::resolver::{ResolveError, Resolver};

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
    /// The certificate that was rotated last cannot be used.
    #[error("read the node's certificate")]
    Certificate(#[from] StoreError),
}

/// A client with the server and the credentials of the kubeconfig's current context. Nothing is sent.
///
/// # Errors
/// When the file, or a file that it names, cannot be read or understood.
pub async fn connect(kubeconfig: &Path) -> Result<Client, ClientError> {
    connect_as(Credentials { kubeconfig: kubeconfig.to_owned(), rotated: None }).await.map(|made| made.client)
}

/// Whom a client is, and where that is written.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The API server, and who we are.
    pub kubeconfig: PathBuf,
    /// Certificates that were rotated: the current one, if there is one, counts more than that of the kubeconfig.
    pub rotated: Option<Store>,
}

/// A client whose credentials can be replaced.
pub struct Connection {
    /// Every clone of it gets new credentials with it.
    pub client: Client,
    /// Replaces them.
    pub reload: Reload,
    /// Who we are, if a certificate says it.
    pub certificate: Option<Leaf>,
}

/// Replaces the credentials of a client.
#[derive(Clone)]
pub struct Reload {
    credentials: Credentials,
    current: Current,
}

impl Reload {
    /// Reads the credentials again, and gives who we are now, if a certificate says it. Requests that begin from now on use them.
    ///
    /// # Errors
    /// As [`connect`]; the former ones then stay in use.
    pub async fn reload(&self) -> Result<Option<Leaf>, ClientError> {
        let config = self.credentials.config().await?;
        let fresh = self.credentials.checked(https(&config))?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(certificate_of(&config.auth_info))
    }
}

/// As [`connect`], with credentials that can be replaced.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as(credentials: Credentials) -> Result<Connection, ClientError> {
    let config = credentials.config().await?;
    let (client, current) = credentials.checked(client(&config))?;
    let certificate = certificate_of(&config.auth_info);
    Ok(Connection { client, reload: Reload { credentials, current }, certificate })
}

impl Credentials {
    async fn config(&self) -> Result<Config, ClientError> {
        let unreadable =
            |source| ClientError::Kubeconfig { path: self.kubeconfig.clone(), source: Box::new(source) };
        let file = Kubeconfig::read_from(&self.kubeconfig).map_err(unreadable)?;
        let mut config =
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(unreadable)?;
        config.connect_timeout = Some(CONNECT_PATIENCE);
        let rotated = self.rotated.as_ref().map(Store::current).transpose()?.flatten();
        if let Some(identity) = rotated {
            let (certificates, key) = identity.parts();
            config.auth_info.client_certificate_data = Some(STANDARD.encode(certificates));
            config.auth_info.client_key_data = Some(STANDARD.encode(key).into());
        }
        Ok(config)
    }

    fn checked<T>(&self, made: Result<T, kube::Error>) -> Result<T, ClientError> {
        made.map_err(|source| ClientError::Client { path: self.kubeconfig.clone(), source: Box::new(source) })
    }
}

/// The certificate of a kubeconfig's user, if there is a readable one.
pub(crate) fn certificate_of(user: &AuthInfo) -> Option<Leaf> {
    let pem = match (&user.client_certificate_data, &user.client_certificate) {
        (Some(data), _) => STANDARD.decode(data).ok(),
        (None, Some(path)) => std::fs::read(path).ok(),
        (None, None) => None,
    };
    Leaf::of(&String::from_utf8(pem?).ok()?)
}

/// The client of a configuration, and the place of its credentials.
pub(crate) fn client(config: &Config) -> Result<(Client, Current), kube::Error> {
    let current = Current(Arc::new(RwLock::new(https(config)?)));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(current.clone());
    Ok((Client::new(service, config.default_namespace.clone()), current))
}

type Https = HttpClient<HttpsConnector<HttpConnector<Names>>, Body>;

/// Connections with the credentials of that configuration.
fn https(config: &Config) -> Result<Https, kube::Error> {
    let mut tcp = HttpConnector::new_with_resolver(Names(Resolver::from_system()));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_PATIENCE));
    // A server that vanishes without a word: users know it by nodes that never come back.
    tcp.set_keepalive(Some(Duration::from_secs(15)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(3));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    Ok(HttpClient::builder(TokioExecutor::new()).build(https))
}

/// The connections that new requests use.
#[derive(Clone)]
pub(crate) struct Current(Arc<RwLock<Https>>);

impl tower::Service<Request<Body>> for Current {
    type Response = hyper::Response<hyper::body::Incoming>;
    type Error = hyper_util::client::legacy::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.read().unwrap_or_else(PoisonError::into_inner).request(request)
    }
}

/// The node's resolver as hyper wants it.
#[derive(Clone)]
struct Names(Resolver);

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
            let unresolved =
                |cause: ResolveError| std::io::Error::other(format!("cannot resolve {name}: {cause}"));
            let addresses = resolver.addresses(name).await.map_err(unresolved)?;
            let addressed = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(addressed.collect::<Vec<_>>().into_iter())
        })
    }
}

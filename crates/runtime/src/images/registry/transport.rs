//! HTTP requests with TLS as a host wants it, names by hickory, redirects, and an end to every silence. Knows no registry protocol.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HeaderMap, LOCATION};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::hosts::{Host, Tls, is_loopback};
use crate::images::ImageError;

/// Where distributions keep the CAs that the machine trusts, as Go looks for them.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const MAX_REDIRECTS: usize = 5;
const CONNECT: Duration = Duration::from_secs(10);

/// Speaks to one host and to where it redirects.
pub(super) struct Transport {
    client: Client<HttpsConnector<HttpConnector<Names>>, Full<Bytes>>,
    host: Host,
    stall: Duration,
}

/// A request to send.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What is awaited, for messages.
    pub(super) what: String,
}

impl Transport {
    pub(super) fn new(host: Host, names: Names, stall: Duration) -> Result<Self, ImageError> {
        let mut http = HttpConnector::new_with_resolver(names);
        http.enforce_http(false);
        http.set_nodelay(true);
        let dial = host.dial_timeout.filter(|dial| !dial.is_zero()).unwrap_or(CONNECT);
        http.set_connect_timeout(Some(dial.min(stall)));
        let tls = if host.base.starts_with("https") { Some(&host.tls) } else { None };
        let config = tls_config(tls)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), host, stall })
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Sends a call and follows redirects; credentials and configured headers stay with the host they are for.
    pub(super) async fn send(&self, call: Call) -> Result<Response<Incoming>, ImageError> {
        let Call { method, mut uri, mut headers, body, what } = call;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::new(Full::new(body.clone()));
            (*request.method_mut(), *request.uri_mut()) = (method.clone(), uri.clone());
            request.headers_mut().clone_from(&headers);
            let response = match tokio::time::timeout(self.stall, self.client.request(request)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(self.unavailable(&uri, &host::error::chain(&error))),
                Err(_) => {
                    let host = uri.authority().map(ToString::to_string).unwrap_or_default();
                    return Err(ImageError::Stalled { host, what, seconds: self.stall.as_secs() });
                }
            };
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| join(&uri, location));
            let Some(next) = next else { return Err(self.unavailable(&uri, "it redirects to nowhere")) };
            let downgrade = uri.scheme_str() == Some("https") && next.scheme_str() == Some("http");
            if downgrade && !next.authority().is_some_and(|authority| is_loopback(authority.as_str())) {
                return Err(
                    self.unavailable(&uri, &format!("it redirects to {next}, which is not encrypted"))
                );
            }
            if (next.scheme(), next.authority()) != (uri.scheme(), uri.authority()) {
                headers.remove(AUTHORIZATION);
                for (name, _) in &self.host.headers {
                    headers.remove(name);
                }
            }
            uri = next;
        }
        Err(self.unavailable(&uri, "it redirects in circles"))
    }

    pub(super) fn unavailable(&self, uri: &Uri, cause: &str) -> ImageError {
        // No query: signed URLs of storage services are secrets.
        let (scheme, path) = (uri.scheme_str().unwrap_or_default(), uri.path());
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let detail = format!("{scheme}://{authority}{path}: {cause}");
        ImageError::RegistryUnavailable { host: self.host.authority.clone(), detail }
    }
}

/// RFC 3986 §5.2 for what servers send: an absolute URL, one without scheme, or an absolute path.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let full = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", base.authority()?)
    } else if location.contains("://") {
        location.to_owned()
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{}{directory}/{location}", base.authority()?)
    };
    full.parse::<Uri>()
        .ok()
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some())
}

/// `None`: a host of plain HTTP, whose redirects may still lead to HTTPS.
fn tls_config(tls: Option<&Tls>) -> Result<ClientConfig, ImageError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    if let Some(bundle) = BUNDLES.iter().map(Path::new).find(|path| path.exists()) {
        for certificate in certificates(bundle)? {
            let _one_bad_certificate_of_many = roots.add(certificate);
        }
    }
    let default = Tls::default();
    let tls = tls.unwrap_or(&default);
    for path in &tls.ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| config_error(path, &error.to_string()))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| config_error(Path::new("TLS"), &error.to_string()))?;
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots)
    };
    match tls.client.first() {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let parsed =
                PrivateKeyDer::from_pem_file(key).map_err(|error| config_error(key, &error.to_string()))?;
            builder
                .with_client_auth_cert(chain, parsed)
                .map_err(|error| config_error(certificate, &error.to_string()))
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ImageError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| config_error(path, &error.to_string()))
}

fn config_error(path: &Path, detail: &str) -> ImageError {
    ImageError::RegistryConfig { path: path.to_owned(), detail: detail.to_owned() }
}

/// `skip_verify = true`: who the server is does not matter, digests still do.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Names by hickory: the C library's resolver cannot be used in a static binary.
#[derive(Clone)]
pub(super) struct Names(Option<Arc<TokioResolver>>);

impl Names {
    /// Reads the machine's resolver configuration; without one only addresses and localhost work.
    pub(super) fn from_system() -> Self {
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
            if name == "localhost" || name.ends_with(".localhost") {
                let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0));
                return Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0)), v6].into_iter());
            }
            let unresolved = |cause: String| std::io::Error::other(format!("cannot resolve {name}: {cause}"));
            let resolver = resolver.ok_or_else(|| unresolved("/etc/resolv.conf is not usable".to_owned()))?;
            let addresses = resolver.lookup_ip(name).await.map_err(|error| unresolved(error.to_string()))?;
            Ok(addresses.iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_against_where_they_came_from() {
        let base: Uri = "https://a.x:1/v2/y/blobs/z".parse().expect("uri");
        for (location, expect) in [
            ("https://b.x/q?w=e", Some("https://b.x/q?w=e")),
            ("//b.x/q", Some("https://b.x/q")),
            ("/q", Some("https://a.x:1/q")),
            ("q", Some("https://a.x:1/v2/y/blobs/q")),
            ("file:///etc/passwd", None),
            ("ht tp://", None),
        ] {
            assert_eq!(join(&base, location).map(|uri| uri.to_string()).as_deref(), expect, "{location}");
        }
    }
}

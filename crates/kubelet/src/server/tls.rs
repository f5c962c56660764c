//! TLS of the kubelet's API: which certificate is shown, and that callers are asked for theirs.
//!
//! A caller's certificate is taken here whoever signed it, if the caller has its key; whether it counts is decided with each
//! request (`authentication`): a caller with a wrong one gets 401, as upstream, and not a broken connection.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme, version};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use super::ServerError;

/// The certificate that is shown, with its key.
pub type ServingCertificate = Arc<CertifiedKey>;

/// `tlsMinVersion` and `tlsCipherSuites`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// Names of cipher suites of TLS 1.2, as Go and the RFCs write them; all when empty.
    pub cipher_suites: Vec<String>,
}

/// Older ones are never spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2.
    V12,
    /// 1.3.
    V13,
}

/// Whether callers are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientCertificates {
    Asked,
    Ignored,
}

/// The server's side of every connection.
pub(super) fn server_config(
    config: &TlsConfig,
    certificate: watch::Receiver<ServingCertificate>,
    clients: ClientCertificates,
) -> Result<ServerConfig, ServerError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if !config.cipher_suites.is_empty() {
        provider.cipher_suites.retain(|suite| {
            let is_13 = suite.tls13().is_some();
            is_13 || config.cipher_suites.iter().any(|name| names(name, &format!("{:?}", suite.suite())))
        });
    }
    let algorithms = provider.signature_verification_algorithms;
    let versions: &[&rustls::SupportedProtocolVersion] = match config.min_version {
        TlsVersion::V12 => &[&version::TLS13, &version::TLS12],
        TlsVersion::V13 => &[&version::TLS13],
    };
    let versions = ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions);
    let clients = versions.map_err(ServerError::Tls).map(|builder| match clients {
        ClientCertificates::Asked => builder.with_client_cert_verifier(Arc::new(AnySigner(algorithms))),
        ClientCertificates::Ignored => builder.with_no_client_auth(),
    })?;
    let mut server = clients.with_cert_resolver(Arc::new(Latest(certificate)));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(server)
}

/// Go has older names for two of the suites.
fn names(given: &str, suite: &str) -> bool {
    given == suite
        || suite.strip_suffix("_SHA256").is_some_and(|short| short.contains("CHACHA20") && given == short)
}

/// Makes a certificate ready to be shown.
///
/// # Errors
/// When the key is of no kind that is supported, or is not the certificate's.
pub fn serving_certificate(
    chain: Vec<CertificateDer<'static>>,
    key: rustls_pki_types::PrivateKeyDer<'static>,
) -> Result<ServingCertificate, Error> {
    let provider: CryptoProvider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(Arc::new)
}

/// Shows what was told last.
struct Latest(watch::Receiver<ServingCertificate>);

impl fmt::Debug for Latest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Latest")
    }
}

impl ResolvesServerCert for Latest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.borrow()))
    }
}

/// See the module.
#[derive(Debug)]
struct AnySigner(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnySigner {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

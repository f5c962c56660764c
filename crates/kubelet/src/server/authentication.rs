//! Who calls: by client certificate, by bearer token that the API server is asked about, or nobody. Upstream:
//! cmd/kubelet/app/auth.go and k8s.io/apiserver/pkg/authentication.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::cache::Answers;

/// How long the API server may take to say whose a token is.
const PATIENCE: Duration = Duration::from_secs(10);
/// Questions about tokens at once: whoever invents tokens waits for others who do.
const AT_ONCE: usize = 32;

/// `authentication` of a KubeletConfiguration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// Whether who shows nothing is `system:anonymous`, instead of nobody.
    pub anonymous: bool,
    /// Bearer tokens are shown to the API server; how long an answer holds.
    pub webhook: Option<Duration>,
    /// Client certificates are of this authority.
    pub client_ca_file: Option<PathBuf>,
}

/// Knows callers.
pub(super) struct Authenticator {
    anonymous: bool,
    authority: Option<Authority>,
    tokens: Option<Tokens>,
}

impl Authenticator {
    pub(super) fn new(config: &Authentication, client: Client) -> Self {
        let tokens = config.webhook.map(|holds| Tokens {
            reviews: Api::all(client),
            holds,
            known: Answers::default(),
            places: Semaphore::new(AT_ONCE),
        });
        let authority = config.client_ca_file.clone().map(Authority::new);
        Self { anonymous: config.anonymous, authority, tokens }
    }

    /// The caller; none is nobody, who gets nothing.
    pub(super) async fn caller(
        &self,
        certificates: &[CertificateDer<'static>],
        headers: &HeaderMap,
    ) -> Option<UserInfo> {
        let mut is_false = false;
        if let Some(authority) = self.authority.as_ref().filter(|_| !certificates.is_empty()) {
            match authority.user(certificates) {
                Ok(user) => return Some(authenticated(user)),
                Err(error) => tracing::debug!(error, "a caller's certificate does not count"),
            }
            is_false = true;
        }
        match (bearer(headers), &self.tokens) {
            (Some(token), Some(tokens)) => tokens.user(token).await.map(authenticated),
            (Some(_), None) => None,
            // Who shows something false is nobody, and not anybody.
            (None, _) => (self.anonymous && !is_false).then(anonymous),
        }
    }
}

fn anonymous() -> UserInfo {
    UserInfo {
        username: Some("system:anonymous".into()),
        groups: Some(vec!["system:unauthenticated".into()]),
        ..UserInfo::default()
    }
}

/// Who is known is of that group, whatever else.
fn authenticated(mut user: UserInfo) -> UserInfo {
    let groups = user.groups.get_or_insert_default();
    if !groups.iter().any(|group| group == "system:authenticated") {
        groups.push("system:authenticated".into());
    }
    user
}

/// The token of `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whose certificates count: the file is read again when it changes.
struct Authority {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    stamp: Option<(SystemTime, u64)>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl Authority {
    fn new(path: PathBuf) -> Self {
        let authority = Self { path, loaded: Mutex::default() };
        // What is wrong with the file is said at the start.
        authority.verifier();
        authority
    }

    fn user(&self, certificates: &[CertificateDer<'static>]) -> Result<UserInfo, String> {
        let (first, others) = certificates.split_first().ok_or("there is none")?;
        let verifier = self.verifier().ok_or("no authority is known")?;
        verifier.verify_client_cert(first, others, UnixTime::now()).map_err(|error| error.to_string())?;
        user_of(first)
    }

    fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = std::fs::metadata(&self.path).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
        if loaded.verifier.is_none() || (stamp.is_some() && loaded.stamp != stamp) {
            match load(&self.path) {
                Ok(verifier) => *loaded = Loaded { stamp, verifier: Some(verifier) },
                Err(error) => {
                    loaded.stamp = stamp;
                    tracing::warn!(error, file = %self.path.display(), "x509.clientCAFile cannot be used: callers' certificates are judged as before");
                }
            }
        }
        loaded.verifier.clone()
    }
}

fn load(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| error.to_string())
}

/// The common name is the user, the organizations are its groups. Upstream: CommonNameUserConversion.
fn user_of(certificate: &CertificateDer<'_>) -> Result<UserInfo, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().filter_map(|name| name.as_str().ok()).last();
    let name = name.filter(|name| !name.is_empty()).ok_or("it names nobody")?;
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned);
    let id = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let key = "authentication.kubernetes.io/credential-id".to_owned();
    Ok(UserInfo {
        username: Some(name.to_owned()),
        groups: Some(groups.collect()),
        extra: Some(BTreeMap::from([(key, vec![format!("X509SHA256={id}")])])),
        ..UserInfo::default()
    })
}

/// Asks the API server whose a token is.
struct Tokens {
    reviews: Api<TokenReview>,
    holds: Duration,
    /// By the token's hash: no token stays in memory.
    known: Answers<[u8; 32], Option<UserInfo>>,
    places: Semaphore,
}

impl Tokens {
    async fn user(&self, token: &str) -> Option<UserInfo> {
        let answer = self.known.get(Sha256::digest(token).into(), async {
            let _place = self.places.acquire().await;
            Ok::<_, String>((self.review(token).await?, self.holds))
        });
        answer.await.unwrap_or_else(|error| {
            tracing::warn!(error, "the API server does not say whose a token is");
            None
        })
    }

    async fn review(&self, token: &str) -> Result<Option<UserInfo>, String> {
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let parameters = PostParams::default();
        let answer = tokio::time::timeout(PATIENCE, self.reviews.create(&parameters, &review)).await;
        let review =
            answer.map_err(|_| "it does not answer".to_owned())?.map_err(|error| error.to_string())?;
        let status = review.status.unwrap_or_default();
        Ok(status.user.filter(|_| status.authenticated == Some(true)))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
        ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };

    use super::*;

    fn issuer() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn client(
        issuer: &CertifiedIssuer<'static, KeyPair>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "jane");
        params.distinguished_name.push(DnType::OrganizationName, "devs");
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        vec![params.signed_by(&key, issuer).unwrap().der().clone()]
    }

    #[test]
    fn a_certificate_counts_when_the_authority_signed_it_for_clients() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.crt");
        let (one, other) = (issuer(), issuer());
        std::fs::write(&path, one.pem()).unwrap();
        let authority = Authority::new(path.clone());
        let mine = client(&one, ExtendedKeyUsagePurpose::ClientAuth);
        let user = authority.user(&mine).unwrap();
        assert_eq!((user.username.as_deref(), user.groups), (Some("jane"), Some(vec!["devs".to_owned()])));
        authority.user(&client(&one, ExtendedKeyUsagePurpose::ServerAuth)).unwrap_err();
        let theirs = client(&other, ExtendedKeyUsagePurpose::ClientAuth);
        authority.user(&theirs).unwrap_err();
        // The authority is replaced while the node runs, and then the file is broken.
        std::fs::write(&path, format!("{}\n", other.pem())).unwrap();
        authority.user(&theirs).unwrap();
        authority.user(&mine).unwrap_err();
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----").unwrap();
        authority.user(&theirs).unwrap();
    }

    #[test]
    fn a_bearer_token_is_what_follows_the_scheme() {
        let token = |value: &'static str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(token("Bearer a.b"), Some("a.b".to_owned()));
        assert_eq!(token("bearer  a.b "), Some("a.b".to_owned()));
        for none in ["Basic a", "Bearer ", "Bearer", "a.b"] {
            assert_eq!(token(none), None, "{none}");
        }
    }
}

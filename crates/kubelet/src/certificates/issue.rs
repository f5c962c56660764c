//! Getting a certificate signed: the request is made, and watched until it is decided.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use rcgen::KeyPair;

use super::identity::{Identity, IdentityError};
use super::template::{self, Purpose, Verdict};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// There is no randomness, or a name is none.
    #[error("make a certificate signing request")]
    Make(#[source] rcgen::Error),
    /// The API server does not take the request.
    #[error("send the certificate signing request {name}")]
    Send {
        /// The request's name.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// It will never be signed.
    #[error("the certificate signing request {name} was {verdict}")]
    Refused {
        /// The request's name.
        name: String,
        /// Denied or failed, and why.
        verdict: String,
    },
    /// Nobody decided in time.
    #[error(
        "the certificate signing request {name} was not signed within {} s; `kubectl get csr` shows it, \
         `kubectl certificate approve {name}` approves it",
        waited.as_secs()
    )]
    Undecided {
        /// The request's name.
        name: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// What was signed is not what was asked for.
    #[error("use the certificate of the certificate signing request {name}")]
    Unusable {
        /// The request's name.
        name: String,
        /// What is wrong.
        source: IdentityError,
    },
}

/// Asks for a certificate of `node` for `key`, and waits for it.
///
/// # Errors
/// When it is refused, or not decided within `patience`.
pub async fn issue(
    client: &Client,
    node: &str,
    purpose: &Purpose,
    key: &KeyPair,
    patience: Duration,
) -> Result<Identity, IssueError> {
    let request = template::request(node, purpose, key).map_err(IssueError::Make)?;
    let requests = Api::<CertificateSigningRequest>::all(client.clone());
    let name = request.metadata.name.clone().unwrap_or_default();
    match requests.create(&PostParams::default(), &request).await {
        Ok(_) => tracing::info!(name, "asked the cluster for a certificate"),
        // It was asked for before a restart.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            tracing::info!(name, "the cluster was asked for this certificate before");
        }
        Err(error) => return Err(IssueError::Send { name, source: Box::new(error) }),
    }
    match tokio::time::timeout(patience, decided(requests, &name)).await {
        Ok(Verdict::Issued(certificate)) => Identity::parse(&format!("{certificate}{}", key.serialize_pem()))
            .map_err(|source| IssueError::Unusable { name, source }),
        Ok(Verdict::Refused(verdict)) => Err(IssueError::Refused { name, verdict }),
        Ok(Verdict::Pending) | Err(_) => Err(IssueError::Undecided { name, waited: patience }),
    }
}

/// Watches the request until it is decided; what breaks the watch is tried again.
async fn decided(requests: Api<CertificateSigningRequest>, name: &str) -> Verdict {
    let mut seen = std::pin::pin!(watch_object(requests, name).default_backoff());
    while let Some(request) = seen.next().await {
        match request {
            Ok(Some(request)) => match template::verdict(&request) {
                Verdict::Pending => {}
                decided => return decided,
            },
            // Not there yet, or removed before it was decided.
            Ok(None) => {}
            Err(error) => tracing::debug!(name, %error, "the request cannot be watched; trying again"),
        }
    }
    Verdict::Pending
}

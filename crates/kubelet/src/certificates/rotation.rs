//! Renewing the client certificate while the node runs, with the node's own identity; once that has expired, by the bootstrap
//! kubeconfig, if there is one.

use std::time::Duration;

use kube::Client;
use rcgen::KeyPair;

use super::bootstrap::Bootstrap;
use super::identity::Validity;
use super::issue::{IssueError, issue};
use super::store::Store;
use super::template::{Purpose, user_of};
use super::{PATIENCE, chance, now, renewal};
use crate::api::{ClientError, Reload};

/// How soon a renewal that failed is tried again, at first and at last.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(128));

/// What is needed to renew a node's client certificate.
pub struct Rotation {
    /// The node's name.
    pub node: String,
    /// Where the certificates are.
    pub store: Store,
    /// When the present certificate holds.
    pub validity: Validity,
    /// The API server, as that identity.
    pub client: Client,
    /// Gives the client its new identity.
    pub reload: Reload,
    /// When another certificate is asked for.
    pub renewal: Renewal,
    /// Who asks for it when this one has expired.
    pub bootstrap: Option<Bootstrap>,
}

/// When a certificate is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// While it holds (`rotateCertificates`).
    InTime,
    /// Only once it has expired.
    Late,
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum RotationError {
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("keep the new certificate at {}", path.display())]
    Keep { path: std::path::PathBuf, source: std::io::Error },
    #[error("use the new certificate")]
    Use(#[from] ClientError),
}

/// Renews the certificate whenever it is time to, for ever. Failures are told and tried again; the node lives on without.
pub async fn rotate(mut rotation: Rotation) {
    loop {
        let validity = rotation.validity;
        let due = match rotation.renewal {
            Renewal::InTime => renewal::due(validity, chance()),
            Renewal::Late => end_of(validity),
        };
        tracing::debug!(
            due,
            not_after = validity.not_after,
            "the client certificate is renewed when it is due"
        );
        until(due).await;
        rotation.validity = renewed(&rotation).await;
        tracing::info!(not_after = rotation.validity.not_after, "the node has a new client certificate");
    }
}

/// The first moment at which a certificate does not hold any more.
fn end_of(validity: Validity) -> i64 {
    validity.not_after.saturating_add(1)
}

async fn until(due: i64) {
    while let Some(time) = renewal::sleep(due, now()) {
        tokio::time::sleep(time).await;
    }
}

/// Asks until there is another certificate.
async fn renewed(rotation: &Rotation) -> Validity {
    let mut again = AGAIN.0;
    loop {
        let outcome = match &rotation.bootstrap {
            Some(bootstrap) if now() >= end_of(rotation.validity) => replace(rotation, bootstrap).await,
            Some(_) => tokio::select! {
                renewed = renew(rotation) => renewed,
                // An answer that is still awaited would never come.
                () = until(end_of(rotation.validity)) => continue,
            },
            None => renew(rotation).await,
        };
        match outcome {
            Ok(validity) => return validity,
            Err(error) => tell(rotation, &error),
        }
        tokio::time::sleep(again).await;
        again = (again * 2).min(AGAIN.1);
    }
}

async fn renew(rotation: &Rotation) -> Result<Validity, RotationError> {
    let key = KeyPair::generate().map_err(IssueError::Make)?;
    let identity = issue(&rotation.client, &rotation.node, &Purpose::Client, &key, PATIENCE).await?;
    let keep = |source| RotationError::Keep { path: rotation.store.current_path(), source };
    rotation.store.replace(&identity, now()).map_err(keep)?;
    rotation.reload.reload().await?;
    Ok(identity.leaf.validity)
}

/// Begins anew, as at a first start.
async fn replace(rotation: &Rotation, bootstrap: &Bootstrap) -> Result<Validity, RotationError> {
    bootstrap.run().await;
    let leaf = rotation.reload.reload().await?;
    Ok(leaf.map_or(rotation.validity, |leaf| leaf.validity))
}

/// Tells when a certificate that nobody renews has expired; ends never.
pub async fn tell_end(node: String, validity: Validity) {
    until(end_of(validity)).await;
    tracing::error!(
        user = user_of(&node),
        not_after = validity.not_after,
        "the client certificate has expired, and rotateCertificates is off: the API server does not know this node any more. \
         Its pods go on; join it again with a new token to manage them"
    );
    std::future::pending().await
}

fn tell(rotation: &Rotation, error: &RotationError) {
    let error = crate::api::chain(error);
    if rotation.validity.holds_at(now()) {
        tracing::warn!(error, "the client certificate is not renewed; trying again");
    } else {
        tracing::error!(
            error,
            user = user_of(&rotation.node),
            "the client certificate has expired and is not renewed: the API server does not know this node any more. Its pods \
             go on; join it again with a new token to manage them"
        );
    }
}

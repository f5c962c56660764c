//! The serving certificate by CSR (`serverTLSBootstrap`): asked for under the node's addresses, again when these change, and
//! before it expires. An admin, or an approver of the cluster, approves the requests; what was there before serves until then.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use kube::Client;
use rcgen::KeyPair;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::identity::Identity;
use super::issue::{IssueError, issue};
use super::store::Store;
use super::template::Purpose;
use super::{PATIENCE, chance, now, renewal};

/// How soon a request that failed is made again, at first and at last.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(128));

/// Keeps `certificate` at what the cluster signed for the addresses that `object` has, for ever.
pub async fn keep_serving(
    client: Client,
    node: String,
    store: Store,
    mut object: watch::Receiver<Option<Arc<v1::Node>>>,
    certificate: watch::Sender<Arc<CertifiedKey>>,
) {
    let mut held = remembered(&store, &certificate);
    loop {
        let wanted = wanted(&object);
        let due = match (&held, &wanted) {
            (_, None) => None,
            (Some(held), Some(wanted)) if held.covers(wanted) => {
                Some(renewal::due(held.leaf.validity, chance()))
            }
            (_, Some(_)) => Some(i64::MIN),
        };
        tokio::select! {
            identity = renewed(&client, &node, &store, wanted.as_ref(), due) => {
                publish(&identity, &certificate);
                held = Some(identity);
            }
            changed = addresses_changed(&mut object, wanted.as_ref()) => if changed.is_err() { return },
        }
    }
}

/// What was signed before a restart, and still holds.
fn remembered(store: &Store, certificate: &watch::Sender<Arc<CertifiedKey>>) -> Option<Identity> {
    let found = store.current().unwrap_or_else(|error| {
        tracing::warn!(error = crate::api::chain(&error), "the former serving certificate is not used");
        None
    });
    let identity = found.filter(|identity| identity.leaf.validity.holds_at(now()))?;
    publish(&identity, certificate);
    Some(identity)
}

fn publish(identity: &Identity, certificate: &watch::Sender<Arc<CertifiedKey>>) {
    if let Ok(key) = identity.certified_key() {
        certificate.send_replace(Arc::new(key));
    }
}

/// What the node's object asks for; nothing while it has no address.
fn wanted(object: &watch::Receiver<Option<Arc<v1::Node>>>) -> Option<Purpose> {
    let object = object.borrow();
    let addresses = object.as_ref()?.status.as_ref()?.addresses.as_deref()?;
    Purpose::serving(addresses)
}

async fn addresses_changed(
    object: &mut watch::Receiver<Option<Arc<v1::Node>>>,
    known: Option<&Purpose>,
) -> Result<(), watch::error::RecvError> {
    loop {
        object.changed().await?;
        // A moment without the object is no change of addresses.
        if let Some(now) = wanted(object)
            && Some(&now) != known
        {
            return Ok(());
        }
    }
}

/// Waits until `due`, then asks until somebody signs.
async fn renewed(
    client: &Client,
    node: &str,
    store: &Store,
    wanted: Option<&Purpose>,
    due: Option<i64>,
) -> Identity {
    let (Some(wanted), Some(due)) = (wanted, due) else { return std::future::pending().await };
    while let Some(time) = renewal::sleep(due, now()) {
        tokio::time::sleep(time).await;
    }
    let mut again = AGAIN.0;
    loop {
        match ask(client, node, wanted).await {
            Ok(identity) => {
                if let Err(error) = store.replace(&identity, now()) {
                    tracing::warn!(%error, path = %store.current_path().display(), "the serving certificate is not remembered");
                }
                tracing::info!(
                    not_after = identity.leaf.validity.not_after,
                    "the node has a new serving certificate"
                );
                return identity;
            }
            Err(error) => {
                tracing::warn!(
                    error = crate::api::chain(&error),
                    "there is no new serving certificate; trying again"
                );
            }
        }
        tokio::time::sleep(again).await;
        again = (again * 2).min(AGAIN.1);
    }
}

async fn ask(client: &Client, node: &str, wanted: &Purpose) -> Result<Identity, IssueError> {
    let key = KeyPair::generate().map_err(IssueError::Make)?;
    issue(client, node, wanted, &key, PATIENCE).await
}

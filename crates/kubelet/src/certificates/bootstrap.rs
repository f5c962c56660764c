//! The first client certificate, by the credentials of a bootstrap kubeconfig: what `podwright join` does once, and
//! `podwright agent --bootstrap-kubeconfig` whenever there are no valid credentials. Upstream: pkg/kubelet/certificate/bootstrap.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::Kubeconfig;
use rcgen::KeyPair;
use serde_json::json;

use super::identity::{Identity, Validity};
use super::issue::{IssueError, issue};
use super::store::Store;
use super::template::Purpose;
use super::{PATIENCE, now};
use crate::api::ClientError;
use crate::join::Cluster;

/// The key of a request that is not decided yet: after a restart the same request is found again.
const KEY_FILE: &str = "kubelet-client.key.tmp";

/// How soon it is tried again, at first and at last.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What is needed for the first certificate of a node.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// The node's name.
    pub node: String,
    /// Whose credentials ask.
    pub bootstrap_kubeconfig: PathBuf,
    /// What is written in the end.
    pub kubeconfig: PathBuf,
    /// The directory of certificates.
    pub pki: PathBuf,
}

/// Why there is no first certificate (yet).
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The bootstrap kubeconfig gives no client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The bootstrap kubeconfig is not that of a cluster.
    #[error("use the bootstrap kubeconfig {}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The cluster does not sign.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether the kubeconfig gives a node no valid credentials at `now`: it is missing or broken, or its certificate has expired.
#[must_use]
pub fn needs_bootstrap(kubeconfig: &Path, store: &Store) -> bool {
    if !kubeconfig.exists() {
        return true;
    }
    let certificate = match store.current() {
        Ok(Some(identity)) => return !identity.leaf.validity.holds_at(now()),
        Ok(None) | Err(_) => certificate_in(kubeconfig),
    };
    match certificate {
        Found::Certificate(validity) => now() > validity.not_after,
        Found::OtherCredentials => false,
        Found::Nothing => true,
    }
}

enum Found {
    Certificate(Validity),
    OtherCredentials,
    Nothing,
}

fn certificate_in(kubeconfig: &Path) -> Found {
    let Ok(file) = Kubeconfig::read_from(kubeconfig) else { return Found::Nothing };
    let Some(user) = file.auth_infos.first().and_then(|user| user.auth_info.as_ref()) else {
        return Found::Nothing;
    };
    if user.client_certificate_data.is_none() && user.client_certificate.is_none() {
        return Found::OtherCredentials;
    }
    crate::api::client::certificate_of(user).map_or(Found::Nothing, |leaf| Found::Certificate(leaf.validity))
}

impl Bootstrap {
    /// Gets the certificate and writes the kubeconfig, however long that takes.
    pub async fn run(&self) {
        tracing::info!(
            bootstrap_kubeconfig = %self.bootstrap_kubeconfig.display(),
            "the node has no client certificate that holds: asking for one by the bootstrap kubeconfig"
        );
        let mut again = AGAIN.0;
        loop {
            match self.once().await {
                Ok(()) => return,
                Err(error) => tracing::warn!(
                    error = crate::api::chain(&error), bootstrap_kubeconfig = %self.bootstrap_kubeconfig.display(),
                    "the node has no credentials yet; trying again"
                ),
            }
            tokio::time::sleep(again).await;
            again = (again * 2).min(AGAIN.1);
        }
    }

    async fn once(&self) -> Result<(), BootstrapError> {
        let unusable =
            |reason: String| BootstrapError::Unusable { path: self.bootstrap_kubeconfig.clone(), reason };
        let file =
            Kubeconfig::read_from(&self.bootstrap_kubeconfig).map_err(|error| unusable(error.to_string()))?;
        let cluster = Cluster::of(&file).map_err(|reason| unusable(reason.to_owned()))?;
        let client = crate::api::connect(&self.bootstrap_kubeconfig).await?;
        let key = self.key()?;
        let identity = match issue(&client, &self.node, &Purpose::Client, &key, PATIENCE).await {
            Ok(identity) => identity,
            Err(error) => {
                // A request that was refused stays so: the next one has a new key.
                if matches!(error, IssueError::Refused { .. } | IssueError::Unusable { .. }) {
                    let _ = std::fs::remove_file(self.pki.join(KEY_FILE));
                }
                return Err(error.into());
            }
        };
        self.keep(&cluster, &identity)
    }

    fn key(&self) -> Result<KeyPair, BootstrapError> {
        let path = self.pki.join(KEY_FILE);
        if let Some(key) = std::fs::read_to_string(&path).ok().and_then(|pem| KeyPair::from_pem(&pem).ok()) {
            return Ok(key);
        }
        let key = KeyPair::generate().map_err(IssueError::Make)?;
        let write = |source| BootstrapError::Write { path: path.clone(), source };
        std::fs::create_dir_all(&self.pki).map_err(write)?;
        host::state_file::write_atomic(&path, key.serialize_pem().as_bytes(), 0o600).map_err(write)?;
        Ok(key)
    }

    fn keep(&self, cluster: &Cluster, identity: &Identity) -> Result<(), BootstrapError> {
        let store = Store::client(&self.pki);
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| BootstrapError::Write { path, source }
        };
        store.replace(identity, now()).map_err(write(&store.current_path()))?;
        let text = kubeconfig_of(cluster, &store);
        if let Some(directory) = self.kubeconfig.parent() {
            std::fs::create_dir_all(directory).map_err(write(directory))?;
        }
        host::state_file::write_durable(&self.kubeconfig, text.as_bytes(), 0o600)
            .map_err(write(&self.kubeconfig))?;
        let _ = std::fs::remove_file(self.pki.join(KEY_FILE));
        Ok(())
    }
}

/// A kubeconfig whose user is whoever the store's current certificate says, with the names that kubeadm's has. It is JSON,
/// which is YAML too.
#[must_use]
pub fn kubeconfig_of(cluster: &Cluster, store: &Store) -> String {
    let certificate = store.current_path();
    let file = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{ "name": "default-cluster", "cluster": {
            "server": cluster.server, "certificate-authority-data": STANDARD.encode(&cluster.authority),
        } }],
        "users": [{ "name": "default-auth", "user": {
            "client-certificate": certificate, "client-key": certificate,
        } }],
        "contexts": [{ "name": "default-context", "context": {
            "cluster": "default-cluster", "namespace": "default", "user": "default-auth",
        } }],
        "current-context": "default-context",
    });
    format!("{file:#}\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{CA, self_signed};
    use super::*;

    #[test]
    fn the_kubeconfig_names_the_cluster_and_the_link_to_the_certificate() {
        let cluster = Cluster { server: "https://a:6443".to_owned(), authority: CA.to_owned() };
        let text = kubeconfig_of(&cluster, &Store::client(Path::new("/var/lib/kubelet/pki")));
        let file = Kubeconfig::from_yaml(&text).expect("a kubeconfig");
        assert_eq!(Cluster::of(&file), Ok(cluster));
        let user = file.auth_infos[0].auth_info.as_ref().expect("a user");
        assert_eq!(
            user.client_certificate.as_deref(),
            Some("/var/lib/kubelet/pki/kubelet-client-current.pem")
        );
        assert_eq!(user.client_certificate, user.client_key);
    }

    #[test]
    fn credentials_that_have_expired_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let (file, store) = (dir.path().join("kubelet.conf"), Store::client(&dir.path().join("pki")));
        assert!(needs_bootstrap(&file, &store), "there is no file");
        let write = |user: serde_json::Value| {
            std::fs::write(&file, json!({ "users": [{ "name": "u", "user": user }] }).to_string()).unwrap();
        };
        let inline = |not_after| {
            let (certificate, _) = self_signed("system:node:a", 1, not_after);
            json!({ "client-certificate-data": STANDARD.encode(certificate), "client-key-data": "" })
        };
        write(inline(100));
        assert!(needs_bootstrap(&file, &store), "it has expired");
        write(inline(4_000_000_000));
        assert!(!needs_bootstrap(&file, &store));
        write(json!({ "token": "t" }));
        assert!(!needs_bootstrap(&file, &store), "a token is for the API server to judge");
        write(json!({ "client-certificate": "/nowhere" }));
        assert!(needs_bootstrap(&file, &store), "it leads nowhere");
        let (certificate, key) = self_signed("system:node:a", 1, 4_000_000_000);
        let identity = Identity::parse(&format!("{certificate}{key}")).expect("an identity");
        store.replace(&identity, 0).unwrap();
        assert!(!needs_bootstrap(&file, &store), "the rotated certificate counts");
    }
}

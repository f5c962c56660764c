//! kubeconfig files. They are written as JSON, which every reader of YAML takes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::certificates::Identity;

/// The file of somebody with a client certificate; everything stands in the file itself.
#[must_use]
pub fn with_certificate(server: &str, authority: &str, user: &str, identity: &Identity) -> Value {
    let credentials = json!({
        "client-certificate-data": STANDARD.encode(&identity.certificate),
        "client-key-data": STANDARD.encode(&identity.key),
    });
    file(server, authority, Some((user, credentials)))
}

/// The file of somebody with a bearer token: what `bootstrap-kubelet.conf` is.
#[must_use]
pub fn with_token(server: &str, authority: &str, user: &str, token: &str) -> Value {
    file(server, authority, Some((user, json!({ "token": token }))))
}

/// The file that ConfigMap cluster-info holds: where the cluster is, but nobody's credentials.
#[must_use]
pub fn of_cluster(server: &str, authority: &str) -> Value {
    file(server, authority, None)
}

fn file(server: &str, authority: &str, user: Option<(&str, Value)>) -> Value {
    // kubeadm leaves the cluster's name empty in cluster-info.
    let cluster = if user.is_some() { "kubernetes" } else { "" };
    let mut file = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {},
        "clusters": [{ "name": cluster, "cluster": {
            "server": server, "certificate-authority-data": STANDARD.encode(authority),
        }}],
        "contexts": [], "current-context": "", "users": [],
    });
    if let Some((name, credentials)) = user {
        let context = format!("{name}@{cluster}");
        file["users"] = json!([{ "name": name, "user": credentials }]);
        file["contexts"] = json!([{ "name": context, "context": { "cluster": cluster, "user": name } }]);
        file["current-context"] = json!(context);
    }
    file
}

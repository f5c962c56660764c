//! ConfigMap kube-public/cluster-info: where the cluster is and whom it trusts, signed for each bootstrap token. Reading it is
//! pure. Upstream: cmd/kubeadm/app/discovery/token.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::Kubeconfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::jws;
use super::token::BootstrapToken;

/// What the ConfigMap is worth to the bearer of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Signed with the token: the kubeconfig's very bytes.
    Signed(String),
    /// Nobody signed it for this token (yet).
    Unsigned,
    /// Somebody signed it for a token of this id, but with another secret.
    Forged,
    /// It holds no kubeconfig.
    Empty,
}

/// Checks the signature for `token`.
pub(super) fn judge(info: &ConfigMap, token: &BootstrapToken) -> Verdict {
    let data = |key: &str| info.data.as_ref().and_then(|data| data.get(key)).filter(|text| !text.is_empty());
    let Some(payload) = data("kubeconfig") else { return Verdict::Empty };
    let Some(signature) = data(&format!("jws-kubeconfig-{}", token.id())) else { return Verdict::Unsigned };
    match jws::verify(payload.as_bytes(), signature, token.id(), token.secret()) {
        Ok(()) => Verdict::Signed(payload.clone()),
        Err(_) => Verdict::Forged,
    }
}

/// Where a cluster is, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The API server's URL.
    pub server: String,
    /// The certificate authorities, PEM.
    pub authority: String,
}

impl Cluster {
    /// Reads it from a kubeconfig: the cluster of the current context, or else the only one.
    pub(crate) fn of(file: &Kubeconfig) -> Result<Self, &'static str> {
        let context = file.current_context.as_deref().filter(|name| !name.is_empty());
        let named = context.and_then(|name| file.contexts.iter().find(|context| context.name == name));
        let named = named.and_then(|context| context.context.as_ref()).map(|context| &context.cluster);
        let cluster = match named {
            Some(name) => file.clusters.iter().find(|cluster| &cluster.name == name),
            None => file.clusters.first().filter(|_| file.clusters.len() == 1),
        };
        let cluster = cluster.and_then(|cluster| cluster.cluster.as_ref()).ok_or("it names no cluster")?;
        let server = cluster.server.clone().filter(|server| server.starts_with("https://"));
        let authority = match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
            (Some(data), _) => STANDARD.decode(data).ok().and_then(|pem| String::from_utf8(pem).ok()),
            (None, Some(path)) => std::fs::read_to_string(path).ok(),
            (None, None) => None,
        };
        let found = Self {
            server: server.ok_or("its server has no https:// URL")?,
            authority: authority.ok_or("it holds no certificate authority")?,
        };
        if found.certificates().is_empty() {
            Err("its certificate authority is no certificate")
        } else {
            Ok(found)
        }
    }

    /// The certificate authorities.
    pub(super) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.authority.as_bytes()).filter_map(Result::ok).collect()
    }
}

/// The API server that a kubeconfig leads to; nothing when it cannot be read.
#[must_use]
pub fn server_of(kubeconfig: &std::path::Path) -> Option<String> {
    Kubeconfig::read_from(kubeconfig)
        .ok()
        .and_then(|file| Cluster::of(&file).ok())
        .map(|cluster| cluster.server)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tests_support::CA;
    use serde_json::json;

    const PAYLOAD: &str = "apiVersion: v1\nkind: Config\n";
    const JWS: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..vH_kT4yiol-nrAWgjfCYqvum5wsKETXe0S7OOp1VgnE";

    fn judged(data: serde_json::Value, token: &str) -> Verdict {
        let info = serde_json::from_value(json!({ "data": data })).expect("a ConfigMap");
        judge(&info, &token.parse().expect("a token"))
    }

    #[test]
    fn only_a_text_that_was_signed_with_the_token_is_read() {
        let good = json!({ "kubeconfig": PAYLOAD, "jws-kubeconfig-abcdef": JWS });
        assert_eq!(judged(good.clone(), "abcdef.0123456789abcdef"), Verdict::Signed(PAYLOAD.to_owned()));
        assert_eq!(judged(good.clone(), "abcdef.0123456789abcdee"), Verdict::Forged);
        assert_eq!(judged(good, "bcdefa.0123456789abcdef"), Verdict::Unsigned);
        let changed = json!({ "kubeconfig": format!("{PAYLOAD} "), "jws-kubeconfig-abcdef": JWS });
        assert_eq!(judged(changed, "abcdef.0123456789abcdef"), Verdict::Forged);
        assert_eq!(
            judged(json!({ "jws-kubeconfig-abcdef": JWS }), "abcdef.0123456789abcdef"),
            Verdict::Empty
        );
        assert_eq!(judged(json!(null), "abcdef.0123456789abcdef"), Verdict::Empty);
    }

    fn read(file: serde_json::Value) -> Result<Cluster, &'static str> {
        Cluster::of(&serde_json::from_value(file).expect("a kubeconfig"))
    }

    #[test]
    fn the_only_cluster_is_meant_where_no_context_names_one() {
        let authority = STANDARD.encode(CA);
        let cluster = |server: &str| json!({ "server": server, "certificate-authority-data": authority });
        let info = json!({ "clusters": [{ "name": "", "cluster": cluster("https://a:6443") }], "users": [] });
        let found = read(info).expect("a cluster");
        assert_eq!((found.server.as_str(), found.authority.as_str()), ("https://a:6443", CA));
        assert_eq!(found.certificates().len(), 1);
        let two = json!([
            { "name": "one", "cluster": cluster("https://a:6443") }, { "name": "two", "cluster": cluster("https://b:6443") },
        ]);
        assert_eq!(read(json!({ "clusters": two })), Err("it names no cluster"));
        let context = json!([{ "name": "x", "context": { "cluster": "two", "user": "u" } }]);
        let file = json!({ "clusters": two, "contexts": context, "current-context": "x" });
        assert_eq!(read(file).map(|cluster| cluster.server), Ok("https://b:6443".to_owned()));
        let plain = json!({ "clusters": [{ "name": "", "cluster": cluster("http://a:6443") }] });
        assert_eq!(read(plain), Err("its server has no https:// URL"));
        let bare = json!({ "clusters": [{ "name": "", "cluster": { "server": "https://a" } }] });
        assert_eq!(read(bare), Err("it holds no certificate authority"));
    }
}

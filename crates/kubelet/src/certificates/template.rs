//! What a node asks the cluster to sign: pure but for the key. Upstream: pkg/kubelet/certificate (templates) and
//! k8s.io/client-go/util/certificate/csr; the signers' rules are those of
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::NodeAddress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use sha2::{Digest, Sha256};

/// What a certificate of a node is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is who the node is for the API server.
    Client,
    /// The kubelet's API serves with it, under these names and addresses.
    Serving {
        /// DNS names.
        names: BTreeSet<String>,
        /// Addresses.
        addresses: BTreeSet<IpAddr>,
    },
}

impl Purpose {
    /// The serving certificate of a node with these addresses; nothing without any, as no signer would sign it.
    #[must_use]
    pub fn serving(addresses: &[NodeAddress]) -> Option<Self> {
        let (mut names, mut ips) = (BTreeSet::new(), BTreeSet::new());
        for address in addresses {
            match (address.type_.as_str(), address.address.parse::<IpAddr>()) {
                (_, Ok(ip)) => {
                    ips.insert(ip);
                }
                ("Hostname" | "InternalDNS" | "ExternalDNS", Err(_)) => {
                    names.insert(address.address.clone());
                }
                _ => {}
            }
        }
        (!names.is_empty() || !ips.is_empty()).then_some(Self::Serving { names, addresses: ips })
    }

    fn signer(&self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving { .. } => "kubernetes.io/kubelet-serving",
        }
    }

    /// Our keys are elliptic: they encipher nothing.
    fn usages(&self) -> Vec<String> {
        let last = match self {
            Self::Client => "client auth",
            Self::Serving { .. } => "server auth",
        };
        vec!["digital signature".to_owned(), last.to_owned()]
    }
}

/// The user that a node is for the API server.
#[must_use]
pub fn user_of(node: &str) -> String {
    format!("system:node:{node}")
}

/// The object that asks for a certificate of `node`. Its name follows from the key and what is asked for: who asks twice,
/// for instance after a restart, finds the first request.
pub(super) fn request(
    node: &str,
    purpose: &Purpose,
    key: &KeyPair,
) -> Result<CertificateSigningRequest, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, user_of(node));
    params.subject_alt_names = alternatives(purpose)?;
    let pem = params.serialize_request(key)?.pem()?;
    let usages = purpose.usages();
    let mut digest = Sha256::new();
    for part in [
        key.public_key_raw(),
        node.as_bytes(),
        purpose.signer().as_bytes(),
        format!("{purpose:?}").as_bytes(),
    ] {
        digest.update(part);
        digest.update([0]);
    }
    let name = format!("node-csr-{}", URL_SAFE_NO_PAD.encode(digest.finalize()));
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: purpose.signer().to_owned(),
            usages: Some(usages),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

fn alternatives(purpose: &Purpose) -> Result<Vec<SanType>, rcgen::Error> {
    let Purpose::Serving { names, addresses } = purpose else { return Ok(Vec::new()) };
    let names = names.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into()?)));
    names.chain(addresses.iter().map(|ip| Ok(SanType::IpAddress(*ip)))).collect()
}

/// What has become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Somebody has to approve it, or to sign it.
    Pending,
    /// The certificate, PEM.
    Issued(String),
    /// It will never be signed; why.
    Refused(String),
}

/// Reads the request's status.
pub(super) fn verdict(request: &CertificateSigningRequest) -> Verdict {
    let status = request.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.iter().flatten();
    if let Some(refusal) = conditions.find(|one| one.type_ == "Denied" || one.type_ == "Failed") {
        let reason = refusal.reason.as_deref().unwrap_or_default();
        let message = refusal.message.as_deref().unwrap_or_default();
        return Verdict::Refused(format!("{} ({reason}: {message})", refusal.type_.to_lowercase()));
    }
    match status.certificate.and_then(|pem| String::from_utf8(pem.0).ok()).filter(|pem| !pem.is_empty()) {
        Some(pem) => Verdict::Issued(pem),
        None => Verdict::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::CertificateSigningRequestDer;
    use rustls_pki_types::pem::PemObject;
    use serde_json::json;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::{FromDer, ParsedExtension};

    fn addresses(all: &[(&str, &str)]) -> Vec<NodeAddress> {
        all.iter()
            .map(|(kind, address)| NodeAddress { type_: (*kind).into(), address: (*address).into() })
            .collect()
    }

    fn asked(purpose: &Purpose) -> (String, Vec<String>) {
        let key = KeyPair::generate().expect("a key");
        let object = request("n1", purpose, &key).expect("a request");
        let der = CertificateSigningRequestDer::from_pem_slice(&object.spec.request.0).expect("PEM");
        let (_, parsed) = X509CertificationRequest::from_der(&der).expect("a request");
        let names =
            parsed.requested_extensions().into_iter().flatten().flat_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => {
                    names.general_names.iter().map(ToString::to_string).collect()
                }
                _ => Vec::new(),
            });
        (parsed.certification_request_info.subject.to_string(), names.collect())
    }

    #[test]
    fn a_client_s_request_is_what_the_signer_wants() {
        let key = KeyPair::generate().expect("a key");
        let object = request("n1", &Purpose::Client, &key).expect("a request");
        assert_eq!(object.spec.signer_name, "kubernetes.io/kube-apiserver-client-kubelet");
        assert_eq!(object.spec.usages, Some(vec!["digital signature".to_owned(), "client auth".to_owned()]));
        let (subject, names) = asked(&Purpose::Client);
        assert_eq!(subject, "O=system:nodes, CN=system:node:n1");
        assert_eq!(names, Vec::<String>::new());
    }

    #[test]
    fn a_serving_request_has_the_node_s_names_and_addresses() {
        let all = [
            ("Hostname", "n1"),
            ("InternalIP", "192.0.2.7"),
            ("InternalIP", "fd00::7"),
            ("InternalIP", "no"),
            ("Hostname", "192.0.2.8"),
        ];
        let purpose = Purpose::serving(&addresses(&all)).expect("addresses");
        assert_eq!(purpose.signer(), "kubernetes.io/kubelet-serving");
        assert_eq!(purpose.usages(), ["digital signature", "server auth"]);
        let Purpose::Serving { names, addresses } = &purpose else { panic!("{purpose:?}") };
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), ["n1"]);
        assert_eq!(addresses.len(), 3);
        assert_eq!(asked(&purpose).1.len(), 4);
        assert_eq!(Purpose::serving(&[]), None);
    }

    #[test]
    fn the_same_key_and_question_are_the_same_request() {
        let (key, other) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let name = |node: &str, purpose: &Purpose, key: &KeyPair| {
            request(node, purpose, key).expect("a request").metadata.name.expect("a name")
        };
        let serving = Purpose::serving(&addresses(&[("Hostname", "n1")])).expect("a name");
        let first = name("n1", &Purpose::Client, &key);
        assert_eq!(first, name("n1", &Purpose::Client, &key));
        for another in [
            name("n1", &Purpose::Client, &other),
            name("n2", &Purpose::Client, &key),
            name("n1", &serving, &key),
        ] {
            assert_ne!(first, another);
        }
    }

    #[test]
    fn a_refusal_counts_more_than_a_certificate() {
        let of = |status| {
            verdict(
                &serde_json::from_value(
                    json!({ "metadata": {}, "spec": { "request": "", "signerName": "" }, "status": status }),
                )
                .expect("a request"),
            )
        };
        let condition =
            |kind: &str| json!([{ "type": kind, "status": "True", "reason": "R", "message": "m" }]);
        assert_eq!(of(json!({})), Verdict::Pending);
        assert_eq!(of(json!({ "conditions": condition("Approved") })), Verdict::Pending);
        let issued = json!({ "conditions": condition("Approved"), "certificate": "UEVN" });
        assert_eq!(of(issued), Verdict::Issued("PEM".to_owned()));
        assert_eq!(
            of(json!({ "conditions": condition("Denied") })),
            Verdict::Refused("denied (R: m)".to_owned())
        );
        let failed = json!({ "conditions": condition("Failed"), "certificate": "UEVN" });
        assert_eq!(of(failed), Verdict::Refused("failed (R: m)".to_owned()));
    }
}

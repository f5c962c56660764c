//! A certificate with its key, in one PEM text as the kubelet keeps them: reading and checking it, purely.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::template::Purpose;

/// Why a text is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no certificate.
    #[error("there is no certificate")]
    NoCertificate,
    /// There is no key.
    #[error("there is no private key")]
    NoKey,
    /// The first certificate cannot be read.
    #[error("the certificate cannot be read")]
    Malformed,
    /// The key is of a kind that TLS does not use, or of another certificate.
    #[error("the private key does not belong to the certificate")]
    Key(#[source] rustls::Error),
}

/// From when to when a certificate holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: i64,
    /// The last moment.
    pub not_after: i64,
}

/// What the first certificate of a chain says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its common name: the user that its bearer is.
    pub name: String,
    /// When it holds.
    pub validity: Validity,
}

impl Leaf {
    /// Reads the first certificate of a PEM text; nothing when there is none.
    #[must_use]
    pub fn of(pem: &str) -> Option<Self> {
        Self::of_der(&CertificateDer::from_pem_slice(pem.as_bytes()).ok()?)
    }

    fn of_der(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let validity = Validity {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        };
        Some(Self { name: name.unwrap_or_default().to_owned(), validity })
    }
}

impl Validity {
    /// Whether the certificate holds at that moment.
    #[must_use]
    pub fn holds_at(self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// Who somebody is, and the proof.
#[derive(Clone)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    /// The first of its certificates.
    pub leaf: Leaf,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads certificates and a key, in any order.
    ///
    /// # Errors
    /// When one is missing, or they do not belong together.
    pub fn parse(pem: &str) -> Result<Self, IdentityError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect();
        let leaf = Leaf::of_der(chain.first().ok_or(IdentityError::NoCertificate)?);
        let leaf = leaf.ok_or(IdentityError::Malformed)?;
        let identity = Self { pem: pem.to_owned(), leaf, chain };
        identity.certified_key().map(|_| identity)
    }

    /// As rustls takes it.
    ///
    /// # Errors
    /// When the key is of another certificate.
    pub fn certified_key(&self) -> Result<CertifiedKey, IdentityError> {
        let key = PrivateKeyDer::from_pem_slice(self.pem.as_bytes()).map_err(|_| IdentityError::NoKey)?;
        let key = any_supported_type(&key).map_err(IdentityError::Key)?;
        let certified = CertifiedKey::new(self.chain.clone(), key);
        match certified.keys_match() {
            // ring does not tell every kind of key's public half.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
            Err(error) => Err(IdentityError::Key(error)),
        }
    }

    /// Whether it serves under everything that `purpose` names.
    pub(super) fn covers(&self, purpose: &Purpose) -> bool {
        let Purpose::Serving { names, addresses } = purpose else { return true };
        let Some((has_names, has_addresses)) = self.chain.first().and_then(alternatives) else {
            return false;
        };
        names.is_subset(&has_names) && addresses.is_subset(&has_addresses)
    }

    /// Certificates and key, as they were given.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificates alone, and the key alone: together they are [`pem`](Self::pem).
    #[must_use]
    pub fn parts(&self) -> (String, String) {
        let (mut certificates, mut key) = (String::new(), String::new());
        for block in blocks(&self.pem) {
            if block.contains("-----BEGIN CERTIFICATE-----") { &mut certificates } else { &mut key }
                .push_str(&block);
        }
        (certificates, key)
    }
}

/// The blocks of a PEM text, without what stands between them.
fn blocks(pem: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut inside = false;
    for line in pem.lines().map(str::trim_end) {
        if line.starts_with("-----BEGIN ") {
            blocks.push(String::new());
            inside = true;
        }
        if let Some(block) = blocks.last_mut().filter(|_| inside) {
            block.extend([line, "\n"]);
        }
        inside &= !line.starts_with("-----END ");
    }
    blocks
}

/// The names and addresses that a certificate is for.
fn alternatives(certificate: &CertificateDer<'_>) -> Option<(BTreeSet<String>, BTreeSet<IpAddr>)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for name in
        certificate.subject_alternative_name().ok().flatten().iter().flat_map(|all| &all.value.general_names)
    {
        match name {
            GeneralName::DNSName(name) => names.extend([(*name).to_owned()]),
            GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
            _ => {}
        }
    }
    Some((names, addresses))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{CA, self_signed};
    use super::*;

    #[test]
    fn a_certificate_and_its_key_are_an_identity_in_any_order() {
        let (certificate, key) = self_signed("system:node:a", 100, 200);
        for pem in [format!("{certificate}{key}"), format!("{key}{certificate}")] {
            let identity = Identity::parse(&pem).expect("an identity");
            assert_eq!(identity.leaf.name, "system:node:a");
            let validity = identity.leaf.validity;
            assert_eq!(validity, Validity { not_before: 100, not_after: 200 });
            assert!(validity.holds_at(100) && validity.holds_at(200));
            assert!(!validity.holds_at(99) && !validity.holds_at(201));
            assert!(!format!("{identity:?}").contains("PRIVATE"));
            assert_eq!(identity.parts(), (certificate.replace('\r', ""), key.replace('\r', "")));
        }
    }

    #[test]
    fn what_does_not_belong_together_is_no_identity() {
        let ((one, _), (_, other)) = (self_signed("a", 1, 2), self_signed("b", 1, 2));
        let fault = |pem: &str| Identity::parse(pem).expect_err("no identity").to_string();
        assert!(fault(&format!("{one}{other}")).contains("does not belong"));
        assert!(fault(&one).contains("no private key"));
        assert!(fault(&other).contains("no certificate"));
        assert!(fault("").contains("no certificate"));
    }

    #[test]
    fn the_validity_of_an_authority_is_read() {
        let validity = Leaf::of(CA).expect("a certificate").validity;
        assert_eq!((validity.not_before, validity.not_after), (1_795_684_609, 4_949_284_609));
        assert_eq!(Leaf::of("none"), None);
    }
}

//! Pins of certificate authorities: the SHA-256 of a public key, as `--discovery-token-ca-cert-hash` takes it. Upstream:
//! cmd/kubeadm/app/util/pubkeypin; RFC 7469 §2.4.

use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaPin([u8; 32]);

impl FromStr for CaPin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NONE: &str = "is no hash of a CA's public key: sha256: and 64 hexadecimal digits";
        let digits = text.strip_prefix("sha256:").ok_or(NONE)?;
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NONE);
        }
        let mut hash = [0; 32];
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).map_err(|_| NONE)?;
        }
        Ok(Self(hash))
    }
}

impl std::fmt::Display for CaPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl CaPin {
    /// The pin of a certificate; none of what is no certificate.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        Some(Self(Sha256::digest(certificate.public_key().raw).into()))
    }
}

/// Whether one of the certificates is of one of the pins.
pub(super) fn any_matches(pins: &[CaPin], certificates: &[CertificateDer<'_>]) -> bool {
    certificates.iter().filter_map(CaPin::of).any(|pin| pins.contains(&pin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tests_support::CA;
    use rustls_pki_types::pem::PemObject;

    /// `openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256`
    const HASH: &str = "sha256:afc00667980bc7838b54cb5cdb778c6bf28ba67461aded03ff4122c1335343ae";

    fn authority() -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(CA.as_bytes()).expect("a certificate")
    }

    #[test]
    fn a_pin_is_what_openssl_says_of_the_public_key() {
        assert_eq!(CaPin::of(&authority()).expect("a pin").to_string(), HASH);
        assert_eq!(HASH.to_uppercase().replace("SHA256", "sha256").parse(), HASH.parse::<CaPin>());
    }

    #[test]
    fn one_match_is_enough_and_none_is_not() {
        let (right, wrong): (CaPin, CaPin) =
            (HASH.parse().unwrap(), HASH.replace("afc", "bfc").parse().unwrap());
        let garbage = CertificateDer::from(b"none".to_vec());
        assert!(any_matches(&[wrong, right], &[garbage.clone(), authority()]));
        assert!(!any_matches(&[wrong], &[authority()]));
        assert!(!any_matches(&[right], &[garbage]));
        assert!(!any_matches(&[right], &[]));
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        for text in [
            "",
            "sha256:",
            "sha256:zz",
            &HASH[7..],
            &HASH[..70],
            &HASH.replace("256", "512"),
            &format!("{HASH}0"),
        ] {
            assert!(text.parse::<CaPin>().is_err(), "{text}");
        }
    }
}

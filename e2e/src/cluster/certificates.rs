//! The certificates of a cluster, with the names and groups that kubeadm gives them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// Who a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The user.
    pub common_name: &'a str,
    /// The group, if any.
    pub organization: Option<&'a str>,
}

/// When a certificate holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
}

impl Period {
    fn set(self, mut params: CertificateParams) -> CertificateParams {
        let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        (params.not_before, params.not_after) = (at(self.from), at(self.to));
        params
    }
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The key, PKCS #8.
    pub key: String,
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn write(&self, directory: &Path, name: &str) -> Result<()> {
        for (ending, text) in [("crt", &self.certificate), ("key", &self.key)] {
            std::fs::write(directory.join(format!("{name}.{ending}")), text)
                .with_context(|| format!("write {name}.{ending}"))?;
        }
        Ok(())
    }
}

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = params(Subject { common_name: name, organization: None }, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        let key = KeyPair::generate().context("make a key")?;
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, key).context("sign the authority")? })
    }

    /// Its own certificate and key.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity { certificate: self.issuer.pem(), key: self.issuer.key().serialize_pem() }
    }

    /// The SHA-256 of its public key, as `--discovery-token-ca-cert-hash` takes it.
    #[must_use]
    pub fn public_key_hash(&self) -> String {
        use rcgen::PublicKeyData as _;
        crate::image::digest(&self.issuer.key().subject_public_key_info())
    }

    /// Signs a certificate by which `subject` makes requests.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn client(&self, subject: Subject<'_>) -> Result<Identity> {
        self.sign(params(subject, &[])?, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// As [`client`](Self::client), for that time.
    ///
    /// # Errors
    /// As there.
    pub fn client_within(&self, subject: Subject<'_>, period: Period) -> Result<Identity> {
        self.sign(period.set(params(subject, &[])?), &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// As [`server`](Self::server), for that time.
    ///
    /// # Errors
    /// As there.
    pub fn server_within(&self, subject: Subject<'_>, names: &[&str], period: Period) -> Result<Identity> {
        self.sign(period.set(params(subject, names)?), &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// Signs a certificate by which `subject` serves under these names and addresses.
    ///
    /// # Errors
    /// When a name is none, or there is no randomness.
    pub fn server(&self, subject: Subject<'_>, names: &[&str]) -> Result<Identity> {
        self.sign(params(subject, names)?, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    fn sign(&self, mut params: CertificateParams, usages: &[ExtendedKeyUsagePurpose]) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("sign a certificate")?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// A key pair for what is no certificate: ServiceAccount tokens.
///
/// # Errors
/// When there is no randomness.
pub fn write_key_pair(directory: &Path, name: &str) -> Result<()> {
    let key = KeyPair::generate().context("make a key")?;
    std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).context("write a key")?;
    std::fs::write(directory.join(format!("{name}.pub")), key.public_key_pem()).context("write a key")
}

fn params(subject: Subject<'_>, names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).context("read the names")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.common_name);
    if let Some(organization) = subject.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(2124, 1, 1));
    Ok(params)
}

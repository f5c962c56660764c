//! Where the serving certificate comes from when nobody gives one while the node runs: files that an admin names, else a
//! self-signed one beside the node's others. Upstream: cmd/kubelet/app/server.go, InitializeTLS.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::tls::{ServingCertificate, serving_certificate};
use crate::time::wall_ns;

/// A self-signed certificate is for a year, as upstream; a start in its last month makes another.
const YEAR: i64 = 365 * DAY;
const DAY: i64 = 24 * 3600;
const RENEW: i64 = 30 * DAY;

/// How long after a change the other of two files may be replaced.
const SETTLES: Duration = Duration::from_millis(200);

/// Why there is no serving certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("{what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file has no PEM of the right kind.
    #[error("read {} in PEM from {}", what, path.display())]
    Pem {
        /// A certificate, or a key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not go together, or are of no kind that is supported.
    #[error("serve with the certificate {} and the key {}", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// There is no randomness, or the node's name is no name.
    #[error("make a self-signed certificate")]
    Generate(#[source] rcgen::Error),
}

/// `tlsCertFile` and `tlsPrivateKeyFile`.
///
/// # Errors
/// When a file cannot be read, is no PEM, or the two do not go together.
pub fn from_files(certificate: &Path, key: &Path) -> Result<ServingCertificate, CertificateError> {
    let pem = |what, path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::Pem { what, path, source }
    };
    let text = read(certificate)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(pem("a certificate", certificate))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(pem("a key", key))?;
    serving_certificate(chain, private).map_err(|source| CertificateError::Unusable {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })
}

/// Shows what the two files hold, whenever they are replaced, for ever. Files that do not go together are told of and change nothing.
///
/// # Errors
/// When their directories cannot be watched.
pub async fn follow_files(
    certificate: &Path,
    key: &Path,
    shown: watch::Sender<ServingCertificate>,
) -> io::Result<Infallible> {
    let inotify = Inotify::init()?;
    for file in [certificate, key] {
        let directory = file.parent().unwrap_or(Path::new("/"));
        // A Secret's volume is replaced by renaming a link.
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE;
        inotify.watches().add(directory, mask)?;
    }
    let mut events = inotify.into_event_stream(vec![0; 4096])?;
    loop {
        match events.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        tokio::time::sleep(SETTLES).await;
        match from_files(certificate, key) {
            Ok(now) => {
                let is_new = shown.send_if_modified(|known| {
                    let is_new = known.cert != now.cert;
                    *known = now;
                    is_new
                });
                if is_new {
                    tracing::info!(file = %certificate.display(), "serving with a new certificate");
                }
            }
            Err(error) => {
                let error = crate::api::chain(&error);
                tracing::warn!(error, "the serving certificate stays the former one");
            }
        }
    }
}

/// The self-signed one in `kubelet.crt` and `kubelet.key` of a directory; made when there is none, or when it is of no use.
///
/// # Errors
/// When the directory cannot be written.
pub fn self_signed(
    directory: &Path,
    node_name: &str,
    ip: Option<IpAddr>,
) -> Result<ServingCertificate, CertificateError> {
    let (certificate, key) = (directory.join("kubelet.crt"), directory.join("kubelet.key"));
    let now = wall_ns() / 1_000_000_000;
    if certificate.exists() && key.exists() {
        match from_files(&certificate, &key) {
            Ok(found) => match fault(&found, node_name, ip, now) {
                None => return Ok(found),
                Some(fault) => {
                    tracing::info!(file = %certificate.display(), "the self-signed certificate {fault}: making another");
                }
            },
            Err(error) => {
                tracing::warn!(%error, file = %certificate.display(), "the self-signed certificate is of no use: making another");
            }
        }
    }
    let (signed, pair) = generate(node_name, ip, now).map_err(CertificateError::Generate)?;
    std::fs::create_dir_all(directory).map_err(file("create the directory", directory))?;
    host::state_file::write_atomic(&key, pair.serialize_pem().as_bytes(), 0o600)
        .map_err(file("write", &key))?;
    host::state_file::write_atomic(&certificate, signed.pem().as_bytes(), 0o644)
        .map_err(file("write", &certificate))?;
    from_files(&certificate, &key)
}

fn generate(
    node_name: &str,
    ip: Option<IpAddr>,
    now: i64,
) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
    let names: Vec<String> =
        std::iter::once(node_name.to_owned()).chain(ip.map(|ip| ip.to_string())).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{node_name}@{now}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let moment = |seconds: i64| {
        date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    params.not_before = moment(now - 3600);
    params.not_after = moment(now + YEAR);
    let pair = KeyPair::generate()?;
    Ok((params.self_signed(&pair)?, pair))
}

/// Why a self-signed certificate does not serve this node any more.
fn fault(found: &ServingCertificate, node_name: &str, ip: Option<IpAddr>, now: i64) -> Option<&'static str> {
    let first = found.cert.first().and_then(|der| X509Certificate::from_der(der).ok());
    let Some((_, certificate)) = first else { return Some("cannot be read") };
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let named = alternatives.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let octets = ip.map(|ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    });
    let has_name = named.contains(&GeneralName::DNSName(node_name));
    let has_address = octets.is_none_or(|octets| named.contains(&GeneralName::IPAddress(&octets)));
    if certificate.validity().not_after.timestamp() <= now + RENEW {
        Some("ends soon")
    } else if !has_name || !has_address {
        Some("is of another name or address")
    } else {
        None
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(file("read", path))
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CertificateError {
    let path = path.to_owned();
    move |source| CertificateError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_self_signed_certificate_is_made_once_and_again_when_it_is_of_no_use() {
        let directory = tempfile::tempdir().unwrap();
        let make = || self_signed(directory.path(), "node", "192.0.2.1".parse().ok()).unwrap();
        let first = make();
        assert_eq!(first.cert, make().cert);
        let key = directory.path().join("kubelet.key");
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&key, "torn").unwrap();
        assert_ne!(first.cert, make().cert);
    }

    #[test]
    fn a_certificate_that_ends_soon_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let now = wall_ns() / 1_000_000_000;
        let (signed, pair) = generate("node", None, now - YEAR + DAY).unwrap();
        std::fs::write(directory.path().join("kubelet.crt"), signed.pem()).unwrap();
        std::fs::write(directory.path().join("kubelet.key"), pair.serialize_pem()).unwrap();
        let made = self_signed(directory.path(), "node", None).unwrap();
        assert_eq!(fault(&made, "node", None, now), None);
    }

    #[test]
    fn a_node_with_another_address_has_another_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, ip: Option<&str>| {
            let ip = ip.map(|ip| ip.parse().unwrap());
            self_signed(directory.path(), name, ip).unwrap().cert.clone()
        };
        let first = make("node", Some("192.0.2.1"));
        assert_eq!(make("node", None), first, "an address that is not known is not missed");
        let second = make("node", Some("192.0.2.2"));
        assert_ne!(second, first);
        assert_eq!(make("node", Some("192.0.2.2")), second);
        let third = make("node", Some("2001:db8::1"));
        assert_ne!(third, second);
        assert_eq!(make("node", Some("2001:db8::1")), third);
        assert_ne!(make("other", Some("2001:db8::1")), third);
    }

    #[tokio::test]
    async fn files_that_are_replaced_are_shown_and_wrong_ones_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("a.crt"), directory.path().join("a.key"));
        let write = |now| {
            let (signed, pair) = generate("node", None, now).unwrap();
            std::fs::write(&certificate, signed.pem()).unwrap();
            std::fs::write(&key, pair.serialize_pem()).unwrap();
        };
        write(1_000_000);
        let (shown, mut seen) = watch::channel(from_files(&certificate, &key).unwrap());
        let first = seen.borrow_and_update().clone();
        let following = follow_files(&certificate, &key, shown);
        let story = async {
            std::fs::write(&key, "torn").unwrap();
            tokio::time::sleep(SETTLES * 2).await;
            assert!(!seen.has_changed().unwrap(), "what is torn is not shown");
            write(2_000_000);
            seen.changed().await.unwrap();
            assert_ne!(seen.borrow().cert, first.cert);
        };
        tokio::select! {
            ended = following => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("a.crt"), directory.path().join("a.key"));
        let message = |certificate: &Path, key: &Path| from_files(certificate, key).unwrap_err().to_string();
        assert!(message(&certificate, &key).contains("a.crt"));
        let (signed, _) = generate("node", None, 0).unwrap();
        std::fs::write(&certificate, signed.pem()).unwrap();
        std::fs::write(&key, "no key").unwrap();
        assert!(message(&certificate, &key).contains("a key in PEM"), "{}", message(&certificate, &key));
        std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(message(&certificate, &key).starts_with("serve with"), "{}", message(&certificate, &key));
    }
}

//! What a failed request to an API server means for somebody who wants to join: pure.

use std::error::Error;
use std::io;

use rustls::CertificateError;

use super::error::JoinError;
use crate::certificates::Validity;

/// A failure, as far as people treat it differently.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no connection.
    Unreachable(String),
    /// The server's certificate does not hold now; when it would, as far as rustls tells.
    Clock(Option<Bound>),
    /// The server's certificate is not to be trusted.
    Untrusted(String),
    /// The API server said no: its code and message.
    Status(u16, String),
}

/// One end of a certificate's life, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    NotBefore(i64),
    NotAfter(i64),
}

impl Bound {
    pub(super) fn validity(self) -> Validity {
        match self {
            Self::NotBefore(not_before) => Validity { not_before, not_after: i64::MAX },
            Self::NotAfter(not_after) => Validity { not_before: i64::MIN, not_after },
        }
    }
}

/// Looks through the causes of an error.
pub(super) fn of(error: &kube::Error) -> Trouble {
    if let kube::Error::Api(status) = error {
        return Trouble::Status(status.code, status.message.clone());
    }
    match tls_cause(error) {
        Some(rustls::Error::InvalidCertificate(cause)) => certificate(cause),
        Some(other) => Trouble::Untrusted(other.to_string()),
        None => Trouble::Unreachable(innermost(error)),
    }
}

fn certificate(cause: &CertificateError) -> Trouble {
    let seconds = |time: &rustls_pki_types::UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match cause {
        CertificateError::Expired | CertificateError::NotValidYet => Trouble::Clock(None),
        CertificateError::ExpiredContext { not_after, .. } => {
            Trouble::Clock(Some(Bound::NotAfter(seconds(not_after))))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            Trouble::Clock(Some(Bound::NotBefore(seconds(not_before))))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            Trouble::Untrusted("its certificate is not of the cluster's authority".to_owned())
        }
        other => Trouble::Untrusted(other.to_string()),
    }
}

/// rustls' own error, which lies inside errors of I/O.
fn tls_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

impl Trouble {
    /// What is told, when `what` failed at `server`.
    pub(super) fn tell(self, server: &str, what: &str, theirs: Option<i64>) -> JoinError {
        let server = server.to_owned();
        match self {
            Self::Unreachable(cause) => JoinError::Unreachable { server, cause },
            Self::Untrusted(cause) => JoinError::Untrusted { server, cause },
            Self::Clock(bound) => JoinError::Clock {
                what: format!("the certificate of the API server {server}"),
                validity: bound.map(Bound::validity),
                ours: crate::certificates::now(),
                theirs,
            },
            Self::Status(401, _) => JoinError::Unauthorized { server },
            Self::Status(403, cause) => JoinError::Forbidden { what: what.to_owned(), cause },
            Self::Status(_, cause) => JoinError::Api { what: what.to_owned(), cause },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::UnixTime;
    use std::time::Duration;

    fn of_tls(error: CertificateError) -> Trouble {
        // As hyper wraps it: an error of I/O around that of TLS.
        let io = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(error));
        of(&kube::Error::Service(Box::new(io)))
    }

    #[test]
    fn a_certificate_out_of_its_time_is_a_matter_of_clocks() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let early = CertificateError::NotValidYetContext { time: at(10), not_before: at(20) };
        assert_eq!(of_tls(early), Trouble::Clock(Some(Bound::NotBefore(20))));
        let late = CertificateError::ExpiredContext { time: at(30), not_after: at(20) };
        assert_eq!(of_tls(late), Trouble::Clock(Some(Bound::NotAfter(20))));
        assert_eq!(of_tls(CertificateError::Expired), Trouble::Clock(None));
    }

    #[test]
    fn a_certificate_of_others_is_not_trusted_and_silence_is_no_certificate() {
        assert!(matches!(of_tls(CertificateError::UnknownIssuer), Trouble::Untrusted(_)));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let trouble = of(&kube::Error::Service(Box::new(refused)));
        assert_eq!(trouble, Trouble::Unreachable("connection refused".to_owned()));
    }

    #[test]
    fn what_the_api_server_says_has_a_meaning() {
        let told = |code| Trouble::Status(code, "m".to_owned()).tell("s", "read it", None);
        assert!(matches!(told(401), JoinError::Unauthorized { .. }));
        assert!(matches!(told(403), JoinError::Forbidden { .. }));
        assert!(matches!(told(500), JoinError::Api { .. }));
    }

    #[test]
    fn clocks_are_told_as_people_read_them() {
        let validity = Some(Bound::NotBefore(1_795_684_609).validity());
        let error =
            JoinError::Clock { what: "it".to_owned(), validity, ours: 0, theirs: Some(1_795_684_610) };
        let text = error.to_string();
        assert!(text.starts_with("it is valid from 2026-11-26T09:16:49Z on, but the clock of this machine says 1970-01-01T00:00:00Z and that of the server 2026-11-26T09:16:50Z"), "{text}");
    }
}

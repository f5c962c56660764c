//! The detached signature of ConfigMap kube-public/cluster-info: whoever knows the token's secret signed it. Upstream:
//! k8s.io/cluster-bootstrap/token/jws; RFC 7515 appendix F.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::Deserialize;

/// What a signature is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JwsError {
    /// It has another form than `header..signature`, or is of another algorithm or token.
    #[error("the signature is malformed")]
    Malformed,
    /// It was made with another secret, or over another text.
    #[error("the signature does not match")]
    Mismatch,
}

/// Anything else in it is of no concern to us.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

/// Checks that `jws` is the signature of `payload` by the token with that id and secret.
pub(super) fn verify(payload: &[u8], jws: &str, id: &str, secret: &str) -> Result<(), JwsError> {
    let (header, signature) = jws.split_once("..").ok_or(JwsError::Malformed)?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| JwsError::Malformed);
    let parsed: Header = serde_json::from_slice(&decode(header)?).map_err(|_| JwsError::Malformed)?;
    if parsed.alg != "HS256" || parsed.kid != id {
        return Err(JwsError::Malformed);
    }
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    // ring compares in constant time.
    hmac::verify(&key, signed.as_bytes(), &decode(signature)?).map_err(|_| JwsError::Mismatch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's own vector (jws_test.go), and one computed by Python's hmac.
    const VECTORS: [(&str, &str, &str, &str); 2] = [
        (
            "Hello from the other side. I must have called a thousand times.",
            "joshua",
            "my voice is my passcode",
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8",
        ),
        (
            "apiVersion: v1\nkind: Config\n",
            "abcdef",
            "0123456789abcdef",
            "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..vH_kT4yiol-nrAWgjfCYqvum5wsKETXe0S7OOp1VgnE",
        ),
    ];

    #[test]
    fn signatures_of_others_are_taken() {
        for (payload, id, secret, jws) in VECTORS {
            assert_eq!(verify(payload.as_bytes(), jws, id, secret), Ok(()), "{id}");
        }
    }

    #[test]
    fn another_text_secret_or_signature_is_refused() {
        let (payload, id, secret, jws) = VECTORS[1];
        assert_eq!(verify(b"apiVersion: v2", jws, id, secret), Err(JwsError::Mismatch));
        assert_eq!(verify(payload.as_bytes(), jws, id, "0123456789abcdee"), Err(JwsError::Mismatch));
        let (header, signature) = jws.split_once("..").expect("two parts");
        let shortened = format!("{header}..{}", &signature[..40]);
        assert_eq!(verify(payload.as_bytes(), &shortened, id, secret), Err(JwsError::Mismatch));
    }

    #[test]
    fn other_forms_algorithms_and_tokens_are_malformed() {
        let (payload, id, secret, jws) = VECTORS[1];
        let signature = jws.split_once("..").expect("two parts").1;
        let with = |header: &str| format!("{}..{signature}", URL_SAFE_NO_PAD.encode(header));
        for jws in [
            String::new(),
            signature.to_owned(),
            jws.replace("..", ".e30."),
            with("{}"),
            with(r#"{"alg":"none","kid":"abcdef"}"#),
            with(r#"{"alg":"HS256","kid":"fedcba"}"#),
            format!("!!..{signature}"),
            format!("{jws}="),
        ] {
            assert_eq!(verify(payload.as_bytes(), &jws, id, secret), Err(JwsError::Malformed), "{jws}");
        }
    }
}

//! GET over HTTP and HTTPS as probes and hooks make it: certificates are not verified, redirects are followed on the same
//! host only. Upstream: pkg/probe/http.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, HOST, LOCATION, USER_AGENT as AGENT};
use hyper::{HeaderMap, Response, Uri};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::dial::{Host, Place, dial};
use super::{Answer, Target, place};

/// How probes call themselves.
pub(super) const USER_AGENT: &str = "kube-probe/1.36";
/// How hooks call themselves.
const HOOK_AGENT: &str = "kube-lifecycle/1.36";
const MAX_REDIRECTS: usize = 10;
/// What is said of a server that does not speak TLS.
const NOT_TLS: &str = "tls: first record does not look like a TLS handshake";
/// How much of a body is read.
const MAX_BODY: usize = 10 << 10;

/// 200 to 299 is success; so is a redirect to another host, but it is told.
pub(super) async fn ask(get: &HTTPGetAction, target: &Target, timeout: Duration) -> Answer {
    let uri = match uri_of(get, target) {
        Err(message) => return Answer::Error(message),
        Ok(uri) => uri,
    };
    match tokio::time::timeout(timeout, follow(&uri, get, USER_AGENT, timeout)).await {
        Err(_) => Answer::Failure(format!(
            "Get \"{uri}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
        Ok(Err(message)) => Answer::Failure(message),
        Ok(Ok((status, body))) => answer_of(status, &body),
    }
}

/// What a status means. Pure.
fn answer_of(status: u16, body: &str) -> Answer {
    match status {
        200..300 => Answer::Success,
        300..400 => Answer::Warning(format!("Probe terminated redirects, Response body: {body}")),
        _ => Answer::Failure(format!("HTTP probe failed with statuscode: {status}")),
    }
}

/// How a hook was answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HookAnswer {
    /// As it was asked for.
    AsAsked,
    /// Over HTTP, by whom was asked over HTTPS; with host and port.
    WithoutTls(String),
}

/// The request of a hook: any answer will do. Who does not speak TLS is asked again over HTTP. Upstream: pkg/kubelet/lifecycle,
/// `runHTTPHandler`.
///
/// # Errors
/// When there is no answer.
pub(crate) async fn hook(
    get: &HTTPGetAction,
    target: &Target,
    timeout: Duration,
) -> Result<HookAnswer, String> {
    let uri = uri_of(get, target)?;
    let asked = async {
        match follow(&uri, get, HOOK_AGENT, timeout).await {
            Ok(_) => Ok(HookAnswer::AsAsked),
            Err(error) if error.ends_with(NOT_TLS) => {
                let plain = without_tls(get);
                let uri = uri_of(&plain, target)?;
                let answered = follow(&uri, &plain, HOOK_AGENT, timeout).await;
                let host = uri.authority().map(ToString::to_string).unwrap_or_default();
                answered.map_or(Err(error), |_| Ok(HookAnswer::WithoutTls(host)))
            }
            Err(error) => Err(error),
        }
    };
    let answer = tokio::time::timeout(timeout, asked).await;
    answer.unwrap_or_else(|_| Err(format!("Get \"{uri}\": context deadline exceeded")))
}

/// The same over HTTP, where nobody may read a password. Pure.
fn without_tls(get: &HTTPGetAction) -> HTTPGetAction {
    let mut plain = HTTPGetAction { scheme: Some("HTTP".to_owned()), ..get.clone() };
    plain
        .http_headers
        .iter_mut()
        .for_each(|own| own.retain(|own| !own.name.eq_ignore_ascii_case("authorization")));
    plain
}

fn uri_of(get: &HTTPGetAction, target: &Target) -> Result<Uri, String> {
    let place = place(get.host.as_deref(), &get.port, target)?;
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = get.path.as_deref().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{place}{slash}{path}")
        .parse()
        .map_err(|error| format!("parse the host and path \"{place}{slash}{path}\" of the probe: {error}"))
}

/// Status and the beginning of the body of the last answer.
async fn follow(
    first: &Uri,
    get: &HTTPGetAction,
    agent: &str,
    timeout: Duration,
) -> Result<(u16, String), String> {
    let mut uri = first.clone();
    for _ in 0..=MAX_REDIRECTS {
        let answer =
            send(&uri, get, agent, timeout).await.map_err(|error| format!("Get \"{uri}\": {error}"))?;
        let status = answer.status().as_u16();
        match next(first, &uri, status, answer.headers()) {
            Some(location) => uri = location,
            None => return Ok((status, beginning(answer).await)),
        }
    }
    Err(format!("Get \"{uri}\": stopped after {MAX_REDIRECTS} redirects"))
}

/// Where an answer redirects to, unless that is another host's. Pure.
fn next(first: &Uri, uri: &Uri, status: u16, headers: &HeaderMap) -> Option<Uri> {
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = headers.get(LOCATION)?.to_str().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.contains("://") {
        location.to_owned()
    } else {
        let directory = uri.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let next: Uri = absolute.parse().ok()?;
    (next.host() == first.host() && matches!(next.scheme_str(), Some("http" | "https"))).then_some(next)
}

async fn send(
    uri: &Uri,
    get: &HTTPGetAction,
    agent: &str,
    timeout: Duration,
) -> Result<Response<Incoming>, String> {
    let is_tls = uri.scheme_str() == Some("https");
    let authority = uri.authority().ok_or("it has no host")?;
    let host = Host::parse(authority.host().trim_matches(['[', ']']));
    let place = Place { host, port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }) };
    let stream = dial(&place, timeout).await?;
    if is_tls {
        let name = match place.host {
            Host::Ip(ip) => ServerName::from(ip),
            Host::Name(name) => ServerName::try_from(name).map_err(|error| error.to_string())?,
        };
        let connector = TlsConnector::from(Arc::new(trusting()?));
        let stream = connector.connect(name, stream).await.map_err(|error| describe(&error))?;
        exchange(TokioIo::new(stream), uri, get, agent).await
    } else {
        exchange(TokioIo::new(stream), uri, get, agent).await
    }
}

/// Of a TLS connection that could not be made.
fn describe(error: &std::io::Error) -> String {
    use rustls::{Error, InvalidMessage};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => NOT_TLS.to_owned(),
        _ => error.to_string(),
    }
}

async fn exchange(
    stream: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    uri: &Uri,
    get: &HTTPGetAction,
    agent: &str,
) -> Result<Response<Incoming>, String> {
    let told = |error: hyper::Error| {
        std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(told)?;
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request =
        hyper::Request::get(path).body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    *request.headers_mut() = headers(uri, get, agent)?;
    sender.send_request(request).await.map_err(told)
}

/// The probe's own headers win over what is sent without them; an empty one is not sent at all. Pure.
fn headers(uri: &Uri, get: &HTTPGetAction, agent: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    for (name, value) in [(HOST, authority.as_str()), (AGENT, agent), (ACCEPT, "*/*")] {
        let own = get.http_headers.iter().flatten().any(|own| own.name.eq_ignore_ascii_case(name.as_str()));
        if !own {
            headers.insert(name, value.parse().map_err(|_| format!("{value:?} is no header"))?);
        }
    }
    for own in get.http_headers.iter().flatten() {
        let invalid = || format!("{:?} is no header", own.name);
        let name: hyper::header::HeaderName = own.name.parse().map_err(|_| invalid())?;
        if own.value.is_empty() && (name == AGENT || name == ACCEPT) {
            continue;
        }
        headers.append(name, own.value.parse().map_err(|_| invalid())?);
    }
    headers.insert("connection", hyper::header::HeaderValue::from_static("close"));
    Ok(headers)
}

async fn beginning(answer: Response<Incoming>) -> String {
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while text.len() < MAX_BODY
        && let Some(Ok(frame)) = body.frame().await
    {
        text.extend(frame.into_data().unwrap_or_default());
    }
    text.truncate(MAX_BODY);
    String::from_utf8_lossy(&text).into_owned()
}

/// Upstream verifies no certificate: whoever answers on the pod's address is asked.
fn trusting() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let verifier = Arc::new(Anyone(provider));
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::HTTPHeader;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn get(path: &str, headers: &[(&str, &str)]) -> HTTPGetAction {
        let header =
            |(name, value): &(&str, &str)| HTTPHeader { name: (*name).into(), value: (*value).into() };
        HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::Int(80),
            http_headers: Some(headers.iter().map(header).collect()),
            ..HTTPGetAction::default()
        }
    }

    #[test]
    fn redirects_are_followed_on_the_same_host_only() {
        let first: Uri = "http://10.0.0.1:80/a/b".parse().expect("a URI");
        for (status, location, expect) in [
            (302, "/ok", Some("http://10.0.0.1:80/ok")),
            (301, "c", Some("http://10.0.0.1:80/a/c")),
            (307, "https://10.0.0.1:8443/x", Some("https://10.0.0.1:8443/x")),
            (302, "http://10.0.0.2/", None),
            (302, "http://elsewhere/", None),
            (302, "ftp://10.0.0.1/", None),
            (200, "/ok", None),
            (304, "/ok", None),
        ] {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().expect("a header"))]);
            let next = next(&first, &first, status, &headers).map(|uri| uri.to_string());
            assert_eq!(next.as_deref(), expect, "{status} {location}");
        }
    }

    #[test]
    fn the_probes_own_headers_win_and_empty_ones_are_not_sent() {
        let uri: Uri = "http://10.0.0.1:8080/".parse().expect("a URI");
        let check = |own: &[(&str, &str)], expect: [Option<&str>; 3]| {
            let headers = headers(&uri, &get("/", own), USER_AGENT).expect("headers");
            let found = [HOST, AGENT, ACCEPT]
                .map(|name| headers.get(name).map(|value| value.to_str().expect("text")));
            assert_eq!(found, expect);
        };
        check(&[], [Some("10.0.0.1:8080"), Some("kube-probe/1.36"), Some("*/*")]);
        check(
            &[("Host", "a.test"), ("Accept", ""), ("User-Agent", "me")],
            [Some("a.test"), Some("me"), None],
        );
    }

    #[test]
    fn statuses_mean_what_upstream_takes_them_for() {
        assert_eq!(answer_of(204, ""), Answer::Success);
        let redirected = "Probe terminated redirects, Response body: gone".to_owned();
        assert_eq!(answer_of(302, "gone"), Answer::Warning(redirected));
        for status in [400, 404, 500] {
            let message = format!("HTTP probe failed with statuscode: {status}");
            assert_eq!(answer_of(status, ""), Answer::Failure(message));
        }
    }

    /// A server that answers every request alike, in the clear, and gives the requests.
    async fn plain_server() -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let (told, requests) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let _ = told.send(String::from_utf8_lossy(&request[..length]).into_owned());
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
            }
        });
        (port, requests)
    }

    #[tokio::test]
    async fn a_hook_over_https_asks_again_over_http_who_speaks_no_tls() {
        let (port, mut requests) = plain_server().await;
        let target =
            Target { container_id: String::new(), ip: Some([127, 0, 0, 1].into()), ports: Vec::new() };
        let own = [("Authorization", "Basic c2VjcmV0"), ("X-Mine", "kept")];
        let get = HTTPGetAction { port: IntOrString::Int(i32::from(port)), ..get("/x", &own) };
        let secure = HTTPGetAction { scheme: Some("HTTPS".to_owned()), ..get.clone() };
        let patience = Duration::from_secs(10);
        let answer = hook(&secure, &target, patience).await;
        assert_eq!(answer, Ok(HookAnswer::WithoutTls(format!("127.0.0.1:{port}"))));
        assert!(requests.recv().await.is_some_and(|hello| !hello.contains("HTTP/1.1")));
        let request = requests.recv().await.expect("a second request").to_lowercase();
        assert!(request.contains("x-mine: kept") && !request.contains("authorization"), "{request}");
        // A probe does not, and over HTTP there is nothing to ask again.
        assert!(
            matches!(ask(&secure, &target, patience).await, Answer::Failure(text) if text.ends_with(NOT_TLS))
        );
        assert_eq!(hook(&get, &target, patience).await, Ok(HookAnswer::AsAsked));
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_a_failure_in_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let target =
            Target { container_id: String::new(), ip: Some([127, 0, 0, 1].into()), ports: Vec::new() };
        let get = HTTPGetAction { port: IntOrString::Int(i32::from(port)), ..get("/x?y=1", &[]) };
        let asked = tokio::spawn(async move { ask(&get, &target, Duration::from_millis(50)).await });
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 16];
        stream.read_exact(&mut request).await.expect("a request");
        assert_eq!(&request, b"GET /x?y=1 HTTP/");
        let text = format!(
            "Get \"http://127.0.0.1:{port}/x?y=1\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        );
        assert_eq!(asked.await.expect("an answer"), Answer::Failure(text));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    }
}

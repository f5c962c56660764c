//! One pull's conversation: each question goes to the hosts in order until one answers it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Response, StatusCode, Uri};

use super::auth::{self, Challenge};
use super::download::{Answer, download, place, skip};
use super::hosts::{Host, is_loopback};
use super::transport::{Call, Names, Transport};
use crate::images::acquire::ByteStream;
use crate::images::layout::{self, Descriptor};
use crate::images::reference::{Reference, is_digest};
use crate::images::{Auth, ImageError, Limits};

/// Bytes of an error or token that are read.
const MAX_ANSWER: u64 = 1 << 20;

/// The hosts that serve one repository, and what lets us in.
pub(in crate::images) struct Session {
    reference: Reference,
    hosts: Vec<Arc<Transport>>,
    auth: Auth,
    /// `Authorization` by host, once a challenge was answered.
    granted: Mutex<BTreeMap<String, HeaderValue>>,
    limits: Limits,
}

/// What is asked for below `/v2/<repository>/`.
#[derive(Clone, Copy)]
enum Kind {
    Manifest,
    Blob {
        /// The first byte that is wanted.
        position: u64,
    },
}

impl Session {
    pub(super) fn new(
        reference: Reference,
        hosts: Vec<Host>,
        auth: Auth,
        limits: &Limits,
    ) -> Result<Self, ImageError> {
        let names = Names::from_system();
        let hosts = hosts
            .into_iter()
            .map(|host| Transport::new(host, names.clone(), limits.stall).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Self { reference, hosts, auth, granted: Mutex::default(), limits: limits.clone() })
    }

    /// A manifest or index by tag or digest, with its descriptor; a digest is verified.
    pub(in crate::images) async fn manifest(&self, name: &str) -> Result<(Descriptor, Vec<u8>), ImageError> {
        let (transport, response) = self.ask(Kind::Manifest, name).await?;
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let media_type = header("content-type").unwrap_or_default();
        let announced = header("docker-content-digest").filter(|digest| is_digest(digest));
        let what = format!("the manifest of {}", self.reference);
        let content = self.read(&transport, response, &what, self.limits.document_bytes).await?;
        let mut descriptor = Descriptor::of(&media_type, &content);
        if descriptor.media_type.is_empty() {
            layout::OCI_MANIFEST.clone_into(&mut descriptor.media_type);
        }
        let expected = if is_digest(name) { Some(name.to_owned()) } else { announced };
        match expected {
            Some(expected) if expected != descriptor.digest => {
                Err(ImageError::DigestMismatch { what, expected, got: descriptor.digest })
            }
            _ => Ok((descriptor, content)),
        }
    }

    /// The bytes of a blob from `position` on, not verified; a connection that breaks is followed by another.
    pub(in crate::images) fn blob(self: &Arc<Self>, descriptor: &Descriptor, position: u64) -> ByteStream {
        download(Arc::clone(self), descriptor, position)
    }

    /// The same over one connection.
    pub(super) async fn blob_from(
        &self,
        descriptor: &Descriptor,
        position: u64,
    ) -> Result<ByteStream, ImageError> {
        let what = format!("blob {}", descriptor.digest);
        let (transport, response) = self.ask(Kind::Blob { position }, &descriptor.digest).await?;
        let answer = place(descriptor, position, &response);
        let answer = answer.map_err(|(expected, got)| ImageError::DigestMismatch {
            what: format!("{what} from {}", transport.host().authority),
            expected,
            got,
        })?;
        let stream = body_stream(transport.host().authority.clone(), response, what, self.limits.stall);
        Ok(match answer {
            Answer::Rest => stream,
            Answer::Again(known) => skip(stream, known),
        })
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn ended_early(&self, descriptor: &Descriptor, position: u64) -> ImageError {
        ImageError::RegistryUnavailable {
            host: self.reference.domain.clone(),
            detail: format!("blob {} ended after {position} of {} bytes", descriptor.digest, descriptor.size),
        }
    }

    async fn ask(&self, kind: Kind, name: &str) -> Result<(Arc<Transport>, Response<Incoming>), ImageError> {
        let mut failed: Option<ImageError> = None;
        for transport in &self.hosts {
            let host = transport.host();
            let able = match kind {
                Kind::Manifest if !is_digest(name) => host.resolve,
                _ => host.pull,
            };
            if !able {
                continue;
            }
            if let Some(error) = &failed {
                tracing::warn!(%error, next = %host.authority, "a mirror does not serve the image, asking the next host");
            }
            match self.ask_host(transport, kind, name).await {
                Ok(response) => return Ok((Arc::clone(transport), response)),
                Err(error) => failed = Some(more_telling(failed, error)),
            }
        }
        Err(failed.unwrap_or_else(|| ImageError::RegistryUnavailable {
            host: self.reference.domain.clone(),
            detail: "no host in its hosts.toml has the capability that is needed".to_owned(),
        }))
    }

    async fn ask_host(
        &self,
        transport: &Transport,
        kind: Kind,
        name: &str,
    ) -> Result<Response<Incoming>, ImageError> {
        let host = transport.host();
        let (folder, what) = match kind {
            Kind::Manifest => ("manifests", format!("the manifest of {}", self.reference)),
            Kind::Blob { .. } => ("blobs", format!("blob {name}")),
        };
        let query = host.namespace.as_ref().map(|namespace| format!("?ns={}", auth::encode(namespace)));
        let (base, path, query) = (&host.base, &self.reference.path, query.unwrap_or_default());
        let uri = self.uri(transport, &format!("{base}/{path}/{folder}/{name}{query}"))?;
        let mut challenged = false;
        loop {
            let mut headers = base_headers(host);
            headers.insert(
                ACCEPT,
                HeaderValue::from_static(match kind {
                    Kind::Manifest => layout::ACCEPT,
                    Kind::Blob { .. } => "application/octet-stream",
                }),
            );
            if let Kind::Blob { position: position @ 1.. } = kind {
                headers.insert(RANGE, range_from(position));
            }
            if let Some(authorization) = self.granted(&host.authority) {
                headers.insert(AUTHORIZATION, authorization);
            }
            let call = Call {
                method: Method::GET,
                uri: uri.clone(),
                headers,
                body: Bytes::new(),
                what: what.clone(),
            };
            let response = transport.send(call).await?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !challenged => {
                    challenged = true;
                    let asked = response.headers().get_all(WWW_AUTHENTICATE);
                    let challenge = auth::choose(asked.iter().filter_map(|value| value.to_str().ok()));
                    match self.answer(transport, challenge).await? {
                        Some(authorization) => self.grant(&host.authority, authorization),
                        None => return Err(self.refusal(transport, &uri, response).await),
                    }
                }
                _ => return Err(self.refusal(transport, &uri, response).await),
            }
        }
    }

    /// Makes the `Authorization` that a challenge asks for; `None`: there is nothing to show.
    async fn answer(
        &self,
        transport: &Transport,
        challenge: Option<Challenge>,
    ) -> Result<Option<HeaderValue>, ImageError> {
        let host = transport.host();
        let ours = auth::is_for(&self.auth, &host.authority, &self.reference.domain);
        let login = if ours { auth::user_and_password(&self.auth) } else { None };
        let value = match challenge {
            None => return Ok(None),
            Some(Challenge::Basic) => match login {
                Some((user, password)) => auth::basic(&user, &password),
                None => return Ok(None),
            },
            Some(Challenge::Bearer { .. }) if ours && !self.auth.registry_token.is_empty() => {
                format!("Bearer {}", self.auth.registry_token)
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.path));
                format!("Bearer {}", self.token(transport, &realm, &service, &scope, login, ours).await?)
            }
        };
        let mut value =
            HeaderValue::from_str(&value).map_err(|_| self.denied(transport, "the token is not a header"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Distribution's token protocol: GET with Basic, or POST (OAuth2) with a refresh token.
    async fn token(
        &self,
        transport: &Transport,
        realm: &str,
        service: &str,
        scope: &str,
        login: Option<(String, String)>,
        ours: bool,
    ) -> Result<String, ImageError> {
        let refresh = Some(self.auth.identity_token.as_str()).filter(|token| ours && !token.is_empty());
        let uri = self.uri(transport, realm)?;
        let exposed = uri.scheme_str() != Some("https")
            && transport.host().base.starts_with("https")
            && !uri.authority().is_some_and(|authority| is_loopback(authority.as_str()));
        if exposed && (login.is_some() || refresh.is_some()) {
            let why = format!("it wants the credentials sent unencrypted to {realm}; they were not sent");
            return Err(self.denied(transport, &why));
        }
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, user_agent());
        let parameters = format!("service={}&scope={}", auth::encode(service), auth::encode(scope));
        let call = match refresh {
            Some(refresh) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                let refresh = auth::encode(refresh);
                let form = format!(
                    "grant_type=refresh_token&client_id=podwright&refresh_token={refresh}&{parameters}"
                );
                Call {
                    method: Method::POST,
                    uri,
                    headers,
                    body: Bytes::from(form),
                    what: "an access token".to_owned(),
                }
            }
            None => {
                if let Some((user, password)) = login
                    && let Ok(mut basic) = HeaderValue::from_str(&auth::basic(&user, &password))
                {
                    basic.set_sensitive(true);
                    headers.insert(AUTHORIZATION, basic);
                }
                let separator = if realm.contains('?') { '&' } else { '?' };
                let uri = self.uri(transport, &format!("{realm}{separator}{parameters}"))?;
                Call {
                    method: Method::GET,
                    uri,
                    headers,
                    body: Bytes::new(),
                    what: "an access token".to_owned(),
                }
            }
        };
        let uri = call.uri.clone();
        let response = transport.send(call).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(transport, &uri, response).await);
        }
        let answer = self.read(transport, response, "an access token", MAX_ANSWER).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        let token =
            ["token", "access_token"].iter().find_map(|key| answer[key].as_str()).filter(|t| !t.is_empty());
        token.map(str::to_owned).ok_or_else(|| transport.unavailable(&uri, "its answer has no token"))
    }

    async fn refusal(&self, transport: &Transport, uri: &Uri, response: Response<Incoming>) -> ImageError {
        let status = response.status();
        let text = match self.read(transport, response, "an error message", MAX_ANSWER).await {
            Ok(body) => message(&body),
            Err(_) => String::new(),
        };
        let detail = if text.is_empty() { status.to_string() } else { format!("{status}: {text}") };
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(transport, &detail),
            StatusCode::NOT_FOUND => ImageError::NotFound {
                reference: self.reference.to_string(),
                detail: format!("{} answers {detail} for {}", transport.host().authority, uri.path()),
            },
            _ => transport.unavailable(uri, &detail),
        }
    }

    fn denied(&self, transport: &Transport, detail: &str) -> ImageError {
        ImageError::AuthDenied {
            host: transport.host().authority.clone(),
            reference: self.reference.to_string(),
            detail: detail.to_owned(),
        }
    }

    async fn read(
        &self,
        transport: &Transport,
        response: Response<Incoming>,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let host = transport.host().authority.clone();
        let mut stream = body_stream(host, response, what.to_owned(), self.limits.stall);
        let mut content = Vec::new();
        while let Some(chunk) = stream.try_next().await? {
            content.extend_from_slice(&chunk);
            if content.len() as u64 > limit {
                return Err(ImageError::TooLarge { what: what.to_owned(), limit });
            }
        }
        Ok(content)
    }

    fn uri(&self, transport: &Transport, text: &str) -> Result<Uri, ImageError> {
        text.parse().ok().filter(|uri: &Uri| uri.authority().is_some()).ok_or_else(|| {
            ImageError::RegistryUnavailable {
                host: transport.host().authority.clone(),
                detail: format!("`{}` is not a URL", text.escape_debug()),
            }
        })
    }

    fn granted(&self, authority: &str) -> Option<HeaderValue> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).get(authority).cloned()
    }

    fn grant(&self, authority: &str, value: HeaderValue) {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).insert(authority.to_owned(), value);
    }
}

/// The body as a stream that ends in an error when nothing comes for too long.
fn body_stream(host: String, response: Response<Incoming>, what: String, stall: Duration) -> ByteStream {
    let (host, what): (Arc<str>, Arc<str>) = (host.into(), what.into());
    let next = move |mut body: Incoming| {
        let (host, what) = (Arc::clone(&host), Arc::clone(&what));
        async move {
            loop {
                let frame = match tokio::time::timeout(stall, body.frame()).await {
                    Err(_) => {
                        return Err(ImageError::Stalled {
                            host: host.to_string(),
                            what: what.to_string(),
                            seconds: stall.as_secs(),
                        });
                    }
                    Ok(None) => return Ok(None),
                    Ok(Some(Err(error))) => {
                        let detail =
                            format!("the connection broke while {what} came: {}", host::error::chain(&error));
                        return Err(ImageError::RegistryUnavailable { host: host.to_string(), detail });
                    }
                    Ok(Some(Ok(frame))) => frame,
                };
                if let Ok(data) = frame.into_data() {
                    return Ok(Some((data, body)));
                }
            }
        }
    };
    futures::stream::try_unfold(response.into_body(), next).boxed()
}

fn base_headers(host: &Host) -> HeaderMap {
    let mut headers: HeaderMap = HeaderMap::new();
    for (name, value) in &host.headers {
        headers.append(name, value.clone());
    }
    headers.insert(USER_AGENT, user_agent());
    headers
}

fn range_from(position: u64) -> HeaderValue {
    // Digits and punctuation are always a header.
    HeaderValue::from_str(&format!("bytes={position}-")).unwrap_or(HeaderValue::from_static("bytes=0-"))
}

fn user_agent() -> HeaderValue {
    HeaderValue::from_static(concat!("podwright/", env!("CARGO_PKG_VERSION")))
}

/// Distribution's error body, else its beginning.
fn message(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let told = json["errors"][0]["message"].as_str().or_else(|| json["details"].as_str()).map(str::to_owned);
    let text = told.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned());
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Which of two hosts' errors a person should read: what a host answered tells more than that the next, as on a node without
/// a way to the internet, could not be reached.
fn more_telling(earlier: Option<ImageError>, later: ImageError) -> ImageError {
    let answered = |error: &ImageError| {
        !matches!(error, ImageError::RegistryUnavailable { .. } | ImageError::Stalled { .. })
    };
    match earlier {
        Some(earlier) if answered(&earlier) && !answered(&later) => earlier,
        _ => later,
    }
}

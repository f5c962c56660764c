//! exec, attach, port-forward and run: the runtime is asked where its streams are, and the caller's connection is joined to it byte
//! for byte, whatever protocol it upgrades to. What is a session ends when either side does.

use std::io;
use std::time::Duration;

use cri::v1 as crv1;
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::query::Query;
use super::respond::{Answer, of_runtime, text};
use super::{Server, pods, respond, route};

/// Bytes on their way in one direction.
const BUFFER: usize = 64 << 10;
/// How long the runtime may take to accept a connection to its own URL, and to answer there.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the runtime's last words may take after the caller's end.
const LINGER: Duration = Duration::from_secs(5);
/// How long a command of `/run` may take. Upstream: the runtime's request timeout.
const RUN_SECONDS: i64 = 120;

/// Which streams a session has, from the query. Upstream: k8s.io/kubelet/pkg/cri/streaming/remotecommand, NewOptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    fn of(query: &Query) -> Result<Self, &'static str> {
        let is = |name| query.first(name) == Some("1");
        let tty = is("tty");
        // With a terminal there is one output.
        let streams = Self { stdin: is("input"), stdout: is("output"), stderr: is("error") && !tty, tty };
        if streams.stdin || streams.stdout || streams.stderr {
            Ok(streams)
        } else {
            Err("you must specify at least 1 of stdin, stdout, stderr")
        }
    }
}

fn query_of(request: &Request<Incoming>) -> Query {
    Query::parse(request.uri().query().unwrap_or_default())
}

fn no_pod() -> Answer {
    text(StatusCode::NOT_FOUND, "pod does not exist")
}

fn no_container(name: &str) -> Answer {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({name:?})"))
}

impl Server {
    /// `/exec/…`.
    pub(super) async fn exec(&self, asked: &route::Container<'_>, request: Request<Incoming>) -> Answer {
        let query = query_of(&request);
        let streams = match Streams::of(&query) {
            Ok(streams) => streams,
            Err(reason) => return text(StatusCode::BAD_REQUEST, reason),
        };
        let (_, container_id) = match self.container(asked).await {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let Streams { stdin, stdout, stderr, tty } = streams;
        let cmd = query.all("command").map(str::to_owned).collect();
        let asked = crv1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
        match self.runtime().exec(asked).await {
            Ok(answer) => self.join(&answer.into_inner().url, request).await,
            Err(status) => of_runtime(&status),
        }
    }

    /// `/attach/…`: with a terminal where the container was made with one.
    pub(super) async fn attach(&self, asked: &route::Container<'_>, request: Request<Incoming>) -> Answer {
        let streams = match Streams::of(&query_of(&request)) {
            Ok(streams) => streams,
            Err(reason) => return text(StatusCode::BAD_REQUEST, reason),
        };
        let (pod, container_id) = match self.container(asked).await {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let tty = pods::has_tty(&pod, asked.name);
        let Streams { stdin, stdout, stderr, .. } = streams;
        let asked = crv1::AttachRequest { container_id, stdin, tty, stdout, stderr: stderr && !tty };
        match self.runtime().attach(asked).await {
            Ok(answer) => self.join(&answer.into_inner().url, request).await,
            Err(status) => of_runtime(&status),
        }
    }

    /// `/portForward/…`.
    pub(super) async fn port_forward(&self, asked: &route::Pod<'_>, request: Request<Incoming>) -> Answer {
        let Some(pod) = self.pod(asked) else { return no_pod() };
        if !pods::has_uid(&pod, asked.uid) {
            return text(StatusCode::NOT_FOUND, "pod not found");
        }
        let pod_sandbox_id = match self.ready_sandbox(&pod).await {
            Ok(Some(id)) => id,
            Ok(None) => {
                let reason = format!("failed to find sandboxID for pod {}/{}", asked.namespace, asked.name);
                return text(StatusCode::INTERNAL_SERVER_ERROR, reason);
            }
            Err(status) => return of_runtime(&status),
        };
        let query = query_of(&request);
        let port = query.all("port").flat_map(|ports| ports.split(',')).filter_map(|port| port.parse().ok());
        let asked = crv1::PortForwardRequest { pod_sandbox_id, port: port.collect() };
        match self.runtime().port_forward(asked).await {
            Ok(answer) => self.join(&answer.into_inner().url, request).await,
            Err(status) => of_runtime(&status),
        }
    }

    /// `/run/…`: what a command writes.
    pub(super) async fn run(&self, asked: &route::Container<'_>, request: &Request<Incoming>) -> Answer {
        let query = query_of(request);
        let (_, container_id) = match self.container(asked).await {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let cmd = query.first("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
        let asked = crv1::ExecSyncRequest { container_id, cmd, timeout: RUN_SECONDS };
        match self.runtime().exec_sync(asked).await.map(tonic::Response::into_inner) {
            Ok(done) if done.exit_code == 0 => {
                let output = [done.stdout, done.stderr].concat();
                respond::with(StatusCode::OK, HeaderValue::from_static("application/json"), output)
            }
            Ok(done) => {
                let reason = format!("command terminated with exit code {}", done.exit_code);
                text(StatusCode::INTERNAL_SERVER_ERROR, reason)
            }
            Err(status) => of_runtime(&status),
        }
    }

    /// The pod and the id of its running container.
    async fn container(
        &self,
        asked: &route::Container<'_>,
    ) -> Result<(std::sync::Arc<v1::Pod>, String), Answer> {
        let pod = self.pod(&asked.pod).ok_or_else(no_pod)?;
        if !pods::has_uid(&pod, asked.pod.uid) {
            return Err(no_container(asked.name));
        }
        match self.running_container(&pod, asked.name).await {
            Ok(Some(id)) => Ok((pod, id)),
            Ok(None) => Err(no_container(asked.name)),
            Err(status) => Err(of_runtime(&status)),
        }
    }

    /// Repeats the request at the runtime's URL; when both switch protocols, they are joined.
    async fn join(&self, url: &str, mut request: Request<Incoming>) -> Answer {
        if !request.headers().contains_key(UPGRADE) {
            return text(StatusCode::BAD_REQUEST, "Upgrade request required");
        }
        let answered = tokio::time::timeout(PATIENCE, ask(url, request.method().clone(), request.headers()));
        let answer = match answered.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the runtime's streaming server cannot be asked");
                let reason = format!("error dialing backend: {error}");
                return text(StatusCode::INTERNAL_SERVER_ERROR, reason);
            }
            Err(_) => {
                let reason = "error dialing backend: the runtime's streaming server does not answer";
                return text(StatusCode::INTERNAL_SERVER_ERROR, reason);
            }
        };
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::SWITCHING_PROTOCOLS {
            use http_body_util::BodyExt;
            return Response::from_parts(head, body.map_err(io::Error::other).boxed_unsync());
        }
        let caller = hyper::upgrade::on(&mut request);
        let runtime = hyper::upgrade::on(Response::from_parts(head.clone(), body));
        self.sessions.spawn(self.stop.clone().run_until_cancelled_owned(async move {
            match tokio::try_join!(caller, runtime) {
                Ok((caller, runtime)) => carry(caller, runtime).await,
                Err(error) => tracing::debug!(%error, "a caller's session did not begin"),
            }
        }));
        let mut joined = text(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
        *joined.headers_mut() = head.headers;
        joined
    }
}

/// The runtime's answer to a request with the caller's headers.
async fn ask(url: &str, method: hyper::Method, headers: &HeaderMap) -> io::Result<Response<Incoming>> {
    let uri: Uri = url.parse().map_err(|_| io::Error::other(format!("{url:?} is not a URL")))?;
    if uri.scheme_str() != Some("http") {
        let reason = format!("the runtime's streaming URL {url:?} is not http, and nothing else is spoken");
        return Err(io::Error::other(reason));
    }
    let authority = uri.authority().ok_or_else(|| io::Error::other("the runtime's URL has no host"))?;
    let host = authority.host().trim_matches(['[', ']']);
    let address: std::net::IpAddr = host.parse().map_err(|_| {
        io::Error::other(format!("the runtime's streaming server {host:?} is not an address"))
    })?;
    let stream = TcpStream::connect((address, authority.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with the sender, or hands its stream to the upgrade.
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request =
        Request::builder().method(method).uri(path).body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    *request.headers_mut() = passed_on(headers);
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str()).map_err(io::Error::other)?);
    sender.send_request(request).await.map_err(io::Error::other)
}

/// What the runtime is told: what the protocol needs, and nothing by which the caller was known.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let of_protocol = |name: &str| {
        name.starts_with("sec-websocket-")
            || [CONNECTION.as_str(), UPGRADE.as_str(), "x-stream-protocol-version", "user-agent", "origin"]
                .contains(&name)
    };
    headers
        .iter()
        .filter(|(name, _)| of_protocol(name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Both directions, until the runtime has said everything, or the caller is gone.
async fn carry(caller: Upgraded, runtime: Upgraded) {
    let (from_caller, mut to_caller) = tokio::io::split(TokioIo::new(caller));
    let (from_runtime, mut to_runtime) = tokio::io::split(TokioIo::new(runtime));
    let mut down = std::pin::pin!(pass(from_runtime, &mut to_caller));
    tokio::select! {
        result = &mut down => log(result),
        result = pass(from_caller, &mut to_runtime) => {
            // The runtime ends what nobody listens to, and that ends the other direction.
            log(result);
            let _ = tokio::time::timeout(LINGER, down).await;
        }
    }
}

fn log(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a session's connection broke");
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            length => to.write_all(&buffer[..length]).await?,
        }
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{AUTHORIZATION, HeaderName};

    use super::*;

    #[test]
    fn a_session_has_the_streams_of_its_query() {
        let streams = |query: &str| Streams::of(&Query::parse(query));
        let expect = Streams { stdin: true, stdout: true, stderr: true, tty: false };
        assert_eq!(streams("input=1&output=1&error=1&command=sh"), Ok(expect));
        assert_eq!(
            streams("input=1&output=1&error=1&tty=1"),
            Ok(Streams { stderr: false, tty: true, ..expect })
        );
        for none in ["", "tty=1", "error=1&tty=1", "output=true"] {
            streams(none).unwrap_err();
        }
    }

    #[test]
    fn the_runtime_is_not_told_who_calls() {
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, HeaderValue::from_static("Bearer secret")),
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (UPGRADE, HeaderValue::from_static("SPDY/3.1")),
            (
                HeaderName::from_static("x-stream-protocol-version"),
                HeaderValue::from_static("v4.channel.k8s.io"),
            ),
            (
                HeaderName::from_static("sec-websocket-protocol"),
                HeaderValue::from_static("v5.channel.k8s.io"),
            ),
            (HeaderName::from_static("x-forwarded-for"), HeaderValue::from_static("10.0.0.1")),
        ]);
        let passed = passed_on(&headers);
        assert_eq!(passed.len(), 4);
        assert!(!passed.contains_key(AUTHORIZATION));
    }

    #[tokio::test]
    async fn a_session_ends_with_either_side() {
        use tokio::io::duplex;
        let (mut near, far) = duplex(16);
        let (mut to, mut end) = duplex(16);
        let passing = tokio::spawn(async move { pass(far, &mut to).await });
        near.write_all(b"words").await.unwrap();
        let mut words = [0; 5];
        end.read_exact(&mut words).await.unwrap();
        drop(near);
        passing.await.unwrap().unwrap();
        assert_eq!((&words, end.read(&mut [0; 1]).await.unwrap()), (b"words", 0));
    }
}

//! The streaming server: what the URLs that Exec, Attach and PortForward answer with lead to. HTTP on a loopback port of its own, then SPDY
//! or WebSocket.
//!
//! A URL is good once and for a minute. A session is one task with everything that belongs to it: when the client disappears all of it is
//! dropped, and the supervisor kills the command.

mod command;
mod connection;
mod forward;
mod negotiate;
mod outcome;
mod sessions;
mod spdy;
mod tickets;
mod websocket;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use cri::v1;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::command::{Command, Wants};
use self::negotiate::Transport;
use self::sessions::Session;
use self::tickets::Tickets;
use crate::error::Error;
use crate::record::SandboxPhase;
use crate::runtime::Runtime;
use crate::state::{lock, new_id};

/// Connections at once; one more is closed.
const MAX_CONNECTIONS: usize = 2048;
/// How long a client may take to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// How long the server looks away when it can accept nothing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a URL is for.
#[derive(Debug)]
enum Promise {
    Command(Command),
    PortForward(v1::PortForwardRequest),
}

impl Promise {
    fn path(&self) -> &'static str {
        match self {
            Self::Command(Command::Exec(_)) => "exec",
            Self::Command(Command::Attach(_)) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    /// Versions of its protocol over a transport.
    fn versions(&self, transport: Transport) -> &'static [&'static str] {
        match (self, transport) {
            (Self::Command(_), Transport::Spdy) => &negotiate::SPDY_COMMAND,
            (Self::Command(_), Transport::WebSocket) => &negotiate::WEBSOCKET_COMMAND,
            (Self::PortForward(_), Transport::Spdy) => &negotiate::SPDY_FORWARD,
            (Self::PortForward(_), Transport::WebSocket) => &negotiate::WEBSOCKET_FORWARD,
        }
    }
}

/// The server's state. The port is opened with the first URL: a node on which nobody executes anything listens nowhere.
#[derive(Debug, Default)]
pub(crate) struct Streaming {
    tickets: Mutex<Tickets<Promise>>,
    address: OnceCell<SocketAddr>,
}

impl Runtime {
    /// The URL of an exec session.
    pub(crate) async fn exec_url(self: &Arc<Self>, mut request: v1::ExecRequest) -> Result<String, Error> {
        request.container_id = self.running_container(&request.container_id)?.id.clone();
        if request.cmd.is_empty() {
            return Err(Error::Invalid("no command to execute".into()));
        }
        let command = Command::Exec(request);
        check_streams(command.wants())?;
        self.stream_url(Promise::Command(command)).await
    }

    /// The URL of an attach session.
    pub(crate) async fn attach_url(
        self: &Arc<Self>,
        mut request: v1::AttachRequest,
    ) -> Result<String, Error> {
        request.container_id = self.running_container(&request.container_id)?.id.clone();
        let command = Command::Attach(request);
        check_streams(command.wants())?;
        self.stream_url(Promise::Command(command)).await
    }

    /// The URL of a port-forward session.
    pub(crate) async fn port_forward_url(
        self: &Arc<Self>,
        mut request: v1::PortForwardRequest,
    ) -> Result<String, Error> {
        let sandbox = self.index().sandbox(&request.pod_sandbox_id)?;
        if sandbox.record().phase != SandboxPhase::Ready {
            return Err(Error::NotRunning(format!("sandbox container {:?} is not running", sandbox.id)));
        }
        request.pod_sandbox_id = sandbox.id.clone();
        self.stream_url(Promise::PortForward(request)).await
    }

    async fn stream_url(self: &Arc<Self>, promise: Promise) -> Result<String, Error> {
        let address = self.streaming.address.get_or_try_init(|| listen(self)).await?;
        let (path, token) = (promise.path(), new_id()?);
        let issued = lock(&self.streaming.tickets).issue(token.clone(), promise, Instant::now());
        issued.map_err(|_| Error::Exhausted("maximum number of in-flight requests exceeded".into()))?;
        Ok(format!("http://{address}/{path}/{token}"))
    }
}

/// As every CRI runtime refuses them.
fn check_streams(wants: Wants) -> Result<(), Error> {
    if wants.tty && wants.stderr {
        return Err(Error::Invalid("tty and stderr cannot both be true".into()));
    }
    if !(wants.stdin || wants.stdout || wants.stderr) {
        return Err(Error::Invalid("one of stdin, stdout, or stderr must be set".into()));
    }
    Ok(())
}

async fn listen(runtime: &Arc<Runtime>) -> Result<SocketAddr, Error> {
    let wanted = runtime.config.streaming_address;
    let failed = |error| Error::io("listen for streaming on", wanted.to_string())(error);
    let listener = TcpListener::bind(wanted).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(accept(listener, Arc::downgrade(runtime)));
    Ok(address)
}

async fn accept(listener: TcpListener, runtime: Weak<Runtime>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(runtime) = runtime.upgrade() else { return };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        tokio::spawn(serve_connection(stream, runtime, Arc::new(slot)));
    }
}

async fn serve_connection(stream: TcpStream, runtime: Arc<Runtime>, slot: Arc<OwnedSemaphorePermit>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let response = answer(&runtime, &slot, request);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // A client that has said all it wants still gets its answer.
        .half_close(true)
        .header_read_timeout(REQUEST_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "streaming request broke");
    }
}

/// Decides on a request; a session goes on by itself once the answer is sent.
fn answer(
    runtime: &Arc<Runtime>,
    slot: &Arc<OwnedSemaphorePermit>,
    mut request: Request<Incoming>,
) -> Response<String> {
    let mut parts = request.uri().path().trim_start_matches('/').splitn(2, '/');
    let (path, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let redeemed =
        lock(&runtime.streaming.tickets).redeem(token, Instant::now(), |promise| promise.path() == path);
    let Some(promise) = redeemed else { return refusal(StatusCode::NOT_FOUND, "404 page not found") };
    let Some(transport) = negotiate::transport(request.headers()) else {
        return refusal(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request");
    };
    let offers = negotiate::offered(request.headers(), transport);
    let versions = promise.versions(transport);
    let Some(version) = negotiate::choose(&offers, versions) else {
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offers:?}, server accepts {versions:?}"
        );
        return refusal(StatusCode::FORBIDDEN, &text);
    };
    let Some(response) = switch(transport, version, request.headers()) else {
        return refusal(StatusCode::BAD_REQUEST, "unable to upgrade: the request has no Sec-WebSocket-Key");
    };
    let ports = query_ports(request.uri().query().unwrap_or_default());
    let session = Session { runtime: runtime.clone(), promise, transport, version, ports };
    tokio::spawn(session.run(hyper::upgrade::on(&mut request), slot.clone()));
    response
}

fn refusal(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(format!("{text}\n"));
    *response.status_mut() = status;
    response
}

/// 101 with what was chosen.
fn switch(transport: Transport, version: &'static str, asked: &hyper::HeaderMap) -> Option<Response<String>> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let name = match transport {
        Transport::Spdy => {
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            negotiate::STREAM_VERSION
        }
        Transport::WebSocket => {
            let accept = websocket::accept(asked.get(SEC_WEBSOCKET_KEY)?.as_bytes());
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).ok()?);
            SEC_WEBSOCKET_PROTOCOL
        }
    };
    if !version.is_empty() {
        headers.insert(name, HeaderValue::from_static(version));
    }
    Some(response)
}

/// `port=80&port=443,8080`.
fn query_ports(query: &str) -> Vec<u16> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    values.flat_map(|value| value.split(',')).filter_map(|port| port.parse().ok()).collect()
}

//! Answering the CLI.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{IMAGE, STATUS, STOP, SocketPath};
use crate::agent::Sources;
use crate::image::{ops, wire};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The longest request: paths and names.
const REQUEST_MAX: usize = 64 << 10;

/// Creates the socket, 0600, in place of one that a dead agent left. The caller holds the node's lock.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let listen = || -> std::io::Result<UnixListener> {
        let socket = SocketPath::new(path)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket.as_path())?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    listen().with_context(|| format!("listen on {}", path.display()))
}

/// Answers until `end`. Who asks for the stop of the agent cancels `stop`.
pub(crate) async fn serve(
    listener: UnixListener,
    sources: Arc<Sources>,
    stop: CancellationToken,
    end: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) if !from_root(&stream) => tracing::warn!("refused an admin connection: not root"),
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&sources), stop.clone()))),
            Err(error) => {
                tracing::warn!(%error, "accept on the admin socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// The socket's mode says the same, but only from the moment at which it is set.
fn from_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}

async fn connection(stream: UnixStream, sources: Arc<Sources>, stop: CancellationToken) {
    let answer = service_fn(|request| {
        let (sources, stop) = (Arc::clone(&sources), stop.clone());
        async move { Ok::<_, Infallible>(answer(request, sources, stop).await) }
    });
    if let Err(error) =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
    {
        tracing::debug!(%error, "admin connection");
    }
}

async fn answer(
    request: Request<Incoming>,
    sources: Arc<Sources>,
    stop: CancellationToken,
) -> Response<Body> {
    match (request.method().clone(), request.uri().path()) {
        (Method::GET, STATUS) => match serde_json::to_vec(&sources.report().await) {
            Ok(json) => reply(StatusCode::OK, json),
            Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        (Method::POST, STOP) => {
            stop.cancel();
            reply(StatusCode::OK, "stopping\n")
        }
        (Method::POST, IMAGE) => match image_request(request).await {
            Ok(order) => image(order, sources),
            Err(error) => reply(StatusCode::BAD_REQUEST, format!("{error:#}\n")),
        },
        (method, path) => reply(StatusCode::NOT_FOUND, format!("nothing answers {method} {path}\n")),
    }
}

async fn image_request(request: Request<Incoming>) -> anyhow::Result<wire::Request> {
    let body = Limited::new(request.into_body(), REQUEST_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("read the request: {error}"))?.to_bytes();
    serde_json::from_slice(&body).context("understand the request")
}

/// Starts the work; it goes on to its end even when the CLI does not wait for it.
fn image(order: wire::Request, sources: Arc<Sources>) -> Response<Body> {
    let (updates, lines) = mpsc::unbounded_channel::<wire::Update>();
    tokio::spawn(async move {
        let hear: ops::Hear = Arc::new(move |update| drop(updates.send(update)));
        let applied = match sources.images() {
            Ok(images) => ops::apply(images, order, &hear).await,
            Err(error) => Err(error),
        };
        if let Err(error) = applied {
            hear(wire::Update::Failed { message: format!("{error:#}") });
        }
    });
    let lines = UnboundedReceiverStream::new(lines).filter_map(|update| {
        let mut line = serde_json::to_vec(&update).ok()?;
        line.push(b'\n');
        Some(Ok(Frame::data(Bytes::from(line))))
    });
    Response::new(StreamBody::new(lines).boxed_unsync())
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response
}

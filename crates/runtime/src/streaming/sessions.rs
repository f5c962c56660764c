//! Sessions over each transport: which streams carry what, and the runtime's work between them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;

use super::command::{Command, Ends, Wants};
use super::connection::{INCOMING, Output, READ_AT_ONCE, hung_up};
use super::forward::{Forward, Pod};
use super::negotiate::Transport;
use super::outcome::Form;
use super::websocket::{Channels, Coding};
use super::{Promise, connection, forward, negotiate, spdy, websocket};
use crate::runtime::Runtime;

/// How long a client may take to open the streams of a session.
const STREAMS_TIME: Duration = Duration::from_secs(30);
/// Channels of exec and attach over WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Bytes between a WebSocket and the SPDY connection in it.
const TUNNEL_BUFFER: usize = 64 << 10;

/// A session that has been promised and whose protocol is settled.
pub(super) struct Session {
    pub(super) runtime: Arc<Runtime>,
    pub(super) promise: Promise,
    pub(super) transport: Transport,
    pub(super) version: &'static str,
    /// What the URL's query names, for port-forward without SPDY.
    pub(super) ports: Vec<u16>,
}

impl Session {
    /// Serves it to its end; the slot is free afterwards.
    pub(super) async fn run(self, upgrade: OnUpgrade, _slot: Arc<OwnedSemaphorePermit>) {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "streaming client did not go on"),
        };
        let Some((from, to, gone)) = halves(upgraded) else { return };
        match (self.promise, self.transport) {
            (Promise::Command(command), Transport::Spdy) => {
                command_over_spdy(self.runtime, command, self.version, from, to, gone).await;
            }
            (Promise::Command(command), Transport::WebSocket) => {
                command_over_websocket(self.runtime, command, self.version, from, to, gone).await;
            }
            (Promise::PortForward(request), transport) => {
                let pod = Pod { runtime: self.runtime, sandbox: request.pod_sandbox_id };
                match (transport, self.version) {
                    (Transport::Spdy, _) => forward_over_spdy(pod, from, to, gone).await,
                    (Transport::WebSocket, negotiate::TUNNEL) => {
                        forward_over_tunnel(pod, from, to, gone).await
                    }
                    (Transport::WebSocket, version) => {
                        let asked =
                            request.port.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
                        let ports = if self.ports.is_empty() { asked } else { self.ports };
                        forward_over_channels(pod, ports, coding(version), from, to, gone).await;
                    }
                }
            }
        }
    }
}

/// The two directions of a connection, and its end.
fn halves(
    upgraded: Upgraded,
) -> Option<(impl AsyncRead + Unpin, impl AsyncWrite + Unpin, impl Future<Output = ()>)> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
    let stream = parts.io.into_inner();
    let gone = hung_up(stream.as_fd().try_clone_to_owned().ok()?);
    let (from, to) = stream.into_split();
    Some((std::io::Cursor::new(parts.read_buf).chain(from), to, gone))
}

async fn command_over_spdy(
    runtime: Arc<Runtime>,
    command: Command,
    version: &str,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    gone: impl Future<Output = ()>,
) {
    let form = if version == "v4.channel.k8s.io" { Form::Status } else { Form::Text };
    let has_resize = matches!(version, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let (queue, outgoing) = connection::queue();
    let (opened, mut streams) = mpsc::channel(8);
    let work = async {
        let gathered = gather(&mut streams, command.wants(), has_resize, &queue);
        let Ok(Some((ends, error))) = tokio::time::timeout(STREAMS_TIME, gathered).await else {
            return tracing::debug!("streaming client did not open the streams of its session");
        };
        drop(streams);
        let outcome = command.run(runtime, ends).await;
        let _ = error.write(outcome.write(form).into()).await;
        error.end().await;
    };
    let read = spdy::read(from, opened, queue.clone());
    let write = connection::write(outgoing, spdy::Encoder::new(), to);
    connection::run(read, write, work, queue.clone(), gone).await;
}

/// Waits for every stream that the session needs.
async fn gather(
    streams: &mut mpsc::Receiver<spdy::Stream>,
    wants: Wants,
    has_resize: bool,
    queue: &mpsc::Sender<connection::Outgoing>,
) -> Option<(Ends, Output)> {
    let mut ends = Ends { stdin: None, resize: None, stdout: None, stderr: None };
    let mut error = None;
    let wants_resize = wants.tty && has_resize;
    loop {
        let complete = (ends.stdin.is_some() || !wants.stdin)
            && (ends.stdout.is_some() || !wants.stdout)
            && (ends.stderr.is_some() || !wants.stderr)
            && (ends.resize.is_some() || !wants_resize);
        if let (true, true) = (complete, error.is_some()) {
            return error.map(|error| (ends, error));
        }
        let stream = streams.recv().await?;
        let output = Output { stream: stream.id, queue: queue.clone() };
        match stream.header("streamtype") {
            "error" => error = Some(output),
            "stdin" => ends.stdin = Some(stream.data),
            "stdout" => ends.stdout = Some(output),
            "stderr" => ends.stderr = Some(output),
            "resize" => ends.resize = Some(stream.data),
            other => {
                tracing::debug!(streamtype = other, "streaming client opened a stream of an unknown type")
            }
        }
    }
}

fn coding(version: &str) -> Coding {
    if version.contains("base64") { Coding::Base64 } else { Coding::Binary }
}

async fn command_over_websocket(
    runtime: Arc<Runtime>,
    command: Command,
    version: &str,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    gone: impl Future<Output = ()>,
) {
    let form = if version.starts_with('v') { Form::Status } else { Form::Text };
    let coding = coding(version);
    let wants = command.wants();
    let (queue, outgoing) = connection::queue();
    let output = |channel: u8| Output { stream: channel.into(), queue: queue.clone() };
    let input = |wanted: bool| wanted.then(|| mpsc::channel(INCOMING)).unzip();
    let (to_stdin, stdin) = input(wants.stdin);
    let (to_resize, resize) = input(wants.tty);
    let channels = Channels::from([(STDIN, to_stdin), (RESIZE, to_resize)]);
    let ends = Ends {
        stdin,
        resize,
        stdout: wants.stdout.then(|| output(STDOUT)),
        stderr: wants.stderr.then(|| output(STDERR)),
    };
    let work = async {
        let error = output(ERROR);
        // An empty message says that the session is there.
        let _ = ends.stdout.as_ref().or(ends.stderr.as_ref()).unwrap_or(&error).write(Bytes::new()).await;
        let outcome = command.run(runtime, ends).await;
        let _ = error.write(outcome.write(form).into()).await;
    };
    let read = websocket::read_channels(from, coding, channels, queue.clone());
    let write = connection::write(outgoing, websocket::Encoder::Channels(coding), to);
    connection::run(read, write, work, queue.clone(), gone).await;
}

async fn forward_over_spdy(
    pod: Pod,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    gone: impl Future<Output = ()>,
) {
    let (queue, outgoing) = connection::queue();
    let (opened, streams) = mpsc::channel(8);
    let work = forward::serve_streams(pod, streams, queue.clone());
    let read = spdy::read(from, opened, queue.clone());
    let write = connection::write(outgoing, spdy::Encoder::new(), to);
    connection::run(read, write, work, queue, gone).await;
}

/// SPDY in the messages of a WebSocket.
async fn forward_over_tunnel(
    pod: Pod,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    gone: impl Future<Output = ()>,
) {
    let (queue, outgoing) = connection::queue();
    let (inner, outer) = tokio::io::duplex(TUNNEL_BUFFER);
    let (inner_from, inner_to) = tokio::io::split(inner);
    let (mut outer_from, outer_to) = tokio::io::split(outer);
    let tunnel = Output { stream: 0, queue: queue.clone() };
    let carry = async {
        let mut buffer = vec![0; READ_AT_ONCE];
        while let Ok(length @ 1..) = outer_from.read(&mut buffer).await {
            if tunnel.write(Bytes::copy_from_slice(&buffer[..length])).await.is_err() {
                return;
            }
        }
    };
    let work = async {
        tokio::join!(forward_over_spdy(pod, inner_from, inner_to, std::future::pending()), carry);
    };
    let read = websocket::read_bytes(from, outer_to, queue.clone());
    let write = connection::write(outgoing, websocket::Encoder::Bytes, to);
    connection::run(read, write, work, queue.clone(), gone).await;
}

/// Two channels for each port: data and error, each beginning with the port's number.
async fn forward_over_channels(
    pod: Pod,
    ports: Vec<u16>,
    coding: Coding,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    gone: impl Future<Output = ()>,
) {
    let (queue, outgoing) = connection::queue();
    let output = |channel: u8| Output { stream: channel.into(), queue: queue.clone() };
    let mut channels = Channels::new();
    let mut forwards = Vec::new();
    for (port, data) in ports.into_iter().zip((0..=u8::MAX - 2).step_by(2)) {
        let (sender, from) = mpsc::channel(INCOMING);
        channels.extend([(data, Some(sender)), (data + 1, None)]);
        forwards.push(Forward { port, from, to: output(data), error: output(data + 1), reset: None });
    }
    let work = async {
        // Aborted when dropped.
        let mut connections = JoinSet::new();
        for forward in forwards {
            for output in [&forward.to, &forward.error] {
                let _ = output.write(Bytes::copy_from_slice(&forward.port.to_le_bytes())).await;
            }
            connections.spawn(forward.run(pod.clone()));
        }
        while connections.join_next().await.is_some() {}
    };
    let read = websocket::read_channels(from, coding, channels, queue.clone());
    let write = connection::write(outgoing, websocket::Encoder::Channels(coding), to);
    connection::run(read, write, work, queue.clone(), gone).await;
}

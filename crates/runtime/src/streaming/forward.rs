//! Port-forward sessions: pairs of streams, each with a TCP connection inside the pod's network namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hyper::body::Bytes;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::connection::{Outgoing, Output, READ_AT_ONCE};
use super::spdy::Stream;
use crate::containers::running_supervisor;
use crate::error::Error;
use crate::runtime::Runtime;

/// One connection: where it goes, and the client's ends of it.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) port: u16,
    pub(super) from: mpsc::Receiver<Bytes>,
    pub(super) to: Output,
    pub(super) error: Output,
    /// True once the client has given the connection up.
    pub(super) reset: Option<watch::Receiver<bool>>,
}

/// Which pod.
#[derive(Clone)]
pub(super) struct Pod {
    pub(super) runtime: Arc<Runtime>,
    pub(super) sandbox: String,
}

/// Serves every pair of streams until the client opens no more and all are done.
pub(super) async fn serve_streams(
    pod: Pod,
    mut opened: mpsc::Receiver<Stream>,
    queue: mpsc::Sender<Outgoing>,
) {
    let mut pairs = Pairs::default();
    // Aborted when dropped.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = opened.recv() => match stream {
                None => break,
                Some(stream) => {
                    if let Some(forward) = pairs.add(stream, &queue) {
                        connections.spawn(forward.run(pod.clone()));
                    }
                }
            },
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Streams that wait for their other half, by request. Their number is bounded by that of the connection's streams.
#[derive(Debug, Default)]
struct Pairs(BTreeMap<String, Halves>);

#[derive(Debug, Default)]
struct Halves {
    data: Option<Stream>,
    error: Option<Stream>,
}

impl Pairs {
    fn add(&mut self, stream: Stream, queue: &mpsc::Sender<Outgoing>) -> Option<Forward> {
        // Before there were request ids the error stream came first, and the next number was its data stream's.
        let request = match (stream.header("requestid"), stream.header("streamtype")) {
            ("", "error") => stream.id.to_string(),
            ("", _) => stream.id.saturating_sub(2).to_string(),
            (request, _) => request.to_owned(),
        };
        let halves = self.0.entry(request.clone()).or_default();
        match stream.header("streamtype") {
            "data" => halves.data = Some(stream),
            "error" => halves.error = Some(stream),
            _ => {}
        }
        if halves.data.is_none() || halves.error.is_none() {
            return None;
        }
        let Halves { data: Some(data), error: Some(error) } = self.0.remove(&request)? else { return None };
        // 0 is no port: it is refused where it is dialled.
        let port = data.header("port").parse().unwrap_or(0);
        let output = |id| Output { stream: id, queue: queue.clone() };
        Some(Forward {
            port,
            from: data.data,
            to: output(data.id),
            error: output(error.id),
            reset: Some(data.reset),
        })
    }
}

impl Forward {
    /// Connects, copies both ways to the end of both, and says on the error stream what went wrong.
    pub(super) async fn run(self, pod: Pod) {
        let Self { port, from, to, error, reset } = self;
        match connect(&pod, port).await {
            Ok(connection) => tokio::select! {
                () = copy(connection, from, to) => {}
                () = given_up(reset) => {}
            },
            Err(cause) => {
                let text =
                    format!("error forwarding port {port} to pod {}, uid : {}", pod.sandbox, cause.chain());
                let _ = error.write(text.into()).await;
                to.end().await;
            }
        }
        error.end().await;
    }
}

async fn given_up(reset: Option<watch::Receiver<bool>>) {
    if let Some(mut reset) = reset
        && reset.wait_for(|reset| *reset).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn copy(connection: TcpStream, mut from: mpsc::Receiver<Bytes>, to: Output) {
    let (mut reader, mut writer) = connection.into_split();
    let up = async {
        while let Some(data) = from.recv().await {
            if writer.write_all(&data).await.is_err() {
                // Nobody reads any more: what still comes is forgotten.
                from.close();
            }
        }
        let _ = writer.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; READ_AT_ONCE];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            if to.write(Bytes::copy_from_slice(&buffer[..length])).await.is_err() {
                break;
            }
        }
        to.end().await;
    };
    tokio::join!(up, down);
}

/// Connects to the port on the pod's own loopback, IPv4 first.
async fn connect(pod: &Pod, port: u16) -> Result<TcpStream, Error> {
    let sandbox = pod.runtime.index().sandbox(&pod.sandbox)?;
    let supervisor = running_supervisor(&sandbox)?;
    let namespace = supervisor.netns_path();
    let sockets = tokio::task::spawn_blocking(move || sockets_in(&namespace)).await;
    let sockets = sockets.map_err(io::Error::other).and_then(|sockets| sockets);
    let (v4, v6) = sockets.map_err(Error::io("open sockets in the network namespace of", &sandbox.id))?;
    let dial = async |socket: io::Result<OwnedFd>, address: SocketAddr| {
        TcpSocket::from_std_stream(socket?.into()).connect(address).await
    };
    let first = match dial(Ok(v4), (Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    match dial(v6, (Ipv6Addr::LOCALHOST, port).into()).await {
        Ok(connection) => Ok(connection),
        Err(second) => Err(Error::WrongState(format!(
            "failed to connect to localhost:{port} inside the network namespace of sandbox {}: IPv4: {first}, IPv6: {second}",
            sandbox.id
        ))),
    }
}

/// A socket stays in the namespace in which it was made. A machine may have no IPv6.
fn sockets_in(namespace: &std::path::Path) -> io::Result<(OwnedFd, io::Result<OwnedFd>)> {
    let namespace = host::namespace::open(namespace)?;
    let socket = |family| -> io::Result<OwnedFd> {
        Ok(socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?)
    };
    host::namespace::with_network(&namespace, || {
        Ok((socket(AddressFamily::INET)?, socket(AddressFamily::INET6)))
    })?
}

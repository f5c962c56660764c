//! What SPDY and WebSocket connections have in common: streams in, streams out, one reader, one writer, an end. Every queue is bounded, so
//! that whoever is slow slows its peer down by the connection alone; everything lives in one task and ends with it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};
use tokio::sync::mpsc;

/// Pieces that wait to be sent, of all streams of a connection.
const OUTGOING: usize = 16;
/// Pieces of one stream that were received and not taken.
pub(super) const INCOMING: usize = 8;
/// Bytes read from a connection at once, and so the largest piece received.
pub(super) const READ_AT_ONCE: usize = 32 << 10;
/// Bytes that are collected before they are written.
const WRITE_AT_ONCE: usize = 64 << 10;
/// How often a client is asked whether it is there. A client that died while its bytes could not be taken has its end behind them; only
/// what is sent to it brings the answer that nobody is there.
const PROBE: Duration = Duration::from_secs(2);
/// How long a client's bytes are still taken after the end: a connection that is closed over unread bytes is reset, and takes the last
/// words with it.
const LINGER: Duration = Duration::from_secs(1);

/// What is sent.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A stream is welcome.
    Accept(u32),
    /// A stream is not.
    Refuse(u32),
    /// Bytes of a stream.
    Data {
        /// Which.
        stream: u32,
        /// At most a few ten thousand.
        data: Bytes,
    },
    /// Nothing more of a stream.
    End(u32),
    /// The answer to a ping.
    Pong(Bytes),
    /// A question whether the client is there.
    Ping,
    /// Nothing more at all.
    Close,
}

/// Turns what is sent into bytes of a protocol.
pub(super) trait Encode {
    /// Appends it.
    fn encode(&mut self, outgoing: &Outgoing, out: &mut Vec<u8>);
}

/// A queue to the writer of a connection.
pub(super) fn queue() -> (mpsc::Sender<Outgoing>, mpsc::Receiver<Outgoing>) {
    mpsc::channel(OUTGOING)
}

/// The sending side of one stream.
#[derive(Debug)]
pub(super) struct Output {
    /// Its number, or its channel.
    pub(super) stream: u32,
    /// The connection's queue.
    pub(super) queue: mpsc::Sender<Outgoing>,
}

/// The connection takes nothing more.
#[derive(Debug)]
pub(super) struct Closed;

impl Output {
    pub(super) async fn write(&self, data: Bytes) -> Result<(), Closed> {
        self.send(Outgoing::Data { stream: self.stream, data }).await
    }

    pub(super) async fn end(self) {
        let _ = self.send(Outgoing::End(self.stream)).await;
    }

    async fn send(&self, outgoing: Outgoing) -> Result<(), Closed> {
        self.queue.send(outgoing).await.map_err(|_| Closed)
    }
}

/// Sends what is queued until [`Outgoing::Close`].
pub(super) async fn write(
    mut queue: mpsc::Receiver<Outgoing>,
    mut encoder: impl Encode,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        let mut closing = false;
        while let Some(outgoing) = next {
            encoder.encode(&outgoing, &mut bytes);
            closing |= matches!(outgoing, Outgoing::Close);
            next = if closing || bytes.len() >= WRITE_AT_ONCE { None } else { queue.try_recv().ok() };
        }
        to.write_all(&bytes).await?;
        bytes.clear();
        if closing {
            return to.shutdown().await;
        }
    }
    Ok(())
}

/// Runs a connection: to the end of `work` and of what it has sent, or until the client is gone, when all of it is dropped.
pub(super) async fn run<E>(
    read: impl Future<Output = Result<(), E>>,
    write: impl Future<Output = io::Result<()>>,
    work: impl Future<Output = ()>,
    queue: mpsc::Sender<Outgoing>,
    gone: impl Future<Output = ()>,
) where
    E: std::error::Error,
{
    let work = async {
        work.await;
        let _ = queue.send(Outgoing::Close).await;
        std::future::pending::<()>().await;
    };
    tokio::pin!(read);
    let finished = tokio::select! {
        result = &mut read => {
            if let Err(error) = result {
                tracing::debug!(%error, "streaming connection broke");
            }
            false
        }
        result = write => result.is_ok(),
        () = work => true,
        () = gone => false,
        () = probe(&queue) => false,
    };
    if finished {
        let _ = tokio::time::timeout(LINGER, read).await;
    }
}

async fn probe(queue: &mpsc::Sender<Outgoing>) {
    loop {
        tokio::time::sleep(PROBE).await;
        // A queue that is full is probe enough.
        let _ = queue.try_send(Outgoing::Ping);
    }
}

/// Waits until the other side of a socket has closed it, although bytes may be there that nobody has read.
pub(super) async fn hung_up(socket: OwnedFd) {
    let Ok(socket) = watch(socket) else { return };
    while let Ok(mut guard) = socket.readable().await {
        if guard.ready().is_read_closed() {
            return;
        }
        // Bytes: the next change is waited for.
        guard.clear_ready();
    }
}

#[expect(
    deprecated,
    reason = "its replacement is unsafe, for types that may change their descriptor; an OwnedFd does not"
)]
fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// A descriptor of a pipe or a terminal that does not wait.
#[derive(Debug)]
pub(super) struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    /// Takes a descriptor over.
    #[expect(
        deprecated,
        reason = "its replacement is unsafe, for types that may change their descriptor; an OwnedFd does not"
    )]
    pub(super) fn new(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self(AsyncFd::with_interest(descriptor, interest)?))
    }

    /// What there is, once there is something. A terminal that nobody holds any more is at its end.
    pub(super) async fn read(&self, scratch: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            let read = guard.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), &mut *scratch)?));
            match read {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.writable().await?;
            match guard.try_io(|pipe| Ok(rustix::io::write(pipe.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => bytes = &bytes[result?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    pub(super) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

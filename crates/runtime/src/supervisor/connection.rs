//! The task that owns the connection to one supervisor: sends requests, matches answers, reconnects, notices death.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oci::supervisor::frame::{FrameReader, OutputStream, Payload, encode_json};
use oci::supervisor::protocol::{
    ClientMessage, ErrorCode, ErrorReply, Event, ExitRecord, Hello, HelloReply, Ready, Reply, Request,
    SOCKET_NAME, ServerMessage, Setup, SetupFailure, VERSION,
};
use rustix::process::{WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::RequestError;

/// Ids below are the connection's own: greeting, subscription, first list.
pub(super) const FIRST_FREE_ID: u64 = 3;
const HELLO_ID: u64 = 0;
const SUBSCRIBE_ID: u64 = 1;
const LIST_ID: u64 = 2;
/// A path that does not fit into `sockaddr_un` is reached through `/proc/self/fd`.
const LONGEST_SOCKET_PATH: usize = 100;

/// One request on its way to the task.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) id: u64,
    pub(super) request: Request,
    pub(super) respond: oneshot::Sender<Result<Answer, RequestError>>,
}

/// A reply, with the output that came before it if it was an exec.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Exits known so far, and who wants to hear of them.
#[derive(Debug, Default)]
pub(super) struct Exits(Mutex<ExitsState>);

#[derive(Debug, Default)]
struct ExitsState {
    known: BTreeMap<String, ExitRecord>,
    subscribers: Vec<mpsc::UnboundedSender<Event>>,
    ended: bool,
}

impl Exits {
    /// The channel has no bound because its content has: one event per container.
    pub(super) fn subscribe(&self) -> mpsc::UnboundedReceiver<Event> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (container, exit) in &state.known {
            let _ = sender.send(Event::Exited { container: container.clone(), exit: exit.clone() });
        }
        if !state.ended {
            state.subscribers.push(sender);
        }
        receiver
    }

    pub(super) fn of(&self, container: &str) -> Option<ExitRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.get(container).cloned()
    }

    pub(super) fn forget(&self, container: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.remove(container);
    }

    fn record(&self, container: String, exit: ExitRecord) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.known.insert(container.clone(), exit.clone()).is_none() {
            let event = Event::Exited { container, exit };
            state.subscribers.retain(|subscriber| subscriber.send(event.clone()).is_ok());
        }
    }

    fn end(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.ended = true;
        state.subscribers.clear();
    }
}

/// A socket and what has been read from it and not yet understood.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) frames: FrameReader,
    outgoing: Vec<u8>,
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Self { stream, frames: FrameReader::default(), outgoing: Vec::new() }
    }

    /// Sends the set-up to a supervisor just started and waits for its verdict, or for its death.
    pub(super) async fn set_up(
        stream: std::os::unix::net::UnixStream,
        pidfd: BorrowedFd<'_>,
        setup: &Setup,
    ) -> io::Result<(Self, Result<Ready, SetupFailure>)> {
        stream.set_nonblocking(true)?;
        let mut connection = Self::new(UnixStream::from_std(stream)?);
        let verdict = async {
            connection.send(setup).await?;
            loop {
                match connection.receive().await? {
                    ServerMessage::Ready(ready) => return Ok(Ok(ready)),
                    ServerMessage::SetupFailed(failure) => return Ok(Err(failure)),
                    ServerMessage::Reply { .. } | ServerMessage::Error { .. } | ServerMessage::Event(_) => {}
                }
            }
        };
        let outcome: io::Result<_> = verdict.await;
        if !matches!(outcome, Ok(Ok(_))) {
            // A supervisor without its agent before Ready gives up; one that did not read its set-up sees the end of it.
            connection.stream.shutdown().await?;
            reap_when_dead(pidfd).await?;
        }
        Ok((connection, outcome?))
    }

    /// Connects to the socket in a sandbox directory.
    pub(super) async fn dial(directory: &Path) -> io::Result<Self> {
        let path = directory.join(SOCKET_NAME);
        if path.as_os_str().len() <= LONGEST_SOCKET_PATH {
            return Ok(Self::new(UnixStream::connect(path).await?));
        }
        let parent = std::fs::File::open(directory)?;
        let short = format!("/proc/self/fd/{}/{SOCKET_NAME}", std::os::fd::AsRawFd::as_raw_fd(&parent));
        Ok(Self::new(UnixStream::connect(short).await?))
    }

    /// Agrees on a version. Called before anything else on a dialled connection.
    pub(super) async fn greet(&mut self) -> io::Result<HelloReply> {
        let hello = Hello { version: VERSION, build: env!("CARGO_PKG_VERSION").to_owned() };
        self.send(&ClientMessage { id: HELLO_ID, request: Request::Hello(hello) }).await?;
        loop {
            match self.receive().await? {
                ServerMessage::Reply { id: HELLO_ID, reply: Reply::Hello(hello) } => return Ok(hello),
                ServerMessage::Error { error, .. } => return Err(io::Error::other(error)),
                ServerMessage::Reply { .. }
                | ServerMessage::Ready(_)
                | ServerMessage::SetupFailed(_)
                | ServerMessage::Event(_) => {}
            }
        }
    }

    pub(super) async fn send<T: serde::Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode_json(&mut bytes, message).map_err(io::Error::other)?;
        self.stream.write_all(&bytes).await
    }

    async fn receive(&mut self) -> io::Result<ServerMessage> {
        loop {
            match self.frames.next_payload().map_err(io::Error::other)? {
                Some(Payload::Json(json)) => return serde_json::from_slice(json).map_err(io::Error::other),
                Some(Payload::Output { .. }) => {}
                None => self.fill().await?,
            }
        }
    }

    /// Waits for something to read, and reads once. The end of the stream is an error here.
    async fn fill(&mut self) -> io::Result<()> {
        self.stream.readable().await?;
        self.take()
    }

    /// Reads once what is there, if anything is. No future itself: the buffer would be a part of each pod's task for as long as that lives.
    fn take(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.frames.push(&buffer[..length]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes progress in either direction: writes what waits, reads what is there. Safe to cancel.
    async fn advance(&mut self) -> io::Result<()> {
        let interest = if self.outgoing.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let ready = self.stream.ready(interest).await?;
        if ready.is_writable() && !self.outgoing.is_empty() {
            match self.stream.try_write(&self.outgoing) {
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if ready.is_readable() || ready.is_read_closed() {
            self.take()?;
        }
        Ok(())
    }
}

/// Starts the task that serves one supervisor until its process is gone.
pub(super) fn spawn(
    connection: Connection,
    directory: PathBuf,
    pidfd: OwnedFd,
    commands: mpsc::Receiver<Command>,
    exits: Arc<Exits>,
    dead: watch::Sender<bool>,
) -> io::Result<()> {
    let pidfd = watch_process(pidfd)?;
    let mut client = Client { connection, pending: BTreeMap::new(), exits };
    tokio::spawn(async move {
        tokio::select! {
            () = client.serve(&directory, commands) => {}
            _ = pidfd.readable() => {}
        }
        // What the supervisor wrote before it ended is still in the socket.
        client.drain();
        reap(pidfd.get_ref().as_fd());
        client.fail_pending(|| RequestError::Dead);
        client.exits.end();
        let _ = dead.send(true);
    });
    Ok(())
}

struct Client {
    connection: Connection,
    pending: BTreeMap<u64, Pending>,
    exits: Arc<Exits>,
}

struct Pending {
    respond: oneshot::Sender<Result<Answer, RequestError>>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Client {
    /// Never returns by itself: the caller watches the process.
    async fn serve(&mut self, directory: &Path, mut commands: mpsc::Receiver<Command>) {
        self.subscribe();
        let mut abandoned = false;
        loop {
            tokio::select! {
                command = commands.recv(), if !abandoned => match command {
                    Some(command) => self.enqueue(command),
                    None => abandoned = true,
                },
                progress = self.connection.advance() => {
                    if let Err(error) = progress.and_then(|()| self.dispatch()) {
                        tracing::debug!(%error, directory = %directory.display(), "supervisor connection lost");
                        self.fail_pending(|| RequestError::Disconnected);
                        self.reconnect(directory).await;
                    }
                }
            }
        }
    }

    fn subscribe(&mut self) {
        for (id, request) in [(SUBSCRIBE_ID, Request::Subscribe {}), (LIST_ID, Request::List {})] {
            let _ = encode_json(&mut self.connection.outgoing, &ClientMessage { id, request });
        }
    }

    fn enqueue(&mut self, Command { id, request, respond }: Command) {
        match encode_json(&mut self.connection.outgoing, &ClientMessage { id, request }) {
            Ok(()) => {
                self.pending.insert(id, Pending { respond, stdout: Vec::new(), stderr: Vec::new() });
            }
            Err(error) => {
                let error = ErrorReply { code: ErrorCode::BadRequest, message: error.to_string() };
                let _ = respond.send(Err(error.into()));
            }
        }
    }

    /// Handles every complete frame.
    fn dispatch(&mut self) -> io::Result<()> {
        while let Some(payload) = self.connection.frames.next_payload().map_err(io::Error::other)? {
            match payload {
                Payload::Output { id, stream, data } => {
                    if let Some(pending) = self.pending.get_mut(&id) {
                        match stream {
                            OutputStream::Stdout => pending.stdout.extend_from_slice(data),
                            OutputStream::Stderr => pending.stderr.extend_from_slice(data),
                        }
                    }
                }
                Payload::Json(json) => match serde_json::from_slice(json) {
                    Ok(message) => handle(message, &mut self.pending, &self.exits),
                    // The protocol's rule: what an older agent does not know it passes over.
                    Err(error) => tracing::debug!(%error, "message from the supervisor not understood"),
                },
            }
        }
        Ok(())
    }

    async fn reconnect(&mut self, directory: &Path) {
        let mut pause = Duration::from_millis(5);
        loop {
            let attempt = async {
                let mut connection = Connection::dial(directory).await?;
                connection.greet().await.map(|_| connection)
            };
            match attempt.await {
                Ok(connection) => {
                    self.connection = connection;
                    self.subscribe();
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, directory = %directory.display(), "reconnect to supervisor")
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.connection.stream.try_read(&mut buffer) {
            self.connection.frames.push(&buffer[..length]);
        }
        let _ = self.dispatch();
    }

    fn fail_pending(&mut self, error: impl Fn() -> RequestError) {
        for (_, pending) in std::mem::take(&mut self.pending) {
            let _ = pending.respond.send(Err(error()));
        }
    }
}

fn handle(message: ServerMessage, pending: &mut BTreeMap<u64, Pending>, exits: &Exits) {
    match message {
        ServerMessage::Reply { id: LIST_ID, reply: Reply::List(containers) } => {
            for status in containers {
                if let Some(exit) = status.exit {
                    exits.record(status.container, exit);
                }
            }
        }
        ServerMessage::Reply { id, reply } => {
            if let Some(Pending { respond, stdout, stderr }) = pending.remove(&id) {
                let _ = respond.send(Ok(Answer { reply, stdout, stderr }));
            }
        }
        ServerMessage::Error { id, error } => {
            if let Some(pending) = pending.remove(&id) {
                let _ = pending.respond.send(Err(error.into()));
            }
        }
        ServerMessage::Event(Event::Exited { container, exit }) => exits.record(container, exit),
        ServerMessage::Ready(_) | ServerMessage::SetupFailed(_) => {}
    }
}

async fn reap_when_dead(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let pidfd = watch_process(pidfd.try_clone_to_owned()?)?;
    let _ = pidfd.readable().await?;
    reap(pidfd.get_ref().as_fd());
    Ok(())
}

/// Collects a child at its end, in the background.
pub(super) fn collect(pidfd: OwnedFd) {
    tokio::spawn(async move {
        if let Err(error) = reap_when_dead(pidfd.as_fd()).await {
            tracing::debug!(%error, "a process that has ended is not collected");
        }
    });
}

/// Collects the process if it is this agent's child; one that an earlier agent started is not.
fn reap(pidfd: BorrowedFd<'_>) {
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

/// Becomes readable when the process is gone.
#[expect(
    deprecated,
    reason = "its replacement is unsafe, for types that may change their descriptor; an OwnedFd does not"
)]
fn watch_process(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

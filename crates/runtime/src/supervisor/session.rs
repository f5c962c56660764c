//! Interactive sessions: each has a connection to the supervisor of its own, and ends with it. Dropping a session kills its command, or
//! ends its attachment; if this process dies the kernel does the same.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use oci::plan::ExecPlan;
use oci::supervisor::frame::{OutputStream, Payload};
use oci::supervisor::protocol::{
    Attach, ClientMessage, Descriptor, ErrorCode, ErrorReply, ExecResult, ExecSession, Reply, Request,
    ServerMessage,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;

use super::connection::{Connection, FIRST_FREE_ID};
use super::{RequestError, Supervisor};

/// The first version that has sessions.
const SESSIONS: u32 = 2;
/// The one request of a connection, and what may follow it.
const SESSION_ID: u64 = FIRST_FREE_ID;
const CLOSE_ID: u64 = FIRST_FREE_ID + 1;
/// Descriptors in one message at most.
const MAX_DESCRIPTORS: usize = 4;

/// Descriptors by what they are; those that are not there were not asked for, or belong to the terminal.
#[derive(Debug, Default)]
pub struct Streams {
    /// To write standard input to.
    pub stdin: Option<OwnedFd>,
    /// To read standard output from.
    pub stdout: Option<OwnedFd>,
    /// To read standard error from.
    pub stderr: Option<OwnedFd>,
    /// The controlling side of the terminal.
    pub terminal: Option<OwnedFd>,
}

/// A command that runs in a container.
#[derive(Debug)]
pub struct RunningExec(Session);

/// A container whose output is shown.
#[derive(Debug)]
pub struct Attached(Session);

/// What an attachment brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// A piece of output.
    Output(OutputStream, Vec<u8>),
    /// The container has ended, and all of its output was shown.
    End,
}

impl Supervisor {
    /// Starts a command whose streams the caller serves.
    pub async fn exec_session(
        &self,
        container: &str,
        plan: ExecPlan,
        stdin: bool,
    ) -> Result<(Streams, RunningExec), RequestError> {
        let request = ExecSession { container: container.to_owned(), plan, stdin };
        let mut session = Session::open(self, Request::ExecSession(Box::new(request))).await?;
        match session.receive().await? {
            Received::Reply(Reply::Session(names)) => Ok((session.streams(&names), RunningExec(session))),
            _ => Err(RequestError::Nonsense("an exec session")),
        }
    }

    /// Shows the output of a container from now on.
    pub async fn attach(&self, attach: Attach) -> Result<(Streams, Attached), RequestError> {
        let mut session = Session::open(self, Request::Attach(attach)).await?;
        match session.receive().await? {
            Received::Reply(Reply::Attached(names)) => Ok((session.streams(&names), Attached(session))),
            _ => Err(RequestError::Nonsense("an attachment")),
        }
    }
}

impl RunningExec {
    /// Waits for its end.
    pub async fn ended(&mut self) -> Result<ExecResult, RequestError> {
        match self.0.receive().await? {
            Received::Reply(Reply::Exec(result)) => Ok(result),
            _ => Err(RequestError::Nonsense("the end of an exec session")),
        }
    }
}

impl Attached {
    /// The next piece. Safe to cancel.
    pub async fn next(&mut self) -> Result<Shown, RequestError> {
        loop {
            match self.0.receive().await? {
                Received::Output(stream, data) => return Ok(Shown::Output(stream, data)),
                Received::Reply(Reply::Detached) => return Ok(Shown::End),
                Received::Reply(_) => {}
            }
        }
    }

    /// Ends the standard input of a container that has it once.
    pub async fn close_stdin(&mut self, container: &str) -> Result<(), RequestError> {
        let request = Request::CloseStdin { container: container.to_owned() };
        let message = ClientMessage { id: CLOSE_ID, request };
        self.0.connection.send(&message).await.map_err(|_| RequestError::Disconnected)
    }
}

/// A connection with one request under way.
#[derive(Debug)]
struct Session {
    connection: Connection,
    descriptors: Vec<OwnedFd>,
}

enum Received {
    Reply(Reply),
    Output(OutputStream, Vec<u8>),
}

impl Session {
    async fn open(supervisor: &Supervisor, request: Request) -> Result<Self, RequestError> {
        if supervisor.is_dead() {
            return Err(RequestError::Dead);
        }
        let opened = async {
            let mut connection = Connection::dial(&supervisor.directory).await?;
            let hello = connection.greet().await?;
            io::Result::Ok((connection, hello))
        };
        let (mut connection, hello) = opened.await.map_err(|_| RequestError::Disconnected)?;
        if hello.version < SESSIONS {
            let message = format!(
                "the pod was started by podwright {}, whose supervisor has no interactive sessions; a new pod has",
                hello.build
            );
            return Err(ErrorReply { code: ErrorCode::Unsupported, message }.into());
        }
        let message = ClientMessage { id: SESSION_ID, request };
        connection.send(&message).await.map_err(|_| RequestError::Disconnected)?;
        Ok(Self { connection, descriptors: Vec::new() })
    }

    /// The next message. Safe to cancel.
    async fn receive(&mut self) -> Result<Received, RequestError> {
        loop {
            match self.connection.frames.next_payload().map_err(|_| RequestError::Disconnected)? {
                Some(Payload::Output { stream, data, .. }) => {
                    return Ok(Received::Output(stream, data.to_vec()));
                }
                Some(Payload::Json(json)) => match serde_json::from_slice(json) {
                    Ok(ServerMessage::Reply { reply, .. }) => return Ok(Received::Reply(reply)),
                    Ok(ServerMessage::Error { error, .. }) => return Err(error.into()),
                    // The protocol's rule: what is not understood is passed over.
                    Ok(_) | Err(_) => {}
                },
                None => self.fill().await.map_err(|_| RequestError::Disconnected)?,
            }
        }
    }

    /// Reads once, descriptors too.
    async fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        let stream = &self.connection.stream;
        let descriptors = &mut self.descriptors;
        let length = stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
                let parts = &mut [IoSliceMut::new(&mut buffer)];
                let received = rustix::net::recvmsg(stream, parts, &mut control, flags)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(arrived) = message {
                        descriptors.extend(arrived);
                    }
                }
                Ok(received.bytes)
            })
            .await?;
        match length {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.connection.frames.push(&buffer[..length]);
                Ok(())
            }
        }
    }

    /// What the descriptors that have come are, by the names that came with them.
    fn streams(&mut self, names: &[Descriptor]) -> Streams {
        let mut streams = Streams::default();
        for (name, descriptor) in names.iter().zip(self.descriptors.drain(..)) {
            let place = match name {
                Descriptor::Stdin => &mut streams.stdin,
                Descriptor::Stdout => &mut streams.stdout,
                Descriptor::Stderr => &mut streams.stderr,
                Descriptor::Terminal => &mut streams.terminal,
            };
            *place = Some(descriptor);
        }
        streams
    }
}

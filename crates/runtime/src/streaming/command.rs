//! Exec and attach sessions, whatever carries their streams.

use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use hyper::body::Bytes;
use oci::supervisor::frame::OutputStream;
use oci::supervisor::protocol::Attach;
use rustix::termios::Winsize;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::sync::{mpsc, watch};

use super::connection::{Output, Pipe, READ_AT_ONCE};
use super::outcome::Outcome;
use crate::containers::{Tty, running_supervisor};
use crate::error::Error;
use crate::runtime::Runtime;
use crate::supervisor::{Attached, RequestError, RunningExec, Shown, Streams};

/// How long an ended command's output is waited for if a background process keeps it open.
const DRAIN: Duration = Duration::from_millis(200);
/// Longest message of a terminal's size.
const MAX_SIZE_MESSAGE: usize = 1 << 10;

/// The client's ends of a session.
#[derive(Debug)]
pub(super) struct Ends {
    /// What the client types; its end is the end of the input.
    pub(super) stdin: Option<mpsc::Receiver<Bytes>>,
    /// Sizes of the client's terminal, as JSON.
    pub(super) resize: Option<mpsc::Receiver<Bytes>>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
}

/// Which streams a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// What was asked for by CRI.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Exec(v1::ExecRequest),
    Attach(v1::AttachRequest),
}

impl Command {
    pub(super) fn wants(&self) -> Wants {
        match self {
            Self::Exec(request) => Wants {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                tty: request.tty,
            },
            Self::Attach(request) => Wants {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                tty: request.tty,
            },
        }
    }

    /// Runs the session to its end. Dropping the future kills an exec's command and ends an attachment.
    pub(super) async fn run(self, runtime: Arc<Runtime>, ends: Ends) -> Outcome {
        let failed = |what| move |error: Error| Outcome::Failed { what, cause: error.chain() };
        match self {
            Self::Exec(request) => exec(&runtime, request, ends)
                .await
                .unwrap_or_else(failed("error executing command in container")),
            Self::Attach(request) => {
                attach(&runtime, &request, ends).await.unwrap_or_else(failed("error attaching to container"))
            }
        }
    }
}

async fn exec(runtime: &Arc<Runtime>, request: v1::ExecRequest, ends: Ends) -> Result<Outcome, Error> {
    let container = runtime.running_container(&request.container_id)?;
    let supervisor = running_supervisor(&container.sandbox)?;
    let tty = if request.tty { Tty::Yes } else { Tty::No };
    let plan = runtime.exec_plan(&container, &request.cmd, tty)?;
    let command = request.cmd;
    let failed = |source| Error::Supervisor {
        what: format!("execute {command:?} in container {}", container.id),
        source,
    };
    let started = supervisor.exec_session(&container.id, plan, request.stdin && !request.tty).await;
    let (streams, running) = started.map_err(failed)?;
    let result = serve_exec(streams, running, ends).await;
    let result = result.map_err(Error::io("serve the streams of", &container.id))?.map_err(failed)?;
    Ok(match result.code {
        0 => Outcome::Success,
        code => Outcome::Exit { command, code },
    })
}

type ExecEnd = Result<oci::supervisor::protocol::ExecResult, RequestError>;

async fn serve_exec(streams: Streams, mut running: RunningExec, ends: Ends) -> std::io::Result<ExecEnd> {
    let terminal = pipe(streams.terminal, Interest::READABLE | Interest::WRITABLE)?;
    let stdin = pipe(streams.stdin, Interest::WRITABLE)?;
    let stdout = pipe(streams.stdout, Interest::READABLE)?;
    let stderr = pipe(streams.stderr, Interest::READABLE)?;
    let (told, ended) = watch::channel(false);
    let end = async {
        let end = running.ended().await;
        let _ = told.send(true);
        end
    };
    let outputs = async {
        tokio::join!(
            copy_out(terminal.as_ref().or(stdout.as_ref()), ends.stdout, ended.clone()),
            copy_out(stderr.as_ref(), ends.stderr, ended.clone()),
        )
    };
    let inputs = async {
        let input = async {
            match (&terminal, stdin) {
                // The end of a client's input is no end of a terminal.
                (Some(terminal), _) => drop(copy_in(ends.stdin, Some(terminal)).await),
                // The pipe is closed with it.
                (None, stdin) => drop(copy_in(ends.stdin, stdin.as_ref()).await),
            }
        };
        tokio::join!(input, resize(ends.resize, terminal.as_ref()));
        std::future::pending::<()>().await
    };
    tokio::select! {
        (end, _) = async { tokio::join!(end, outputs) } => Ok(end),
        () = inputs => Ok(Err(RequestError::Disconnected)),
    }
}

async fn attach(runtime: &Arc<Runtime>, request: &v1::AttachRequest, ends: Ends) -> Result<Outcome, Error> {
    let container = runtime.running_container(&request.container_id)?;
    let supervisor = running_supervisor(&container.sandbox)?;
    let failed = |source| Error::Supervisor { what: format!("attach to container {}", container.id), source };
    let config = container.record().config;
    let wanted = Attach {
        container: container.id.clone(),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let (streams, attached) = supervisor.attach(wanted).await.map_err(failed)?;
    let at_end = if config.stdin_once && !config.tty { AtEnd::CloseStdin } else { AtEnd::Detach };
    let served = serve_attached(streams, attached, ends, &container.id, at_end).await;
    served.map_err(Error::io("serve the streams of", &container.id))?.map_err(failed)?;
    Ok(Outcome::Success)
}

/// What the end of the client's input means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    /// The container's input ends, and its output is shown to its end.
    CloseStdin,
    /// The session ends.
    Detach,
}

async fn serve_attached(
    streams: Streams,
    mut attached: Attached,
    ends: Ends,
    container: &str,
    at_end: AtEnd,
) -> std::io::Result<Result<(), RequestError>> {
    let terminal = pipe(streams.terminal, Interest::WRITABLE)?;
    let stdin = pipe(streams.stdin, Interest::WRITABLE)?;
    // A container without an input leaves the client's unread.
    let input = async {
        match stdin {
            Some(stdin) => copy_in(ends.stdin, Some(&stdin)).await,
            None => std::future::pending().await,
        }
    };
    let resize = async {
        resize(ends.resize, terminal.as_ref()).await;
        std::future::pending::<()>().await;
    };
    tokio::pin!(input, resize);
    let mut reading = true;
    loop {
        tokio::select! {
            shown = attached.next() => match shown {
                Ok(Shown::Output(stream, data)) => {
                    let output = match stream {
                        OutputStream::Stdout => &ends.stdout,
                        OutputStream::Stderr => &ends.stderr,
                    };
                    if let Some(output) = output
                        && output.write(data.into()).await.is_err()
                    {
                        return Ok(Ok(()));
                    }
                }
                Ok(Shown::End) => break,
                Err(error) => return Ok(Err(error)),
            },
            end = &mut input, if reading => {
                reading = false;
                match (end, at_end) {
                    (InputEnd::Client, AtEnd::Detach) => break,
                    (InputEnd::Client, AtEnd::CloseStdin) => {
                        if let Err(error) = attached.close_stdin(container).await {
                            return Ok(Err(error));
                        }
                    }
                    // The container reads no more; it may still write.
                    (InputEnd::Process, _) => {}
                }
            }
            () = &mut resize => {}
        }
    }
    for output in [ends.stdout, ends.stderr].into_iter().flatten() {
        output.end().await;
    }
    Ok(Ok(()))
}

fn pipe(descriptor: Option<std::os::fd::OwnedFd>, interest: Interest) -> std::io::Result<Option<Pipe>> {
    descriptor.map(|descriptor| Pipe::new(descriptor, interest)).transpose()
}

/// Passes output on to its end, or until nothing has come for a while after the command's end. Output that nobody wants is read all the
/// same, so that the command goes on.
async fn copy_out(from: Option<&Pipe>, to: Option<Output>, ended: watch::Receiver<bool>) {
    if let Some(from) = from {
        let mut scratch = vec![0; READ_AT_ONCE];
        loop {
            let length = tokio::select! {
                length = from.read(&mut scratch) => length,
                () = quiet(ended.clone()) => break,
            };
            let Ok(length @ 1..) = length else { break };
            if let Some(to) = &to
                && to.write(Bytes::copy_from_slice(&scratch[..length])).await.is_err()
            {
                break;
            }
        }
    }
    if let Some(to) = to {
        to.end().await;
    }
}

/// A while after the end.
async fn quiet(mut ended: watch::Receiver<bool>) {
    let _ = ended.wait_for(|ended| *ended).await;
    tokio::time::sleep(DRAIN).await;
}

/// Who ended an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputEnd {
    /// The client has sent all.
    Client,
    /// The process reads no more.
    Process,
}

/// Passes a client's input on. What comes after the process has stopped reading is forgotten.
async fn copy_in(from: Option<mpsc::Receiver<Bytes>>, to: Option<&Pipe>) -> InputEnd {
    let (Some(mut from), Some(to)) = (from, to) else { return InputEnd::Process };
    while let Some(data) = from.recv().await {
        if to.write_all(&data).await.is_err() {
            return InputEnd::Process;
        }
    }
    InputEnd::Client
}

/// Gives a terminal the sizes that come, until no more come.
async fn resize(sizes: Option<mpsc::Receiver<Bytes>>, terminal: Option<&Pipe>) {
    let (Some(mut sizes), Some(terminal)) = (sizes, terminal) else { return };
    let mut parser = Sizes::default();
    while let Some(text) = sizes.recv().await {
        if let Some(Size { width, height }) = parser.latest(&text) {
            let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal that is gone has no size.
            let _ = rustix::termios::tcsetwinsize(terminal.descriptor(), size);
        }
    }
}

/// A terminal's size, as clients write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Size {
    #[serde(alias = "Width")]
    width: u16,
    #[serde(alias = "Height")]
    height: u16,
}

/// JSON objects one after the other, cut anywhere.
#[derive(Debug, Default)]
struct Sizes(Vec<u8>);

impl Sizes {
    /// Adds text; gives the last size that is complete now. What cannot be understood is thrown away.
    fn latest(&mut self, text: &[u8]) -> Option<Size> {
        self.0.extend_from_slice(text);
        let mut objects = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let mut latest = None;
        let broken = loop {
            match objects.next() {
                Some(Ok(size)) => latest = Some(size),
                Some(Err(error)) => break !error.is_eof(),
                None => break false,
            }
        };
        let read = objects.byte_offset();
        drop(self.0.drain(..read));
        if broken || self.0.len() > MAX_SIZE_MESSAGE {
            self.0.clear();
        }
        latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_however_they_come() {
        let size = |width, height| Some(Size { width, height });
        check(&["{\"Width\":80,\"Height\":24}\n"], &[size(80, 24)]);
        check(
            &["{\"Width\":80,\"Hei", "ght\":24}", "{\"width\":1,\"height\":2}"],
            &[None, size(80, 24), size(1, 2)],
        );
        check(&["{\"Width\":1,\"Height\":1}{\"Width\":2,\"Height\":2}{"], &[size(2, 2)]);
        check(&["nonsense", "{\"Width\":3,\"Height\":4}"], &[None, size(3, 4)]);
        check(&["{\"Width\":70000,\"Height\":1}", "{\"Width\":3,\"Height\":4}"], &[None, size(3, 4)]);
        let endless = "{\"Width\":".to_owned() + &" ".repeat(2 * MAX_SIZE_MESSAGE);
        check(&[&endless, "{\"Width\":3,\"Height\":4}"], &[None, size(3, 4)]);
    }

    fn check(pieces: &[&str], expect: &[Option<Size>]) {
        let mut sizes = Sizes::default();
        let seen: Vec<_> = pieces.iter().map(|piece| sizes.latest(piece.as_bytes())).collect();
        assert_eq!(seen, expect, "{pieces:?}");
    }
}

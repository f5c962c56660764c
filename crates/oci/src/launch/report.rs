//! What the new process tells its starter, over a pipe that executing the program closes.

use std::io::{self, Read};
use std::os::fd::OwnedFd;

use super::LaunchError;
use crate::plan::ProcessPlan;

const AT_GATE: u8 = b'G';
const AT_HOOKS: u8 = b'H';
const STEP: u8 = b'S';
const EXEC: u8 = b'E';

/// A failed step inside the new process.
#[derive(Debug)]
pub(super) struct Failure {
    kind: u8,
    text: String,
    errno: i32,
}

impl Failure {
    /// A step of the set-up.
    pub(super) fn step(text: impl Into<String>, source: &io::Error) -> Self {
        Self { kind: STEP, text: text.into(), errno: source.raw_os_error().unwrap_or(libc::EIO) }
    }

    /// The program cannot be executed.
    pub(super) fn exec(reason: impl Into<String>, errno: i32) -> Self {
        Self { kind: EXEC, text: reason.into(), errno }
    }

    pub(super) fn into_error(self, process: &ProcessPlan) -> LaunchError {
        if self.kind == EXEC {
            let program = process.args.first().cloned().unwrap_or_default();
            return LaunchError::Exec { program, reason: self.text, errno: self.errno };
        }
        LaunchError::Child { step: self.text, source: io::Error::from_raw_os_error(self.errno) }
    }
}

/// Attaches what was being done to an error of the set-up.
pub(super) trait Step<T> {
    /// The text is made only when it is needed.
    fn step(self, text: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, text: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::step(text(), &error))
    }
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step(self, text: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::step(text(), &error.into()))
    }
}

/// The child's end.
pub(super) struct Reporter {
    pipe: Option<OwnedFd>,
}

impl Reporter {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe) }
    }

    /// Says that the container is made and its hooks are next.
    pub(super) fn at_hooks(&mut self) {
        if let Some(pipe) = &self.pipe {
            let _ = rustix::io::write(pipe, &[AT_HOOKS]);
        }
    }

    /// Says that everything is ready and the gate is next. From here on nobody listens.
    pub(super) fn at_gate(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            let _ = rustix::io::write(&pipe, &[AT_GATE]);
        }
    }

    pub(super) fn fail(&mut self, failure: &Failure) {
        let Some(pipe) = self.pipe.take() else {
            let error = io::Error::from_raw_os_error(failure.errno);
            let line = format!("{}: {error}\n", failure.text);
            let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
            return;
        };
        let mut message = vec![failure.kind];
        message.extend_from_slice(&failure.errno.to_ne_bytes());
        message.extend_from_slice(failure.text.as_bytes());
        // Far below the size up to which a pipe takes a message whole.
        message.truncate(4000);
        let _ = rustix::io::write(&pipe, &message);
    }
}

/// What the starter heard.
#[derive(Debug)]
pub(super) enum Message {
    /// The pipe was closed without a word: the program runs (or the process was killed, which its pidfd tells).
    Started,
    /// It waits until its hooks have run.
    AtHooks,
    /// It waits at the gate.
    AtGate,
    /// It has failed and is about to exit.
    Failed(Failure),
}

/// The starter's end.
pub(super) struct Listener {
    pipe: std::fs::File,
}

impl Listener {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: pipe.into() }
    }

    /// What a process that has ended before its time has said.
    pub(super) fn failure(&mut self, process: &ProcessPlan) -> LaunchError {
        match self.receive() {
            Ok(Message::Failed(failure)) => failure.into_error(process),
            Ok(_) => LaunchError::Starter {
                step: "wait for the new process".to_owned(),
                source: io::ErrorKind::UnexpectedEof.into(),
            },
            Err(source) => LaunchError::Starter { step: "wait for the new process".to_owned(), source },
        }
    }

    /// Waits for the next message.
    pub(super) fn receive(&mut self) -> io::Result<Message> {
        let mut message = Vec::new();
        let mut buffer = [0_u8; 4096];
        loop {
            let count = match self.pipe.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            message.extend_from_slice(&buffer[..count]);
            match message.first() {
                Some(&AT_GATE) => return Ok(Message::AtGate),
                Some(&AT_HOOKS) => return Ok(Message::AtHooks),
                _ if count == 0 => return parse(&message),
                _ => {}
            }
        }
    }
}

fn parse(message: &[u8]) -> io::Result<Message> {
    let Some((kind, rest)) = message.split_first() else { return Ok(Message::Started) };
    let Some((errno, text)) = rest.split_first_chunk::<4>() else {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    };
    let text = String::from_utf8_lossy(text).into_owned();
    Ok(Message::Failed(Failure { kind: *kind, text, errno: i32::from_ne_bytes(*errno) }))
}

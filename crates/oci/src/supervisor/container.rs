//! One container in the supervisor.
//!
//! ```text
//! Running ──init collected──► Draining ──output at its end, or deadline──► Exited (record written, then told)
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use host::process::pidfd_send_signal;
use host::state_file::write_atomic;

use super::attach::{self, Attachment};
use super::child;
use super::clock::{Millis, wall_nanos};
use super::frame::OutputStream;
use super::launcher::{Cgroup, Launched};
use super::lines::LineSplitter;
use super::log::LogWriter;
use super::output::{self, Read};
use super::peer::Peer;
use super::protocol::{ContainerStatus, Descriptor, ExitRecord, StartContainer, Started};
use crate::plan::ExecTarget;

/// How long an exit waits for output that a process outside the container keeps open.
const DRAIN_MS: u64 = 500;
/// Reads of one stream at the exit at most: more than a pipe can hold, if nobody writes on.
const DRAIN_READS: usize = 64;

/// A container from its start until it is removed.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) started: Started,
    pub(super) cgroup: Cgroup,
    pub(super) exec_target: ExecTarget,
    pub(super) stdout: Stream,
    pub(super) stderr: Stream,
    pub(super) log: Option<LogWriter>,
    pub(super) state: State,
    pub(super) attachments: Vec<Attachment>,
    input: Input,
    exit_file: PathBuf,
    /// True if processes of the container may outlive its first one, because they do not share a PID namespace with it alone.
    outlives_init: bool,
}

/// What the container reads.
#[derive(Debug)]
enum Input {
    /// Nothing, or nothing any more.
    Closed,
    /// What attachments write.
    Pipe { stdin: OwnedFd, once: bool },
    /// A terminal, of which `stdout` is the controlling side; whether attachments may write to it.
    Terminal { open: bool },
}

/// Where a container is in its life.
#[derive(Debug)]
pub(super) enum State {
    Running { pidfd: OwnedFd, kill_at: Option<Millis> },
    Draining { record: ExitRecord, until: Millis },
    Exited(ExitRecord),
}

/// One output stream; the pipe is gone once it has ended.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pipe: Option<OwnedFd>,
    splitter: LineSplitter,
}

impl Container {
    pub(super) fn new(
        request: StartContainer,
        launched: Launched,
        log: Option<LogWriter>,
        cgroup: Cgroup,
        exec_target: ExecTarget,
        outlives_init: bool,
    ) -> Self {
        let started = Started {
            pid: launched.child.pid,
            start_time: launched.child.start_time,
            started_at: wall_nanos(),
        };
        let stream = |pipe| Stream { pipe, splitter: LineSplitter::default() };
        let input = match (request.tty, launched.stdin) {
            (true, _) => Input::Terminal { open: request.stdin },
            (false, Some(stdin)) => Input::Pipe { stdin, once: request.stdin_once },
            (false, None) => Input::Closed,
        };
        Self {
            id: request.container,
            started,
            cgroup,
            exec_target,
            stdout: stream(Some(launched.stdout)),
            stderr: stream(launched.stderr),
            log,
            state: State::Running { pidfd: launched.child.pidfd, kill_at: None },
            attachments: Vec::new(),
            input,
            exit_file: request.exit_file,
            outlives_init,
        }
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let exit = match &self.state {
            State::Exited(record) => Some(record.clone()),
            State::Running { .. } | State::Draining { .. } => None,
        };
        ContainerStatus { container: self.id.clone(), started: self.started, exit }
    }

    pub(super) fn pidfd(&self) -> Option<&OwnedFd> {
        match &self.state {
            State::Running { pidfd, .. } => Some(pidfd),
            State::Draining { .. } | State::Exited(_) => None,
        }
    }

    /// When time alone makes something due.
    pub(super) fn deadline(&self) -> Option<Millis> {
        match &self.state {
            State::Running { kill_at, .. } => *kill_at,
            State::Draining { until, .. } => Some(*until),
            State::Exited(_) => None,
        }
    }

    /// What an attachment is given to write to, and to set the size of.
    pub(super) fn input(&self, stdin: bool) -> Vec<(Descriptor, &OwnedFd)> {
        match &self.input {
            Input::Pipe { stdin: pipe, .. } if stdin => vec![(Descriptor::Stdin, pipe)],
            Input::Terminal { open } => {
                let names = [Some(Descriptor::Terminal), (stdin && *open).then_some(Descriptor::Stdin)];
                let terminal = self.stdout.pipe.as_ref();
                names.into_iter().flatten().filter_map(|name| terminal.map(|fd| (name, fd))).collect()
            }
            Input::Pipe { .. } | Input::Closed => Vec::new(),
        }
    }

    /// Ends a standard input that is for one attachment.
    pub(super) fn close_stdin(&mut self) {
        if let Input::Pipe { once: true, .. } = &self.input {
            self.input = Input::Closed;
        }
    }

    /// Forgets attachments whose connection is gone, and ends an input that was theirs. True if there were any.
    pub(super) fn forget_attachments(&mut self, is_connected: impl Fn(u64) -> bool) -> bool {
        let mut had_stdin = false;
        let before = self.attachments.len();
        self.attachments.retain(|attachment| {
            let stays = is_connected(attachment.peer);
            had_stdin |= !stays && attachment.has_stdin();
            stays
        });
        if had_stdin {
            self.close_stdin();
        }
        self.attachments.len() < before
    }

    /// Reads one piece of output into the log, and shows it to everyone attached.
    pub(super) fn read(
        &mut self,
        which: OutputStream,
        peers: &mut BTreeMap<u64, Peer>,
        scratch: &mut [u8],
    ) -> Read {
        let Self { stdout, stderr, log, attachments, .. } = self;
        let stream = match which {
            OutputStream::Stdout => stdout,
            OutputStream::Stderr => stderr,
        };
        let Some(pipe) = &stream.pipe else { return Read::End };
        let read = output::read(pipe, scratch);
        match read {
            Read::Data(length) => {
                if let Some(log) = log {
                    log.append(which, &mut stream.splitter, &scratch[..length]);
                }
                attach::pass_on(attachments, peers, which, &scratch[..length]);
            }
            Read::Empty => {}
            Read::End => {
                if let Some(log) = log {
                    log.finish(which, &mut stream.splitter);
                }
                stream.pipe = None;
            }
        }
        read
    }

    /// Sees whether the first process has ended; if so what it wrote is read and the record made.
    pub(super) fn observe_exit(&mut self, now: Millis, peers: &mut BTreeMap<u64, Peer>, scratch: &mut [u8]) {
        let Some(exit) = self.pidfd().and_then(child::collect) else { return };
        let finished_at = wall_nanos();
        if self.outlives_init {
            // What runc and containerd do for a shared PID namespace: the container ends with its first process.
            let _ = self.cgroup.signal_all(libc::SIGKILL);
        }
        let record = ExitRecord {
            code: exit.code(),
            signal: child::signal_of(exit),
            oom_killed: self.cgroup.out_of_memory(),
            finished_at,
        };
        self.state = State::Draining { record, until: now.after(DRAIN_MS) };
        self.input = Input::Closed;
        self.drain(peers, scratch);
    }

    fn drain(&mut self, peers: &mut BTreeMap<u64, Peer>, scratch: &mut [u8]) {
        for which in [OutputStream::Stdout, OutputStream::Stderr] {
            for _ in 0..DRAIN_READS {
                if !matches!(self.read(which, peers, scratch), Read::Data(_)) {
                    break;
                }
            }
        }
    }

    /// Does what time has made due, and says how the container ended if that is complete now.
    pub(super) fn advance(
        &mut self,
        now: Millis,
        peers: &mut BTreeMap<u64, Peer>,
        scratch: &mut [u8],
    ) -> Option<ExitRecord> {
        match &mut self.state {
            State::Running { pidfd, kill_at } => {
                if kill_at.is_some_and(|at| at <= now) {
                    *kill_at = None;
                    let _ = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
                    let _ = self.cgroup.signal_all(libc::SIGKILL);
                }
                None
            }
            State::Draining { until, .. }
                if *until > now && (self.stdout.pipe.is_some() || self.stderr.pipe.is_some()) =>
            {
                None
            }
            State::Draining { record, .. } => {
                let record = record.clone();
                self.drain(peers, scratch);
                self.state = State::Exited(record.clone());
                // If the file cannot be written the record is still here, for List, until the container is removed.
                if let Ok(json) = serde_json::to_vec(&record) {
                    let _ = write_atomic(&self.exit_file, &json, 0o600);
                }
                Some(record)
            }
            State::Exited(_) => None,
        }
    }

    /// Kills the container now. Its exit is observed as any other.
    pub(super) fn kill(&self) {
        if let Some(pidfd) = self.pidfd() {
            let _ = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = self.cgroup.signal_all(libc::SIGKILL);
        }
    }

    /// Brings the deadline forward; a later one does not replace an earlier one.
    pub(super) fn kill_not_later_than(&mut self, deadline: Millis) {
        if let State::Running { kill_at, .. } = &mut self.state {
            *kill_at = Some(kill_at.map_or(deadline, |at| at.min(deadline)));
        }
    }
}

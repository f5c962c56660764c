//! A command that runs in a container on behalf of one connection. It ends with its process, its time limit, or its connection.

use std::os::fd::{AsFd, OwnedFd};

use host::process::{Exit, pidfd_send_signal};

use super::child;
use super::clock::Millis;
use super::frame::OutputStream;
use super::launcher::Launched;
use super::output::{self, Read};
use super::peer::Peer;
use super::protocol::{EXEC_OUTPUT_LIMIT, ExecResult};
use crate::launch::Child;

/// How long an ended command's output is waited for if a background process keeps it open.
const DRAIN_MS: u64 = 200;
/// Reads of one stream at the end at most.
const DRAIN_READS: usize = 64;

/// A running command.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) peer: u64,
    pub(super) request: u64,
    pid: i32,
    pidfd: OwnedFd,
    stdout: Stream,
    stderr: Stream,
    time_limit: Option<Millis>,
    timed_out: bool,
    ended: Option<(Exit, Millis)>,
}

#[derive(Debug)]
struct Stream {
    pipe: Option<OwnedFd>,
    allowance: Allowance,
}

/// How much of a stream is still passed on.
#[derive(Debug)]
struct Allowance {
    left: u64,
    exceeded: bool,
}

impl Allowance {
    /// How many of `length` bytes are passed on.
    fn take(&mut self, length: usize) -> usize {
        let kept = (length as u64).min(self.left) as usize;
        self.left -= kept as u64;
        self.exceeded |= kept < length;
        kept
    }
}

impl Exec {
    pub(super) fn new(peer: u64, request: u64, launched: Launched, time_limit: Option<Millis>) -> Self {
        let stream =
            |pipe| Stream { pipe, allowance: Allowance { left: EXEC_OUTPUT_LIMIT, exceeded: false } };
        Self {
            peer,
            request,
            pid: launched.child.pid,
            pidfd: launched.child.pidfd,
            stdout: stream(Some(launched.stdout)),
            stderr: stream(launched.stderr),
            time_limit,
            timed_out: false,
            ended: None,
        }
    }

    /// A command whose streams are the agent's: only its end is seen to here.
    pub(super) fn session(peer: u64, request: u64, child: Child) -> Self {
        let stream = || Stream { pipe: None, allowance: Allowance { left: 0, exceeded: false } };
        Self {
            peer,
            request,
            pid: child.pid,
            pidfd: child.pidfd,
            stdout: stream(),
            stderr: stream(),
            time_limit: None,
            timed_out: false,
            ended: None,
        }
    }

    /// The process while it is not collected.
    pub(super) fn process(&self) -> Option<(i32, &OwnedFd)> {
        self.ended.is_none().then_some((self.pid, &self.pidfd))
    }

    pub(super) fn pipe(&self, which: OutputStream) -> Option<&OwnedFd> {
        match which {
            OutputStream::Stdout => self.stdout.pipe.as_ref(),
            OutputStream::Stderr => self.stderr.pipe.as_ref(),
        }
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        match &self.ended {
            Some((_, drained_by)) => Some(*drained_by),
            None => self.time_limit,
        }
    }

    /// Kills the command and its process group, of which it is the leader.
    pub(super) fn kill(&self) {
        if self.ended.is_some() {
            return;
        }
        let _ = pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        // Not collected yet, so its pid, and with it the group's id, is nobody else's.
        if let Some(group) = rustix::process::Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }

    /// Passes one piece of output on; what is over the limit is read and forgotten, so that the command goes on. True if
    /// there may be more.
    pub(super) fn read(&mut self, which: OutputStream, peer: Option<&mut Peer>, scratch: &mut [u8]) -> bool {
        let request = self.request;
        let stream = match which {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let Some(pipe) = &stream.pipe else { return false };
        match output::read(pipe, scratch) {
            Read::Data(length) => {
                let kept = stream.allowance.take(length);
                if let (Some(peer), 1..) = (peer, kept) {
                    peer.send_output(request, which, &scratch[..kept]);
                }
                true
            }
            Read::Empty => false,
            Read::End => {
                stream.pipe = None;
                false
            }
        }
    }

    /// Collects the process, obeys the time limit, and says how the command ended once its output is complete or no longer
    /// waited for.
    pub(super) fn advance(
        &mut self,
        now: Millis,
        mut peer: Option<&mut Peer>,
        scratch: &mut [u8],
    ) -> Option<ExecResult> {
        if self.ended.is_none() {
            if let Some(exit) = child::collect(&self.pidfd) {
                self.ended = Some((exit, now.after(DRAIN_MS)));
                self.drain(peer.as_deref_mut(), scratch);
            } else if self.time_limit.is_some_and(|limit| limit <= now) {
                self.time_limit = None;
                self.timed_out = true;
                self.kill();
            }
        }
        let (exit, drained_by) = self.ended?;
        let complete = self.stdout.pipe.is_none() && self.stderr.pipe.is_none();
        if !complete && drained_by > now {
            return None;
        }
        self.drain(peer, scratch);
        Some(ExecResult {
            code: exit.code(),
            signal: child::signal_of(exit),
            timed_out: self.timed_out,
            truncated: self.stdout.allowance.exceeded || self.stderr.allowance.exceeded,
        })
    }

    /// What the command itself wrote is in the pipes when it has ended; at most their size is read here.
    fn drain(&mut self, mut peer: Option<&mut Peer>, scratch: &mut [u8]) {
        for which in [OutputStream::Stdout, OutputStream::Stderr] {
            for _ in 0..DRAIN_READS {
                if !self.read(which, peer.as_deref_mut(), scratch) {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_passed_on_up_to_the_limit_and_what_follows_is_noted_as_lost() {
        let mut allowance = Allowance { left: 10, exceeded: false };
        let passed = [4, 6].map(|length| allowance.take(length));
        assert_eq!((passed, allowance.exceeded), ([4, 6], false));
        assert_eq!((allowance.take(0), allowance.exceeded), (0, false));
        assert_eq!((allowance.take(1), allowance.exceeded), (0, true));
        let mut allowance = Allowance { left: 10, exceeded: false };
        assert_eq!((allowance.take(16), allowance.exceeded), (10, true));
    }
}

//! One connection to the supervisor: bytes in, bytes out, neither ever waited for.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;
use serde::Serialize;

use super::frame::{FrameReader, OutputStream, encode_json, encode_output};

/// A connection with more unsent bytes than this gets no more exec output until it has read some.
const HIGH_WATER: usize = 256 << 10;
/// One with more than this is dropped; its agent connects again and lists.
const UNSENT_LIMIT: usize = 8 << 20;
/// Bytes read from one connection before others get their turn.
const READ_AT_ONCE: usize = 16 << 10;

/// A connected agent.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) stream: OwnedFd,
    pub(super) frames: FrameReader,
    pub(super) greeted: bool,
    pub(super) subscribed: bool,
    unsent: Vec<u8>,
    sent: usize,
    broken: bool,
}

impl Peer {
    pub(super) fn new(stream: OwnedFd) -> Self {
        let frames = FrameReader::default();
        Self { stream, frames, greeted: false, subscribed: false, unsent: Vec::new(), sent: 0, broken: false }
    }

    /// True once nothing more can come of this connection.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Gives the connection up.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.sent < self.unsent.len()
    }

    pub(super) fn takes_output(&self) -> bool {
        self.unsent.len() - self.sent < HIGH_WATER
    }

    /// Queues a message and sends what goes without waiting.
    pub(super) fn send(&mut self, message: &impl Serialize) {
        if encode_json(&mut self.unsent, message).is_err() {
            self.broken = true;
        }
        self.flush();
    }

    pub(super) fn send_output(&mut self, id: u64, stream: OutputStream, data: &[u8]) {
        encode_output(&mut self.unsent, id, stream, data);
        self.flush();
    }

    /// Sends as much as the peer takes now.
    pub(super) fn flush(&mut self) {
        while !self.broken && self.has_unsent() {
            match rustix::net::send(
                &self.stream,
                &self.unsent[self.sent..],
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(length) => self.sent += length,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => self.broken = true,
            }
        }
        if !self.has_unsent() {
            self.unsent = Vec::new();
            self.sent = 0;
        } else if self.sent >= HIGH_WATER {
            self.unsent.drain(..self.sent);
            self.sent = 0;
        }
        if self.unsent.len() - self.sent > UNSENT_LIMIT {
            self.broken = true;
        }
    }

    /// Reads what is there, up to a fair share.
    pub(super) fn fill(&mut self, scratch: &mut [u8]) {
        let mut taken = 0;
        while taken < READ_AT_ONCE {
            match rustix::net::recv(&self.stream, &mut *scratch, rustix::net::RecvFlags::DONTWAIT) {
                Ok((0, _)) => return self.broken = true,
                Ok((length, _)) => {
                    self.frames.push(&scratch[..length]);
                    taken += length;
                    if length < scratch.len() {
                        return;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => return self.broken = true,
            }
        }
    }
}

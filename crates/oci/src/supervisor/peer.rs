//! One connection to the supervisor: bytes in, bytes out, neither ever waited for.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;

use super::frame::{FrameReader, OutputStream, encode_json, encode_output};

/// A connection with more unsent bytes than this gets no more exec output until it has read some.
const HIGH_WATER: usize = 256 << 10;
/// One with more than this is dropped; its agent connects again and lists.
const UNSENT_LIMIT: usize = 8 << 20;
/// Bytes read from one connection before others get their turn.
const READ_AT_ONCE: usize = 16 << 10;

/// Descriptors with one message at most.
const MAX_DESCRIPTORS: usize = 3;

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

    /// Bytes that wait to be sent.
    pub(super) fn unsent(&self) -> usize {
        self.unsent.len() - self.sent
    }

    pub(super) fn takes_output(&self) -> bool {
        self.unsent() < HIGH_WATER
    }

    /// Queues a message and sends what goes without waiting.
    pub(super) fn send(&mut self, message: &impl Serialize) {
        if encode_json(&mut self.unsent, message).is_err() {
            self.broken = true;
        }
        self.flush();
    }

    /// Sends a message with descriptors, at once or never: on a connection that is behind they would come with the wrong message.
    pub(super) fn send_with(&mut self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) {
        if descriptors.is_empty() {
            return self.send(message);
        }
        let mut bytes = Vec::new();
        if self.has_unsent() || encode_json(&mut bytes, message).is_err() {
            return self.give_up();
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(descriptors));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, flags) {
            Ok(length) => self.unsent.extend_from_slice(&bytes[length..]),
            Err(_) => self.give_up(),
        }
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
        if self.unsent() > UNSENT_LIMIT {
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

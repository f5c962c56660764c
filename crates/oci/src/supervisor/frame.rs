//! Frames on the agent–supervisor connection: cutting them out of a byte stream, and making them. No I/O.

use serde::Serialize;

use super::protocol::MAX_FRAME;

/// First payload byte of raw output frames.
const RAW_STDOUT: u8 = 1;
const RAW_STDERR: u8 = 2;
/// Bytes of a raw frame before the data: kind and request id.
const RAW_HEADER: usize = 9;

/// One of an exec's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A received payload.
#[derive(Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A JSON message.
    Json(&'a [u8]),
    /// Output of an exec.
    Output {
        /// Request id of the exec.
        id: u64,
        /// Which stream.
        stream: OutputStream,
        /// The bytes.
        data: &'a [u8],
    },
}

/// Why a stream of frames cannot be continued.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer announced a payload over [`MAX_FRAME`].
    #[error("frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLarge(usize),
    /// The payload is neither JSON nor raw output.
    #[error("frame of an unknown kind")]
    UnknownKind,
}

/// Collects bytes and hands out complete frames. Memory grows with bytes received, never with a length announced.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    consumed: usize,
}

impl FrameReader {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    fn give_back(&mut self) {
        if self.consumed == self.buffer.len() && self.buffer.capacity() > RETAINED_CAPACITY {
            (self.buffer, self.consumed) = (Vec::new(), 0);
        }
    }

    /// Next complete payload, if there is one.
    pub fn next_payload(&mut self) -> Result<Option<Payload<'_>>, FrameError> {
        let rest = &self.buffer[self.consumed..];
        let Some((header, rest)) = rest.split_first_chunk::<4>() else {
            self.give_back();
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.consumed + 4;
        self.consumed = start + length;
        parse_payload(&self.buffer[start..start + length]).map(Some)
    }
}

/// Buffers above this size are given back once they are empty: there is one for each pod, on both sides.
const RETAINED_CAPACITY: usize = 1 << 10;

fn parse_payload(payload: &[u8]) -> Result<Payload<'_>, FrameError> {
    let stream = match payload.first() {
        Some(b'{') => return Ok(Payload::Json(payload)),
        Some(&RAW_STDOUT) => OutputStream::Stdout,
        Some(&RAW_STDERR) => OutputStream::Stderr,
        Some(_) | None => return Err(FrameError::UnknownKind),
    };
    let Some((id, data)) = payload[1..].split_first_chunk::<8>() else { return Err(FrameError::UnknownKind) };
    Ok(Payload::Output { id: u64::from_le_bytes(*id), stream, data })
}

/// Appends a JSON message as a frame. A message over [`MAX_FRAME`] is refused and `out` left as it was.
pub fn encode_json<T: Serialize>(out: &mut Vec<u8>, message: &T) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let written = serde_json::to_writer(&mut *out, message).map_err(EncodeError::Json);
    let length = out.len() - start - 4;
    let result = if length > MAX_FRAME { Err(EncodeError::TooLarge(length)) } else { written };
    match result {
        Ok(()) => out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes()),
        Err(_) => out.truncate(start),
    }
    result
}

/// Why a message cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The peer would not take it.
    #[error("message of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLarge(usize),
    /// It has no JSON form.
    #[error("encode message")]
    Json(#[source] serde_json::Error),
}

/// Appends exec output as a raw frame.
pub fn encode_output(out: &mut Vec<u8>, id: u64, stream: OutputStream, data: &[u8]) {
    let kind = match stream {
        OutputStream::Stdout => RAW_STDOUT,
        OutputStream::Stderr => RAW_STDERR,
    };
    out.reserve(4 + RAW_HEADER + data.len());
    out.extend_from_slice(&((RAW_HEADER + data.len()) as u32).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::supervisor::protocol::{ClientMessage, Request};

    #[test]
    fn a_frame_cut_anywhere_arrives_whole() {
        let mut bytes = Vec::new();
        encode_json(&mut bytes, &ClientMessage { id: 7, request: Request::List {} }).unwrap();
        encode_output(&mut bytes, 9, OutputStream::Stderr, b"{not json");
        for cut in 0..bytes.len() {
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.push(part);
                while let Some(payload) = reader.next_payload().unwrap() {
                    seen.push(format!("{payload:?}"));
                }
            }
            assert_eq!(seen.len(), 2, "cut at {cut}");
            assert!(seen[0].starts_with("Json") && seen[1].contains("id: 9"), "{seen:?}");
        }
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_any_byte_of_it() {
        let mut reader = FrameReader::default();
        reader.push(&(MAX_FRAME as u32 + 1).to_le_bytes());
        assert_eq!(reader.next_payload(), Err(FrameError::TooLarge(MAX_FRAME + 1)));
    }

    #[test]
    fn garbage_is_an_error_not_a_message() {
        for payload in [&b""[..], b"GET / HTTP/1.1", b"\x01short", b"\x03aaaaaaaaaaaa"] {
            let mut reader = FrameReader::default();
            reader.push(&(payload.len() as u32).to_le_bytes());
            reader.push(payload);
            assert_eq!(reader.next_payload(), Err(FrameError::UnknownKind), "{payload:?}");
        }
    }

    #[test]
    fn a_message_over_the_limit_is_not_sent() {
        let mut out = b"before".to_vec();
        assert!(matches!(encode_json(&mut out, &"x".repeat(MAX_FRAME)), Err(EncodeError::TooLarge(_))));
        assert_eq!(out, b"before");
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = FrameReader::default();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_payload() {}
        }
    }
}

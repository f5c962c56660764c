//! WebSocket frames (RFC 6455), the server's side: cut out of a byte stream, and made. No I/O.

use hyper::body::Bytes;

/// Largest payload of a control frame (RFC 6455 §5.5).
const MAX_CONTROL: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// A control frame, or a piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// Bytes of a message. `first` with the first piece, `last` with the last; a short message is both.
    Data { data: Bytes, first: bool, last: bool },
    /// To be answered with the same bytes.
    Ping(Bytes),
    /// An answer nobody asked for.
    Pong,
    /// The peer sends nothing more.
    Close,
}

/// Why a byte stream is not that of a WebSocket client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::streaming) enum FrameError {
    #[error("frame without a mask")]
    Unmasked,
    #[error("frame with reserved bits")]
    Reserved,
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    #[error("control frame of {0} bytes, or in parts")]
    Control(u64),
    #[error("message begins inside another, or goes on without a beginning")]
    Order,
}

/// Collects bytes and hands out frames. It holds at most one control frame; messages pass through as they come, however long.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
    data: Option<DataFrame>,
    /// Inside a message: the next data frame goes on with it.
    open: bool,
}

/// A data frame of which the header was read.
#[derive(Debug)]
struct DataFrame {
    left: u64,
    mask: [u8; 4],
    first: bool,
    last: bool,
}

impl Decoder {
    /// Adds received bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, if there is one.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(data) = self.data.take() {
            return Ok(self.piece(data));
        }
        let Some(header) = Header::read(&self.buffer[self.consumed..])? else { return Ok(None) };
        let start = self.consumed + header.size;
        match header.kind {
            CONTINUATION | TEXT | BINARY => {
                let first = header.kind != CONTINUATION;
                if first == self.open {
                    return Err(FrameError::Order);
                }
                self.open = !header.fin;
                self.consumed = start;
                Ok(self.piece(DataFrame { left: header.length, mask: header.mask, first, last: header.fin }))
            }
            kind @ (CLOSE | PING | PONG) => {
                let length = header.length as usize;
                if length > MAX_CONTROL || !header.fin {
                    return Err(FrameError::Control(header.length));
                }
                let Some(payload) = self.buffer.get(start..start + length) else { return Ok(None) };
                let payload = unmask(payload, header.mask);
                self.consumed = start + length;
                Ok(Some(match kind {
                    PING => Frame::Ping(payload),
                    PONG => Frame::Pong,
                    _ => Frame::Close,
                }))
            }
            kind => Err(FrameError::Kind(kind)),
        }
    }

    fn piece(&mut self, mut frame: DataFrame) -> Option<Frame> {
        let there =
            (self.buffer.len() - self.consumed).min(usize::try_from(frame.left).unwrap_or(usize::MAX));
        if there == 0 && frame.left > 0 {
            self.data = Some(frame);
            return None;
        }
        let data = unmask(&self.buffer[self.consumed..self.consumed + there], frame.mask);
        self.consumed += there;
        frame.left -= there as u64;
        frame.mask.rotate_left(there % 4);
        let (first, last) = (frame.first, frame.last && frame.left == 0);
        if frame.left > 0 {
            self.data = Some(DataFrame { first: false, ..frame });
        }
        Some(Frame::Data { data, first, last })
    }
}

struct Header {
    kind: u8,
    fin: bool,
    length: u64,
    mask: [u8; 4],
    size: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(FrameError::Reserved);
        }
        if second & MASKED == 0 {
            // RFC 6455 §5.1: a server closes the connection.
            return Err(FrameError::Unmasked);
        }
        let (length, more) = match second & 0x7f {
            126 => (number::<2>(rest), 2),
            127 => (number::<8>(rest), 8),
            length => (Some(u64::from(length)), 0),
        };
        let mask = rest.get(more..).and_then(|rest| rest.first_chunk::<4>());
        let (Some(length), Some(&mask)) = (length, mask) else { return Ok(None) };
        Ok(Some(Self { kind: first & 0xf, fin: first & FIN != 0, length, mask, size: 6 + more }))
    }
}

fn number<const N: usize>(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.first_chunk::<N>()?;
    Some(digits.iter().fold(0, |number, digit| number << 8 | u64::from(*digit)))
}

fn unmask(bytes: &[u8], mask: [u8; 4]) -> Bytes {
    bytes.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect()
}

/// Kinds of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Binary,
}

/// Appends a message of several parts.
pub(super) fn encode_message(out: &mut Vec<u8>, kind: Kind, parts: &[&[u8]]) {
    encode(out, if kind == Kind::Text { TEXT } else { BINARY }, parts);
}

/// Appends the answer to a ping.
pub(super) fn encode_pong(out: &mut Vec<u8>, data: &[u8]) {
    encode(out, PONG, &[data]);
}

/// Appends a question whether the client is there.
pub(super) fn encode_ping(out: &mut Vec<u8>) {
    encode(out, PING, &[]);
}

/// Appends the end, with the code of an ordinary one.
pub(super) fn encode_close(out: &mut Vec<u8>) {
    encode(out, CLOSE, &[&1000_u16.to_be_bytes()]);
}

fn encode(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(FIN | kind);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..=125), _) => out.push(length),
        (_, Ok(length)) => {
            out.push(126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_told_apart() {
        // RFC 6455 §5.7: "Hello", masked.
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let piece =
            |data: &'static [u8], first, last| Frame::Data { data: Bytes::from_static(data), first, last };
        check(&hello, &Ok(vec![piece(b"Hello", true, true)]));
        check(
            &[&client(0x01, b"ab")[..], &client(0x89, b"p"), &client(0x80, b"c")].concat(),
            &Ok(vec![
                piece(b"ab", true, false),
                Frame::Ping(Bytes::from_static(b"p")),
                piece(b"c", false, true),
            ]),
        );
        check(&client(0x82, b""), &Ok(vec![piece(b"", true, true)]));
        check(&client(0x8a, b"x"), &Ok(vec![Frame::Pong]));
        check(&client(0x88, &[3, 232]), &Ok(vec![Frame::Close]));
    }

    #[test]
    fn what_no_client_may_send_is_an_error() {
        check(&[0x82, 0x01, b'x'], &Err(FrameError::Unmasked));
        check(&[0xc2, 0x80], &Err(FrameError::Reserved));
        check(&client(0x83, b""), &Err(FrameError::Kind(3)));
        check(&client(0x09, b""), &Err(FrameError::Control(0)));
        check(&client(0x89, &[0; 126]), &Err(FrameError::Control(126)));
        check(&client(0x80, b"no beginning"), &Err(FrameError::Order));
        check(&[client(0x02, b"a"), client(0x82, b"b")].concat(), &Err(FrameError::Order));
        // A length near the end of all numbers is waited for, not reserved.
        check(&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], &Ok(vec![]));
        check(
            &[0x89, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &Err(FrameError::Control(u64::MAX)),
        );
    }

    proptest! {
        #[test]
        fn messages_arrive_whole_however_they_are_cut(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..70_000), 1..4),
            cut in 1_usize..30_000,
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|message| client(0x82, message)).collect();
            let mut decoder = Decoder::default();
            let mut seen: Vec<Vec<u8>> = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    let Frame::Data { data, first, .. } = frame else { panic!("{frame:?}") };
                    if first {
                        seen.push(Vec::new());
                    }
                    seen.last_mut().unwrap().extend(data);
                }
            }
            prop_assert_eq!(seen, messages);
        }

        #[test]
        fn hostile_bytes_never_panic_and_never_pile_up(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let mut decoder = Decoder::default();
            for piece in &pieces {
                decoder.push(piece);
                while let Ok(Some(_)) = decoder.next_frame() {}
                if decoder.next_frame().is_err() {
                    break;
                }
                prop_assert!(decoder.buffer.len() - decoder.consumed <= MAX_CONTROL + 14);
            }
        }

        #[test]
        fn a_message_of_the_server_has_the_length_it_says(length in 0_usize..140_000) {
            let mut out = Vec::new();
            encode_message(&mut out, Kind::Binary, &[&[1], &vec![0; length]]);
            let header = match out[1] {
                126 => (4, u64::from(u16::from_be_bytes([out[2], out[3]]))),
                127 => (10, number::<8>(&out[2..]).unwrap()),
                short => (2, u64::from(short)),
            };
            prop_assert_eq!((out[0], header.1), (0x82, length as u64 + 1));
            prop_assert_eq!(out.len(), header.0 + length + 1);
        }
    }

    /// A frame as a client makes it.
    fn client(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        encode(&mut frame, 0, &[payload]);
        frame[0] = first;
        frame[1] |= MASKED;
        let mask = [1, 2, 3, 4];
        let at = frame.len() - payload.len();
        frame.splice(at..at, mask);
        let masked = unmask(payload, mask);
        frame.truncate(at + 4);
        frame.extend_from_slice(&masked);
        frame
    }

    fn check(bytes: &[u8], expect: &Result<Vec<Frame>, FrameError>) {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        let mut frames = Vec::new();
        let outcome = loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break Ok(frames),
                Err(error) => break Err(error),
            }
        };
        assert_eq!(&outcome, expect, "{bytes:?}");
    }
}

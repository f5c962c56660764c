//! SPDY/3.1 frames: cut out of a byte stream, and made. No I/O, and no headers: their blocks are compressed with a state of the connection
//! (`headers`).
//!
//! Flow control windows are not kept: the clients that speak this protocol (moby/spdystream in kubectl, crictl and the API server) send
//! no WINDOW_UPDATE and obey none. What bounds memory is the connection: whoever cannot take more stops reading.

use hyper::body::Bytes;

/// Largest control frame taken. Clients' header blocks have some hundred bytes.
pub(super) const MAX_CONTROL: usize = 32 << 10;
/// Largest payload of a data frame that is made.
pub(super) const MAX_DATA: usize = 32 << 10;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

const FLAG_FIN: u8 = 1;
/// High bit of a word that is a stream's id.
const ID: u32 = 0x7fff_ffff;

/// Why a stream is reset: this side does not want it, and has done nothing with it (SPDY/3.1 §2.6.3).
const REFUSED_STREAM: u32 = 3;

/// One frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// Opens a stream. `headers` is compressed.
    SynStream { stream: u32, headers: Bytes, fin: bool },
    /// Headers that follow or answer; they change the state of the compression, and nothing else here.
    Headers { headers: Bytes },
    /// Bytes of a stream; `fin` with the last piece of a frame that ends the stream.
    Data { stream: u32, data: Bytes, fin: bool },
    /// Ends a stream at once.
    RstStream { stream: u32 },
    /// To be answered with the same id.
    Ping { id: u32 },
    /// No more streams.
    GoAway,
    /// Settings and windows, which mean nothing here.
    Ignored,
}

/// Why a byte stream is not SPDY/3.1, or not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::streaming) enum FrameError {
    #[error("control frame of SPDY version {0}")]
    Version(u16),
    #[error("control frame of {0} bytes is over the limit of {MAX_CONTROL}")]
    TooLarge(usize),
    #[error("control frame of type {kind} with {length} bytes is malformed")]
    Malformed { kind: u16, length: usize },
}

/// Collects bytes and hands out frames. It holds at most one control frame; data passes through as it comes.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
    data: Option<DataFrame>,
}

/// A data frame of which the header was read.
#[derive(Debug)]
struct DataFrame {
    stream: u32,
    left: usize,
    fin: bool,
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
        let rest = &self.buffer[self.consumed..];
        let Some((header, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
        let (first, second) = (word(&header[..4]), word(&header[4..]));
        let (flags, length) = ((second >> 24) as u8, (second & 0xff_ffff) as usize);
        if first & !ID == 0 {
            self.consumed += 8;
            return Ok(self.piece(DataFrame { stream: first, left: length, fin: flags & FLAG_FIN != 0 }));
        }
        let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(FrameError::TooLarge(length));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = control(kind, flags, payload);
        self.consumed += 8 + length;
        frame.map(Some).ok_or(FrameError::Malformed { kind, length })
    }

    /// What is there of a data frame; an empty frame matters for its flag.
    fn piece(&mut self, mut data: DataFrame) -> Option<Frame> {
        let there = (self.buffer.len() - self.consumed).min(data.left);
        if there == 0 && data.left > 0 {
            self.data = Some(data);
            return None;
        }
        let bytes = Bytes::copy_from_slice(&self.buffer[self.consumed..self.consumed + there]);
        self.consumed += there;
        data.left -= there;
        let (stream, fin) = (data.stream, data.fin && data.left == 0);
        if data.left > 0 {
            self.data = Some(data);
        }
        Some(Frame::Data { stream, data: bytes, fin })
    }
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Option<Frame> {
    let stream = payload.get(..4).map(|id| word(id) & ID);
    let after = |offset: usize| payload.get(offset..).map(Bytes::copy_from_slice);
    match kind {
        SYN_STREAM => {
            Some(Frame::SynStream { stream: stream?, headers: after(10)?, fin: flags & FLAG_FIN != 0 })
        }
        SYN_REPLY | HEADERS => Some(Frame::Headers { headers: after(4)? }),
        RST_STREAM => payload.get(7).and(stream).map(|stream| Frame::RstStream { stream }),
        PING => Some(Frame::Ping { id: word(payload.get(..4)?) }),
        GOAWAY => Some(Frame::GoAway),
        // SETTINGS and WINDOW_UPDATE, and what is unknown (SPDY/3.1 §2.2.1).
        _ => Some(Frame::Ignored),
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// Appends data of a stream, in as many frames as it takes.
pub(super) fn encode_data(out: &mut Vec<u8>, stream: u32, data: &[u8]) {
    for piece in data.chunks(MAX_DATA) {
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(&(piece.len() as u32).to_be_bytes());
        out.extend_from_slice(piece);
    }
}

/// Appends the end of a stream.
pub(super) fn encode_end(out: &mut Vec<u8>, stream: u32) {
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[FLAG_FIN, 0, 0, 0]);
}

/// Appends the answer to an opened stream; `headers` is compressed.
pub(super) fn encode_reply(out: &mut Vec<u8>, stream: u32, headers: &[u8]) {
    encode_control(out, SYN_REPLY, &[&stream.to_be_bytes(), headers]);
}

/// Appends the end of a stream that is not wanted.
pub(super) fn encode_refusal(out: &mut Vec<u8>, stream: u32) {
    encode_control(out, RST_STREAM, &[&stream.to_be_bytes(), &REFUSED_STREAM.to_be_bytes()]);
}

/// Appends the answer to a ping.
pub(super) fn encode_ping(out: &mut Vec<u8>, id: u32) {
    encode_control(out, PING, &[&id.to_be_bytes()]);
}

/// Appends the announcement that no more streams are accepted.
pub(super) fn encode_go_away(out: &mut Vec<u8>, last_stream: u32) {
    encode_control(out, GOAWAY, &[&last_stream.to_be_bytes(), &0_u32.to_be_bytes()]);
}

fn encode_control(out: &mut Vec<u8>, kind: u16, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_told_apart() {
        let syn = [&[0x80, 3, 0, 1, 1, 0, 0, 12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0][..], b"zz"].concat();
        check(&syn, &Ok(vec![Frame::SynStream { stream: 7, headers: Bytes::from_static(b"zz"), fin: true }]));
        let data = [0, 0, 0, 7, 0, 0, 0, 2, b'h', b'i', 0, 0, 0, 7, 1, 0, 0, 0];
        let piece = |data: &'static [u8], fin| Frame::Data { stream: 7, data: Bytes::from_static(data), fin };
        check(&data, &Ok(vec![piece(b"hi", false), piece(b"", true)]));
        check(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9], &Ok(vec![Frame::Ping { id: 9 }]));
        check(
            &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5],
            &Ok(vec![Frame::RstStream { stream: 5 }]),
        );
        check(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 1, 0, 0], &Ok(vec![Frame::Ignored]));
        check(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0], &Ok(vec![Frame::Ignored]));
        check(&[0x80, 3, 0, 99, 0, 0, 0, 1, 0], &Ok(vec![Frame::Ignored]));
        check(&[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0], &Ok(vec![Frame::GoAway]));
    }

    #[test]
    fn what_is_not_spdy_ends_before_it_is_collected() {
        check(b"GET / HTTP/1.1\r\n", &Ok(vec![data_of(0x4745_5420, b"TP/1.1\r\n")]));
        check(&[0x80, 2, 0, 1, 0, 0, 0, 0], &Err(FrameError::Version(2)));
        check(&[0xff; 8], &Err(FrameError::Version(0x7fff)));
        check(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], &Err(FrameError::TooLarge(0xff_ffff)));
        for (kind, length) in [(1, 9), (2, 3), (3, 7), (6, 3), (8, 0)] {
            let bytes = [&[0x80, 3, 0, kind as u8, 0, 0, 0, length as u8][..], &[0; 9][..length]].concat();
            check(&bytes, &Err(FrameError::Malformed { kind, length }));
        }
    }

    #[test]
    fn what_is_made_is_read_again() {
        let mut bytes = Vec::new();
        encode_reply(&mut bytes, 1, b"block");
        encode_data(&mut bytes, 3, &vec![7; MAX_DATA + 1]);
        encode_end(&mut bytes, 3);
        encode_refusal(&mut bytes, 5);
        encode_ping(&mut bytes, 2);
        encode_go_away(&mut bytes, 5);
        let frames = decode(&[&bytes]).unwrap();
        let sizes: Vec<usize> = frames
            .iter()
            .filter_map(|frame| match frame {
                Frame::Data { data, .. } => Some(data.len()),
                _ => None,
            })
            .collect();
        assert_eq!(sizes, [MAX_DATA, 1, 0]);
        assert_eq!(frames[0], Frame::Headers { headers: Bytes::from_static(b"block") });
        assert_eq!(frames[4..], [Frame::RstStream { stream: 5 }, Frame::Ping { id: 2 }, Frame::GoAway]);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_never_pile_up(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let mut decoder = Decoder::default();
            for piece in &pieces {
                decoder.push(piece);
                while let Ok(Some(_)) = decoder.next_frame() {}
                prop_assert!(decoder.buffer.len() - decoder.consumed <= MAX_CONTROL + 8);
            }
        }

        #[test]
        fn the_cut_into_reads_does_not_show(
            streams in proptest::collection::vec((1_u32..9, proptest::collection::vec(any::<u8>(), 0..500)), 0..8),
            cut in 1_usize..64,
        ) {
            let mut bytes = Vec::new();
            for (stream, data) in &streams {
                encode_data(&mut bytes, *stream, data);
                encode_ping(&mut bytes, *stream);
            }
            let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(joined(decode(&pieces).unwrap()), joined(decode(&[&bytes]).unwrap()));
        }
    }

    /// Neighbouring pieces of one frame as one.
    fn joined(frames: Vec<Frame>) -> Vec<(u32, Vec<u8>)> {
        let mut joined: Vec<(u32, Vec<u8>)> = Vec::new();
        for frame in frames {
            match (frame, joined.last_mut()) {
                (Frame::Data { stream, data, .. }, Some((last, all))) if *last == stream => all.extend(data),
                (Frame::Data { stream, data, .. }, _) => joined.push((stream, data.to_vec())),
                _ => joined.push((0, Vec::new())),
            }
        }
        joined
    }

    fn data_of(stream: u32, data: &'static [u8]) -> Frame {
        Frame::Data { stream, data: Bytes::from_static(data), fin: false }
    }

    fn decode(pieces: &[&[u8]]) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn check(bytes: &[u8], expect: &Result<Vec<Frame>, FrameError>) {
        assert_eq!(&decode(&[bytes]), expect, "{bytes:?}");
    }
}

//! A WebSocket connection, the server's side: numbered channels in messages, or a byte stream in messages.

mod frame;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use self::frame::{Decoder, Frame, FrameError, Kind};
use super::connection::{Encode, Outgoing, READ_AT_ONCE};

/// Channel of version 5 by which a client ends another.
const CLOSE_CHANNEL: u8 = 255;

/// How channels are written into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// A first byte with the number.
    Binary,
    /// A first character with the digit, then base64.
    Base64,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebSocketError {
    #[error("read a WebSocket connection")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("message for channel {0}, which there is not")]
    Channel(u8),
    #[error("decode a base64 message")]
    Base64,
}

/// The answer to a client's key (RFC 6455 §4.2.2).
pub(super) fn accept(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// Where what arrives goes, by channel. A channel that the client may write to and nobody reads is `None`.
pub(super) type Channels = BTreeMap<u8, Option<mpsc::Sender<Bytes>>>;

/// Reads channels until the client closes.
pub(super) async fn read_channels(
    from: impl AsyncRead + Unpin,
    coding: Coding,
    mut channels: Channels,
    queue: mpsc::Sender<Outgoing>,
) -> Result<(), WebSocketError> {
    let mut messages = Messages::new(from, queue);
    let mut channel = None;
    let mut text = Base64Text::default();
    while let Some((piece, first, last)) = messages.next().await? {
        let mut data = piece;
        if first {
            (channel, text) = (None, Base64Text::default());
        }
        if channel.is_none()
            && let Some(&byte) = data.first()
        {
            channel = Some(if coding == Coding::Base64 { byte.wrapping_sub(b'0') } else { byte });
            data = data.slice(1..);
        }
        let Some(number) = channel else { continue };
        if coding == Coding::Base64 {
            data = text.decode(&data, last).ok_or(WebSocketError::Base64)?;
        }
        if number == CLOSE_CHANNEL {
            for closed in &data {
                channels.insert(*closed, None);
            }
            continue;
        }
        match channels.get(&number) {
            None => return Err(WebSocketError::Channel(number)),
            Some(Some(sender)) if !data.is_empty() => {
                // A receiver that is gone wants nothing more.
                let _ = sender.send(data).await;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Reads a byte stream until the client closes, into `to`.
pub(super) async fn read_bytes(
    from: impl AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    queue: mpsc::Sender<Outgoing>,
) -> Result<(), WebSocketError> {
    use tokio::io::AsyncWriteExt;
    let mut messages = Messages::new(from, queue);
    while let Some((data, ..)) = messages.next().await? {
        to.write_all(&data).await?;
    }
    Ok(())
}

/// The pieces of a client's messages; pings are answered by the way.
struct Messages<R> {
    from: R,
    decoder: Decoder,
    buffer: Vec<u8>,
    queue: mpsc::Sender<Outgoing>,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    fn new(from: R, queue: mpsc::Sender<Outgoing>) -> Self {
        Self { from, decoder: Decoder::default(), buffer: vec![0; READ_AT_ONCE], queue }
    }

    /// Bytes, whether they begin a message, whether they end it.
    async fn next(&mut self) -> Result<Option<(Bytes, bool, bool)>, WebSocketError> {
        loop {
            match self.decoder.next_frame()? {
                Some(Frame::Data { data, first, last }) => return Ok(Some((data, first, last))),
                Some(Frame::Ping(data)) => {
                    // A writer that is gone ends the connection by itself.
                    let _ = self.queue.send(Outgoing::Pong(data)).await;
                }
                Some(Frame::Pong) => {}
                Some(Frame::Close) => return Ok(None),
                None => {
                    let length = self.from.read(&mut self.buffer).await?;
                    if length == 0 {
                        return Ok(None);
                    }
                    self.decoder.push(&self.buffer[..length]);
                }
            }
        }
    }
}

/// Base64 that comes in pieces of any length.
#[derive(Debug, Default)]
struct Base64Text {
    rest: Vec<u8>,
}

impl Base64Text {
    fn decode(&mut self, data: &[u8], last: bool) -> Option<Bytes> {
        self.rest.extend_from_slice(data);
        let whole = if last { self.rest.len() } else { self.rest.len() / 4 * 4 };
        let text: Vec<u8> = self.rest.drain(..whole).collect();
        STANDARD.decode(text).ok().map(Bytes::from)
    }
}

/// Makes a connection's messages.
#[derive(Debug)]
pub(super) enum Encoder {
    /// Of channels.
    Channels(Coding),
    /// Of a byte stream.
    Bytes,
}

impl Encode for Encoder {
    fn encode(&mut self, outgoing: &Outgoing, out: &mut Vec<u8>) {
        match (self, outgoing) {
            (Self::Channels(Coding::Binary), Outgoing::Data { stream, data }) => {
                frame::encode_message(out, Kind::Binary, &[&[*stream as u8], data]);
            }
            (Self::Channels(Coding::Base64), Outgoing::Data { stream, data }) => {
                let text = STANDARD.encode(data);
                frame::encode_message(out, Kind::Text, &[&[b'0' + *stream as u8], text.as_bytes()]);
            }
            (Self::Bytes, Outgoing::Data { data, .. }) => {
                frame::encode_message(out, Kind::Binary, &[data]);
            }
            (_, Outgoing::Pong(data)) => frame::encode_pong(out, data),
            (_, Outgoing::Ping) => frame::encode_ping(out),
            (_, Outgoing::Close) => frame::encode_close(out),
            // Channels are there from the beginning, and end with the connection.
            (_, Outgoing::Accept(_) | Outgoing::Refuse(_) | Outgoing::End(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_the_standard_says() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn base64_is_decoded_however_it_is_cut() {
        let text = STANDARD.encode(b"interactive session");
        for cut in 0..text.len() {
            let mut coded = Base64Text::default();
            let (first, second) = text.as_bytes().split_at(cut);
            let first = coded.decode(first, false).expect("whole groups");
            let second = coded.decode(second, true).expect("the rest");
            assert_eq!([first, second].concat(), b"interactive session");
        }
        assert_eq!(Base64Text::default().decode(b"abc", true), None);
        assert_eq!(Base64Text::default().decode(b"!!!!", false), None);
    }

    #[tokio::test]
    async fn messages_reach_their_channels_and_a_channel_can_be_ended() {
        let bytes =
            [message(b"\0one"), message(b""), message(b"\x04{}"), message(b"\xff\0"), message(b"\0late")];
        let (stdin, mut received) = mpsc::channel(8);
        let channels = Channels::from([(0, Some(stdin)), (4, None)]);
        read(&bytes.concat(), Coding::Binary, channels).await.expect("well-formed");
        assert_eq!(received.recv().await.as_deref(), Some(&b"one"[..]));
        assert_eq!(received.recv().await, None);
    }

    #[tokio::test]
    async fn a_channel_that_there_is_not_ends_the_connection() {
        let outcome = read(&message(b"\x07x"), Coding::Binary, Channels::new()).await;
        assert!(matches!(outcome, Err(WebSocketError::Channel(7))), "{outcome:?}");
        let outcome = read(&message(b"0*"), Coding::Base64, Channels::from([(0, None)])).await;
        assert!(matches!(outcome, Err(WebSocketError::Base64)), "{outcome:?}");
    }

    async fn read(bytes: &[u8], coding: Coding, channels: Channels) -> Result<(), WebSocketError> {
        let (queue, _answers) = super::super::connection::queue();
        read_channels(bytes, coding, channels, queue).await
    }

    /// A short message of a client with a mask of zeros.
    fn message(payload: &[u8]) -> Vec<u8> {
        [&[0x82, 0x80 | payload.len() as u8, 0, 0, 0, 0][..], payload].concat()
    }
}

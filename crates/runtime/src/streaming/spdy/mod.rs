//! A SPDY/3.1 connection, the server's side. Only clients open streams.

mod frame;
mod headers;

use std::collections::BTreeMap;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};

use self::frame::{Decoder, Frame, FrameError};
use self::headers::{HeaderError, HeaderReader, HeaderWriter, Headers};
use super::connection::{Encode, INCOMING, Outgoing, READ_AT_ONCE};

/// Streams of one connection at once; one more is refused.
const MAX_STREAMS: usize = 512;

/// A stream that the client has opened.
#[derive(Debug)]
pub(super) struct Stream {
    /// Its number.
    pub(super) id: u32,
    /// What the client says of it.
    headers: Headers,
    /// What arrives, until the client ends it.
    pub(super) data: mpsc::Receiver<Bytes>,
    /// True once the client has given the stream up in both directions.
    pub(super) reset: watch::Receiver<bool>,
}

/// The connection's end of a stream.
#[derive(Debug)]
struct Entry {
    /// Until the client ends it.
    data: Option<mpsc::Sender<Bytes>>,
    reset: watch::Sender<bool>,
}

impl Stream {
    /// A header's value, or nothing.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Entry {
    /// Whether anybody still cares for what the client does with the stream.
    fn is_watched(&self) -> bool {
        !self.reset.is_closed() || self.data.as_ref().is_some_and(|data| !data.is_closed())
    }
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("read a SPDY connection")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// Reads until the client closes. Streams go to `opened`, answers to `queue`; bytes of streams that nobody takes are forgotten.
pub(super) async fn read(
    mut from: impl AsyncRead + Unpin,
    opened: mpsc::Sender<Stream>,
    queue: mpsc::Sender<Outgoing>,
) -> Result<(), SpdyError> {
    let mut reader = Reader {
        headers: HeaderReader::new(),
        streams: BTreeMap::new(),
        last: 0,
        opened: Some(opened),
        queue,
    };
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; READ_AT_ONCE];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        decoder.push(&buffer[..length]);
        while let Some(frame) = decoder.next_frame()? {
            reader.take(frame).await?;
        }
    }
}

struct Reader {
    headers: HeaderReader,
    streams: BTreeMap<u32, Entry>,
    /// The highest number so far.
    last: u32,
    opened: Option<mpsc::Sender<Stream>>,
    queue: mpsc::Sender<Outgoing>,
}

impl Reader {
    async fn take(&mut self, frame: Frame) -> Result<(), SpdyError> {
        match frame {
            Frame::SynStream { stream, headers, fin } => {
                // Read whatever becomes of the stream: the state of the compression depends on it.
                let headers = self.headers.read(&headers)?;
                self.open(stream, headers, fin).await;
            }
            Frame::Headers { headers } => drop(self.headers.read(&headers)?),
            Frame::Data { stream, data, fin } => {
                let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
                if let (Some(sender), false) = (&entry.data, data.is_empty()) {
                    // A receiver that is gone wants nothing more.
                    let _ = sender.send(data).await;
                }
                if fin {
                    entry.data = None;
                }
            }
            Frame::RstStream { stream } => {
                if let Some(entry) = self.streams.remove(&stream) {
                    let _ = entry.reset.send(true);
                }
            }
            // SPDY/3.1 §2.6.5: even numbers are our own pings, of which there are none.
            Frame::Ping { id } if id % 2 == 0 => {}
            Frame::Ping { id } => self.say(Outgoing::Pong(Bytes::copy_from_slice(&id.to_be_bytes()))).await,
            Frame::GoAway => self.opened = None,
            Frame::Ignored => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, headers: Headers, fin: bool) {
        self.streams.retain(|_, entry| entry.is_watched());
        // SPDY/3.1 §2.3.2: a client's numbers are odd and rise.
        let Some(opened) = self
            .opened
            .as_ref()
            .filter(|_| id % 2 == 1 && id > self.last && self.streams.len() < MAX_STREAMS)
        else {
            return self.say(Outgoing::Refuse(id)).await;
        };
        self.last = id;
        let (sender, data) = mpsc::channel(INCOMING);
        let (reset, is_reset) = watch::channel(false);
        if opened.send(Stream { id, headers, data, reset: is_reset }).await.is_err() {
            return self.say(Outgoing::Refuse(id)).await;
        }
        self.streams.insert(id, Entry { data: (!fin).then_some(sender), reset });
        self.say(Outgoing::Accept(id)).await;
    }

    async fn say(&self, outgoing: Outgoing) {
        // A writer that is gone ends the connection by itself.
        let _ = self.queue.send(outgoing).await;
    }
}

/// Makes a connection's frames.
#[derive(Debug)]
pub(super) struct Encoder(HeaderWriter);

impl Encoder {
    pub(super) fn new() -> Self {
        Self(HeaderWriter::new())
    }
}

impl Encode for Encoder {
    fn encode(&mut self, outgoing: &Outgoing, out: &mut Vec<u8>) {
        match outgoing {
            Outgoing::Accept(stream) => frame::encode_reply(out, *stream, &self.0.empty()),
            Outgoing::Refuse(stream) => frame::encode_refusal(out, *stream),
            Outgoing::Data { stream, data } => frame::encode_data(out, *stream, data),
            Outgoing::End(stream) => frame::encode_end(out, *stream),
            Outgoing::Pong(id) => {
                frame::encode_ping(out, id.iter().fold(0, |id, byte| id << 8 | u32::from(*byte)));
            }
            // Even: a server's.
            Outgoing::Ping => frame::encode_ping(out, 2),
            Outgoing::Close => frame::encode_go_away(out, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numbers_that_do_not_rise_and_streams_over_the_limit_are_refused() {
        let mut client = Client::new();
        for (id, expect) in [(3, "accept"), (3, "refuse"), (1, "refuse"), (4, "refuse"), (5, "accept")] {
            assert_eq!(client.open(id).await, expect, "stream {id}");
        }
        for number in 2..MAX_STREAMS as u32 {
            assert_eq!(client.open(number * 2 + 3).await, "accept");
        }
        assert_eq!(client.open(9999).await, "refuse");
        client.streams.clear();
        assert_eq!(client.open(10_001).await, "accept", "streams that nobody reads any more do not count");
    }

    #[tokio::test]
    async fn data_reaches_its_stream_until_the_end_and_pings_are_answered() {
        let mut client = Client::new();
        client.open(1).await;
        let data = |data: &'static [u8], fin| Frame::Data { stream: 1, data: Bytes::from_static(data), fin };
        client.reader.take(data(b"one", false)).await.expect("read");
        client
            .reader
            .take(Frame::Data { stream: 7, data: Bytes::from_static(b"x"), fin: true })
            .await
            .expect("read");
        client.reader.take(Frame::Ping { id: 5 }).await.expect("read");
        client.reader.take(Frame::Ping { id: 4 }).await.expect("read");
        client.reader.take(data(b"two", true)).await.expect("read");
        assert!(matches!(client.answers.try_recv(), Ok(Outgoing::Pong(id)) if id[..] == [0, 0, 0, 5]));
        assert!(client.answers.try_recv().is_err());
        let mut stream = client.streams.remove(0);
        assert_eq!(stream.data.recv().await.as_deref(), Some(&b"one"[..]));
        assert_eq!(stream.data.recv().await.as_deref(), Some(&b"two"[..]));
        assert_eq!(stream.data.recv().await, None);
    }

    #[tokio::test]
    async fn a_stream_of_which_only_the_data_is_kept_goes_on_when_another_is_opened() {
        let mut client = Client::new();
        client.open(1).await;
        let Stream { mut data, .. } = client.streams.remove(0);
        client.open(3).await;
        let frame = Frame::Data { stream: 1, data: Bytes::from_static(b"typed"), fin: false };
        client.reader.take(frame).await.expect("read");
        assert_eq!(data.recv().await.as_deref(), Some(&b"typed"[..]));
    }

    struct Client {
        reader: Reader,
        opened: mpsc::Receiver<Stream>,
        answers: mpsc::Receiver<Outgoing>,
        streams: Vec<Stream>,
    }

    impl Client {
        fn new() -> Self {
            let (to_opened, opened) = mpsc::channel(1);
            let (queue, answers) = super::super::connection::queue();
            let reader = Reader {
                headers: HeaderReader::new(),
                streams: BTreeMap::new(),
                last: 0,
                opened: Some(to_opened),
                queue,
            };
            Self { reader, opened, answers, streams: Vec::new() }
        }

        async fn open(&mut self, id: u32) -> &'static str {
            self.reader.open(id, Headers::new(), false).await;
            self.streams.extend(self.opened.try_recv().ok());
            match self.answers.try_recv() {
                Ok(Outgoing::Accept(answered)) if answered == id => "accept",
                Ok(Outgoing::Refuse(answered)) if answered == id => "refuse",
                _ => "nothing",
            }
        }
    }
}

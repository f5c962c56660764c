//! Header blocks of SPDY/3.1: names and values, compressed by zlib with a dictionary of the protocol and a state that lasts as long as the
//! connection.

use std::collections::BTreeMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Largest header block after decompression: a small block can stand for a large one.
const MAX_BLOCK: usize = 64 << 10;

/// Names and values. Names are lower-case; several values of a name are joined by NUL.
pub(super) type Headers = BTreeMap<String, String>;

/// Why a header block cannot be read; the state of the compression is lost, and the connection with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::streaming) enum HeaderError {
    #[error("decompress a header block")]
    Compression,
    #[error("header block is over the limit of {MAX_BLOCK} bytes")]
    TooLarge,
    #[error("header block is malformed")]
    Malformed,
}

/// Reads the blocks of one connection, in their order.
#[derive(Debug)]
pub(super) struct HeaderReader(Decompress);

impl HeaderReader {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.decompress(block)?).ok_or(HeaderError::Malformed)
    }

    fn decompress(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut text = Vec::with_capacity(1 << 10);
        loop {
            let before = self.0.total_in();
            let status = self.0.decompress_vec(block, &mut text, FlushDecompress::Sync);
            block = &block[(self.0.total_in() - before) as usize..];
            match status {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| HeaderError::Compression)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                // Room was left, so there is nothing more.
                Ok(_) if text.len() < text.capacity() => {
                    return if block.is_empty() { Ok(text) } else { Err(HeaderError::Compression) };
                }
                Ok(_) if text.len() >= MAX_BLOCK => return Err(HeaderError::TooLarge),
                Ok(_) => text.reserve(text.len()),
            }
        }
    }
}

fn parse(text: &[u8]) -> Option<Headers> {
    let (count, mut rest) = text.split_first_chunk::<4>()?;
    let mut headers = Headers::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let mut field = || {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (field, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            rest = after;
            String::from_utf8(field.to_vec()).ok()
        };
        let (name, value) = (field()?, field()?);
        headers.insert(name, value);
    }
    rest.is_empty().then_some(headers)
}

/// Makes the blocks of one connection, in their order.
#[derive(Debug)]
pub(super) struct HeaderWriter(Compress);

impl HeaderWriter {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // A fresh stream takes any dictionary.
        let _ = compress.set_dictionary(&dictionary());
        Self(compress)
    }

    /// A block of no headers: all that an answer here says.
    pub(super) fn empty(&mut self) -> Vec<u8> {
        self.write(&Headers::new())
    }

    fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut text = (headers.len() as u32).to_be_bytes().to_vec();
        for field in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&(field.len() as u32).to_be_bytes());
            text.extend_from_slice(field.as_bytes());
        }
        let mut block = Vec::with_capacity(text.len() + 64);
        let mut left = text.as_slice();
        loop {
            let before = self.0.total_in();
            let status = self.0.compress_vec(left, &mut block, FlushCompress::Sync);
            left = &left[(self.0.total_in() - before) as usize..];
            if status.is_err() || (left.is_empty() && block.len() < block.capacity()) {
                return block;
            }
            block.reserve(64 + block.len());
        }
    }
}

/// SPDY/3 §2.6.10.1: words with their lengths before them, then text.
fn dictionary() -> Vec<u8> {
    const WORDS: [&str; 65] = [
        "options",
        "head",
        "post",
        "put",
        "delete",
        "trace",
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "accept-ranges",
        "age",
        "allow",
        "authorization",
        "cache-control",
        "connection",
        "content-base",
        "content-encoding",
        "content-language",
        "content-length",
        "content-location",
        "content-md5",
        "content-range",
        "content-type",
        "date",
        "etag",
        "expect",
        "expires",
        "from",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "last-modified",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "referer",
        "retry-after",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "method",
        "get",
        "status",
        "200 OK",
        "version",
        "HTTP/1.1",
        "url",
        "public",
        "set-cookie",
        "keep-alive",
        "origin",
    ];
    const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
        403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
        Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
        chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS {
        dictionary.extend_from_slice(&(word.len() as u32).to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TEXT.as_bytes());
    dictionary
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_one_that_every_peer_has() {
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary().len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_that_lie_are_refused() {
        let mut writer = HeaderWriter::new();
        let block = writer.write(&Headers::from([("streamtype".into(), "stdin".into())]));
        assert_eq!(HeaderReader::new().read(&block[..block.len() / 2]), Err(HeaderError::Malformed));
        assert_eq!(HeaderReader::new().read(b"no zlib stream"), Err(HeaderError::Compression));
        assert_eq!(HeaderReader::new().read(b""), Err(HeaderError::Malformed));
        let bomb = Headers::from([("a".into(), "0".repeat(10 << 20))]);
        let block = HeaderWriter::new().write(&bomb);
        assert!(block.len() < 100 << 10, "{}", block.len());
        assert_eq!(HeaderReader::new().read(&block), Err(HeaderError::TooLarge));
        for text in [&[0, 0, 0, 1, 0, 0, 0, 9, b'x'][..], &[0xff; 8], &[0, 0, 0, 0, 1], &[0, 0, 0]] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn blocks_of_one_connection_are_read_in_their_order(
            blocks in proptest::collection::vec(
                proptest::collection::btree_map("[a-z]{1,9}", "[ -~]{0,80}", 0..6), 1..6)
        ) {
            let (mut writer, mut reader) = (HeaderWriter::new(), HeaderReader::new());
            for headers in blocks {
                prop_assert_eq!(reader.read(&writer.write(&headers)), Ok(headers));
            }
        }

        #[test]
        fn hostile_blocks_never_panic(block in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = HeaderReader::new().read(&block);
            let _ = parse(&block);
        }
    }
}

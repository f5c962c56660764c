//! One layer from a byte stream to a verified blob and an unpacked directory, in one pass over the bytes.
//!
//! ```text
//! stream (async) ─► hash, write blob, decompress (thread) ─► hash, unpack (thread)
//! ```
//! Nothing is durable or visible yet when this returns.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use futures::{Stream, StreamExt};
use hyper::body::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::ingest::Ingest;
use super::layout::{Descriptor, finish};
use super::unpack::{UnpackError, Unpacked, unpack};
use super::{ImageError, Limits, Progress};

/// Chunks of decompressed bytes, and how many may wait.
const CHUNK: usize = 256 << 10;
const DEPTH: usize = 8;

/// What to receive and where to put it.
#[derive(Clone)]
pub(super) struct LayerJob {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: String,
    /// Where the blob is written.
    pub(super) blob: PathBuf,
    /// How much of it is there: the stream begins with the same bytes.
    pub(super) known: u64,
    /// An empty directory.
    pub(super) directory: PathBuf,
    pub(super) limits: Limits,
    pub(super) progress: Arc<dyn Fn(Progress) + Send + Sync>,
    /// What both lie in: deleted when the last of those who write there has ended, also after a cancelled pull.
    pub(super) keep: Arc<Ingest>,
}

/// Receives, verifies and unpacks a layer. An error of the stream itself comes first, then a wrong digest, then what unpacking said.
pub(super) async fn receive_layer(
    job: LayerJob,
    mut stream: impl Stream<Item = Result<Bytes, ImageError>> + Unpin,
) -> Result<Unpacked, ImageError> {
    let (digest, total) = (job.descriptor.digest.clone(), job.descriptor.size);
    let progress = Arc::clone(&job.progress);
    let (sender, receiver) = mpsc::channel(16);
    let worker = tokio::task::spawn_blocking(move || work(&job, receiver));
    let mut received = 0;
    let mut failure = None;
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => {
                received += chunk.len() as u64;
                if sender.send(chunk).await.is_err() {
                    break; // the worker gave up and says why
                }
                progress(Progress::Layer { digest: digest.clone(), received, total });
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    drop(sender);
    let done = worker.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    if let Some(failure) = failure {
        return Err(failure);
    }
    let unpacked = done?;
    progress(Progress::LayerDone { digest });
    Ok(unpacked)
}

fn work(job: &LayerJob, chunks: mpsc::Receiver<Bytes>) -> Result<Unpacked, ImageError> {
    debug_assert!(job.directory.starts_with(job.keep.path()));
    let root = open_directory(&job.directory)?;
    let blob = File::options().append(true).create(true).open(&job.blob);
    let blob = blob.map_err(|error| ImageError::io("create", &job.blob, error))?;
    let input = Input {
        chunks,
        current: Bytes::new(),
        hash: Sha256::new(),
        blob,
        received: 0,
        known: job.known,
        expected: job.descriptor.size,
        failure: None,
    };
    let (full, filled) = sync_channel(DEPTH);
    let (empty, recycled) = sync_channel(DEPTH + 2);
    std::thread::scope(|scope| {
        let unpacker = scope.spawn(move || {
            let output = Output { filled, empty, current: Vec::new(), at: 0, hash: Sha256::new(), end: None };
            unpack_and_hash(output, root, &job.limits)
        });
        let decompressed = decompress(input, full, &recycled, &job.limits);
        let unpacked = unpacker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        verdict(job, decompressed, unpacked)
    })
}

/// What the first thread leaves behind.
struct Decompressed {
    input: Input,
    error: Option<UnpackError>,
}

fn verdict(
    job: &LayerJob,
    decompressed: Decompressed,
    unpacked: Result<(Unpacked, String), UnpackError>,
) -> Result<Unpacked, ImageError> {
    let Decompressed { mut input, error } = decompressed;
    let layer = &job.descriptor.digest;
    let bounded = matches!(
        (&error, &unpacked),
        (Some(UnpackError::TooLarge { .. }), _)
            | (_, Err(UnpackError::TooLarge { .. } | UnpackError::Full(_)))
    );
    if !bounded {
        // Bytes that nothing asked for are part of the digest too; and a wrong digest explains every other error.
        let _its_error_is_kept = io::copy(&mut input, &mut io::sink());
        if let Some(failure) = input.failure.take() {
            return Err(ImageError::io("write", &job.blob, failure));
        }
        let mismatch = |expected: String, got: String| ImageError::DigestMismatch {
            what: format!("layer {layer}"),
            expected,
            got,
        };
        if input.received != job.descriptor.size {
            let got = if input.received > job.descriptor.size {
                "more".to_owned()
            } else {
                input.received.to_string()
            };
            return Err(mismatch(format!("{} bytes", job.descriptor.size), format!("{got} bytes")));
        }
        let got = finish(input.hash);
        if got != *layer {
            return Err(mismatch(layer.clone(), got));
        }
    }
    let (unpacked, diff_id) = match (error, unpacked) {
        (Some(error), Err(UnpackError::Input(_)) | Ok(_)) | (None, Err(error)) | (Some(_), Err(error)) => {
            return Err(error.in_layer(layer, &job.directory));
        }
        (None, Ok(done)) => done,
    };
    if diff_id != job.diff_id {
        return Err(ImageError::DigestMismatch {
            what: format!("the uncompressed content of layer {layer}"),
            expected: job.diff_id.clone(),
            got: diff_id,
        });
    }
    Ok(unpacked)
}

fn unpack_and_hash(
    mut output: Output,
    root: OwnedFd,
    limits: &Limits,
) -> Result<(Unpacked, String), UnpackError> {
    let unpacked = unpack(&mut output, root, limits)?;
    Ok((unpacked, finish(output.hash)))
}

fn decompress(
    mut input: Input,
    full: SyncSender<Chunk>,
    recycled: &Receiver<Vec<u8>>,
    limits: &Limits,
) -> Decompressed {
    let result = match input.fill_buf() {
        Ok([0x1f, 0x8b, ..]) => {
            pump(flate2::bufread::MultiGzDecoder::new(&mut input), &full, recycled, limits)
        }
        Ok([0x28, 0xb5, 0x2f, 0xfd, ..]) => match zstd::stream::read::Decoder::with_buffer(&mut input) {
            Ok(decoder) => pump(decoder, &full, recycled, limits),
            Err(error) => Err(UnpackError::Input(error)),
        },
        Ok(_) => pump(&mut input, &full, recycled, limits),
        Err(error) => Err(UnpackError::Input(error)),
    };
    let end = if result.is_ok() { Chunk::End } else { Chunk::Broken };
    let _receiver_may_be_gone = full.send(end);
    Decompressed { input, error: result.err() }
}

fn pump(
    mut from: impl Read,
    full: &SyncSender<Chunk>,
    recycled: &Receiver<Vec<u8>>,
    limits: &Limits,
) -> Result<(), UnpackError> {
    let mut total = 0;
    loop {
        let mut buffer = recycled.try_recv().unwrap_or_default();
        buffer.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(UnpackError::Input(error)),
            }
        }
        total += filled as u64;
        if total > limits.layer_bytes {
            return Err(UnpackError::TooLarge {
                what: "the uncompressed content",
                limit: limits.layer_bytes,
            });
        }
        buffer.truncate(filled);
        // A closed channel means that unpacking failed: it has the reason.
        if filled == 0 || full.send(Chunk::Data(buffer)).is_err() {
            return Ok(());
        }
    }
}

/// The compressed bytes: hashed, counted and written to the blob while they are read.
struct Input {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    hash: Sha256,
    blob: File,
    received: u64,
    /// Bytes that the blob has already.
    known: u64,
    expected: u64,
    failure: Option<io::Error>,
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            if self.received > self.expected || self.failure.is_some() {
                break;
            }
            let Some(chunk) = self.chunks.blocking_recv() else { break };
            self.received += chunk.len() as u64;
            if self.received > self.expected {
                break; // more than was announced is never looked at
            }
            self.hash.update(&chunk);
            let known = usize::try_from(self.known).unwrap_or(usize::MAX).min(chunk.len());
            self.known -= known as u64;
            if let Err(error) = self.blob.write_all(&chunk[known..]) {
                self.failure = Some(error);
                break;
            }
            self.current = chunk;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, bytes: usize) {
        let _consumed = self.current.split_to(bytes);
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let bytes = available.len().min(into.len());
        into[..bytes].copy_from_slice(&available[..bytes]);
        self.consume(bytes);
        Ok(bytes)
    }
}

enum Chunk {
    Data(Vec<u8>),
    End,
    Broken,
}

/// The decompressed bytes on the side of the unpacker, hashed on arrival; buffers go back to be filled again.
struct Output {
    filled: Receiver<Chunk>,
    empty: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hash: Sha256,
    end: Option<bool>,
}

impl BufRead for Output {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && self.end.is_none() {
            let used = std::mem::take(&mut self.current);
            if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.empty.try_send(used) {}
            self.at = 0;
            match self.filled.recv() {
                Ok(Chunk::Data(chunk)) => {
                    self.hash.update(&chunk);
                    self.current = chunk;
                }
                Ok(Chunk::End) => self.end = Some(true),
                Ok(Chunk::Broken) | Err(_) => self.end = Some(false),
            }
        }
        match self.end {
            Some(false) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => Ok(&self.current[self.at..]),
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

impl Read for Output {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let bytes = available.len().min(into.len());
        into[..bytes].copy_from_slice(&available[..bytes]);
        self.consume(bytes);
        Ok(bytes)
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, ImageError> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(|errno| ImageError::io("open", path, errno))
}

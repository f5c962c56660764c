//! One blob as one stream over as many connections as it takes: what breaks is continued where it broke (RFC 9110 §14, Range).

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{StreamExt, TryStreamExt};
use hyper::StatusCode;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::CONTENT_RANGE;
use hyper::{HeaderMap, Response};

use super::session::Session;
use crate::images::acquire::ByteStream;
use crate::images::layout::Descriptor;
use crate::images::{ImageError, Limits};

/// After so many bytes without trouble a connection may break as often again as the first one.
const RENEWED: u64 = 1 << 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

struct Download {
    session: Arc<Session>,
    descriptor: Descriptor,
    position: u64,
    current: Option<ByteStream>,
    patience: Patience,
}

/// The bytes of a blob from `position` on, not verified. Nothing is asked before the first byte is wanted.
pub(super) fn download(session: Arc<Session>, descriptor: &Descriptor, position: u64) -> ByteStream {
    let patience = Patience::new(session.limits());
    let download = Download { session, descriptor: descriptor.clone(), position, current: None, patience };
    let next =
        |mut download: Download| async move { Ok(download.next().await?.map(|chunk| (chunk, download))) };
    futures::stream::try_unfold(download, next).boxed()
}

impl Download {
    async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            let stream = match &mut self.current {
                Some(stream) => stream,
                None if self.position >= self.descriptor.size => return Ok(None),
                None => match self.session.blob_from(&self.descriptor, self.position).await {
                    Ok(stream) => self.current.insert(stream),
                    Err(error) => {
                        self.try_again(error).await?;
                        continue;
                    }
                },
            };
            let broken = match stream.next().await {
                Some(Ok(chunk)) => {
                    self.position += chunk.len() as u64;
                    self.patience.came(chunk.len() as u64);
                    return Ok(Some(chunk));
                }
                Some(Err(_)) | None if self.position >= self.descriptor.size => return Ok(None),
                Some(Err(error)) => error,
                None => self.session.ended_early(&self.descriptor, self.position),
            };
            self.current = None;
            self.try_again(broken).await?;
        }
    }

    /// Waits before the next connection, or gives the error when there will be none.
    async fn try_again(&mut self, error: ImageError) -> Result<(), ImageError> {
        let passing = matches!(error, ImageError::RegistryUnavailable { .. } | ImageError::Stalled { .. });
        let Some(pause) = self.patience.pause().filter(|_| passing) else { return Err(error) };
        tracing::warn!(%error, blob = self.descriptor.digest, position = self.position, "going on where the download broke");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// How often a blob may still break.
struct Patience {
    tries: u32,
    first_pause: Duration,
    failed: u32,
    since: u64,
}

impl Patience {
    fn new(limits: &Limits) -> Self {
        Self { tries: limits.retries, first_pause: limits.retry_pause, failed: 0, since: 0 }
    }

    fn came(&mut self, bytes: u64) {
        self.since += bytes;
        if self.since >= RENEWED {
            (self.failed, self.since) = (0, 0);
        }
    }

    /// How long to wait now; `None`: often enough. Each pause is twice the one before.
    fn pause(&mut self) -> Option<Duration> {
        if self.failed >= self.tries {
            return None;
        }
        self.failed += 1;
        self.since = 0;
        Some((self.first_pause * 2_u32.saturating_pow(self.failed - 1)).min(LONGEST_PAUSE))
    }
}

/// What an answer has of a blob of which the bytes from `position` on were asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Just these.
    Rest,
    /// All of it: so many bytes come again.
    Again(u64),
}

/// Reads how an answer lies in the blob; one of another length than the descriptor's is not the blob.
pub(super) fn place(
    descriptor: &Descriptor,
    position: u64,
    response: &Response<Incoming>,
) -> Result<Answer, (String, String)> {
    let length = response.body().size_hint().exact();
    place_of(descriptor.size, position, response.status(), response.headers(), length)
}

/// `Err`: what was expected, and what came.
fn place_of(
    size: u64,
    position: u64,
    status: StatusCode,
    headers: &HeaderMap,
    length: Option<u64>,
) -> Result<Answer, (String, String)> {
    let (answer, expected) = if status == StatusCode::PARTIAL_CONTENT {
        let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let start = range.strip_prefix("bytes ").and_then(|rest| rest.split('-').next()?.parse::<u64>().ok());
        if start != Some(position) {
            return Err((format!("bytes from {position} on"), format!("`{}`", range.escape_debug())));
        }
        (Answer::Rest, size.saturating_sub(position))
    } else {
        (Answer::Again(position), size)
    };
    match length {
        Some(length) if length != expected => Err((format!("{expected} bytes"), format!("{length} bytes"))),
        _ => Ok(answer),
    }
}

/// Leaves out the first bytes of a stream.
pub(super) fn skip(stream: ByteStream, bytes: u64) -> ByteStream {
    if bytes == 0 {
        return stream;
    }
    let mut left = bytes;
    let rest = move |mut chunk: Bytes| {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        left -= take as u64;
        let _known = chunk.split_to(take);
        futures::future::ready(Ok((!chunk.is_empty()).then_some(chunk)))
    };
    stream.try_filter_map(rest).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_gives_up_after_its_tries_unless_it_gets_on() {
        let limits = Limits { retries: 3, retry_pause: Duration::from_millis(100), ..Limits::default() };
        let mut patience = Patience::new(&limits);
        let pauses: Vec<_> = (0..4).map(|_| patience.pause().map(|pause| pause.as_millis())).collect();
        assert_eq!(pauses, [Some(100), Some(200), Some(400), None]);
        patience.came(RENEWED / 2);
        assert_eq!(patience.pause(), None, "a little is not getting on");
        patience.came(RENEWED);
        assert_eq!(patience.pause(), Some(Duration::from_millis(100)));
    }

    #[test]
    fn an_answer_that_is_not_the_blob_s_length_or_range_is_refused() {
        let partial = |range: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, range.parse().expect("header"));
            (StatusCode::PARTIAL_CONTENT, headers)
        };
        let whole = || (StatusCode::OK, HeaderMap::new());
        for ((status, headers), position, length, expect) in [
            (whole(), 0, Some(10), Some(Answer::Again(0))),
            (whole(), 4, Some(10), Some(Answer::Again(4))),
            (whole(), 0, None, Some(Answer::Again(0))),
            (whole(), 0, Some(11), None),
            (partial("bytes 4-9/10"), 4, Some(6), Some(Answer::Rest)),
            (partial("bytes 4-9/*"), 4, None, Some(Answer::Rest)),
            (partial("bytes 0-9/10"), 4, Some(10), None),
            (partial("bytes 4-9/10"), 4, Some(10), None),
            (partial("lines 4-9"), 4, Some(6), None),
        ] {
            let got = place_of(10, position, status, &headers, length);
            assert_eq!(got.as_ref().ok(), expect.as_ref(), "{status} {headers:?} {length:?}: {got:?}");
        }
    }
}

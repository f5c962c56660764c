//! The log format of CRI: `TIME STREAM TAG TEXT`, where tag P says that the line goes on in the next entry of its stream. Pure.

use k8s_openapi::jiff::Timestamp;

use super::options::{Options, Streams};

/// One entry of the file, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    time: &'a str,
    stream: Stream,
    /// Whether the line ends here.
    pub(super) is_full: bool,
    text: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

impl<'a> Entry<'a> {
    /// None for what is no entry.
    pub(super) fn parse(raw: &'a [u8]) -> Option<Self> {
        let mut parts = raw.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // More tags may follow the first one after a colon.
        let is_full = parts.next()?.split(|byte| *byte == b':').next() != Some(b"P");
        Some(Self { time, stream, is_full, text: parts.next().unwrap_or_default() })
    }
}

/// Whether there is more to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    /// As many bytes were told as were wanted.
    Enough,
}

/// Turns what is in the file into what is told.
#[derive(Debug)]
pub(super) struct Selection {
    timestamps: bool,
    since: Option<i64>,
    left: Option<u64>,
    streams: Streams,
    /// An entry of which the end was not read yet.
    begun: Vec<u8>,
    /// Whether the last line of stdout, and of stderr, goes on.
    goes_on: [bool; 2],
}

impl Selection {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            timestamps: options.timestamps,
            since: options.since,
            left: options.limit,
            streams: options.streams,
            begun: Vec::new(),
            goes_on: [false; 2],
        }
    }

    /// Takes the next bytes of the file, and appends what they tell.
    pub(super) fn take(&mut self, mut bytes: &[u8], told: &mut Vec<u8>) -> Progress {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (raw, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            let progress = if self.begun.is_empty() {
                self.tell(raw, told)
            } else {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(raw);
                self.tell(&whole, told)
            };
            if progress == Progress::Enough {
                return progress;
            }
        }
        self.begun.extend_from_slice(bytes);
        Progress::More
    }

    fn tell(&mut self, raw: &[u8], told: &mut Vec<u8>) -> Progress {
        // What is no entry is left out, as upstream does.
        let Some(entry) = Entry::parse(raw) else { return Progress::More };
        let goes_on = std::mem::replace(&mut self.goes_on[entry.stream as usize], !entry.is_full);
        let is_asked = match self.streams {
            Streams::All => true,
            Streams::Stdout => entry.stream == Stream::Stdout,
            Streams::Stderr => entry.stream == Stream::Stderr,
        };
        if !is_asked || self.since.is_some_and(|since| time_of(entry.time).is_some_and(|time| time < since)) {
            return Progress::More;
        }
        let before = told.len();
        if self.timestamps && !goes_on {
            told.extend_from_slice(fixed(entry.time).as_bytes());
            told.push(b' ');
        }
        told.extend_from_slice(entry.text);
        if entry.is_full {
            told.push(b'\n');
        }
        let Some(left) = &mut self.left else { return Progress::More };
        let length = u64::try_from(told.len() - before).unwrap_or(u64::MAX);
        if length < *left {
            *left -= length;
            return Progress::More;
        }
        told.truncate(before + usize::try_from(*left).unwrap_or(usize::MAX));
        Progress::Enough
    }
}

/// Nanoseconds since 1970.
fn time_of(text: &str) -> Option<i64> {
    let time: Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

/// With nine digits after the second, so that lines stand in columns.
fn fixed(time: &str) -> String {
    let zone = time.rfind(['Z', '+']).or_else(|| time.rfind('-').filter(|at| *at > 10));
    let (clock, zone) = time.split_at(zone.unwrap_or(time.len()));
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n\
                       2026-01-01T00:00:02.123456789Z stderr P tw\n\
                       2026-01-01T00:00:02.2Z stdout F between\n\
                       2026-01-01T00:00:03Z stderr F o\n\
                       garbage\n\
                       2026-01-01T00:00:04+01:00 stdout F \n\
                       2026-01-01T00:00:05Z stdout F spaces  kept \n";

    fn told(options: &Options, pieces: usize) -> String {
        let mut selection = Selection::new(options);
        let mut told = Vec::new();
        for piece in LOG.as_bytes().chunks(pieces) {
            if selection.take(piece, &mut told) == Progress::Enough {
                break;
            }
        }
        String::from_utf8(told).unwrap()
    }

    #[test]
    fn lines_are_put_together_whatever_is_read_at_once() {
        for pieces in [1, 7, LOG.len()] {
            assert_eq!(told(&Options::default(), pieces), "one\ntwbetween\no\n\nspaces  kept \n");
        }
    }

    #[test]
    fn timestamps_stand_at_the_begin_of_lines() {
        assert_eq!(
            told(&Options { timestamps: true, streams: Streams::Stderr, ..Options::default() }, 5),
            "2026-01-01T00:00:02.123456789Z two\n"
        );
        assert_eq!(fixed("2026-01-01T00:00:01.5Z"), "2026-01-01T00:00:01.500000000Z");
        assert_eq!(fixed("2026-01-01T00:00:01-07:00"), "2026-01-01T00:00:01.000000000-07:00");
    }

    #[test]
    fn what_is_older_is_left_out() {
        let since = time_of("2026-01-01T00:00:03Z");
        assert_eq!(told(&Options { since, ..Options::default() }, 9), "o\nspaces  kept \n");
    }

    #[test]
    fn no_more_bytes_are_told_than_wanted() {
        let limited = |limit| told(&Options { limit: Some(limit), ..Options::default() }, 8);
        assert_eq!(limited(2), "on");
        assert_eq!(limited(4), "one\n");
        assert_eq!(limited(9), "one\ntwbet");
        assert_eq!(limited(1000), told(&Options::default(), 8));
    }
}

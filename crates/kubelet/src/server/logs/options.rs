//! What is wanted of a log: PodLogOptions, from the query. Pure. Upstream: pkg/apis/core/validation, ValidatePodLogOptions.

use k8s_openapi::jiff::Timestamp;

use super::super::query::Query;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    /// Nothing older; nanoseconds since 1970.
    pub(super) since: Option<i64>,
    /// So many lines at the end.
    pub(super) tail: Option<usize>,
    /// Bytes at most.
    pub(super) limit: Option<u64>,
    pub(super) streams: Streams,
}

/// Which of a container's outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Streams {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// Why there are no options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A value is of the wrong kind.
    Undecodable,
    /// A value is not possible, or does not go with another one.
    Invalid,
}

impl Options {
    /// Reads the query; `now` in nanoseconds since 1970.
    pub(super) fn of(query: &Query, now: i64) -> Result<Self, Wrong> {
        let number =
            |name| query.first(name).map(str::parse::<i64>).transpose().map_err(|_| Wrong::Undecodable);
        let is = |name| {
            query.first(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
        };
        let tail = match query.first("tail") {
            Some("all") => None,
            Some(lines) if !lines.is_empty() => Some(lines.parse::<i64>().map_err(|_| Wrong::Undecodable)?),
            _ => number("tailLines")?,
        };
        let since_time = query.first("sinceTime").map(str::parse::<Timestamp>).transpose();
        let since_time = since_time.map_err(|_| Wrong::Undecodable)?;
        let streams = match query.first("stream") {
            None | Some("" | "All") => Streams::All,
            Some("Stdout") => Streams::Stdout,
            Some("Stderr") => Streams::Stderr,
            Some(_) => return Err(Wrong::Invalid),
        };
        let since = match (number("sinceSeconds")?, since_time) {
            (None, None) => None,
            (Some(seconds @ 1..), None) => Some(now.saturating_sub(seconds.saturating_mul(1_000_000_000))),
            (None, Some(time)) => Some(i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)),
            (Some(_), _) => return Err(Wrong::Invalid),
        };
        let limit = match number("limitBytes")? {
            None => None,
            Some(bytes @ 1..) => u64::try_from(bytes).ok(),
            Some(_) => return Err(Wrong::Invalid),
        };
        if tail.is_some() && streams != Streams::All {
            return Err(Wrong::Invalid);
        }
        Ok(Self {
            follow: is("follow"),
            previous: is("previous"),
            timestamps: is("timestamps"),
            since,
            tail: tail.map(usize::try_from).transpose().map_err(|_| Wrong::Invalid)?,
            limit,
            streams,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 100_000_000_000;

    fn read(query: &str) -> Result<Options, Wrong> {
        Options::of(&Query::parse(query), NOW)
    }

    #[test]
    fn options_are_those_of_the_api() {
        assert_eq!(read("insecureSkipTLSVerifyBackend=true&container=c"), Ok(Options::default()));
        let expect = Options { follow: true, previous: true, timestamps: true, ..Options::default() };
        assert_eq!(read("follow=true&previous=1&timestamps=TRUE"), Ok(expect));
        assert_eq!(read("follow=False&previous=0"), Ok(Options::default()));
        let since = |query| read(query).map(|options| options.since);
        assert_eq!(since("sinceSeconds=40"), Ok(Some(60_000_000_000)));
        assert_eq!(since("sinceTime=1970-01-01T00:00:02%2B00:00"), Ok(Some(2_000_000_000)));
        let expect = Options { tail: Some(0), limit: Some(7), ..Options::default() };
        assert_eq!(read("tailLines=0&limitBytes=7"), Ok(expect));
        assert_eq!(read("tail=3&tailLines=4").map(|options| options.tail), Ok(Some(3)));
        assert_eq!(read("tail=all&tailLines=4").map(|options| options.tail), Ok(None));
        assert_eq!(read("stream=Stderr").map(|options| options.streams), Ok(Streams::Stderr));
    }

    #[test]
    fn what_is_not_possible_is_refused() {
        for query in ["tailLines=x", "sinceTime=yesterday", "limitBytes=1k", "tail=-"] {
            assert_eq!(read(query), Err(Wrong::Undecodable), "{query}");
        }
        for query in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=1970-01-01T00:00:02Z",
            "stream=Both",
            "stream=Stdout&tailLines=1",
        ] {
            assert_eq!(read(query), Err(Wrong::Invalid), "{query}");
        }
    }
}

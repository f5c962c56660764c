//! Cuts a container's output into the entries of a CRI log. No I/O.

use std::io::Write;

use super::clock::timestamp;
use super::frame::OutputStream;

/// Longest content of one entry; a longer line becomes several partial entries and a last full one. As containerd and CRI-O do it.
pub(super) const ENTRY_LIMIT: usize = 16 << 10;

/// Whether an entry ends its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    /// The line goes on in the next entry of the same stream, or the stream ended inside it.
    Partial,
    /// The line ends here.
    Full,
}

/// Collects one stream's bytes until a line is complete or long enough to be cut.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    pending: Vec<u8>,
}

impl LineSplitter {
    /// Adds output and emits every entry that it completes. A line of exactly [`ENTRY_LIMIT`] bytes is one full entry.
    pub(super) fn push(&mut self, mut data: &[u8], mut emit: impl FnMut(Tag, &[u8])) {
        loop {
            let room = ENTRY_LIMIT - self.pending.len();
            let window = &data[..data.len().min(room + 1)];
            if let Some(newline) = window.iter().position(|&byte| byte == b'\n') {
                self.emit(Tag::Full, &data[..newline], &mut emit);
                data = &data[newline + 1..];
            } else if data.len() > room {
                self.emit(Tag::Partial, &data[..room], &mut emit);
                data = &data[room..];
            } else {
                self.pending.extend_from_slice(data);
                return;
            }
        }
    }

    /// Ends the stream: what is left did not end with a newline and is partial, as with containerd.
    pub(super) fn finish(&mut self, mut emit: impl FnMut(Tag, &[u8])) {
        if !self.pending.is_empty() {
            self.emit(Tag::Partial, &[], &mut emit);
        }
    }

    fn emit(&mut self, tag: Tag, data: &[u8], emit: &mut impl FnMut(Tag, &[u8])) {
        if self.pending.is_empty() {
            emit(tag, data);
        } else {
            self.pending.extend_from_slice(data);
            emit(tag, &self.pending);
            // Given back: a pod has two of these per container, and most never hold half a line for long.
            self.pending = Vec::new();
        }
    }
}

/// Appends one entry in the CRI format: `TIME STREAM TAG CONTENT`.
pub(super) fn write_entry(out: &mut Vec<u8>, nanos: i64, stream: OutputStream, tag: Tag, content: &[u8]) {
    out.extend_from_slice(&timestamp(nanos));
    out.extend_from_slice(match stream {
        OutputStream::Stdout => b" stdout ",
        OutputStream::Stderr => b" stderr ",
    });
    out.extend_from_slice(match tag {
        Tag::Partial => b"P ",
        Tag::Full => b"F ",
    });
    out.extend_from_slice(content);
    out.push(b'\n');
}

/// Appends the entry that stands where entries were lost.
pub(super) fn write_loss_note(out: &mut Vec<u8>, nanos: i64, lost: u64, cause: &str) {
    let mut note = Vec::with_capacity(80);
    let _ = write!(note, "podwright: {lost} log entries lost: {cause}");
    write_entry(out, nanos, OutputStream::Stderr, Tag::Full, &note);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_cut_as_cri_wants() {
        let long = vec![b'x'; ENTRY_LIMIT];
        let longer = [&long[..], b"yz"].concat();
        check(&[b"one\ntwo\n"], &[(Tag::Full, b"one"), (Tag::Full, b"two")]);
        check(&[b"o", b"n", b"e\n"], &[(Tag::Full, b"one")]);
        check(&[b"\n\n"], &[(Tag::Full, b""), (Tag::Full, b"")]);
        check(&[b"dos\r\n"], &[(Tag::Full, b"dos\r")]);
        check(&[b"no newline"], &[(Tag::Partial, b"no newline")]);
        check(&[], &[]);
        check(&[&long, b"\n"], &[(Tag::Full, &long)]);
        check(&[&longer, b"\n"], &[(Tag::Partial, &long), (Tag::Full, b"yz")]);
        check(&[&longer], &[(Tag::Partial, &long), (Tag::Partial, b"yz")]);
        check(&[b"x", &long[1..], b"yz\n"], &[(Tag::Partial, &long), (Tag::Full, b"yz")]);
    }

    #[test]
    fn an_entry_reads_as_the_kubelet_parses_it() {
        let mut out = Vec::new();
        write_entry(&mut out, 1_475_713_029_669_794_202, OutputStream::Stdout, Tag::Full, b"log content 1");
        write_entry(&mut out, 1_475_713_029_669_794_203, OutputStream::Stderr, Tag::Partial, b"");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2016-10-06T00:17:09.669794202Z stdout F log content 1\n2016-10-06T00:17:09.669794203Z stderr P \n"
        );
    }

    proptest! {
        #[test]
        fn entries_joined_are_the_input_however_it_arrives(
            lines in proptest::collection::vec((any::<u8>(), 0..40_000_usize), 0..4),
            cuts in proptest::collection::vec(1..20_000_usize, 1..5),
            ends_with_newline: bool,
        ) {
            let mut input = lines
                .iter()
                .map(|(byte, length)| vec![if *byte == b'\n' { b'n' } else { *byte }; *length])
                .collect::<Vec<_>>()
                .join(&b'\n');
            if ends_with_newline {
                input.push(b'\n');
            }
            let entries = split(&pieces(&input, &cuts));
            let mut joined = Vec::new();
            for (tag, content) in &entries {
                prop_assert!(content.len() <= ENTRY_LIMIT);
                joined.extend_from_slice(content);
                if *tag == Tag::Full {
                    joined.push(b'\n');
                }
            }
            prop_assert_eq!(joined, input.clone());
            prop_assert_eq!(entries, split(&[&input]), "the cut into reads shows in the log");
        }
    }

    fn pieces<'a>(mut input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            if input.is_empty() {
                break;
            }
            let (piece, rest) = input.split_at((*cut).min(input.len()));
            pieces.push(piece);
            input = rest;
        }
        pieces
    }

    fn split(pieces: &[&[u8]]) -> Vec<(Tag, Vec<u8>)> {
        let mut splitter = LineSplitter::default();
        let mut entries = Vec::new();
        for piece in pieces {
            splitter.push(piece, |tag, content| entries.push((tag, content.to_vec())));
        }
        splitter.finish(|tag, content| entries.push((tag, content.to_vec())));
        entries
    }

    fn check(pieces: &[&[u8]], expect: &[(Tag, &[u8])]) {
        let entries = split(pieces);
        let entries: Vec<_> = entries.iter().map(|(tag, content)| (*tag, content.as_slice())).collect();
        assert!(entries == expect, "{pieces:?}");
    }
}

//! Where the last lines of a log begin: read from the end, so that a long log costs no more than its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::line::Entry;

/// Bytes read at once.
const BLOCK: usize = 64 << 10;

/// The offset at which the last `lines` lines of the first `length` bytes begin. A line of several entries is one line, and so is
/// the last one that goes on.
pub(super) fn begin(file: &File, length: u64, lines: usize) -> io::Result<u64> {
    let mut entries = Backwards { file, position: length, known: Vec::new() };
    let (mut start, mut seen, mut is_last) = (length, 0, true);
    while lines > 0
        && let Some((at, raw)) = entries.next()?
    {
        let entry = Entry::parse(&raw);
        if entry.is_some_and(|entry| entry.is_full || is_last) {
            if seen == lines {
                return Ok(start);
            }
            seen += 1;
        }
        (start, is_last) = (at, false);
    }
    Ok(start)
}

/// The entries of a file, the last one first.
struct Backwards<'a> {
    file: &'a File,
    /// Where `known` is in the file.
    position: u64,
    /// What was read and not given yet.
    known: Vec<u8>,
}

impl Backwards<'_> {
    /// The next entry with its offset, without its end. What comes after the last end is no entry.
    fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        loop {
            let mut ends = self.known.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
            let (end, before) = (ends.next().map(|(at, _)| at), ends.next().map(|(at, _)| at));
            match (end, before) {
                (Some(end), Some(before)) => return Ok(Some(self.give(before + 1, end))),
                (Some(end), None) if self.position == 0 => return Ok(Some(self.give(0, end))),
                (None, _) if self.position == 0 => return Ok(None),
                _ => self.read_more()?,
            }
        }
    }

    fn give(&mut self, first: usize, end: usize) -> (u64, Vec<u8>) {
        let mut entry = self.known.split_off(first);
        entry.truncate(end - first);
        (self.position + u64::try_from(first).unwrap_or(u64::MAX), entry)
    }

    fn read_more(&mut self) -> io::Result<()> {
        let size = usize::try_from(self.position).unwrap_or(BLOCK).min(BLOCK);
        self.position -= u64::try_from(size).unwrap_or(self.position);
        let mut block = vec![0; size];
        self.file.read_exact_at(&mut block, self.position)?;
        block.append(&mut self.known);
        self.known = block;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn tail(text: &str, lines: usize) -> String {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let at = begin(&file, text.len() as u64, lines).unwrap();
        text[usize::try_from(at).unwrap()..].replace("2026-01-01T00:00:01Z std", "")
    }

    fn log(entries: &[&str]) -> String {
        entries.iter().map(|entry| format!("2026-01-01T00:00:01Z std{entry}\n")).collect()
    }

    #[test]
    fn the_last_lines_begin_where_the_line_before_them_ends() {
        let text = log(&["out F a", "out F b", "err F c"]);
        assert_eq!(tail(&text, 0), "");
        assert_eq!(tail(&text, 1), "err F c\n");
        assert_eq!(tail(&text, 2), "out F b\nerr F c\n");
        assert_eq!(tail(&text, 3), text.replace("2026-01-01T00:00:01Z std", ""));
        assert_eq!(tail(&text, 9), tail(&text, 3));
        assert_eq!(tail("", 2), "");
    }

    #[test]
    fn a_line_of_several_entries_is_one_line() {
        let text = log(&["out F a", "out P b", "out P c", "out F d"]);
        assert_eq!(tail(&text, 1), "out P b\nout P c\nout F d\n");
        let text = log(&["out F a", "out F b", "out P c"]);
        assert_eq!(tail(&text, 1), "out P c\n");
        assert_eq!(tail(&text, 2), "out F b\nout P c\n");
    }

    #[test]
    fn lines_may_be_longer_than_what_is_read_at_once() {
        let (long, short) = (format!("out F {}", "x".repeat(BLOCK)), "out F y");
        let text = log(&[short, &long, &long, short]);
        assert_eq!(tail(&text, 2), format!("{long}\n{short}\n"));
        assert_eq!(tail(&text, 4).len(), tail(&text, 5).len());
    }
}

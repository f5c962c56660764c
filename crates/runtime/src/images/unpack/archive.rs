//! A tar stream as entries: header fields by the `tar` crate, extension records and bodies by us.
//!
//! The crate's own iterator reads extension records of any size into memory and cannot read binary xattr values, hence this.
//! Decides nothing about the file system.

use std::io::BufRead;

use tar::{EntryType, Header};

use super::UnpackError;

const BLOCK: usize = 512;
/// Bytes of a long name or of extension records; real ones are a few hundred.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// One entry; its body, if any, is read from the archive before the next entry.
#[derive(Debug, Clone)]
pub(in crate::images) struct Entry {
    pub(in crate::images) path: Vec<u8>,
    pub(in crate::images) link: Vec<u8>,
    pub(in crate::images) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads entries one after another.
pub(in crate::images) struct Archive<R> {
    reader: R,
    body: u64,
    padding: u64,
}

/// What extension entries said about the next real one.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: BufRead> Archive<R> {
    pub(in crate::images) fn new(reader: R) -> Self {
        Self { reader, body: 0, padding: 0 }
    }

    /// The next entry, or `None` at the end of the archive; then the rest of the stream is read to its end.
    pub(in crate::images) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extension = Extension::default();
        loop {
            self.skip(self.body + self.padding)?;
            (self.body, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                self.drain()?;
                return Ok(None);
            };
            let size = number(header.entry_size(), &header.as_old().size, "size")?;
            match header.entry_type() {
                EntryType::GNULongName => extension.path = Some(until_nul(self.extension_data(size)?)),
                EntryType::GNULongLink => extension.link = Some(until_nul(self.extension_data(size)?)),
                EntryType::XHeader => parse_pax(&self.extension_data(size)?, &mut extension)?,
                // containerd and docker do not apply global records to layers either.
                EntryType::XGlobalHeader => drop(self.extension_data(size)?),
                kind => return self.entry(&header, kind, size, extension).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        extension: Extension,
    ) -> Result<Entry, UnpackError> {
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&path).into_owned();
        let old = header.as_old();
        let device = || -> Result<(u32, u32), UnpackError> {
            let part = |value: std::io::Result<Option<u32>>| value.ok().flatten();
            match (part(header.device_major()), part(header.device_minor())) {
                (Some(major), Some(minor)) => Ok((major, minor)),
                _ => Err(UnpackError::Corrupt(format!("`{name}` is a device without a valid number"))),
            }
        };
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            EntryType::Fifo => Kind::Fifo,
            EntryType::GNUSparse => return Err(UnpackError::Unsupported(format!("sparse file `{name}`"))),
            other => {
                let kind = other.as_byte().escape_ascii();
                return Err(UnpackError::Corrupt(format!("`{name}` has the unknown entry type `{kind}`")));
            }
        };
        let size = extension.size.unwrap_or(size);
        self.body = size;
        self.padding = size.next_multiple_of(BLOCK as u64).saturating_sub(size);
        let id = |value: u64, what: &str| {
            u32::try_from(value)
                .map_err(|_| UnpackError::Corrupt(format!("`{name}` has the impossible {what} {value}")))
        };
        let link = match extension.link {
            Some(link) => link,
            None => header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
        };
        Ok(Entry {
            kind,
            mode: (number(header.mode().map(u64::from), &old.mode, "mode")? & 0o7777) as u32,
            uid: id(extension.uid.map_or_else(|| number(header.uid(), &old.uid, "uid"), Ok)?, "uid")?,
            gid: id(extension.gid.map_or_else(|| number(header.gid(), &old.gid, "gid"), Ok)?, "gid")?,
            mtime: match extension.mtime {
                Some(mtime) => mtime,
                // A negative base-256 field comes as its two's complement.
                None => (number(header.mtime(), &old.mtime, "mtime")?.cast_signed(), 0),
            },
            xattrs: extension.xattrs,
            path,
            link,
        })
    }

    /// Gives the body to `sink` piece by piece, as it lies in the reader's buffer.
    pub(in crate::images) fn body<E: From<UnpackError>>(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.body > 0 {
            let chunk = self.reader.fill_buf().map_err(|error| E::from(UnpackError::Input(error)))?;
            if chunk.is_empty() {
                return Err(E::from(truncated()));
            }
            let take = chunk.len().min(usize::try_from(self.body).unwrap_or(usize::MAX));
            sink(&chunk[..take])?;
            self.reader.consume(take);
            self.body -= take as u64;
        }
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut zero_blocks = 0;
        loop {
            let mut header = Header::new_old();
            let block = header.as_mut_bytes();
            let got = self.fill(block)?;
            if got == 0 {
                return Ok(None); // an archive without its end marker, as GNU tar accepts
            }
            if got < BLOCK {
                return Err(truncated());
            }
            if block.iter().all(|b| *b == 0) {
                zero_blocks += 1;
                if zero_blocks == 2 {
                    return Ok(None);
                }
                continue;
            }
            let sum: u32 =
                block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
            return match header.cksum() {
                Ok(stored) if stored == sum => Ok(Some(header)),
                _ => Err(UnpackError::Corrupt("it is not a tar archive (header checksum)".to_owned())),
            };
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let chunk = self.reader.fill_buf().map_err(UnpackError::Input)?;
            if chunk.is_empty() {
                break;
            }
            let take = chunk.len().min(buffer.len() - filled);
            buffer[filled..filled + take].copy_from_slice(&chunk[..take]);
            self.reader.consume(take);
            filled += take;
        }
        Ok(filled)
    }

    fn extension_data(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > MAX_EXTENSION {
            return Err(UnpackError::TooLarge {
                what: "a name or attribute of an entry",
                limit: MAX_EXTENSION,
            });
        }
        let mut data = vec![0; usize::try_from(size).map_err(|_| truncated())?];
        if self.fill(&mut data)? < data.len() {
            return Err(truncated());
        }
        self.skip(size.next_multiple_of(BLOCK as u64) - size)?;
        Ok(data)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), UnpackError> {
        while bytes > 0 {
            let chunk = self.reader.fill_buf().map_err(UnpackError::Input)?;
            if chunk.is_empty() {
                return Err(truncated());
            }
            let take = chunk.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.reader.consume(take);
            bytes -= take as u64;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), UnpackError> {
        loop {
            let chunk = self.reader.fill_buf().map_err(UnpackError::Input)?.len();
            if chunk == 0 {
                return Ok(());
            }
            self.reader.consume(chunk);
        }
    }
}

fn truncated() -> UnpackError {
    UnpackError::Corrupt("the archive ends in the middle of an entry".to_owned())
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

/// A numeric field; blank means 0, as other readers have it.
fn number(parsed: std::io::Result<u64>, raw: &[u8], what: &str) -> Result<u64, UnpackError> {
    match parsed {
        Ok(value) => Ok(value),
        Err(_) if raw.iter().all(|b| matches!(b, 0 | b' ')) => Ok(0),
        Err(_) => Err(UnpackError::Corrupt(format!("an entry has an unreadable {what}"))),
    }
}

/// POSIX pax: records of `<length> <key>=<value>\n`, the length counting all of it; values may be binary.
fn parse_pax(mut data: &[u8], into: &mut Extension) -> Result<(), UnpackError> {
    let bad = || UnpackError::Corrupt("an entry has malformed pax records".to_owned());
    while !data.is_empty() && data[0] != 0 {
        let space = data.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let length: usize =
            std::str::from_utf8(&data[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?;
        if length > data.len() || length < space + 3 || data[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let text = || std::str::from_utf8(value).ok();
        let parsed = || text().and_then(|text| text.parse::<u64>().ok()).ok_or_else(bad);
        match key {
            b"path" if value.contains(&0) => return Err(bad()),
            b"linkpath" if value.contains(&0) => return Err(bad()),
            b"path" => into.path = Some(value.to_vec()),
            b"linkpath" => into.link = Some(value.to_vec()),
            b"size" => into.size = Some(parsed()?),
            b"uid" => into.uid = Some(parsed()?),
            b"gid" => into.gid = Some(parsed()?),
            b"mtime" => into.mtime = Some(text().and_then(parse_time).ok_or_else(bad)?),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(UnpackError::Unsupported("a sparse file (GNU.sparse records)".to_owned()));
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    into.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        data = &data[length..];
    }
    Ok(())
}

/// `123`, `123.456`, `-1.5` as seconds and nanoseconds (nanoseconds count upwards, also before 1970).
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_values_may_be_binary_and_contain_newlines() {
        let value = b"\x01\n\x00=\n";
        let mut record = b" SCHILY.xattr.security.capability=".to_vec();
        record.extend_from_slice(value);
        record.push(b'\n');
        let length = record.len() + 2;
        let data = [length.to_string().as_bytes(), &record].concat();
        let mut extension = Extension::default();
        parse_pax(&data, &mut extension).expect("valid");
        assert_eq!(extension.xattrs, [(b"security.capability".to_vec(), value.to_vec())]);
    }

    #[test]
    fn malformed_pax_records_are_refused() {
        for bad in ["x", "5 a=b", "99 a=b\n", "3 \n", "0 a=b\n", "6 ab\n\n", "9 uid=-1\n"] {
            assert!(parse_pax(bad.as_bytes(), &mut Extension::default()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_nanoseconds_and_may_be_negative() {
        for (text, expect) in [
            ("12", (12, 0)),
            ("12.5", (12, 500_000_000)),
            ("-1.25", (-2, 750_000_000)),
            ("0.0000000019", (0, 1)),
        ] {
            assert_eq!(parse_time(text), Some(expect), "{text}");
        }
        assert_eq!(parse_time("x"), None);
    }
}

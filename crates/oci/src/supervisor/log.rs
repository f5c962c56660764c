//! A container's log file: opened without following links, written without ever blocking or failing the container.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, open, openat};
use rustix::io::Errno;

use super::clock::wall_nanos;
use super::frame::OutputStream;
use super::lines::{LineSplitter, write_entry, write_loss_note};
use super::protocol::LogFile;

/// Entries are written to the file in batches of about this size.
const BATCH: usize = 16 << 10;

/// The log of one container. Once the disk is full, entries are counted instead of written, and a note says how many.
#[derive(Debug)]
pub(super) struct LogWriter {
    location: LogFile,
    file: OwnedFd,
    /// The rest of an entry of which the file has the beginning.
    torn: Vec<u8>,
    lost: u64,
    cause: Errno,
}

impl LogWriter {
    pub(super) fn open(location: LogFile) -> io::Result<Self> {
        let file = open_file(&location)?;
        Ok(Self { location, file, torn: Vec::new(), lost: 0, cause: Errno::NOSPC })
    }

    /// Opens the path again; the old file stays in use if that goes wrong.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = open_file(&self.location)?;
        // The beginning is in the old file, and half an entry would spoil the new one.
        self.torn.clear();
        Ok(())
    }

    /// Writes the entries that `data` completes.
    pub(super) fn append(&mut self, stream: OutputStream, splitter: &mut LineSplitter, data: &[u8]) {
        let nanos = wall_nanos();
        let mut batch = Vec::new();
        splitter.push(data, |tag, content| {
            write_entry(&mut batch, nanos, stream, tag, content);
            if batch.len() > BATCH {
                self.write(&batch);
                batch.clear();
            }
        });
        self.write(&batch);
    }

    /// Writes what is left of a stream at its end.
    pub(super) fn finish(&mut self, stream: OutputStream, splitter: &mut LineSplitter) {
        let mut batch = Vec::new();
        splitter.finish(|tag, content| write_entry(&mut batch, wall_nanos(), stream, tag, content));
        self.write(&batch);
    }

    /// `entries` are whole lines.
    fn write(&mut self, entries: &[u8]) {
        let behind = self.lost > 0 || !self.torn.is_empty();
        if behind && self.recover().is_err() {
            self.lost += count_lines(entries);
            return;
        }
        if let Err((written, cause)) = write_all(&self.file, entries) {
            self.tear(&entries[written..], written > 0 && entries[written - 1] != b'\n', cause);
        }
    }

    /// Completes a torn entry and says what was lost.
    fn recover(&mut self) -> Result<(), Errno> {
        if let Err((written, cause)) = write_all(&self.file, &self.torn) {
            self.torn.drain(..written);
            return Err(cause);
        }
        self.torn = Vec::new();
        if self.lost > 0 {
            let mut note = Vec::new();
            write_loss_note(&mut note, wall_nanos(), self.lost, &io::Error::from(self.cause).to_string());
            if let Err((written, cause)) = write_all(&self.file, &note) {
                if written > 0 {
                    self.lost = 0;
                    self.torn = note.split_off(written);
                }
                return Err(cause);
            }
            self.lost = 0;
        }
        Ok(())
    }

    /// Counts what could not be written; keeps the rest of an entry that was begun.
    fn tear(&mut self, mut rest: &[u8], begun: bool, cause: Errno) {
        self.cause = cause;
        if begun {
            let end = rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |newline| newline + 1);
            self.torn = rest[..end].to_vec();
            rest = &rest[end..];
        }
        self.lost += count_lines(rest);
    }
}

fn count_lines(entries: &[u8]) -> u64 {
    entries.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// Writes everything, or says how much was written before it went wrong.
fn write_all(file: &OwnedFd, bytes: &[u8]) -> Result<(), (usize, Errno)> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(file, &bytes[written..]) {
            Ok(0) => return Err((written, Errno::NOSPC)),
            Ok(length) => written += length,
            Err(Errno::INTR) => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Opens or creates the file. The pod's directory is trusted as the kubelet names it (`/var/log` is a link on some
/// machines); below it a pod with a hostPath volume may have put links, so none is followed (CVE-2026-53489 and its like).
fn open_file(location: &LogFile) -> io::Result<OwnedFd> {
    let names: Option<Vec<&Path>> = location
        .path
        .components()
        .map(|component| match component {
            Component::Normal(name) => Some(Path::new(name)),
            Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
        })
        .collect();
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "log path is not a plain relative path");
    let names = names.ok_or_else(invalid)?;
    let (name, directories) = names.split_last().ok_or_else(invalid)?;

    let mut directory = open_pod_directory(&location.directory)?;
    for below in directories {
        directory = open_directory(&directory, below)?;
    }
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = openat(&directory, *name, flags, Mode::from_raw_mode(0o640))?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "log file is not a regular file")),
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_pod_directory(path: &Path) -> io::Result<OwnedFd> {
    match open(path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => {
            match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(open(path, DIRECTORY, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}

fn open_directory(parent: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn directories_below_the_pods_are_made_and_the_file_is_0640() {
        let dir = tempfile::tempdir().unwrap();
        let location = LogFile { directory: dir.path().join("pod"), path: "web/0.log".into() };
        let mut log = LogWriter::open(location).unwrap();
        let mut splitter = LineSplitter::default();
        log.append(OutputStream::Stdout, &mut splitter, b"hello\nhalf");
        log.finish(OutputStream::Stdout, &mut splitter);
        let text = std::fs::read_to_string(dir.path().join("pod/web/0.log")).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| &line[31..]).collect();
        assert_eq!(lines, ["stdout F hello", "stdout P half"]);
        assert_eq!(std::fs::metadata(dir.path().join("pod/web/0.log")).unwrap().mode() & 0o777, 0o640);
    }

    /// Aqua's KHV047: a pod that can write to its log directory.
    #[test]
    fn khv047_links_fifos_and_paths_upward_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path().join("stolen"), dir.path().join("link.log")).unwrap();
        symlink(elsewhere.path(), dir.path().join("linkdir")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo.log"), FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        for path in ["link.log", "linkdir/0.log", "fifo.log", "../0.log", "/0.log", "a/../../0.log", "", "."]
        {
            let location = LogFile { directory: dir.path().to_owned(), path: path.into() };
            assert!(LogWriter::open(location).is_err(), "{path}");
        }
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_rotated_file_is_left_and_a_new_one_begun() {
        let dir = tempfile::tempdir().unwrap();
        let location = LogFile { directory: dir.path().to_owned(), path: "0.log".into() };
        let mut log = LogWriter::open(location).unwrap();
        let mut splitter = LineSplitter::default();
        log.append(OutputStream::Stdout, &mut splitter, b"old\n");
        std::fs::rename(dir.path().join("0.log"), dir.path().join("0.log.1")).unwrap();
        log.reopen().unwrap();
        log.append(OutputStream::Stdout, &mut splitter, b"new\n");
        assert!(std::fs::read_to_string(dir.path().join("0.log")).unwrap().ends_with(" stdout F new\n"));
        assert!(std::fs::read_to_string(dir.path().join("0.log.1")).unwrap().ends_with(" stdout F old\n"));
    }

    #[test]
    fn a_full_disk_loses_entries_by_number_and_tears_none() {
        let dir = tempfile::tempdir().unwrap();
        let location = LogFile { directory: dir.path().to_owned(), path: "0.log".into() };
        let mut log = LogWriter::open(location).unwrap();
        let good =
            std::mem::replace(&mut log.file, open("/dev/full", OFlags::WRONLY, Mode::empty()).unwrap());
        let mut splitter = LineSplitter::default();
        log.append(OutputStream::Stdout, &mut splitter, b"a\nb\nc\n");
        // As if the disk had become full inside the entry "b".
        log.tear(b"alf\nlost\n", true, Errno::NOSPC);
        log.append(OutputStream::Stdout, &mut splitter, b"d\n");
        log.file = good;
        log.append(OutputStream::Stdout, &mut splitter, b"e\n");
        let text = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| line.get(31..).unwrap_or(line)).collect();
        assert_eq!(
            lines,
            [
                "alf",
                "stderr F podwright: 5 log entries lost: No space left on device (os error 28)",
                "stdout F e"
            ]
        );
    }
}

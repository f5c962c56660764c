//! The file of a log, read piece by piece, over rotations. No link is followed: a pod that sees the host's directories may have put
//! some there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use hyper::body::Bytes;
use rustix::fs::{FileType, Mode, OFlags};

use super::super::pieces::{self, blocking};
use super::tail;

/// See the module.
pub(super) struct LogFile {
    directory: Arc<OwnedFd>,
    name: String,
    file: Arc<File>,
    offset: u64,
}

impl LogFile {
    /// Opens the log at a path below `root`, at its last `lines` lines.
    pub(super) async fn open(root: &Path, path: &Path, lines: Option<usize>) -> io::Result<Self> {
        let (root, path) = (root.to_owned(), path.to_owned());
        blocking(move || {
            let wrong = || {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the runtime's path of the log is not below the directory of logs",
                )
            };
            let below = path.strip_prefix(&root).map_err(|_| wrong())?;
            let (parent, name) =
                below.parent().zip(below.file_name().and_then(|name| name.to_str())).ok_or_else(wrong)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(&root, flags, Mode::empty())?;
            let directory = host::path::open_strict(&root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let file = open_at(&directory, name)?;
            let offset = match lines {
                None => 0,
                Some(lines) => tail::begin(&file, file.metadata()?.len(), lines)?,
            };
            Ok(Self { directory: Arc::new(directory), name: name.to_owned(), file: Arc::new(file), offset })
        })
        .await
    }

    /// The directory in which rotations happen.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// How long the file is now.
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The next piece before `end`; empty where there is none.
    pub(super) async fn read(&mut self, end: u64) -> io::Result<Bytes> {
        let piece = pieces::read(&self.file, self.offset, end).await?;
        self.offset += u64::try_from(piece.len()).unwrap_or(0);
        Ok(piece)
    }

    /// Goes on with what has the log's name now, if that is another file: to be called when everything of this one was read after
    /// the other appeared.
    pub(super) fn successor(&self) -> io::Result<Option<Self>> {
        let file = match open_at(&self.directory, &self.name) {
            // Between the two steps of a rotation.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let (known, found) = (self.file.metadata()?, file.metadata()?);
        if (known.dev(), known.ino()) == (found.dev(), found.ino()) {
            return Ok(None);
        }
        let directory = Arc::clone(&self.directory);
        Ok(Some(Self { directory, name: self.name.clone(), file: Arc::new(file), offset: 0 }))
    }
}

fn open_at(directory: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?);
    match host::path::file_type(&file)? {
        FileType::RegularFile => Ok(file),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the log is not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rotated_log_is_read_to_its_end_then_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod/c/0.log");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "old").unwrap();
        let mut log = LogFile::open(directory.path(), &path, None).await.unwrap();
        assert!(log.successor().unwrap().is_none());
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        assert!(log.successor().unwrap().is_none());
        std::fs::write(&path, "new").unwrap();
        assert_eq!(log.read(u64::MAX).await.unwrap(), "old");
        let mut next = log.successor().unwrap().unwrap();
        assert_eq!(next.read(2).await.unwrap(), "ne");
        assert_eq!(next.read(u64::MAX).await.unwrap(), "w");
    }

    #[tokio::test]
    async fn no_link_is_followed_and_nothing_read_outside() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("pods");
        std::fs::create_dir_all(root.join("pod")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("pod/0.log")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("etc")).unwrap();
        for path in [root.join("pod/0.log"), root.join("etc/passwd"), root.join("../x"), "/etc/passwd".into()]
        {
            assert!(LogFile::open(&root, &path, None).await.is_err(), "{}", path.display());
        }
    }
}

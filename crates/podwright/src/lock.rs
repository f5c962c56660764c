//! One agent per state directory and per root: flock on `agent.lock`, held as long as the process lives, gone with `kill -9`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::node::Node;

/// Why a node's files could not be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Somebody else has them.
    #[error("another podwright{} uses {}; stop it, or give this one its own --root and --state",
            holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), dir.display())]
    Held {
        /// The directory in use.
        dir: PathBuf,
        /// Who holds it, if the file says so.
        holder: Option<u32>,
    },
    /// The lock file cannot be made.
    #[error("lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The right to change a node's root and state.
#[derive(Debug)]
pub(crate) struct NodeLock {
    _root: File,
    _state: File,
}

impl NodeLock {
    /// Takes both, creating the directories (0711, as containers look through them) where they are missing.
    pub(crate) fn take(node: &Node) -> Result<Self, LockError> {
        Ok(Self { _state: take(&node.state)?, _root: take(&node.root)? })
    }
}

fn take(dir: &Path) -> Result<File, LockError> {
    let path = dir.join("agent.lock");
    let fail = |source| LockError::Io { path: path.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(fail)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            return Err(LockError::Held { dir: dir.to_owned(), holder: text.trim().parse().ok() });
        }
        Err(errno) => return Err(fail(errno.into())),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(fail)?;
    writeln!(file, "{}", std::process::id()).map_err(fail)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_pid_until_it_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).expect("free");
        let message = take(dir.path()).expect_err("held").to_string();
        assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
        drop(first);
        take(dir.path()).expect("free again");
    }
}

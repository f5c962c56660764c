//! One agent per state directory and per root: flock on `agent.lock`, held as long as the process lives, gone with `kill -9`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use host::process::ProcessId;
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

/// An agent that was killed while it made a supervisor leaves the lock to that child until it executes its program.
const WAIT: Duration = Duration::from_millis(10);
/// So often that is awaited.
const WAITS: u32 = 200;

/// The right to change a node's root and state.
#[derive(Debug)]
pub(crate) struct NodeLock {
    _root: File,
    _state: File,
}

impl NodeLock {
    /// Takes both, creating the directories (0700: nobody else has any business there) where they are missing.
    pub(crate) fn take(node: &Node) -> Result<Self, LockError> {
        Ok(Self { _state: take(&node.state)?, _root: take(&node.root)? })
    }
}

fn take(dir: &Path) -> Result<File, LockError> {
    let path = dir.join("agent.lock");
    let fail = |source| LockError::Io { path: path.clone(), source };
    std::fs::create_dir_all(dir.parent().unwrap_or(dir)).map_err(fail)?;
    host::path::make_directory(dir, 0o700).map_err(fail)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    for _ in 0..WAITS {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return sign(file).map_err(fail),
            Err(rustix::io::Errno::WOULDBLOCK) if holder(&mut file).is_some_and(is_gone) => {
                std::thread::sleep(WAIT);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => break,
            Err(errno) => return Err(fail(errno.into())),
        }
    }
    Err(LockError::Held { dir: dir.to_owned(), holder: holder(&mut file) })
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
    text.trim().parse().ok()
}

fn is_gone(pid: u32) -> bool {
    !i32::try_from(pid).is_ok_and(|pid| ProcessId::of(pid).is_ok_and(|process| process.is_alive()))
}

/// Tells the next one who has the lock.
fn sign(mut file: File) -> std::io::Result<File> {
    file.set_len(0).and_then(|()| file.rewind())?;
    writeln!(file, "{}", std::process::id())?;
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

    #[test]
    fn a_lock_that_outlives_its_killed_holder_for_a_moment_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).expect("free");
        // No pid is that large (pid_max is 4194304 at most).
        std::fs::write(dir.path().join("agent.lock"), "4194305\n").unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(WAIT * 5);
            drop(first);
        });
        take(dir.path()).expect("free once the child has gone on");
        child.join().expect("it only sleeps");
    }
}

//! Tells of changes in directories of logs: one inotify instance for everyone who follows a log, however many there are.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::watch;

/// Events read at once.
const BUFFER: usize = 16 << 10;

/// See the module.
#[derive(Default)]
pub(in crate::server) struct Watcher(Arc<Mutex<Option<Shared>>>);

struct Shared {
    watches: Watches,
    /// By the watch's number.
    followed: BTreeMap<i32, Followed>,
}

struct Followed {
    descriptor: WatchDescriptor,
    changes: watch::Sender<()>,
}

impl Followed {
    fn tell(&self) {
        self.changes.send_replace(());
    }
}

/// Changes of one directory, as long as it is held.
pub(super) struct Changes {
    number: i32,
    receiver: watch::Receiver<()>,
    shared: Arc<Mutex<Option<Shared>>>,
}

impl Changes {
    /// What has changed so far is known.
    pub(super) fn mark_seen(&mut self) {
        self.receiver.mark_unchanged();
    }

    /// Waits until something changes that was not known.
    pub(super) async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            // Nothing is told any more: whoever waits is woken by something else.
            std::future::pending::<()>().await;
        }
    }
}

impl Watcher {
    /// Follows a directory. In a tokio runtime.
    pub(super) fn follow(&self, directory: &OwnedFd) -> io::Result<Changes> {
        let mut guard = lock(&self.0);
        if guard.is_none() {
            *guard = Some(begin(&self.0)?);
        }
        let Some(shared) = guard.as_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM;
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let descriptor = shared.watches.add(path, mask | WatchMask::ONLYDIR)?;
        let number = descriptor.get_watch_descriptor_id();
        let followed = shared
            .followed
            .entry(number)
            .or_insert_with(|| Followed { descriptor, changes: watch::channel(()).0 });
        Ok(Changes { number, receiver: followed.changes.subscribe(), shared: Arc::clone(&self.0) })
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let mut guard = lock(&self.shared);
        let Some(shared) = guard.as_mut() else { return };
        let is_last = |followed: &Followed| followed.changes.receiver_count() == 1;
        if shared.followed.get(&self.number).is_some_and(is_last)
            && let Some(followed) = shared.followed.remove(&self.number)
        {
            // The directory may be gone, and the watch with it.
            let _ = shared.watches.remove(followed.descriptor);
        }
    }
}

/// Begins to read; the task ends with the watcher.
fn begin(all: &Arc<Mutex<Option<Shared>>>) -> io::Result<Shared> {
    let inotify = Inotify::init()?;
    let watches = inotify.watches();
    let mut events = inotify.into_event_stream(vec![0; BUFFER])?;
    let all = Arc::downgrade(all);
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let Some(all) = all.upgrade() else { return };
            let mut guard = lock(&all);
            let Some(shared) = guard.as_mut() else { return };
            match event {
                Ok(event) if event.mask.contains(EventMask::Q_OVERFLOW) => {
                    shared.followed.values().for_each(Followed::tell);
                }
                Ok(event) => {
                    let number = event.wd.get_watch_descriptor_id();
                    if let Some(followed) = shared.followed.get(&number) {
                        followed.tell();
                    }
                    if event.mask.contains(EventMask::IGNORED) {
                        shared.followed.remove(&number);
                    }
                }
                Err(error) => tracing::warn!(%error, "changes of logs are not told"),
            }
        }
    });
    Ok(Shared { watches, followed: BTreeMap::new() })
}

fn lock(all: &Mutex<Option<Shared>>) -> MutexGuard<'_, Option<Shared>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[tokio::test]
    async fn everyone_who_follows_a_directory_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            rustix::fs::open(directory.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let watcher = Watcher::default();
        let mut many: Vec<Changes> = (0..200).map(|_| watcher.follow(&open).unwrap()).collect();
        many.iter_mut().for_each(Changes::mark_seen);
        std::fs::write(directory.path().join("0.log"), "x").unwrap();
        for changes in &mut many {
            changes.changed().await;
        }
        many.truncate(1);
        std::fs::write(directory.path().join("0.log"), "y").unwrap();
        many[0].changed().await;
        drop(many);
        assert!(lock(&watcher.0).as_ref().is_some_and(|shared| shared.followed.is_empty()));
    }
}

//! Reads paths, once or again and again: inotify says which files changed, a short quiet lets a burst of events end.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::watch;

use crate::files::{Changed, Files};
use crate::objects::Loaded;
use crate::ways::{Directory, Ways};

/// After this long without an event a burst is over.
const QUIET: Duration = Duration::from_millis(20);
/// A burst that does not end is read in between.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why manifests cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A path does not exist, or cannot be looked at.
    #[error("read manifests at {}", path.display())]
    Path {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel gives no inotify instance.
    #[error("watch manifests")]
    Inotify(#[source] std::io::Error),
}

/// Reads files and directories (their `.yaml`, `.yml` and `.json` files) once. Blocking.
#[must_use]
pub fn load(paths: &[PathBuf]) -> Loaded {
    let mut files = Files::default();
    files.refresh(paths, &Changed::All, &now());
    files.loaded()
}

/// Reads `paths` and follows their changes in a task of the current tokio runtime. The receiver holds the first outcome
/// at once; the task ends when every receiver is gone.
///
/// # Errors
/// When a path does not exist, or inotify is not to be had.
pub fn watch(paths: Vec<PathBuf>) -> Result<watch::Receiver<Arc<Loaded>>, WatchError> {
    let mut absolute = Vec::new();
    for path in paths {
        let fail = |source| WatchError::Path { path: path.clone(), source };
        std::fs::metadata(&path).map_err(fail)?;
        absolute.push(std::path::absolute(&path).map_err(fail)?);
    }
    let inotify = Inotify::init().map_err(WatchError::Inotify)?;
    let mut watched = Watched::new(absolute, inotify)?;
    let mut files = Files::default();
    // Watched first, then read: no change falls between.
    files.refresh(&watched.paths, &Changed::All, &now());
    let (sender, receiver) = watch::channel(Arc::new(files.loaded()));
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                changed = watched.changed() => changed,
                () = sender.closed() => return,
            };
            let Some(changed) = changed else { return };
            watched.follow();
            let paths = watched.paths.clone();
            let work = tokio::task::spawn_blocking(move || {
                files.refresh(&paths, &changed, &now());
                files
            });
            let Ok(read) = work.await else { return };
            files = read;
            let loaded = Arc::new(files.loaded());
            sender.send_if_modified(|known| {
                let differs = **known != *loaded;
                *known = Arc::clone(&loaded);
                differs
            });
        }
    });
    Ok(receiver)
}

#[expect(clippy::disallowed_methods, reason = "the shell that says when an object was first seen")]
fn now() -> Time {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or_default();
    Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap_or_default())
}

/// The paths, and the directories whose events tell of their changes.
struct Watched {
    paths: Vec<PathBuf>,
    events: EventStream<Vec<u8>>,
    ways: Ways,
    directories: Vec<(WatchDescriptor, PathBuf)>,
}

/// What tells that an entry of a directory, or the directory itself, is another one now.
const ENTRIES: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);
/// What tells of manifests, too.
const CONTENTS: WatchMask = ENTRIES.union(WatchMask::CLOSE_WRITE).union(WatchMask::ATTRIB);

impl Watched {
    fn new(paths: Vec<PathBuf>, inotify: Inotify) -> Result<Self, WatchError> {
        let events = inotify.into_event_stream(vec![0; 16 << 10]).map_err(WatchError::Inotify)?;
        let mut watched = Self { paths, events, ways: Ways::default(), directories: Vec::new() };
        watched.follow();
        Ok(watched)
    }

    /// Watches what there is to watch now. A way that turned while it was watched is gone again.
    fn follow(&mut self) {
        let mut ways = Ways::of(&self.paths);
        for _ in 0..10 {
            self.ways = ways;
            self.add_watches();
            ways = Ways::of(&self.paths);
            if ways == self.ways {
                return;
            }
        }
    }

    fn add_watches(&mut self) {
        let mut watches = self.events.watches();
        let mut now: Vec<(WatchDescriptor, PathBuf)> = Vec::new();
        for (path, directory) in &self.ways.0 {
            let mut mask = if directory.holds_manifests() { CONTENTS } else { ENTRIES };
            let added = watches.add(path, mask).and_then(|descriptor| {
                // Mounted in two places: one watch for both.
                if now.iter().any(|(known, _)| *known == descriptor) {
                    mask = CONTENTS;
                    return watches.add(path, mask);
                }
                Ok(descriptor)
            });
            match added {
                Ok(descriptor) => now.push((descriptor, path.clone())),
                // It went just now, and is looked for again.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(directory = %path.display(), %error, "changes of manifests here are not seen");
                }
            }
        }
        let before = std::mem::replace(&mut self.directories, now);
        for (descriptor, _) in before {
            if !self.directories.iter().any(|(known, _)| *known == descriptor) {
                // The kernel has dropped it with its directory.
                let _ = watches.remove(descriptor);
            }
        }
    }

    /// Waits for a change and for the quiet after it. None when there will be no events any more.
    async fn changed(&mut self) -> Option<Changed> {
        let mut changed = self.event().await?;
        let end = tokio::time::sleep(PATIENCE);
        tokio::pin!(end);
        loop {
            tokio::select! {
                more = self.event() => changed = join(changed, more?),
                () = tokio::time::sleep(QUIET) => break,
                () = &mut end => break,
            }
        }
        Some(changed)
    }

    /// The next event that concerns manifests.
    async fn event(&mut self) -> Option<Changed> {
        loop {
            let event = match self.events.next().await? {
                Ok(event) => event,
                Err(error) => {
                    tracing::error!(%error, "manifests are not watched any more");
                    return None;
                }
            };
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return Some(Changed::All);
            }
            let directories = self.directories.iter().filter(|(known, _)| *known == event.wd);
            let changes = directories.filter_map(|(_, path)| {
                let directory = self.ways.0.get(path)?;
                concerns(path, directory, event.name.as_deref(), event.mask)
            });
            if let Some(changed) = changes.reduce(join) {
                return Some(changed);
            }
        }
    }
}

fn concerns(path: &Path, directory: &Directory, name: Option<&OsStr>, mask: EventMask) -> Option<Changed> {
    let Some(name) = name else {
        let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT;
        return mask.intersects(gone).then_some(Changed::All);
    };
    let another = EventMask::CREATE | EventMask::DELETE | EventMask::MOVED_FROM | EventMask::MOVED_TO;
    if directory.is_passed(name) && mask.intersects(another) {
        return Some(Changed::All);
    }
    let manifests = directory.manifests(name);
    if manifests.is_empty() {
        return None;
    }
    let entry = std::fs::symlink_metadata(path.join(name));
    if mask.contains(EventMask::ISDIR) || entry.as_ref().is_ok_and(std::fs::Metadata::is_symlink) {
        return Some(Changed::All);
    }
    // A file that was only just made is read when it is closed.
    let unfinished =
        mask.contains(EventMask::CREATE) && entry.is_ok_and(|made| made.is_file() && made.nlink() < 2);
    (!unfinished).then_some(Changed::These(manifests))
}

fn join(one: Changed, other: Changed) -> Changed {
    match (one, other) {
        (Changed::These(mut one), Changed::These(other)) => {
            one.extend(other);
            Changed::These(one)
        }
        (Changed::All, _) | (_, Changed::All) => Changed::All,
    }
}

//! Reads paths, once or again and again: inotify says which files changed, a short quiet lets a burst of events end.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::watch;

use crate::files::{Changed, Files, is_manifest};
use crate::objects::Loaded;

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
    directories: Vec<(WatchDescriptor, PathBuf)>,
}

impl Watched {
    fn new(paths: Vec<PathBuf>, inotify: Inotify) -> Result<Self, WatchError> {
        let events = inotify.into_event_stream(vec![0; 16 << 10]).map_err(WatchError::Inotify)?;
        let mut watched = Self { paths, events, directories: Vec::new() };
        watched.follow();
        Ok(watched)
    }

    /// Watches what there is to watch now. A directory that is not there is heard of by its parent.
    fn follow(&mut self) {
        let mut wanted = BTreeSet::new();
        for path in &self.paths {
            if path.is_dir() {
                wanted.insert(path.clone());
            }
            // A file is watched by its directory: editors replace it. A link's target may change, too.
            wanted.extend(path.parent().map(Path::to_owned));
            if path.is_symlink()
                && let Ok(target) = std::fs::canonicalize(path)
            {
                wanted.extend(target.parent().map(Path::to_owned));
            }
        }
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        let mut watches = self.events.watches();
        self.directories = wanted
            .into_iter()
            .filter_map(|directory| match watches.add(&directory, mask) {
                Ok(descriptor) => Some((descriptor, directory)),
                Err(error) => {
                    tracing::warn!(directory = %directory.display(), %error, "changes of manifests here are not seen");
                    None
                }
            })
            .collect();
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
            let directory =
                self.directories.iter().find(|(known, _)| *known == event.wd).map(|(_, path)| path);
            let name = event.name.as_deref().map(Path::new);
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return Some(Changed::All);
            }
            if let Some(changed) = directory.and_then(|directory| self.concerns(directory, name, event.mask))
            {
                return Some(changed);
            }
        }
    }

    fn concerns(&self, directory: &Path, name: Option<&Path>, mask: EventMask) -> Option<Changed> {
        let given = self.paths.iter().any(|path| path == directory);
        let Some(name) = name else {
            let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF;
            return mask.intersects(gone).then_some(Changed::All);
        };
        let path = directory.join(name);
        // A mounted ConfigMap changes by this link; a given directory may come back; a link's target is not ours by name.
        let is_target = !given && !self.paths.iter().any(|path| path.parent() == Some(directory));
        if name == Path::new("..data") || is_target || (path.is_dir() && self.paths.contains(&path)) {
            return Some(Changed::All);
        }
        if self.paths.contains(&path) && (mask.contains(EventMask::ISDIR) || path.is_symlink()) {
            return Some(Changed::All);
        }
        // A file that was only just made is read when it is closed.
        let unfinished = mask.contains(EventMask::CREATE)
            && std::fs::symlink_metadata(&path).is_ok_and(|made| made.is_file() && made.nlink() < 2);
        let ours = self.paths.contains(&path) || (given && is_manifest(name));
        (ours && !unfinished).then(|| Changed::These(BTreeSet::from([path])))
    }
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

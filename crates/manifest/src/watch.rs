//! Reads paths, once or again and again.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::objects::Loaded;

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
    let _ = paths;
    Loaded::default()
}

/// Reads `paths` and follows their changes in a task of the current tokio runtime. The receiver holds the first outcome
/// at once; the task ends when every receiver is gone.
///
/// # Errors
/// When a path does not exist, or inotify is not to be had.
pub fn watch(paths: Vec<PathBuf>) -> Result<watch::Receiver<Arc<Loaded>>, WatchError> {
    let (_, receiver) = watch::channel(Arc::new(load(&paths)));
    Ok(receiver)
}

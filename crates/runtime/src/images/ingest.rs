//! Where the content of one image comes in: a directory that goes with the last who writes there, and blobs of layers that stay when
//! a download ends early, so that the next one continues them.
//!
//! ```text
//! <root>/ingest/new-…/          trees and documents of one pull or import
//! <root>/ingest/partial/<hex>   the beginning of a blob; whose turn it is writes to it
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{IFlags, Mode, OFlags};
use tokio::sync::OwnedMutexGuard;

use super::ImageError;
use super::layout::{Descriptor, Manifest};
use super::reference::is_digest;
use super::remove::{Sweep, remove_path};
use super::store::Inner;

/// Nobody comes back for an older one.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// See the module.
pub(super) struct Ingest {
    directory: Sweep,
    partial: PathBuf,
    /// While these are held nobody else writes to the same partial blobs.
    _turns: Vec<OwnedMutexGuard<()>>,
}

impl Ingest {
    /// Waits until nobody else downloads a layer of `manifest` that is still missing.
    pub(super) async fn begin(inner: &Inner, manifest: &Manifest) -> Result<Self, ImageError> {
        let missing =
            manifest.layers.iter().map(|layer| &layer.digest).filter(|digest| !inner.has_blob(digest));
        let mut missing: Vec<&String> = missing.collect();
        // Everyone takes turns in one order: nobody waits in a circle.
        missing.sort();
        missing.dedup();
        let mut turns = Vec::with_capacity(missing.len());
        for digest in missing {
            turns.push(inner.turn(&format!("layer {digest}")).await);
        }
        let ingest = inner.root.join("ingest");
        Ok(Self { directory: Sweep::create(&ingest)?, partial: ingest.join("partial"), _turns: turns })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where the blob of a layer from a registry is written, and how much of it is there.
    pub(super) fn partial(&self, layer: &Descriptor) -> Result<(PathBuf, u64), ImageError> {
        let path = self.partial.join(layer.hex());
        match fs::metadata(&path) {
            Ok(meta) if meta.len() <= layer.size => Ok((path, meta.len())),
            Ok(_) => forget(&path).map(|()| (path, 0)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((path, 0)),
            Err(error) => Err(ImageError::io("look at", path, error)),
        }
    }
}

/// Lets ext4 place each tree that comes in where there is room. Else it lies beside the trees that were deleted a moment ago, whose
/// inodes ext4 does not use again for some minutes, and walks over with each file that it makes. Other file systems refuse, or do not mind.
pub(super) fn spread(ingest: &Path) {
    let set = || -> rustix::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(ingest, flags, Mode::empty())?;
        let own = rustix::fs::ioctl_getflags(&directory)?;
        rustix::fs::ioctl_setflags(&directory, own | IFlags::TOPDIR)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "the file system places new layers as it likes");
    }
}

/// Deletes a blob that came in, or a part of one.
pub(super) fn forget(path: &Path) -> Result<(), ImageError> {
    remove_path(path).map_err(|error| ImageError::io("delete", path, error))
}

/// What an agent that was killed left behind: beginnings of blobs are kept for a day, the rest is deleted.
pub(super) fn sweep(ingest: &Path) -> Result<(), ImageError> {
    for path in entries(ingest)? {
        if path.file_name().is_some_and(|name| name == "partial") {
            for blob in entries(&path)? {
                if !is_worth_keeping(&blob) {
                    forget(&blob)?;
                }
            }
        } else {
            forget(&path)?;
        }
    }
    Ok(())
}

fn is_worth_keeping(blob: &Path) -> bool {
    let named = blob.file_name().and_then(|name| name.to_str());
    let modified =
        blob.symlink_metadata().ok().filter(fs::Metadata::is_file).and_then(|meta| meta.modified().ok());
    // A time in the future is one of a clock that was set back.
    let age = modified.map(|time| time.elapsed().unwrap_or_default());
    named.is_some_and(|hex| is_digest(&format!("sha256:{hex}"))) && age.is_some_and(|age| age < KEPT)
}

/// Deletes the beginnings of blobs that nobody is downloading.
pub(super) fn collect(ingest: &Path, is_used: impl Fn(&str) -> bool) -> Result<(), ImageError> {
    for path in entries(&ingest.join("partial"))? {
        let hex = path.file_name().unwrap_or_default().to_string_lossy();
        if !is_used(&format!("sha256:{hex}")) {
            forget(&path)?;
        }
    }
    Ok(())
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let fail = |error| ImageError::io("list", directory, error);
    fs::read_dir(directory).map_err(fail)?.map(|entry| Ok(entry.map_err(fail)?.path())).collect()
}

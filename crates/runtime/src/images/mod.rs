//! Images: an OCI layout on disk, its unpacked layers, and the ways content gets there.
//!
//! ```text
//! <root>/oci-layout, index.json, blobs/sha256/<hex>   what was pulled, as any OCI tool reads it; index.json names only what is on the disk
//! <root>/recent.json, boot                            names of what is not yet, good until the machine boots again
//! <root>/snapshots/<chain id>/fs                      one directory per layer chain, shared by images, lowerdirs of overlays
//! <root>/snapshots/<chain id>/layer.json              what it occupies
//! <root>/ingest/                                      what is coming in; at open only the beginnings of blobs are kept
//! ```
//! Not here: mounting (the container's own mount namespace does that), garbage collection (the kubelet decides about that).

mod acquire;
mod archive_file;
mod docker_archive;
mod error;
mod ingest;
mod layout;
mod local;
mod receive;
mod reference;
mod registry;
mod remove;
mod settle;
mod space;
mod store;
mod types;
mod unpack;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use local::blocking;
use store::{Inner, Pin};

pub use error::ImageError;
pub use oci_spec::image::{Config as ImageConfig, ImageConfiguration};
pub use reference::{Reference, Target};
pub use types::{Auth, BuiltInContent, BuiltInFile, FsUsage, Image, ImageId, Limits, Progress, Retention};

/// The images of this node. Cheap to clone; one per root directory and machine (the directory is locked).
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

/// Keeps layers on disk for as long as it lives, even when their image is removed.
///
/// A container holds its lower directories; after a restart of the agent the CRI layer holds them anew from the
/// container's record and then calls [`ImageStore::collect`].
#[must_use = "the layers may be deleted once this is dropped"]
pub struct Hold {
    _pin: Pin,
}

/// The unpacked layers of an image.
pub struct Snapshot {
    /// Their directories, top first. An image without layers has none: the caller takes an empty directory.
    pub lower: Vec<PathBuf>,
    /// Keeps them.
    pub hold: Hold,
}

impl ImageStore {
    /// Opens (or creates) the store at `root`; `registry_config_dir` is a containerd `certs.d` tree and need not exist.
    pub async fn open(root: &Path, registry_config_dir: &Path) -> Result<Self, ImageError> {
        Self::open_with(root, registry_config_dir, Limits::default()).await
    }

    /// [`open`](Self::open) with limits of one's own.
    pub async fn open_with(
        root: &Path,
        registry_config_dir: &Path,
        limits: Limits,
    ) -> Result<Self, ImageError> {
        let (root, registry_config_dir) = (root.to_owned(), registry_config_dir.to_owned());
        let inner = blocking(move || Inner::open(&root, &registry_config_dir, limits)).await?;
        let store = Self { inner: Arc::new(inner) };
        store.settle_soon();
        Ok(store)
    }

    /// Fetches an image, unpacked when this returns, and durable soon. Always asks the registry what a tag means now.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<ImageId, ImageError> {
        let pulled = registry::pull(&self.inner, reference, auth, Arc::new(progress)).await;
        self.settle_soon();
        pulled
    }

    /// Reads an OCI layout (a directory, or a tar of one) or an archive of `docker save`; the tar may be compressed by gzip or zstd.
    /// `name` names its only image; without it, the archive does.
    pub async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        retention: Retention,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let imported = local::import(&self.inner, path, name, retention, Arc::new(progress)).await;
        self.settle_soon();
        let ids = imported?;
        Ok(ids.iter().filter_map(|id| self.get(id)).collect())
    }

    /// Makes a one-layer image of these files. Returns at once if this name already holds the same.
    pub async fn import_built_in(
        &self,
        name: &str,
        files: Vec<BuiltInFile>,
        config: ImageConfig,
    ) -> Result<Arc<Image>, ImageError> {
        let id = local::built_in(&self.inner, name, files, config).await?;
        self.settle_soon();
        let gone = || ImageError::NotFound {
            reference: name.to_owned(),
            detail: "it was removed meanwhile".to_owned(),
        };
        self.get(&id).ok_or_else(gone)
    }

    /// Waits until every image is durable. One that is not is fetched again should the machine lose power.
    pub async fn settle(&self) -> Result<(), ImageError> {
        settle::settle(&Arc::downgrade(&self.inner)).await
    }

    fn settle_soon(&self) {
        if self.inner.unsettled().is_some() {
            let store = Arc::downgrade(&self.inner);
            tokio::spawn(async move {
                if let Err(error) = settle::settle(&store).await {
                    tracing::error!(%error, "the disk does not take what was pulled; it is lost when the machine boots");
                }
            });
        }
    }

    /// All images, ordered by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.images()
    }

    /// Finds an image by name (normalised as docker does), id, or a unique beginning of the id.
    pub fn get(&self, name_or_id: &str) -> Option<Arc<Image>> {
        find(&self.inner.images(), name_or_id)
    }

    /// Removes an image with all its names and frees what nothing else refers to. `false`: there was none.
    ///
    /// An image in use may be removed: held layers stay until their [`Hold`] goes and someone calls [`collect`](Self::collect).
    pub async fn remove(&self, name_or_id: &str) -> Result<bool, ImageError> {
        let change = self.inner.change.lock().await;
        let Some(image) = self.get(name_or_id) else { return Ok(false) };
        let names = image.repo_tags.iter().chain(&image.repo_digests).cloned().collect::<Vec<_>>();
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.forget(&names)).await?;
        drop(change);
        Ok(true)
    }

    /// What overlay takes as lower layers, held from the moment on at which it was there. No I/O: layers are unpacked by pull and import.
    pub fn snapshot(&self, image: &Image) -> Result<Snapshot, ImageError> {
        let pin = self.inner.pin_snapshots(&image.chain_ids).map_err(|chain| ImageError::NotFound {
            reference: image.id.clone(),
            detail: format!("its unpacked layer {chain} was removed; pull the image again"),
        })?;
        let lower = image.chain_ids.iter().rev().map(|chain| self.inner.snapshot_path(chain)).collect();
        Ok(Snapshot { lower, hold: Hold { _pin: pin } })
    }

    /// Keeps these lower directories (as [`snapshot`](Self::snapshot) told them before a restart) until the guard is dropped.
    pub fn hold(&self, lower: &[PathBuf]) -> Hold {
        let chain = |path: &PathBuf| path.parent()?.file_name()?.to_str().map(str::to_owned);
        Hold { _pin: self.inner.pin(lower.iter().filter_map(chain).collect()) }
    }

    /// Deletes layers and blobs that no image has and nobody holds.
    pub async fn collect(&self) -> Result<(), ImageError> {
        let change = self.inner.change.lock().await;
        let inner = Arc::clone(&self.inner);
        let done = blocking(move || inner.collect()).await;
        drop(change);
        done
    }

    /// What the store occupies. No I/O.
    pub fn usage(&self) -> FsUsage {
        self.inner.usage()
    }
}

/// By name first: a name that looks like the beginning of an id is still a name.
fn find(images: &[Arc<Image>], name_or_id: &str) -> Option<Arc<Image>> {
    if let Ok(reference) = reference::Reference::parse(name_or_id) {
        let name = reference.to_string();
        let named =
            |image: &&Arc<Image>| image.repo_tags.contains(&name) || image.repo_digests.contains(&name);
        if let Some(image) = images.iter().find(named) {
            return Some(Arc::clone(image));
        }
    }
    let hex = name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id);
    if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut matches = images.iter().filter(|image| image.id.trim_start_matches("sha256:").starts_with(hex));
    match (matches.next(), matches.next()) {
        (Some(image), None) => Some(Arc::clone(image)),
        _ => None,
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

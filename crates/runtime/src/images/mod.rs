//! Images: an OCI layout on disk, its unpacked layers, and the ways content gets there.
//!
//! ```text
//! <root>/oci-layout, index.json, blobs/sha256/<hex>   what was pulled, as any OCI tool reads it; index.json names only what is complete
//! <root>/snapshots/<chain id>/fs                      one directory per layer chain, shared by images, lowerdirs of overlays
//! <root>/snapshots/<chain id>/layer.json              what it occupies
//! <root>/ingest/                                      what is coming in; emptied at open
//! ```
//! Not here: mounting (the container's own mount namespace does that), garbage collection by age, `docker save` archives.

mod error;
mod types;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::ImageError;
pub use oci_spec::image::{Config as ImageConfig, ImageConfiguration};
pub use types::{Auth, BuiltInContent, BuiltInFile, FsUsage, Image, ImageId, Limits, Progress};

/// The images of this node. Cheap to clone; one per root directory and process.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<()>,
}

/// Keeps layers on disk for as long as it lives, even when their image is removed.
///
/// A container holds its lower directories; after a restart of the agent the CRI layer holds them anew from the
/// container's record and then calls [`ImageStore::collect`].
#[must_use = "the layers may be deleted once this is dropped"]
pub struct Hold {
    _inner: Arc<()>,
}

impl ImageStore {
    /// Opens (or creates) the store at `root`; `registry_config_dir` is a containerd `certs.d` tree and need not exist.
    pub async fn open(root: &Path, registry_config_dir: &Path) -> Result<Self, ImageError> {
        Self::open_with(root, registry_config_dir, Limits::default()).await
    }

    /// [`open`](Self::open) with limits of one's own.
    pub async fn open_with(
        _root: &Path,
        _registry_config_dir: &Path,
        _limits: Limits,
    ) -> Result<Self, ImageError> {
        Ok(Self { inner: Arc::new(()) })
    }

    /// Fetches an image, unpacked and durable when this returns. Always asks the registry what a tag means now.
    pub async fn pull(
        &self,
        reference: &str,
        _auth: Option<Auth>,
        _progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<ImageId, ImageError> {
        Err(ImageError::NotFound {
            reference: reference.to_owned(),
            detail: "pull is not written yet".to_owned(),
        })
    }

    /// Reads an OCI layout: a directory or a tar of one. `name` names its only image; without it, its annotations do.
    pub async fn import(
        &self,
        path: &Path,
        _name: Option<&str>,
        _progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        Err(ImageError::Unsupported {
            what: path.display().to_string(),
            detail: "import is not written yet".to_owned(),
        })
    }

    /// Makes a one-layer image of these files. Returns at once if this name already holds the same.
    pub async fn import_built_in(
        &self,
        name: &str,
        _files: Vec<BuiltInFile>,
        _config: ImageConfig,
    ) -> Result<Arc<Image>, ImageError> {
        Err(ImageError::Unsupported { what: name.to_owned(), detail: "not written yet".to_owned() })
    }

    /// All images, ordered by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        Vec::new()
    }

    /// Finds an image by name (normalised as docker does), id, or a unique beginning of the id.
    pub fn get(&self, _name_or_id: &str) -> Option<Arc<Image>> {
        None
    }

    /// Removes an image with all its names and frees what nothing else refers to. `false`: there was none.
    ///
    /// An image in use may be removed: held layers stay until their [`Hold`] goes.
    pub async fn remove(&self, _name_or_id: &str) -> Result<bool, ImageError> {
        Ok(false)
    }

    /// The directories to give to overlay as lower layers, top first. No I/O: layers are unpacked by pull and import.
    pub async fn snapshot(&self, _image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        Ok(Vec::new())
    }

    /// Keeps these lower directories (as [`snapshot`](Self::snapshot) returned them) until the guard is dropped.
    pub fn hold(&self, _lower: &[PathBuf]) -> Hold {
        Hold { _inner: Arc::clone(&self.inner) }
    }

    /// Deletes layers and blobs that no image has and nobody holds.
    pub async fn collect(&self) -> Result<(), ImageError> {
        Ok(())
    }

    /// What the store occupies. No I/O.
    pub fn usage(&self) -> FsUsage {
        FsUsage { path: PathBuf::new(), used_bytes: 0, inodes: 0 }
    }
}

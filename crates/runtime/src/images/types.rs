//! The values that the image store hands out. No I/O.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

/// `sha256:<hex>` of an image's configuration: the one id by which an image is known everywhere.
pub type ImageId = String;

/// An image of this node; immutable, shared.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:<config digest>`.
    pub id: ImageId,
    /// Full names with tags (`docker.io/library/busybox:latest`), sorted.
    pub repo_tags: Vec<String>,
    /// Full names with digests (`docker.io/library/busybox@sha256:…`), sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of manifest, configuration and layers as stored (compressed).
    pub size: u64,
    /// Never to be collected as garbage.
    pub pinned: bool,
    /// Digest of the manifest for this platform.
    pub manifest_digest: String,
    /// The configuration, parsed once.
    pub config: ImageConfiguration,
    /// Chain ids of the layers, lowest first.
    pub chain_ids: Vec<String>,
    /// Digests of everything it consists of.
    pub(super) blobs: Vec<String>,
}

/// Whether a garbage collector may take an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// When its disk gets full and nobody uses it.
    Collectable,
    /// Never: it may be impossible to get again.
    Pinned,
}

/// Credentials for one pull, as CRI's AuthConfig has them. `Debug` shows no secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Auth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// base64 of `username:password`, used when those two are empty.
    pub auth: String,
    /// The registry these are for; empty = whichever is asked.
    pub server_address: String,
    /// OAuth2 refresh token, exchanged at the token server.
    pub identity_token: String,
    /// Bearer token, sent as is.
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// What a pull or import is doing; sent often, cheap to ignore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The reference was resolved; these layers make the image.
    Resolved {
        /// Manifest digest.
        digest: String,
        /// Digest and size of each layer, lowest first.
        layers: Vec<(String, u64)>,
    },
    /// The layer was here already.
    LayerExists {
        /// Layer digest.
        digest: String,
    },
    /// Bytes of a layer that came so far (they are unpacked while they come).
    Layer {
        /// Layer digest.
        digest: String,
        /// Bytes so far.
        received: u64,
        /// Bytes in all.
        total: u64,
    },
    /// All bytes of the layer are verified and unpacked.
    LayerDone {
        /// Layer digest.
        digest: String,
    },
    /// Everything is here and is being made durable.
    Committing,
}

/// What the store occupies, for ImageFsInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The store's directory (ImageFsInfo's mountpoint).
    pub path: PathBuf,
    /// Bytes in blobs and snapshots.
    pub used_bytes: u64,
    /// Inodes in blobs and snapshots.
    pub inodes: u64,
}

/// Bounds on what hostile content may make this node do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes one layer may inflate to.
    pub layer_bytes: u64,
    /// Entries one layer may have.
    pub layer_entries: u64,
    /// Bytes that must stay free on the store's disk.
    pub reserve_bytes: u64,
    /// Bytes of a manifest, index or configuration.
    pub document_bytes: u64,
    /// Longest silence of a registry.
    pub stall: std::time::Duration,
    /// How often the download of a layer may break in a row.
    pub retries: u32,
    /// Wait before the first of these; each next one is twice as long.
    pub retry_pause: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            layer_entries: 4_000_000,
            reserve_bytes: 256 << 20,
            document_bytes: 4 << 20,
            stall: std::time::Duration::from_secs(30),
            retries: 4,
            retry_pause: std::time::Duration::from_millis(200),
        }
    }
}

/// One file of an image that podwright builds itself.
#[derive(Debug, Clone)]
pub struct BuiltInFile {
    /// Path in the image, such as `/bin/podwright`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: BuiltInContent,
}

/// Content of a [`BuiltInFile`].
#[derive(Debug, Clone)]
pub enum BuiltInContent {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file of this machine.
    HostFile(PathBuf),
    /// A symbolic link to this path.
    Symlink(String),
    /// A directory.
    Directory,
}

//! What can go wrong with images, told so that a person knows what to do next.
//! Maps to no wire protocol: the CRI layer chooses gRPC codes and kubelet reasons from the variants.

use std::io;
use std::path::PathBuf;

/// Why an image operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The text is not an image reference (the kubelet's `InvalidImageName`).
    #[error("`{reference}` is not an image reference: {reason}")]
    InvalidReference {
        /// What was given.
        reference: String,
        /// The rule it breaks.
        reason: String,
    },
    /// The registry (or this node) has no such image.
    #[error("image {reference} not found: {detail}")]
    NotFound {
        /// The image asked for.
        reference: String,
        /// Who was asked and what was answered.
        detail: String,
    },
    /// The registry wants other credentials, or these may not read this repository.
    #[error(
        "{host} denies access to {reference}: {detail}; check the pull secret, or whether the image exists"
    )]
    AuthDenied {
        /// The registry host.
        host: String,
        /// The image asked for.
        reference: String,
        /// What the registry said.
        detail: String,
    },
    /// No registry host could be spoken to, or it answered with an error of its own.
    #[error("registry {host} is unavailable: {detail}")]
    RegistryUnavailable {
        /// The registry host or hosts.
        host: String,
        /// URL and cause.
        detail: String,
    },
    /// Nothing came for too long.
    #[error("{host} sent nothing for {seconds} s while podwright waited for {what}")]
    Stalled {
        /// The registry host.
        host: String,
        /// What was awaited.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// Content is not what its digest or size says. Nothing of it was kept.
    #[error(
        "{what} does not match its descriptor: expected {expected}, got {got}; the source is corrupt or tampered with"
    )]
    DigestMismatch {
        /// Which blob.
        what: String,
        /// Digest or size in the descriptor.
        expected: String,
        /// Digest or size that came.
        got: String,
    },
    /// A layer cannot be decompressed, is not a tar archive, or tries to leave its root. Nothing of it was kept.
    #[error("layer {layer} is corrupt: {detail}")]
    CorruptLayer {
        /// Its digest.
        layer: String,
        /// The entry and what is wrong with it.
        detail: String,
    },
    /// A manifest, index or configuration is not what the OCI or Docker formats say.
    #[error("{what} is malformed: {detail}")]
    Malformed {
        /// Which document.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The image is a list without an entry for this machine.
    #[error("{reference} has no image for {wanted}; it has {available}")]
    NoMatchingPlatform {
        /// The image.
        reference: String,
        /// This machine's platform.
        wanted: String,
        /// What the list has.
        available: String,
    },
    /// The disk is, or would become, full.
    #[error("no space left for images in {path}: {detail}; remove unused images or enlarge the disk")]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Numbers.
        detail: String,
    },
    /// A limit against hostile content was reached.
    #[error("{what} is larger than the limit of {limit}")]
    TooLarge {
        /// What is.
        what: String,
        /// The limit in bytes or entries.
        limit: u64,
    },
    /// The file is in a format that is not read (yet).
    #[error("{what} is not supported: {detail}")]
    Unsupported {
        /// What was found.
        what: String,
        /// What to do instead.
        detail: String,
    },
    /// A `hosts.toml` or a certificate named by it is wrong.
    #[error("registry configuration {path}: {detail}")]
    RegistryConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Another process has the store open.
    #[error("another podwright uses the image store ({path} is locked); ask that one, or stop it")]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// A file system operation of the store did not work.
    #[error("{action} {path}")]
    Io {
        /// Verb phrase.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl ImageError {
    /// Wraps an I/O error; a full disk becomes [`ImageError::DiskFull`].
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                Self::DiskFull { path, detail: format!("{action}: {source}") }
            }
            _ => Self::Io { action, path, source },
        }
    }
}

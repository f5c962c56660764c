//! Unpacks one layer into a directory of its own, out of which no archive can reach.
//!
//! ```text
//! archive.rs  tar stream → entries            tree.rs   entries → files below one directory descriptor
//! ```
//! Nothing here is made durable and nothing is renamed: the caller does that once for a whole image.

mod archive;
mod tree;

use std::io::{self, BufRead};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::{ImageError, Limits};
pub(super) use archive::{Archive, Kind};
use tree::Tree;

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// The archive breaks a rule.
    #[error("{0}")]
    Corrupt(String),
    /// The archive has something that is not written yet.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A limit was reached.
    #[error("{what} is larger than {limit}")]
    TooLarge { what: &'static str, limit: u64 },
    /// The store's disk would become too full.
    #[error("{0}")]
    Full(String),
    /// The stream before us ended with an error; whoever feeds it knows more.
    #[error("read the layer")]
    Input(#[source] io::Error),
    /// The file system refused an operation.
    #[error("{action} `{entry}`")]
    Io { action: &'static str, entry: String, source: io::Error },
}

impl UnpackError {
    /// Adds which layer it was.
    pub(super) fn in_layer(self, layer: &str, root: &std::path::Path) -> ImageError {
        match self {
            Self::Corrupt(detail) => ImageError::CorruptLayer { layer: layer.to_owned(), detail },
            Self::Unsupported(what) => ImageError::Unsupported {
                what: format!("{what} in layer {layer}"),
                detail: "rebuild the image without it".to_owned(),
            },
            Self::TooLarge { what, limit } => {
                ImageError::TooLarge { what: format!("{what} in layer {layer}"), limit }
            }
            Self::Full(detail) => ImageError::DiskFull { path: root.to_owned(), detail },
            Self::Input(source) => ImageError::CorruptLayer {
                layer: layer.to_owned(),
                detail: format!("cannot be decompressed: {source}"),
            },
            Self::Io { action, entry, source } => ImageError::io(action, root.join(entry), source),
        }
    }
}

/// What became of a layer.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// Directories that the archive only implied: they look like the layer below has them (see [`adopt`]).
    pub(super) implied: Vec<PathBuf>,
    /// Bytes allocated, about.
    pub(super) bytes: u64,
    /// Files, directories and links made.
    pub(super) inodes: u64,
}

/// Unpacks the (uncompressed) tar stream into `root`, an empty directory, reading the stream to its end.
pub(super) fn unpack(reader: impl BufRead, root: OwnedFd, limits: &Limits) -> Result<Unpacked, UnpackError> {
    let mut archive = Archive::new(reader);
    let mut tree = Tree::new(root, limits);
    let mut entries = 0;
    while let Some(entry) = archive.next()? {
        entries += 1;
        if entries > limits.layer_entries {
            return Err(UnpackError::TooLarge { what: "the number of entries", limit: limits.layer_entries });
        }
        tree.apply(&entry, &mut archive)?;
    }
    tree.finish()
}

/// Gives the directories that a layer only implied the owner, mode, time and attributes they have in the layers below (top first).
pub(super) fn adopt(root: &OwnedFd, implied: &[PathBuf], below: &[OwnedFd]) -> Result<(), UnpackError> {
    implied.iter().try_for_each(|path| tree::adopt(root, path, below))
}

#[cfg(test)]
mod tests;

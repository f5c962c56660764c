//! What the CLI asks about images and what it hears while the work goes on: one JSON object per line. The same
//! values travel through the admin socket and, without an agent, from one function to the next.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One order of `podwright image`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "camelCase")]
pub(crate) enum Request {
    /// Read an OCI layout or an archive that lies on this machine.
    Import {
        /// The directory or tar file, absolute.
        path: PathBuf,
        /// The name it gets.
        name: Option<String>,
        /// Whether garbage collection spares it.
        pin: bool,
    },
    /// Fetch from a registry.
    Pull {
        /// What to fetch.
        reference: String,
        /// `USER:PASSWORD`.
        credentials: Option<String>,
    },
    /// Tell what there is.
    List,
    /// Remove one image with all its names.
    Remove {
        /// A name or id.
        image: String,
    },
}

/// One line of the answer. The answer is complete when it ends without `Failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(crate) enum Update {
    /// The work goes on.
    Progress {
        /// How far it is, for people.
        text: String,
    },
    /// One image: listed, imported or pulled.
    Image(Row),
    /// An image is gone.
    Removed {
        /// As it was named in the order.
        image: String,
    },
    /// The work ended without success.
    Failed {
        /// The whole chain of causes.
        message: String,
    },
}

/// One image as `podwright image ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    /// `sha256:` and the digest of its configuration.
    pub(crate) id: String,
    /// Its names.
    pub(crate) repo_tags: Vec<String>,
    /// Its names by digest.
    pub(crate) repo_digests: Vec<String>,
    /// What it takes in the store, in bytes.
    pub(crate) size: u64,
}

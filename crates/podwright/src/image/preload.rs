//! Images that lie beside a node before it starts: archives and OCI layouts in `<root>/images`, for machines without a registry, as
//! k3s has them in `agent/images`. They are imported at each start, before any pod, and garbage collection spares them.
//!
//! A file that is wrong is told of and stops nothing. Nothing is watched: what is put there later waits for the next start.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::anyhow;
use runtime::images::{Image, ImageStore, Retention};
use tokio_util::sync::CancellationToken;

/// The endings of names of tar files that can be read.
const ARCHIVES: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

/// Imports everything in `directory`, by name, until `stop` is cancelled.
#[expect(clippy::disallowed_methods, reason = "people are told how long an import took")]
pub(crate) async fn import(store: &ImageStore, directory: &Path, stop: &CancellationToken) {
    let found = match look(directory) {
        Ok(found) => found,
        Err(error) => {
            return tracing::warn!(directory = %directory.display(), %error, "images beside the node are not read");
        }
    };
    for name in &found.others {
        let archives = ARCHIVES.join(", ");
        tracing::warn!(file = %directory.join(name).display(), archives, "no archive of images");
    }
    let files = found.archives.len();
    for (index, path) in found.archives.iter().enumerate() {
        let begun = Instant::now();
        tracing::info!(file = %path.display(), number = index + 1, files, "importing images");
        let imported = tokio::select! {
            () = stop.cancelled() => return,
            imported = store.import(path, None, Retention::Pinned, |_| {}) => imported,
        };
        match imported {
            Ok(images) => {
                let elapsed_ms = begun.elapsed().as_millis();
                tracing::info!(images = names(&images), elapsed_ms, "imported images");
            }
            Err(error) => {
                let error = format!("{:#}", anyhow!(error));
                tracing::warn!(file = %path.display(), error, "images were not imported");
            }
        }
    }
}

fn names(images: &[std::sync::Arc<Image>]) -> String {
    let name = |image: &std::sync::Arc<Image>| image.repo_tags.first().unwrap_or(&image.id).clone();
    images.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// What lies in the directory, in the order of names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    archives: Vec<PathBuf>,
    others: Vec<String>,
}

/// A directory that does not exist holds nothing.
fn look(directory: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match kind(&name, path.is_dir()) {
            Kind::Images => found.archives.push(path),
            Kind::Hidden => {}
            Kind::Other => found.others.push(name),
        }
    }
    found.archives.sort();
    found.others.sort();
    Ok(found)
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Images,
    /// On its way to its name, or nobody's business.
    Hidden,
    Other,
}

fn kind(name: &str, is_directory: bool) -> Kind {
    if name.starts_with('.') {
        Kind::Hidden
    } else if is_directory
        || ARCHIVES.iter().any(|ending| name.len() > ending.len() && name.ends_with(ending))
    {
        Kind::Images
    } else {
        Kind::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_and_layouts_are_imported_in_the_order_of_their_names() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["b.tar.zst", "a.tar", "note.md", ".part.tar", "c.tgz", "tar", "d.tar.bz2"] {
            std::fs::write(temp.path().join(name), "").unwrap();
        }
        std::fs::create_dir(temp.path().join("layout")).unwrap();
        let found = look(temp.path()).unwrap();
        let expect = ["a.tar", "b.tar.zst", "c.tgz", "layout"].map(|name| temp.path().join(name));
        assert_eq!(
            found,
            Found {
                archives: expect.into(),
                others: ["d.tar.bz2", "note.md", "tar"].map(str::to_owned).into()
            }
        );
        assert_eq!(look(&temp.path().join("absent")).unwrap(), Found::default());
    }
}

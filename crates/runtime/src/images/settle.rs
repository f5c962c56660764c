//! What of the store survives a power loss, and how a pull need not wait for the disk.
//!
//! ```text
//! index.json   names whose content is on the disk: one syncfs after their content came, then replaced durably
//! recent.json  all names, while some are not in index.json; good for as long as the machine runs
//! boot         the boot in which that is so
//! ```
//! In another boot recent.json, and every blob and snapshot that index.json does not name, may be torn and is deleted unread.

use std::fs::{self, File};
use std::path::Path;
use std::sync::{Arc, Weak};

use super::ImageError;
use super::layout::{self, Index};
use super::local::blocking;
use super::store::{Inner, Names};

const INDEX: &str = "index.json";
const RECENT: &str = "recent.json";
const BOOT: &str = "boot";

/// Makes durable what was committed before. A store that is closed meanwhile leaves that to whoever opens it next.
pub(super) async fn settle(store: &Weak<Inner>) -> Result<(), ImageError> {
    let Some(settling) = store.upgrade().map(|inner| Arc::clone(&inner.settling)) else { return Ok(()) };
    let _turn = settling.lock().await;
    loop {
        let Some(inner) = store.upgrade() else { return Ok(()) };
        let Some(unsettled) = inner.unsettled() else { return Ok(()) };
        let path = inner.root.clone();
        let root = open_root(&path)?;
        // This takes long, and must not keep a closed store locked.
        drop(inner);
        blocking(move || sync(&root, &path)).await?;
        let Some(inner) = store.upgrade() else { return Ok(()) };
        let change = inner.change.lock().await;
        let writer = Arc::clone(&inner);
        blocking(move || writer.settled(unsettled)).await?;
        drop(change);
    }
}

pub(super) fn open_root(root: &Path) -> Result<File, ImageError> {
    File::open(root).map_err(|error| ImageError::io("open", root, error))
}

pub(super) fn sync(root: &File, path: &Path) -> Result<(), ImageError> {
    rustix::fs::syncfs(root).map_err(|errno| ImageError::io("sync the disk of", path, errno))
}

/// When the store was open last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Boot {
    /// Since the machine booted, or never.
    This,
    Another,
}

pub(super) fn boot(root: &Path) -> Result<Boot, ImageError> {
    let path = root.join(BOOT);
    let now = boot_id(&path)?;
    match fs::read_to_string(&path) {
        Ok(then) if then == now => Ok(Boot::This),
        Ok(_) => Ok(Boot::Another),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Boot::This),
        Err(error) => Err(ImageError::io("read", path, error)),
    }
}

/// From here on what is found is of this boot. Durable, as nothing may come in before it is known which boot that was.
pub(super) fn remember_boot(root: &Path) -> Result<(), ImageError> {
    let path = root.join(BOOT);
    let now = boot_id(&path)?;
    if fs::read_to_string(&path).is_ok_and(|then| then == now) {
        return Ok(());
    }
    remove(&root.join(RECENT))?;
    host::state_file::write_durable(&path, now.as_bytes(), 0o644)
        .map_err(|error| ImageError::io("write", path, error))
}

fn boot_id(path: &Path) -> Result<String, ImageError> {
    host::process::boot_id().map_err(|error| ImageError::io("read the boot id for", path, error))
}

/// None where nothing was ever settled.
pub(super) fn read_index(root: &Path) -> Result<Names, ImageError> {
    Ok(read(&root.join(INDEX))?.unwrap_or_default())
}

/// `None`: index.json says it all.
pub(super) fn read_recent(root: &Path) -> Result<Option<Names>, ImageError> {
    match boot(root)? {
        Boot::This => read(&root.join(RECENT)),
        Boot::Another => Ok(None),
    }
}

fn read(path: &Path) -> Result<Option<Names>, ImageError> {
    let json = match fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io("read", path, error)),
    };
    let malformed = |error: serde_json::Error| ImageError::Malformed {
        what: path.display().to_string(),
        detail: error.to_string(),
    };
    let index: Index = serde_json::from_slice(&json).map_err(malformed)?;
    let named = index.manifests.into_iter().filter_map(|descriptor| {
        Some((descriptor.annotations.get(layout::CONTAINERD_NAME)?.clone(), descriptor))
    });
    Ok(Some(named.collect()))
}

pub(super) fn write_index(root: &Path, names: &Names) -> Result<(), ImageError> {
    let path = root.join(INDEX);
    host::state_file::write_durable(&path, &render(names, &path)?, 0o644)
        .map_err(|error| ImageError::io("write", path, error))
}

/// `None`: index.json says it all.
pub(super) fn write_recent(root: &Path, names: Option<&Names>) -> Result<(), ImageError> {
    let path = root.join(RECENT);
    let Some(names) = names else { return remove(&path) };
    host::state_file::write_atomic(&path, &render(names, &path)?, 0o644)
        .map_err(|error| ImageError::io("write", path, error))
}

fn render(names: &Names, path: &Path) -> Result<Vec<u8>, ImageError> {
    let index = Index {
        schema_version: 2,
        media_type: Some(layout::OCI_INDEX.to_owned()),
        manifests: names.values().cloned().collect(),
    };
    serde_json::to_vec_pretty(&index)
        .map_err(|error| ImageError::io("write", path, std::io::Error::other(error)))
}

fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ImageError::io("delete", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Packing, TarBuilder, TestImage};
    use super::super::{ImageStore, Retention};
    use super::*;

    #[tokio::test]
    async fn after_a_power_loss_only_what_was_on_the_disk_is_an_image() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (store, root) = (open(temp.path()).await, temp.path().join("root"));
        import(&store, "lasting", "one").await;
        store.settle().await.expect("settle");
        assert!(!root.join(RECENT).exists());
        let lasting = contents(&root);
        // Nothing else runs before the store is closed: the disk was not waited for.
        import(&store, "torn", "two").await;
        drop(store);
        assert!(root.join(RECENT).exists());
        let store = open(temp.path()).await;
        assert_eq!(names(&store), ["docker.io/library/lasting:latest", "docker.io/library/torn:latest"]);
        drop(store);

        fs::write(root.join(BOOT), "another boot").expect("write");
        fs::write(root.join(RECENT), "{ to").expect("write");
        for at in contents(&root).into_iter().filter(|at| !lasting.contains(at)) {
            if at.is_file() {
                fs::write(at, "").expect("tear");
            }
        }
        let store = open(temp.path()).await;
        assert_eq!(names(&store), ["docker.io/library/lasting:latest"]);
        assert_eq!(contents(&root), lasting);
        let lower = import(&store, "torn", "two").await;
        assert_eq!(fs::read_to_string(lower.join("file")).expect("read"), "two");
    }

    #[tokio::test]
    async fn a_removed_image_that_comes_again_meanwhile_is_waited_for_again() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (store, root) = (open(temp.path()).await, temp.path().join("root"));
        import(&store, "app", "one").await;
        let unsettled = store.inner.unsettled().expect("not on the disk");
        store.remove("app").await.expect("remove");
        import(&store, "app", "one").await;
        store.inner.settled(unsettled).expect("settled");
        assert_eq!(read_index(&root).expect("index"), Names::new());
        store.settle().await.expect("settle");
        assert_eq!(read_index(&root).expect("index").len(), 1);
    }

    async fn open(temp: &Path) -> ImageStore {
        ImageStore::open(&temp.join("root"), Path::new("/nonexistent")).await.expect("open")
    }

    /// Imports an image with one file of this text and gives its lower directory.
    async fn import(store: &ImageStore, name: &str, text: &str) -> std::path::PathBuf {
        let layout = tempfile::tempdir().expect("temp dir");
        let layer = TarBuilder::default().file("file", text.as_bytes()).finish();
        TestImage::new(&[(layer, Packing::Gzip)]).write_layout(layout.path(), None);
        let images = store.import(layout.path(), Some(name), Retention::Collectable, |_| ()).await;
        store.snapshot(&images.expect("import")[0]).expect("snapshot").lower.remove(0)
    }

    fn names(store: &ImageStore) -> Vec<String> {
        let mut names: Vec<_> = store.list().iter().flat_map(|image| image.repo_tags.clone()).collect();
        names.sort();
        names
    }

    /// All paths of blobs and snapshots.
    fn contents(root: &Path) -> Vec<std::path::PathBuf> {
        let mut todo = vec![root.join("blobs/sha256"), root.join("snapshots")];
        let mut found = Vec::new();
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(super::super::ingest::entries(&path).expect("list"));
            }
            found.push(path);
        }
        found.sort();
        found
    }
}

//! The store's memory and its disk: opening, committing what came in, deleting what nothing refers to.
//!
//! Everything is written below `ingest`, then renamed into `blobs` and `snapshots`, then named. How a power loss never shows a wrong
//! image is told in `settle.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ingest::{self, Ingest, entries};
use super::layout::{self, Descriptor, Document};
use super::reference::{Reference, Target};
use super::remove::remove_path;
use super::settle::{self, Boot};
use super::{FsUsage, Image, ImageError, ImageId, Limits};

/// An annotation that containerd's CRI uses for the same.
pub(super) const PINNED: &str = "io.cri-containerd.pinned";

/// What a file system gives out space in.
const BLOCK: u64 = 4096;
/// A snapshot's directory, its `fs` and its `layer.json`.
const SNAPSHOT_INODES: u64 = 3;

/// Shared by all clones of an `ImageStore`.
pub(super) struct Inner {
    pub(super) root: PathBuf,
    pub(super) registry_config_dir: PathBuf,
    pub(super) limits: Limits,
    state: Mutex<State>,
    pins: Mutex<BTreeMap<String, usize>>,
    /// Held while the disk's content changes: commits and deletions, one at a time.
    pub(super) change: tokio::sync::Mutex<()>,
    turns: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Held by who waits for the disk.
    pub(super) settling: Arc<tokio::sync::Mutex<()>>,
    _lock: File,
}

/// Images by full name.
pub(super) type Names = BTreeMap<String, Descriptor>;

/// Names to be taken into index.json once their content is on the disk.
pub(super) struct Unsettled {
    names: Names,
    forgotten: u64,
}

#[derive(Default, Clone)]
struct State {
    names: Names,
    /// What index.json says: names whose content is on the disk.
    settled: Names,
    /// index.json names something whose content is not there.
    promised: bool,
    /// How often names were forgotten, and content with them.
    forgotten: u64,
    images: BTreeMap<ImageId, Arc<Image>>,
    /// Bytes of each blob, by digest.
    blobs: BTreeMap<String, u64>,
    snapshots: BTreeMap<String, LayerFile>,
}

/// `layer.json` beside a snapshot's `fs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerFile {
    pub(super) diff_id: String,
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// Everything of an image that came in, below `ingest`, complete and verified.
pub(super) struct Incoming {
    pub(super) directory: Arc<Ingest>,
    /// By digest.
    pub(super) blobs: Vec<(String, PathBuf)>,
    /// By chain id: a directory with `fs` and `layer.json`.
    pub(super) snapshots: Vec<(String, PathBuf, LayerFile)>,
    pub(super) names: Vec<(String, Descriptor)>,
}

/// Keeps blobs and snapshots from being deleted.
pub(super) struct Pin {
    inner: Arc<Inner>,
    keys: Vec<String>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.inner.pins);
        for key in &self.keys {
            if let Some(count) = pins.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(key);
                }
            }
        }
    }
}

impl Inner {
    /// Opens or creates the store; blocking.
    pub(super) fn open(root: &Path, registry_config_dir: &Path, limits: Limits) -> Result<Self, ImageError> {
        fs::create_dir_all(root).map_err(|error| ImageError::io("create", root, error))?;
        for directory in ["blobs", "snapshots", "ingest"] {
            private(&root.join(directory))?;
        }
        for directory in ["blobs/sha256", "ingest/partial"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(|error| ImageError::io("create", path, error))?;
        }
        ingest::spread(&root.join("ingest"));
        let lock = take_lock(&root.join("lock"))?;
        let marker = root.join("oci-layout");
        if !marker.exists() {
            host::state_file::write_durable(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)
                .map_err(|error| ImageError::io("write", marker, error))?;
        }
        ingest::sweep(&root.join("ingest"))?;
        let boot = settle::boot(root)?;
        let inner = Self {
            root: root.to_owned(),
            registry_config_dir: registry_config_dir.to_owned(),
            limits,
            state: Mutex::default(),
            pins: Mutex::default(),
            change: tokio::sync::Mutex::default(),
            turns: Mutex::default(),
            settling: Arc::default(),
            _lock: lock,
        };
        let mut state = inner.load()?;
        if boot == Boot::Another {
            inner.sweep(&mut state)?;
        }
        settle::remember_boot(root)?;
        *inner.state() = state;
        Ok(inner)
    }

    fn load(&self) -> Result<State, ImageError> {
        let mut state = State::default();
        for path in entries(&self.root.join("blobs/sha256"))? {
            if let (Some(hex), Ok(meta)) = (path.file_name().and_then(|name| name.to_str()), path.metadata())
            {
                state.blobs.insert(format!("sha256:{hex}"), meta.len());
            }
        }
        for path in entries(&self.root.join("snapshots"))? {
            let file =
                fs::read(path.join("layer.json")).ok().and_then(|json| serde_json::from_slice(&json).ok());
            if let (Some(chain), Some(file)) = (path.file_name().and_then(|name| name.to_str()), file) {
                state.snapshots.insert(chain.to_owned(), file);
            }
        }
        state.settled = settle::read_index(&self.root)?;
        state.names = settle::read_recent(&self.root)?.unwrap_or_else(|| state.settled.clone());
        self.rebuild_images(&mut state);
        Ok(state)
    }

    /// Makes the images that the names stand for; a name whose content is damaged is left out, loudly.
    fn rebuild_images(&self, state: &mut State) {
        let mut images: BTreeMap<ImageId, Image> = BTreeMap::new();
        let mut known: BTreeMap<String, ImageId> = BTreeMap::new();
        for (name, descriptor) in &state.names {
            let id = match known.get(&descriptor.digest) {
                Some(id) => id.clone(),
                None => match self.read_image(descriptor, state) {
                    Ok(image) => {
                        let id = image.id.clone();
                        images
                            .entry(id.clone())
                            .and_modify(|other| other.blobs.extend(image.blobs.iter().cloned()))
                            .or_insert(image);
                        known.insert(descriptor.digest.clone(), id.clone());
                        id
                    }
                    Err(error) => {
                        tracing::warn!(%name, %error, "left out an image that is not complete; pull it again");
                        continue;
                    }
                },
            };
            let Some(image) = images.get_mut(&id) else { continue };
            image.pinned |= descriptor.annotations.contains_key(PINNED);
            match Reference::parse(name).map(|reference| reference.target) {
                Ok(Target::Digest(_)) => image.repo_digests.push(name.clone()),
                _ => image.repo_tags.push(name.clone()),
            }
        }
        state.images = images.into_iter().map(|(id, image)| (id, Arc::new(image))).collect();
        state.promised = state.settled.values().any(|descriptor| {
            !known.contains_key(&descriptor.digest) && self.read_image(descriptor, state).is_err()
        });
    }

    fn read_image(&self, top: &Descriptor, state: &State) -> Result<Image, ImageError> {
        let mut blobs = vec![top.digest.clone()];
        let mut manifest_descriptor = top.clone();
        let mut document = layout::parse_document(&top.digest, &self.read_blob(top)?)?;
        if let Document::Index(index) = &document {
            manifest_descriptor = layout::choose(&top.digest, index, &layout::host_platform())?.clone();
            document =
                layout::parse_document(&manifest_descriptor.digest, &self.read_blob(&manifest_descriptor)?)?;
        }
        let Document::Manifest(manifest) = document else {
            return Err(ImageError::Malformed {
                what: top.digest.clone(),
                detail: "an index in an index".to_owned(),
            });
        };
        blobs.push(manifest_descriptor.digest.clone());
        blobs.push(manifest.config.digest.clone());
        blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
        let config = layout::parse_config(&manifest.config.digest, &self.read_blob(&manifest.config)?)?;
        let chain_ids = layout::chain_ids(config.rootfs().diff_ids());
        let missing = |what: String| ImageError::NotFound { reference: top.digest.clone(), detail: what };
        if let Some(chain) = chain_ids.iter().find(|chain| !state.snapshots.contains_key(*chain)) {
            return Err(missing(format!("the unpacked layer {chain} is missing")));
        }
        if let Some(blob) = blobs.iter().find(|blob| !state.blobs.contains_key(*blob)) {
            return Err(missing(format!("the blob {blob} is missing")));
        }
        Ok(Image {
            id: manifest.config.digest.clone(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: size(&manifest_descriptor, &manifest),
            pinned: false,
            manifest_digest: manifest_descriptor.digest,
            config,
            chain_ids,
            blobs,
        })
    }

    fn read_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        descriptor.check("a descriptor of the store")?;
        let path = self.blob_path(&descriptor.digest);
        let content = fs::read(&path).map_err(|error| ImageError::io("read", &path, error))?;
        let got = layout::digest_of(&content);
        if got != descriptor.digest {
            let (what, expected) = (path.display().to_string(), descriptor.digest.clone());
            return Err(ImageError::DigestMismatch { what, expected, got });
        }
        Ok(content)
    }

    /// Publishes what came in; blocking, and the caller holds `change`.
    pub(super) fn commit(&self, incoming: Incoming) -> Result<(), ImageError> {
        let mut state = State::clone(&self.state());
        if state.promised {
            // What is missing may be among this, and index.json names it already.
            settle::sync(&settle::open_root(&self.root)?, &self.root)?;
        }
        for (digest, path) in &incoming.blobs {
            let target = self.blob_path(digest);
            let size = path.metadata().map_err(|error| ImageError::io("look at", path, error))?.size();
            fs::rename(path, &target).map_err(|error| ImageError::io("rename to", &target, error))?;
            state.blobs.insert(digest.clone(), size);
        }
        for (chain, path, file) in &incoming.snapshots {
            if state.snapshots.contains_key(chain) {
                continue; // someone else was first; ours goes with the ingest directory
            }
            let target = self.root.join("snapshots").join(chain);
            // A leftover without a valid layer.json is not known, yet in the way.
            remove_path(&target).map_err(|error| ImageError::io("delete", &target, error))?;
            fs::rename(path, &target).map_err(|error| ImageError::io("rename to", &target, error))?;
            state.snapshots.insert(chain.clone(), file.clone());
        }
        for (name, mut descriptor) in incoming.names {
            descriptor.platform = None;
            descriptor.annotations.insert(layout::CONTAINERD_NAME.to_owned(), name.clone());
            descriptor.annotations.insert(layout::REF_NAME.to_owned(), name.clone());
            state.names.insert(name, descriptor);
        }
        self.publish(state)?;
        drop(incoming.directory);
        Ok(())
    }

    /// Writes which names there are, then shows `state` to everyone.
    fn publish(&self, mut state: State) -> Result<(), ImageError> {
        if state.settled != self.state().settled {
            settle::write_index(&self.root, &state.settled)?;
        }
        let recent = Some(&state.names).filter(|names| **names != state.settled);
        settle::write_recent(&self.root, recent)?;
        self.rebuild_images(&mut state);
        *self.state() = state;
        Ok(())
    }

    /// All names, if some of them are not in index.json.
    pub(super) fn unsettled(&self) -> Option<Unsettled> {
        let state = self.state();
        let unsettled = || Unsettled { names: state.names.clone(), forgotten: state.forgotten };
        (state.names != state.settled).then(unsettled)
    }

    /// Takes names whose content is on the disk into index.json; blocking, and the caller holds `change`.
    pub(super) fn settled(&self, Unsettled { names, forgotten }: Unsettled) -> Result<(), ImageError> {
        let mut state = State::clone(&self.state());
        if state.forgotten != forgotten {
            return Ok(()); // the same may have come anew
        }
        let lasting =
            names.into_iter().filter(|(name, descriptor)| state.names.get(name) == Some(descriptor));
        let lasting: Names = lasting.collect();
        state.settled.extend(lasting);
        self.publish(state)
    }

    /// Forgets these names, then deletes what nothing refers to; blocking, and the caller holds `change`.
    pub(super) fn forget(&self, names: &[String]) -> Result<(), ImageError> {
        let mut state = State::clone(&self.state());
        for name in names {
            state.names.remove(name);
            state.settled.remove(name);
        }
        state.forgotten += 1;
        self.publish(state)?;
        self.collect()?;
        // Who removes images wants the space.
        ingest::collect(&self.root.join("ingest"), |digest| lock(&self.pins).contains_key(digest))
    }

    /// Deletes blobs and snapshots that no image has and nobody holds; blocking, and the caller holds `change`.
    pub(super) fn collect(&self) -> Result<(), ImageError> {
        let (blobs, chains) = {
            let mut state = self.state();
            let pins = lock(&self.pins);
            let (used_blobs, used_chains) = state.used();
            let unused = |all: Vec<&String>, used: &BTreeSet<&String>| -> Vec<String> {
                all.into_iter()
                    .filter(|key| !used.contains(*key) && !pins.contains_key(*key))
                    .cloned()
                    .collect()
            };
            let on_disk: Vec<&String> = state.snapshots.keys().collect();
            let unused = (unused(state.blobs.keys().collect(), &used_blobs), unused(on_disk, &used_chains));
            // Out of sight together with the decision: nobody can hold what is about to go.
            state.blobs.retain(|digest, _| !unused.0.contains(digest));
            state.snapshots.retain(|chain, _| !unused.1.contains(chain));
            unused
        };
        for digest in &blobs {
            let path = self.blob_path(digest);
            remove_path(&path).map_err(|error| ImageError::io("delete", path, error))?;
        }
        for chain in &chains {
            // Away at once, whole; a kill in between leaves something that open deletes.
            let (path, trash) =
                (self.root.join("snapshots").join(chain), self.root.join("ingest").join(chain));
            fs::rename(&path, &trash).map_err(|error| ImageError::io("rename", &path, error))?;
            remove_path(&trash).map_err(|error| ImageError::io("delete", trash, error))?;
        }
        Ok(())
    }

    /// Deletes everything that index.json does not name; it may be torn.
    fn sweep(&self, state: &mut State) -> Result<(), ImageError> {
        let (blobs, chains) = state.used();
        let blobs: BTreeSet<PathBuf> = blobs.into_iter().map(|digest| self.blob_path(digest)).collect();
        let snapshots = self.root.join("snapshots");
        let chains: BTreeSet<PathBuf> = chains.into_iter().map(|chain| snapshots.join(chain)).collect();
        for (directory, used) in [(self.root.join("blobs/sha256"), blobs), (snapshots, chains)] {
            for path in entries(&directory)?.iter().filter(|path| !used.contains(*path)) {
                remove_path(path).map_err(|error| ImageError::io("delete", path, error))?;
            }
        }
        *state = self.load()?;
        Ok(())
    }

    pub(super) fn pin(self: &Arc<Self>, keys: Vec<String>) -> Pin {
        let mut pins = lock(&self.pins);
        for key in &keys {
            *pins.entry(key.clone()).or_default() += 1;
        }
        Pin { inner: Arc::clone(self), keys }
    }

    /// The same for snapshots that must be there; gives the first that is not.
    pub(super) fn pin_snapshots(self: &Arc<Self>, chains: &[String]) -> Result<Pin, String> {
        let state = self.state();
        match chains.iter().find(|chain| !state.snapshots.contains_key(*chain)) {
            Some(missing) => Err(missing.clone()),
            None => Ok(self.pin(chains.to_vec())),
        }
    }

    /// Waits until nobody else fetches the image with this digest.
    pub(super) async fn turn(&self, digest: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let mutex = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, mutex| mutex.strong_count() > 0);
            match turns.get(digest).and_then(Weak::upgrade) {
                Some(mutex) => mutex,
                None => {
                    let mutex = Arc::new(tokio::sync::Mutex::new(()));
                    turns.insert(digest.to_owned(), Arc::downgrade(&mutex));
                    mutex
                }
            }
        };
        mutex.lock_owned().await
    }

    pub(super) fn images(&self) -> Vec<Arc<Image>> {
        self.state().images.values().cloned().collect()
    }

    pub(super) fn has_blob(&self, digest: &str) -> bool {
        self.state().blobs.contains_key(digest)
    }

    pub(super) fn has_snapshot(&self, chain: &str) -> bool {
        self.state().snapshots.contains_key(chain)
    }

    /// What index.json says about a full name.
    pub(super) fn named(&self, name: &str) -> Option<Descriptor> {
        self.state().names.get(name).cloned()
    }

    pub(super) fn blob_path(&self, digest: &str) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap_or(digest))
    }

    pub(super) fn snapshot_path(&self, chain: &str) -> PathBuf {
        self.root.join("snapshots").join(chain).join("fs")
    }

    pub(super) fn usage(&self) -> FsUsage {
        let state = self.state();
        let blobs: u64 = state.blobs.values().map(|bytes| bytes.next_multiple_of(BLOCK)).sum();
        let own = state.snapshots.len() as u64 * SNAPSHOT_INODES;
        FsUsage {
            path: self.root.clone(),
            used_bytes: blobs + own * BLOCK + state.snapshots.values().map(|s| s.bytes).sum::<u64>(),
            inodes: state.blobs.len() as u64 + own + state.snapshots.values().map(|s| s.inodes).sum::<u64>(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Digests of blobs and chain ids of snapshots that an image has.
    fn used(&self) -> (BTreeSet<&String>, BTreeSet<&String>) {
        // A damaged image's name still stands in index.json: its blobs are kept for whoever looks at it.
        let named = self.names.values().chain(self.settled.values()).map(|descriptor| &descriptor.digest);
        let blobs = self.images.values().flat_map(|image| &image.blobs).chain(named).collect();
        (blobs, self.images.values().flat_map(|image| &image.chain_ids).collect())
    }
}

/// A layer that an image has twice is stored once.
fn size(manifest_descriptor: &Descriptor, manifest: &layout::Manifest) -> u64 {
    let layers: BTreeMap<&str, u64> =
        manifest.layers.iter().map(|layer| (layer.digest.as_str(), layer.size)).collect();
    manifest_descriptor.size + manifest.config.size + layers.values().sum::<u64>()
}

/// The maps are replaced whole, so a panic elsewhere leaves them valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_lock(path: &Path) -> Result<File, ImageError> {
    let fail = |error| ImageError::io("lock", path, error);
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(fail)?;
    // Someone who is just ending gets a moment.
    for _ in 0..20 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            Err(fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
    }
    Err(ImageError::InUse { path: path.to_owned() })
}

/// Images have programs with set-user-id bits and files that only root may read: no other user gets in.
fn private(path: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(path).map_err(|error| ImageError::io("create", path, error))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(|error| ImageError::io("change the mode of", path, error))
}

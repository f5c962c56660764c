//! Images from this machine: an OCI layout, an archive, or files of our own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Config, ImageConfigurationBuilder, RootFsBuilder};
use sha2::{Digest, Sha256};

use super::acquire::{OnProgress, Source, Wanted, acquire};
use super::archive_file::extract;
use super::docker_archive::{self, ArchivedImage, Members};
use super::layout::{self, Descriptor, Index, Manifest, Platform};
use super::reference::Reference;
use super::remove::Sweep;
use super::store::{Inner, PINNED};
use super::{BuiltInContent, BuiltInFile, ImageError, ImageId, Retention};

/// By which [`built_in`] knows that it need not do anything.
const BUILT_IN: &str = "podwright.built-in";

/// Imports the images of an OCI layout (directory or tar) or of an archive of `docker save`.
pub(super) async fn import(
    inner: &Arc<Inner>,
    path: &Path,
    name: Option<&str>,
    retention: Retention,
    progress: OnProgress,
) -> Result<Vec<ImageId>, ImageError> {
    let meta = fs::metadata(path).map_err(|error| ImageError::io("read", path, error))?;
    let (layout_dir, members, _extracted) = if meta.is_dir() {
        (path.to_owned(), Members::new(), None)
    } else {
        let sweep = Sweep::create(&inner.root.join("ingest"))?;
        let (archive, target, limits) = (path.to_owned(), sweep.path().to_owned(), inner.limits.clone());
        let members = blocking(move || extract(&archive, &target, &limits)).await?;
        (sweep.path().to_owned(), members, Some(sweep))
    };
    let found = find_images(&layout_dir, path, &members, inner.limits.document_bytes)?;
    if name.is_some() && found.len() != 1 {
        return Err(ImageError::Unsupported {
            what: format!("one name for the {} images of {}", found.len(), path.display()),
            detail: "import without a name, or an archive with one image".to_owned(),
        });
    }
    let given = name.map(Reference::parse).transpose()?;
    let mut ids = Vec::new();
    for Found { top, content, names } in found {
        let names = match &given {
            Some(name) => vec![name.to_string()],
            None => {
                names.into_iter().map(|name| name.map(|name| name.to_string())).collect::<Result<_, _>>()?
            }
        };
        let pinned = (retention == Retention::Pinned).then(|| (PINNED.to_owned(), "pinned".to_owned()));
        let top = Descriptor { annotations: pinned.into_iter().collect(), ..top };
        let reference = names.first().cloned().unwrap_or_default();
        let wanted = Wanted { reference, top, content, names };
        let source = Source::Directory(layout_dir.join("blobs"));
        ids.push(acquire(inner, source, wanted, Arc::clone(&progress)).await?);
    }
    Ok(ids)
}

/// An image that lies in a directory.
struct Found {
    top: Descriptor,
    content: Vec<u8>,
    /// How it calls itself; an error where that is no name.
    names: Vec<Result<Reference, ImageError>>,
}

/// By `index.json`, as OCI has it, else by docker's `manifest.json`: archives of docker 25 and later have both.
fn find_images(
    directory: &Path,
    given: &Path,
    members: &Members,
    limit: u64,
) -> Result<Vec<Found>, ImageError> {
    if directory.join("index.json").exists() {
        return in_layout(directory, given, limit);
    }
    let path = directory.join("manifest.json");
    if !path.exists() || members.is_empty() {
        return Err(ImageError::Unsupported {
            what: given.display().to_string(),
            detail: "it is neither an OCI layout (it has no index.json) nor an archive of `docker save`"
                .to_owned(),
        });
    }
    let what = given.display().to_string();
    let images = docker_archive::images(&what, &read_limited(&path, limit)?, members)?;
    images.into_iter().map(|image| in_archive(image, given)).collect()
}

fn in_archive(image: ArchivedImage, given: &Path) -> Result<Found, ImageError> {
    let content = serde_json::to_vec(&image.manifest).map_err(|error| ImageError::Malformed {
        what: given.display().to_string(),
        detail: error.to_string(),
    })?;
    let names = match image.names.as_slice() {
        [] => vec![Err(nameless(given, "manifest.json"))],
        names => names.iter().map(|name| Reference::parse(name)).collect(),
    };
    Ok(Found { top: Descriptor::of(layout::OCI_MANIFEST, &content), content, names })
}

fn in_layout(directory: &Path, given: &Path, limit: u64) -> Result<Vec<Found>, ImageError> {
    let path = directory.join("index.json");
    let content = read_limited(&path, limit)?;
    let malformed =
        |detail: String| ImageError::Malformed { what: format!("index.json of {}", given.display()), detail };
    let index: Index = serde_json::from_slice(&content).map_err(|error| malformed(error.to_string()))?;
    if index.manifests.is_empty() {
        return Err(malformed("it names no image".to_owned()));
    }
    let found = |descriptor: Descriptor| {
        let content = read_top(directory, &descriptor, limit)?;
        Ok(Found { names: vec![name_of(&descriptor, given)], top: descriptor, content })
    };
    index.manifests.into_iter().map(found).collect()
}

fn read_top(layout_dir: &Path, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ImageError> {
    descriptor.check("index.json")?;
    let path = layout_dir.join("blobs/sha256").join(descriptor.hex());
    let content = read_limited(&path, limit)?;
    let got = layout::digest_of(&content);
    if got == descriptor.digest {
        return Ok(content);
    }
    let (what, expected) = (path.display().to_string(), descriptor.digest.clone());
    Err(ImageError::DigestMismatch { what, expected, got })
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
    let file = File::open(path).map_err(|error| ImageError::io("read", path, error))?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(|error| ImageError::io("read", path, error))?;
    if content.len() as u64 > limit {
        return Err(ImageError::TooLarge { what: path.display().to_string(), limit });
    }
    Ok(content)
}

/// containerd's annotation is a full name; OCI's may be one, or only a tag, which does not name an image.
fn name_of(descriptor: &Descriptor, path: &Path) -> Result<Reference, ImageError> {
    if let Some(name) = descriptor.annotations.get(layout::CONTAINERD_NAME) {
        return Reference::parse(name);
    }
    match descriptor.annotations.get(layout::REF_NAME) {
        Some(name) if name.contains(['/', ':', '@']) => Reference::parse(name),
        _ => Err(nameless(path, "index.json")),
    }
}

fn nameless(path: &Path, document: &str) -> ImageError {
    ImageError::Unsupported {
        what: format!("{} without a name", path.display()),
        detail: format!("its {document} does not say what the image is called: give --name"),
    }
}

/// Makes a one-layer image of files.
pub(super) async fn built_in(
    inner: &Arc<Inner>,
    name: &str,
    files: Vec<BuiltInFile>,
    config: Config,
) -> Result<ImageId, ImageError> {
    let name = Reference::parse(name)?.to_string();
    let fingerprint = fingerprint(&files, &config)?;
    if let Some(descriptor) = inner.named(&name)
        && descriptor.annotations.get(BUILT_IN) == Some(&fingerprint)
        && let Some(image) = inner.images().into_iter().find(|image| image.repo_tags.contains(&name))
    {
        return Ok(image.id.clone());
    }
    let sweep = Sweep::create(&inner.root.join("ingest"))?;
    let blobs = sweep.path().to_owned();
    let (top, content) = blocking(move || build(&blobs, &files, config)).await?;
    // No registry has it.
    let pinned = (PINNED.to_owned(), "pinned".to_owned());
    let top = Descriptor { annotations: BTreeMap::from([(BUILT_IN.to_owned(), fingerprint), pinned]), ..top };
    let wanted = Wanted { reference: name.clone(), top, content, names: vec![name] };
    acquire(inner, Source::Directory(sweep.path().to_owned()), wanted, Arc::new(|_| ())).await
}

/// Tells whether the same was built before without reading large files: by inode, size and times.
fn fingerprint(files: &[BuiltInFile], config: &Config) -> Result<String, ImageError> {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(config).unwrap_or_default());
    for file in files {
        hash.update(format!("\0{}\0{:o}\0", file.path, file.mode));
        match &file.content {
            BuiltInContent::Bytes(bytes) => hash.update(Sha256::digest(bytes)),
            BuiltInContent::Symlink(target) => hash.update(format!("link {target}")),
            BuiltInContent::Directory => hash.update("directory"),
            BuiltInContent::HostFile(path) => {
                let meta = fs::metadata(path).map_err(|error| ImageError::io("read", path, error))?;
                let (device, inode, size) = (meta.dev(), meta.ino(), meta.size());
                let changed = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
                hash.update(format!("{device} {inode} {size} {changed:?}"));
            }
        }
    }
    Ok(layout::finish(hash))
}

fn build(blobs: &Path, files: &[BuiltInFile], config: Config) -> Result<(Descriptor, Vec<u8>), ImageError> {
    let directory = blobs.join("sha256");
    fs::create_dir_all(&directory).map_err(|error| ImageError::io("create", &directory, error))?;
    let path = directory.join("layer");
    let layer = write_layer(&path, files).map_err(|error| ImageError::io("write", &path, error))?;
    let named = directory.join(layer.hex());
    fs::rename(&path, &named).map_err(|error| ImageError::io("rename to", &named, error))?;
    let Platform { architecture, os, .. } = layout::host_platform();
    let invalid = |detail: String| ImageError::Malformed {
        what: "the configuration of a built-in image".to_owned(),
        detail,
    };
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(vec![layer.digest.clone()])
        .build()
        .map_err(|error| invalid(error.to_string()))?;
    let config = ImageConfigurationBuilder::default()
        .architecture(architecture.as_str())
        .os(os.as_str())
        .rootfs(rootfs)
        .config(config)
        .build()
        .map_err(|error| invalid(error.to_string()))?;
    let config = serde_json::to_vec(&config).map_err(|error| invalid(error.to_string()))?;
    let config_descriptor = Descriptor::of(layout::OCI_CONFIG, &config);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(layout::OCI_MANIFEST.to_owned()),
        config: config_descriptor.clone(),
        layers: vec![layer],
    };
    let manifest = serde_json::to_vec(&manifest).map_err(|error| invalid(error.to_string()))?;
    let path = directory.join(config_descriptor.hex());
    fs::write(&path, &config).map_err(|error| ImageError::io("write", &path, error))?;
    Ok((Descriptor::of(layout::OCI_MANIFEST, &manifest), manifest))
}

fn write_layer(path: &Path, files: &[BuiltInFile]) -> io::Result<Descriptor> {
    let output = Hashing {
        file: io::BufWriter::with_capacity(256 << 10, File::create_new(path)?),
        hash: Sha256::new(),
        size: 0,
    };
    let mut archive = tar::Builder::new(output);
    let mut made = std::collections::BTreeSet::new();
    for file in files {
        let inside = PathBuf::from(file.path.trim_start_matches('/'));
        for parent in inside
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            if made.insert(parent.to_owned()) {
                archive.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), parent, io::empty())?;
            }
        }
        match &file.content {
            BuiltInContent::Bytes(bytes) => {
                let mut header = header(tar::EntryType::Regular, file.mode, bytes.len() as u64);
                archive.append_data(&mut header, &inside, bytes.as_slice())?;
            }
            BuiltInContent::HostFile(host) => {
                let source = File::open(host)?;
                let size = source.metadata()?.len();
                let mut header = header(tar::EntryType::Regular, file.mode, size);
                archive.append_data(&mut header, &inside, source.take(size))?;
            }
            BuiltInContent::Symlink(target) => {
                archive.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), &inside, target)?;
            }
            BuiltInContent::Directory => {
                made.insert(inside.clone());
                archive.append_data(
                    &mut header(tar::EntryType::Directory, file.mode, 0),
                    &inside,
                    io::empty(),
                )?;
            }
        }
    }
    let mut output = archive.into_inner()?;
    output.flush()?;
    let (digest, size) = (layout::finish(output.hash), output.size);
    Ok(Descriptor { digest, size, ..Descriptor::of(layout::OCI_LAYER, &[]) })
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct Hashing<W> {
    file: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

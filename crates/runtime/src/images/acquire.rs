//! From the top descriptor of an image to a committed image, wherever its content comes from.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::sync::CancellationToken;

use super::ingest::{Ingest, forget};
use super::layout::{self, Descriptor, Document, Manifest};
use super::receive::{LayerJob, receive_layer};
use super::registry::Session;
use super::store::{Incoming, Inner, LayerFile};
use super::unpack::{Unpacked, adopt};
use super::{ImageError, ImageId, Progress};

/// Layers that come in at the same time.
const PARALLEL: usize = 3;

pub(super) type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;
pub(super) type ByteStream = BoxStream<'static, Result<Bytes, ImageError>>;

/// Where content comes from.
pub(super) enum Source {
    /// The `blobs` directory of an OCI layout.
    Directory(PathBuf),
    /// A registry.
    Registry(Arc<Session>),
}

impl Source {
    /// A blob from `position` on.
    async fn open(&self, descriptor: &Descriptor, position: u64) -> Result<ByteStream, ImageError> {
        match self {
            Self::Directory(blobs) => {
                open_file(blobs.join("sha256").join(descriptor.hex()), position, u64::MAX).await
            }
            Self::Registry(session) => Ok(session.blob(descriptor, position)),
        }
    }

    /// Reads a whole small document and verifies it.
    async fn document(
        &self,
        inner: &Inner,
        descriptor: &Descriptor,
        what: &str,
    ) -> Result<Vec<u8>, ImageError> {
        descriptor.check(what)?;
        let limit = inner.limits.document_bytes;
        if descriptor.size > limit {
            return Err(ImageError::TooLarge { what: what.to_owned(), limit });
        }
        let content = match self {
            _ if inner.has_blob(&descriptor.digest) => {
                let path = inner.blob_path(&descriptor.digest);
                fs::read(&path).map_err(|error| ImageError::io("read", path, error))?
            }
            Self::Registry(session)
                if descriptor.media_type.contains("manifest") || descriptor.media_type.contains("index") =>
            {
                session.manifest(&descriptor.digest).await?.1
            }
            _ => {
                let mut stream = self.open(descriptor, 0).await?;
                let mut content = Vec::new();
                while let Some(chunk) = stream.try_next().await? {
                    content.extend_from_slice(&chunk);
                    if content.len() as u64 > descriptor.size {
                        break;
                    }
                }
                content
            }
        };
        let mismatch = |expected: String, got: String| ImageError::DigestMismatch {
            what: what.to_owned(),
            expected,
            got,
        };
        if content.len() as u64 != descriptor.size {
            return Err(mismatch(format!("{} bytes", descriptor.size), format!("{} bytes", content.len())));
        }
        let got = layout::digest_of(&content);
        if got != descriptor.digest {
            return Err(mismatch(descriptor.digest.clone(), got));
        }
        Ok(content)
    }
}

/// An image to fetch: what it is called and its top document (already verified by whoever read it).
pub(super) struct Wanted {
    /// For messages.
    pub(super) reference: String,
    pub(super) top: Descriptor,
    pub(super) content: Vec<u8>,
    /// Full names the image gets.
    pub(super) names: Vec<String>,
}

struct Resolved {
    /// Every document, the top one first.
    documents: Vec<(Descriptor, Vec<u8>)>,
    manifest: Manifest,
    manifest_digest: String,
    diff_ids: Vec<String>,
    chain_ids: Vec<String>,
}

/// Fetches, unpacks and commits an image. On error nothing of it is kept but the beginnings of layers whose download broke.
pub(super) async fn acquire(
    inner: &Arc<Inner>,
    source: Source,
    wanted: Wanted,
    progress: OnProgress,
) -> Result<ImageId, ImageError> {
    let source = Arc::new(source);
    let Wanted { reference, top, content, names } = wanted;
    // The same image is fetched once, whoever asks for it at the same time; the second finds it.
    let _turn = inner.turn(&top.digest).await;
    let resolved = resolve(inner, &source, &reference, top.clone(), content).await?;
    let id = resolved.manifest.config.digest.clone();
    // Nothing that this image needs is deleted from here on.
    let needed = resolved.documents.iter().map(|(descriptor, _)| &descriptor.digest);
    let needed =
        needed.chain(resolved.manifest.layers.iter().map(|layer| &layer.digest)).chain(&resolved.chain_ids);
    let _pin = inner.pin(needed.cloned().collect());
    progress(Progress::Resolved {
        digest: resolved.manifest_digest.clone(),
        layers: resolved.manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect(),
    });
    let ingest = Arc::new(Ingest::begin(inner, &resolved.manifest).await?);
    let received = receive_layers(inner, &source, &resolved, &ingest, &progress).await?;
    progress(Progress::Committing);
    let _change = inner.change.lock().await;
    let inner = Arc::clone(inner);
    let work = move || {
        let incoming = prepare(&inner, ingest, &resolved, received, names, &top)?;
        inner.commit(incoming)
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(id)
}

async fn resolve(
    inner: &Inner,
    source: &Source,
    reference: &str,
    top: Descriptor,
    content: Vec<u8>,
) -> Result<Resolved, ImageError> {
    let mut document = layout::parse_document(&format!("the manifest of {reference}"), &content)?;
    let mut documents = vec![(top, content)];
    if let Document::Index(index) = &document {
        let chosen = layout::choose(reference, index, &layout::host_platform())?.clone();
        let what = format!("the manifest of {reference} for this platform");
        let mut descriptor = chosen;
        if descriptor.media_type.is_empty() {
            descriptor.media_type = layout::OCI_MANIFEST.to_owned();
        }
        let content = source.document(inner, &descriptor, &what).await?;
        document = layout::parse_document(&what, &content)?;
        documents.push((descriptor, content));
    }
    let Document::Manifest(manifest) = document else {
        let detail = "it is an index in an index".to_owned();
        return Err(ImageError::Malformed { what: format!("the manifest of {reference}"), detail });
    };
    let manifest_digest =
        documents.last().map(|(descriptor, _)| descriptor.digest.clone()).unwrap_or_default();
    let content =
        source.document(inner, &manifest.config, &format!("the configuration of {reference}")).await?;
    let config = layout::parse_config(reference, &content)?;
    documents.push((manifest.config.clone(), content));
    let diff_ids = config.rootfs().diff_ids().clone();
    let bad =
        |detail: String| ImageError::Malformed { what: format!("the configuration of {reference}"), detail };
    if diff_ids.len() != manifest.layers.len() {
        let (listed, layers) = (diff_ids.len(), manifest.layers.len());
        return Err(bad(format!("it lists {listed} layers, the manifest {layers}")));
    }
    if let Some(diff_id) = diff_ids.iter().find(|diff_id| !super::reference::is_digest(diff_id)) {
        return Err(bad(format!("`{}` is not a sha256 digest", diff_id.escape_debug())));
    }
    for layer in &manifest.layers {
        layer.check(&format!("a layer of {reference}"))?;
    }
    let chain_ids = layout::chain_ids(&diff_ids);
    Ok(Resolved { documents, manifest, manifest_digest, diff_ids, chain_ids })
}

/// A layer that came in.
struct Received {
    unpacked: Unpacked,
    blob: PathBuf,
}

async fn receive_layers(
    inner: &Arc<Inner>,
    source: &Arc<Source>,
    resolved: &Resolved,
    ingest: &Arc<Ingest>,
    progress: &OnProgress,
) -> Result<Vec<Option<Received>>, ImageError> {
    let mut jobs = Vec::new();
    let mut seen = BTreeSet::new();
    for (at, descriptor) in resolved.manifest.layers.iter().enumerate() {
        let (has_blob, chain) = (inner.has_blob(&descriptor.digest), &resolved.chain_ids[at]);
        if has_blob && inner.has_snapshot(chain) {
            progress(Progress::LayerExists { digest: descriptor.digest.clone() });
            jobs.push((at, None));
            continue;
        }
        let tree = ingest.path().join(at.to_string()).join("fs");
        make_tree(&tree)?;
        // A blob that another image brought is unpacked from here.
        let source =
            if has_blob { Arc::new(Source::Directory(inner.root.join("blobs"))) } else { Arc::clone(source) };
        // An image may have a layer twice: only one of them can be the one that others continue.
        let (blob, known) = match *source {
            Source::Registry(_) if seen.insert(&descriptor.digest) => ingest.partial(descriptor)?,
            _ => (ingest.path().join(format!("{at}.blob")), 0),
        };
        let job = LayerJob {
            descriptor: descriptor.clone(),
            diff_id: resolved.diff_ids[at].clone(),
            blob,
            known,
            directory: tree,
            limits: inner.limits.clone(),
            progress: Arc::clone(progress),
            keep: Arc::clone(ingest),
        };
        jobs.push((at, Some((job, source))));
    }
    // At the first error the others are stopped, and waited for: then nothing is written any more.
    let stop = CancellationToken::new();
    let mut pending = futures::stream::iter(jobs)
        .map(|(at, job)| {
            let stop = stop.clone();
            async move {
                match job {
                    Some((job, source)) if !stop.is_cancelled() => {
                        receive_one(job, &source, &stop).await.map(|received| (at, Some(received)))
                    }
                    _ => Ok((at, None)),
                }
            }
        })
        .buffer_unordered(PARALLEL);
    let mut received: Vec<(usize, Option<Received>)> = Vec::new();
    let mut first_error = None;
    while let Some(layer) = pending.next().await {
        match layer {
            Ok(layer) => received.push(layer),
            Err(error) => {
                stop.cancel();
                first_error.get_or_insert(error);
            }
        }
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    received.sort_by_key(|(at, _)| *at);
    Ok(received.into_iter().map(|(_, layer)| layer).collect())
}

/// Receives one layer, what is known of it first. What a power loss made of a beginning is found out and fetched again.
async fn receive_one(
    mut job: LayerJob,
    source: &Source,
    stop: &CancellationToken,
) -> Result<Received, ImageError> {
    loop {
        let known = open_known(&job).await?;
        let stream = known.chain(source.open(&job.descriptor, job.known).await?);
        let stream = stream.take_until(stop.clone().cancelled_owned()).boxed();
        let error = match receive_layer(job.clone(), stream).await {
            Ok(unpacked) => return Ok(Received { unpacked, blob: job.blob }),
            Err(error) => error,
        };
        if stop.is_cancelled() || is_passing(&error) {
            return Err(error);
        }
        forget(&job.blob)?;
        if job.known == 0 || !matches!(error, ImageError::DigestMismatch { .. }) {
            return Err(error);
        }
        tracing::warn!(%error, "what was left of an earlier download is wrong; fetching the layer again");
        job.known = 0;
        forget(&job.directory)?;
        make_tree(&job.directory)?;
    }
}

/// Whether what came so far is good.
fn is_passing(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::RegistryUnavailable { .. } | ImageError::Stalled { .. } | ImageError::AuthDenied { .. }
    )
}

async fn open_known(job: &LayerJob) -> Result<ByteStream, ImageError> {
    match job.known {
        0 => Ok(futures::stream::empty().boxed()),
        known => open_file(job.blob.clone(), 0, known).await,
    }
}

fn make_tree(path: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(path).map_err(|error| ImageError::io("create", path, error))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(|error| ImageError::io("change the mode of", path, error))
}

/// Writes what is still missing below the ingest directory and lists all of it; blocking.
fn prepare(
    inner: &Inner,
    directory: Arc<Ingest>,
    resolved: &Resolved,
    received: Vec<Option<Received>>,
    names: Vec<String>,
    top: &Descriptor,
) -> Result<Incoming, ImageError> {
    let mut blobs = Vec::new();
    let mut snapshots = Vec::new();
    for (at, (descriptor, content)) in resolved.documents.iter().enumerate() {
        let path = directory.path().join(format!("document-{at}"));
        fs::write(&path, content).map_err(|error| ImageError::io("write", &path, error))?;
        blobs.push((descriptor.digest.clone(), path));
    }
    let mut below = Vec::new();
    for (at, received) in received.into_iter().enumerate() {
        let chain = &resolved.chain_ids[at];
        let path = directory.path().join(at.to_string());
        let tree = if received.is_some() { path.join("fs") } else { inner.snapshot_path(chain) };
        let tree = fs::File::open(&tree).map_err(|error| ImageError::io("open", &tree, error))?.into();
        if let Some(Received { unpacked, blob }) = received {
            let layer = &resolved.manifest.layers[at].digest;
            adopt(&tree, &unpacked.implied, &below).map_err(|error| error.in_layer(layer, &path))?;
            let file = LayerFile {
                diff_id: resolved.diff_ids[at].clone(),
                bytes: unpacked.bytes,
                inodes: unpacked.inodes,
            };
            let json = serde_json::to_vec(&file)
                .map_err(|error| ImageError::io("write", &path, std::io::Error::other(error)))?;
            fs::write(path.join("layer.json"), json)
                .map_err(|error| ImageError::io("write", &path, error))?;
            snapshots.push((chain.clone(), path, file));
            blobs.push((layer.clone(), blob));
        }
        below.insert(0, tree);
    }
    let names = names.into_iter().map(|name| (name, top.clone())).collect();
    Ok(Incoming { directory, blobs, snapshots, names })
}

/// At most `length` bytes of a file from `position` on.
async fn open_file(path: PathBuf, position: u64, length: u64) -> Result<ByteStream, ImageError> {
    let fail = |error: std::io::Error, path: PathBuf| match error.kind() {
        std::io::ErrorKind::NotFound => ImageError::Malformed {
            what: path.display().to_string(),
            detail: "the layout names this blob but does not have it".to_owned(),
        },
        _ => ImageError::io("read", path, error),
    };
    let mut file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(error) => return Err(fail(error, path)),
    };
    if position > 0
        && let Err(error) = file.seek(std::io::SeekFrom::Start(position)).await
    {
        return Err(fail(error, path));
    }
    let read = move |mut file: tokio::io::Take<tokio::fs::File>| {
        let path = path.clone();
        async move {
            let mut buffer = Vec::with_capacity(256 << 10);
            match (&mut file).take(256 << 10).read_to_end(&mut buffer).await {
                Ok(0) => Ok(None),
                Ok(_) => Ok(Some((Bytes::from(buffer), file))),
                Err(error) => Err(ImageError::io("read", path, error)),
            }
        }
    };
    Ok(futures::stream::try_unfold(file.take(length), read).boxed())
}

//! Removes images when their disk gets full: every five minutes and at the start, over CRI, on any runtime.
//!
//! ```text
//! observe: images, containers, volumes, disk ──► plan.rs (pure) ──► RemoveImage, one at a time, until enough is available
//! ```

mod plan;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use cri::v1::image_service_client::ImageServiceClient;
use manifest::Loaded;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use crate::events::Kind;
use crate::report::Reporter;
use crate::time::BootTime;
pub use plan::ImageGcPolicy;
use plan::{Disk, Listed, Records, Space, plan};

/// As upstream.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// What the collector asks and tells.
pub(crate) struct Collector<'a> {
    pub(crate) cri: Channel,
    pub(crate) policy: ImageGcPolicy,
    pub(crate) desired: watch::Receiver<Arc<Loaded>>,
    pub(crate) reporter: &'a Reporter,
}

/// Why a round did not do what it was to do.
#[derive(Debug, thiserror::Error)]
enum GcError {
    #[error("{what}: {}", status.message())]
    Runtime { what: &'static str, status: Box<Status> },
    #[error("look at the file system of {path}")]
    FileSystem { path: String, source: std::io::Error },
    /// Upstream's words, which people search for.
    #[error("invalid capacity 0 on image filesystem")]
    NoCapacity,
    /// Upstream's words too.
    #[error(
        "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
    )]
    NotEnough { wanted: u64, freed: u64 },
}

impl Collector<'_> {
    /// Collects for ever.
    pub(crate) async fn run(&self) -> Infallible {
        let mut records = Records::default();
        let mut rounds = tokio::time::interval(PERIOD);
        let mut failed_before = false;
        loop {
            rounds.tick().await;
            let outcome = self.round(&mut records).await;
            if let Err(error) = &outcome {
                self.tell(error, failed_before);
            }
            failed_before = outcome.is_err();
        }
    }

    /// What only passes by is in the log; the second failure in a row is an event.
    fn tell(&self, error: &GcError, again: bool) {
        let message = chain(error);
        match error {
            GcError::NoCapacity => self.reporter.node_event(Kind::Warning, "InvalidDiskCapacity", &message),
            GcError::NotEnough { .. } => {
                self.reporter.node_event(Kind::Warning, "FreeDiskSpaceFailed", &message);
            }
            GcError::Runtime { .. } | GcError::FileSystem { .. } => {
                tracing::warn!(error = message, "images were not collected");
            }
        }
        if again {
            self.reporter.node_event(Kind::Warning, "ImageGCFailed", &message);
        }
    }

    async fn round(&self, records: &mut Records) -> Result<(), GcError> {
        let images = self.images().await?;
        let used = self.used().await?;
        let now = BootTime::now();
        records.observe(&images, &used, now);
        let path = self.path().await?;
        let disk = disk(&path)?;
        let plan = plan(records, disk, &self.policy, now);
        for id in plan.expired {
            self.remove(records, &id, "it was not used for too long").await?;
        }
        match plan.space {
            Space::Enough => Ok(()),
            Space::NoCapacity => Err(GcError::NoCapacity),
            Space::Free { usage_percent, until_available, images } => {
                tracing::info!(
                    usage_percent,
                    path,
                    "the disk of images is over the high threshold, removing unused ones"
                );
                self.free(records, images, &path, disk, until_available).await
            }
        }
    }

    async fn free(
        &self,
        records: &mut Records,
        images: Vec<String>,
        path: &str,
        before: Disk,
        until_available: u64,
    ) -> Result<(), GcError> {
        let mut available = before.available;
        let mut failed = None;
        for id in images {
            if available >= until_available {
                break;
            }
            if let Err(error) = self.remove(records, &id, "the disk is filling up").await {
                tracing::warn!(image = id, error = chain(&error), "an unused image could not be removed");
                failed = Some(error);
            }
            available = disk(path)?.available;
        }
        if available >= until_available {
            return Ok(());
        }
        let wanted = until_available.saturating_sub(before.available);
        let freed = available.saturating_sub(before.available);
        Err(failed.unwrap_or(GcError::NotEnough { wanted, freed }))
    }

    async fn remove(&self, records: &mut Records, id: &str, why: &str) -> Result<(), GcError> {
        let image = Some(v1::ImageSpec { image: id.to_owned(), ..v1::ImageSpec::default() });
        let removed = self.image_client().remove_image(v1::RemoveImageRequest { image }).await;
        removed.map_err(runtime("remove an image"))?;
        tracing::info!(image = id, why, "removed an image");
        records.forget(id);
        Ok(())
    }

    async fn images(&self) -> Result<Vec<Listed>, GcError> {
        let listed = self.image_client().list_images(v1::ListImagesRequest::default()).await;
        let images = listed.map_err(runtime("list the images"))?.into_inner().images;
        let listed = |image: v1::Image| Listed {
            id: image.id,
            names: image.repo_tags.into_iter().chain(image.repo_digests).collect(),
            pinned: image.pinned,
        };
        Ok(images.into_iter().map(listed).collect())
    }

    /// Ids and names of the images of all containers, ended ones too, and of volumes.
    async fn used(&self) -> Result<BTreeSet<String>, GcError> {
        let mut client = cri::runtime_client(&self.cri);
        let listed = client.list_containers(v1::ListContainersRequest::default()).await;
        let mut used = BTreeSet::new();
        for container in listed.map_err(runtime("list the containers"))?.into_inner().containers {
            let asked = container.image.map(|image| [image.image, image.user_specified_image]);
            used.extend([container.image_ref, container.image_id]);
            used.extend(asked.into_iter().flatten());
        }
        let desired = self.desired.borrow().clone();
        let pods = desired.objects.pods.values().filter_map(|pod| pod.spec.as_ref());
        let volumes = pods.flat_map(|spec| spec.volumes.iter().flatten());
        used.extend(volumes.filter_map(|volume| volume.image.as_ref()?.reference.clone()));
        used.remove("");
        Ok(used)
    }

    /// Where the images lie, as the runtime says.
    async fn path(&self) -> Result<String, GcError> {
        let info = self.image_client().image_fs_info(v1::ImageFsInfoRequest {}).await;
        let info = info.map_err(runtime("ask for the file system of images"))?.into_inner();
        let first = info.image_filesystems.into_iter().next().and_then(|usage| usage.fs_id);
        first.map(|id| id.mountpoint).ok_or_else(|| {
            runtime("ask for the file system of images")(Status::not_found("the runtime names none"))
        })
    }

    fn image_client(&self) -> ImageServiceClient<Channel> {
        cri::image_client(&self.cri)
    }
}

fn runtime(what: &'static str) -> impl FnOnce(Status) -> GcError {
    move |status| GcError::Runtime { what, status: Box::new(status) }
}

fn disk(path: &str) -> Result<Disk, GcError> {
    let stat = rustix::fs::statvfs(Path::new(path))
        .map_err(|errno| GcError::FileSystem { path: path.to_owned(), source: errno.into() })?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Disk { capacity: bytes(stat.f_blocks), available: bytes(stat.f_bavail) })
}

fn chain(error: &GcError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

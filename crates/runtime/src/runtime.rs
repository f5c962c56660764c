//! The runtime: what its calls share.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use cni::WriterHandle;
use host::cgroup::CgroupManager;

use crate::config::Config;
use crate::error::OpenError;
use crate::events::Events;
use crate::handlers::{Features, Probe};
use crate::images::ImageStore;
use crate::service::{Images, Pods};
use crate::state::{Index, lock};
use crate::stats::Stats;
use crate::streaming::Streaming;

/// A container runtime; one per state directory and process.
pub struct Runtime {
    pub(crate) config: Config,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) cni: cni::Client,
    pub(crate) cgroups: CgroupManager,
    /// A matter of the machine, so looked at once and not at each container.
    pub(crate) limits_huge_pages: bool,
    pub(crate) limits_swap: bool,
    /// `/proc/self/fd/N` of a sealed copy of this program (CVE-2019-5736).
    pub(crate) exe: SealedExe,
    pub(crate) events: Events,
    pub(crate) boot_id: String,
    pub(crate) stats: Stats,
    pub(crate) streaming: Streaming,
    features: Features,
    index: Mutex<Index>,
}

/// The program that supervisors are: held open, executed by its descriptor's path.
pub(crate) struct SealedExe {
    _file: std::os::fd::OwnedFd,
    pub(crate) path: std::path::PathBuf,
}

impl Runtime {
    /// Opens the runtime and takes over what a former process left: running pods go on, half-done steps are finished or
    /// undone. In the network namespace of the calling thread, inside a tokio runtime.
    ///
    /// # Errors
    /// When a directory, the images, the network or the cgroups are not usable.
    pub async fn open(config: Config, netfilter: WriterHandle) -> Result<Arc<Self>, OpenError> {
        let (state, root) = (config.state.clone(), config.root.clone());
        for directory in [state, config.sandboxes(), config.filters(), root, config.root.join("containers")] {
            make_directory(&directory)?;
        }
        let images = ImageStore::open(&config.root, &config.registry_config_dir).await?;
        let exe = host::self_exe::open().map_err(OpenError::Seal)?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&exe)).into();
        let cgroups = CgroupManager::detect()?;
        let runtime = Arc::new(Self {
            cni: cni::Client::open(config.cni.clone(), netfilter).await?,
            images: Arc::new(images),
            limits_huge_pages: cgroups.limits_huge_pages(),
            limits_swap: cgroups.limits_swap(),
            cgroups,
            exe: SealedExe { _file: exe, path },
            events: Events::default(),
            boot_id: host::process::boot_id().map_err(OpenError::Seal)?,
            stats: Stats::default(),
            streaming: Streaming::default(),
            features: Features::default(),
            index: Mutex::default(),
            config,
        });
        runtime.recover().await?;
        runtime.start_sampling();
        Ok(runtime)
    }

    /// The CRI RuntimeService.
    #[must_use]
    pub fn runtime_service(self: &Arc<Self>) -> impl cri::v1::runtime_service_server::RuntimeService + use<> {
        Pods(self.clone())
    }

    /// The CRI ImageService.
    #[must_use]
    pub fn image_service(self: &Arc<Self>) -> impl cri::v1::image_service_server::ImageService + use<> {
        Images(self.clone())
    }

    /// The images of this node.
    #[must_use]
    pub fn images(&self) -> &Arc<ImageStore> {
        &self.images
    }

    /// Whether pods may have user namespaces of their own.
    pub(crate) async fn has_user_namespaces(&self) -> bool {
        let probe = Probe {
            exe: self.exe.path.clone(),
            layers: self.config.root.join("snapshots"),
            containers: self.config.root.join("containers"),
        };
        self.features.user_namespaces(probe).await
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }
}

fn make_directory(path: &Path) -> Result<(), OpenError> {
    let made = host::path::make_directory(path, 0o700);
    made.map_err(|source| OpenError::Directory { path: path.to_owned(), source })
}

/// Wall clock, in nanoseconds since 1970: what CRI's times are.
#[expect(clippy::disallowed_methods, reason = "the runtime's one wall clock")]
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

//! PullImage from a registry on the loopback, until the image is unpacked and a container could start.
//!
//! The image is made of this machine's own /usr, so that files have the sizes, names and links that files have.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::{ImageSpec, PullImageRequest};
use e2e::cri_server::{CriServer, Implementation};
use e2e::image::{self, ImageConfig, Packing};
use e2e::registry::Registry;
use e2e::requests::{self, Runtime};
use e2e::test_host::{TestHost, output_of, program};
use tonic::transport::Channel;

use crate::disk::Disk;
use crate::measure::{Row, timed};

const PEER: &str = "containerd 2.4";
const REPOSITORY: &str = "tree:1";
/// What the layers have together, at least.
const BYTES: u64 = 300_000_000;
const FILES: usize = 10_000;
const LAYERS: [Packing; 6] =
    [Packing::Gzip, Packing::Zstd, Packing::Gzip, Packing::Zstd, Packing::Gzip, Packing::Zstd];

/// Row `pull`.
pub(crate) fn pull(n: usize) -> Result<Row> {
    let scratch = tempfile::tempdir_in("/var/tmp").context("create a directory")?;
    let served = Disk::fresh(scratch.path(), "served")?;
    let layers = write_tree(&served.path().join("tree.oci"))?;
    fill_registry(&served)?;
    let mut samples = [Vec::new(), Vec::new()];
    let mut seen = [String::new(), String::new()];
    for sample in 0..=n {
        for (side, implementation) in
            [Implementation::Podwright, Implementation::Containerd].into_iter().enumerate()
        {
            let mut server = Side::new(implementation, scratch.path(), &served)?;
            // What is written back belongs to the other side's sample.
            rustix::fs::sync();
            let (elapsed, ()) = timed(|| server.pull())?;
            // The first one warms the caches.
            if sample > 0 {
                samples[side].push(elapsed);
            }
            if sample == n {
                seen[side] = server.contents(&layers)?;
            }
        }
    }
    ensure!(seen[0] == seen[1], "not the same work:\n--- ours\n{}--- {PEER}\n{}", seen[0], seen[1]);
    Ok(Row::of_medians("pull", PEER, &samples[0], &samples[1]))
}

fn fill_registry(served: &Disk) -> Result<()> {
    let host = TestHost::new()?;
    serve(&host, served)?.push(&host, &served.path().join("tree.oci"), REPOSITORY)
}

fn serve(host: &TestHost, served: &Disk) -> Result<Registry> {
    Registry::serve(host, &served.path().join("registry"))
}

/// One server, with the registry on its own loopback and everything of its own on a fresh disk.
struct Side {
    tokio: tokio::runtime::Runtime,
    runtime: Runtime,
    images: ImageServiceClient<Channel>,
    _registry: Registry,
    server: CriServer,
    /// Dropped after what lies on it.
    _disk: Disk,
}

impl Side {
    fn new(implementation: Implementation, scratch: &Path, served: &Disk) -> Result<Self> {
        let disk = Disk::fresh(scratch, "side")?;
        let server = CriServer::start_on(TestHost::new_in(disk.path())?, implementation)?;
        let registry = serve(&server.host, served)?;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (runtime, images) = tokio.block_on(server.clients())?;
        Ok(Self { tokio, runtime, images, _registry: registry, server, _disk: disk })
    }

    fn pull(&mut self) -> Result<()> {
        let request = PullImageRequest { image: Some(spec()), ..PullImageRequest::default() };
        self.tokio.block_on(self.images.pull_image(request)).context("PullImage").map(drop)
    }

    /// What a container sees: every name with its type, mode, owner and link, and the sum of all content.
    fn contents(&mut self, layers: &[String]) -> Result<String> {
        let content = match self.server.implementation {
            Implementation::Podwright => "root/blobs/sha256",
            Implementation::Containerd => "containerd/root/io.containerd.content.v1.content/blobs/sha256",
        };
        for digest in layers {
            let blob = self.server.host.path().join(content).join(&digest["sha256:".len()..]);
            ensure!(blob.exists(), "{} is not kept", blob.display());
        }
        let pod = requests::pod(self.server.host.path(), "look");
        let mut container = requests::container("look", &["/bin/busybox", "sleep", "1000"]);
        container.image = Some(spec());
        let runtime = &mut self.runtime;
        self.tokio.block_on(async {
            let sandbox = requests::run_pod(runtime, &pod).await?;
            let id = requests::create(runtime, &sandbox, &pod, &container).await?;
            requests::start(runtime, &id).await?;
            let look = "cd /tree && find . | wc -l && find . -exec stat -c '%n %f %u:%g %s' {} + | grep -v '^[^ ]* 41' | sort | md5sum \
                        && find . -type f -print0 | sort -z | xargs -0 cat | md5sum";
            let seen = requests::exec(runtime, &id, &["/bin/busybox", "sh", "-c", look]).await?;
            ensure!(seen.exit_code == 0, "{}", String::from_utf8_lossy(&seen.stderr));
            Ok(String::from_utf8_lossy(&seen.stdout).into_owned())
        })
    }
}

fn spec() -> ImageSpec {
    ImageSpec { image: format!("{}/{REPOSITORY}", Registry::ADDRESS), ..ImageSpec::default() }
}

/// Writes the image and gives the digests of its layers.
fn write_tree(layout: &Path) -> Result<Vec<String>> {
    let files = choose()?;
    let per_layer = files.len().div_ceil(LAYERS.len());
    let mut tars = Vec::new();
    for (files, packing) in files.chunks(per_layer).zip(LAYERS) {
        let list = layout.with_extension("list");
        std::fs::write(&list, files.join("\n")).context("write the list of files")?;
        let tar = layout.with_extension("layer");
        let mut command = program("tar");
        command.args(["-C", "/usr", "--transform", "s,^,tree/,", "--no-recursion", "-cf"]).arg(&tar);
        output_of(command.arg("-T").arg(&list))?;
        tars.push((std::fs::read(&tar).context("read the tar")?, packing));
    }
    let busybox =
        std::fs::read("/bin/busybox").context("read /bin/busybox (apt-get install busybox-static)")?;
    let last = tars.last_mut().context("a layer")?;
    let mut with_busybox = image::Layer::default().file("bin/busybox", 0o755, &busybox)?.finish()?;
    // Two blocks of zeros end a tar; what follows would not be read.
    with_busybox.truncate(with_busybox.len() - 1024);
    with_busybox.append(&mut last.0);
    last.0 = with_busybox;
    image::write_layout_of_tars(layout, "registry.test/tree:1", tars, &ImageConfig::default())?;
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str().context("a digest")?;
    let manifest = std::fs::read(layout.join("blobs/sha256").join(&digest["sha256:".len()..]))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let layers = manifest["layers"].as_array().context("layers")?;
    layers.iter().map(|layer| Ok(layer["digest"].as_str().context("a digest")?.to_owned())).collect()
}

/// Files of /usr, every n-th of it, until they are enough in number and in bytes.
fn choose() -> Result<Vec<String>> {
    let listed = output_of(
        program("find").args(["/usr", "-xdev", "(", "-type", "f", "-o", "-type", "l", ")", "-size", "-3M"]),
    )?;
    let mut files: Vec<&str> = listed.lines().filter_map(|line| line.strip_prefix("/usr/")).collect();
    files.sort_unstable();
    let mut chosen = Vec::new();
    let mut bytes = 0;
    // Every n-th file, so that all kinds of directories are in it.
    let step = (files.len() * 5 / (FILES * 6)).max(1);
    for start in 0..step {
        for file in files.iter().skip(start).step_by(step) {
            if chosen.len() > FILES && bytes > BYTES {
                break;
            }
            bytes += std::fs::symlink_metadata(Path::new("/usr").join(file)).map_or(0, |meta| meta.size());
            chosen.push((*file).to_owned());
        }
    }
    chosen.sort_unstable();
    ensure!(chosen.len() > FILES && bytes > BYTES, "/usr has only {} files of {bytes} bytes", chosen.len());
    Ok(chosen)
}

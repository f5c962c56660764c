//! The images of cluster stories, under the names of the public ones, made from what `hack/tools.sh` builds and from this
//! machine's packages.
//!
//! Making them takes seconds, so a registry's storage with all of them is kept beside the tools that are in them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::image::{ImageConfig, Layer, busybox_config, busybox_layer, write_layout};
use crate::lab::ROUTER;
use crate::parts;
use crate::program::pause;
use crate::registry::{Registry, write_only_mirror};
use crate::test_host::TestHost;

/// Where the lab's registry listens, on the router.
pub const PORT: u16 = 5000;
/// What upstream's own stories run: a program for every purpose.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// A shell.
pub const BUSYBOX: &str = "docker.io/library/busybox:1.37";
/// A process that does nothing.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";

/// Upstream's CNI plugins in `/plugins`, as images that install them have.
pub const CNI_PLUGINS: &str = "registry.k8s.io/networking/cni-plugins:v1.9.1";

/// Changes whenever the recipes below do.
const RECIPES: &str = "3";
/// What the programs of [`AGNHOST`] need beside it, as far as it is installed here.
const PROGRAMS: [&str; 3] = ["/usr/bin/curl", "/bin/bash", "/usr/bin/ss"];

/// What iptables loads for matches and targets.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

struct TestImage {
    /// The name without its registry: all registries of the world are one here.
    name: &'static str,
    layers: Vec<Layer>,
    config: ImageConfig,
}

/// The storage of a registry with all images.
///
/// # Errors
/// When a package is missing (`hack/setup.sh test` installs it), or skopeo fails.
pub fn storage() -> Result<PathBuf> {
    let storage = parts::tools().join(format!("images-{RECIPES}"));
    if !storage.exists() {
        let host = TestHost::new()?;
        let made = parts::tools().join(format!("images-{RECIPES}.{}", std::process::id()));
        publish(&host, &made)?;
        // Another test may have been faster.
        if std::fs::rename(&made, &storage).is_err() {
            std::fs::remove_dir_all(&made).context("remove the second images")?;
        }
    }
    Ok(storage)
}

/// Writes a `certs.d` tree by which every public name is asked of the lab's registry only.
///
/// # Errors
/// When the files cannot be written.
pub fn write_mirrors(certs_d: &Path) -> Result<()> {
    let server = format!("{ROUTER}:{PORT}");
    ["docker.io", "gcr.io", "quay.io", "registry.k8s.io"]
        .into_iter()
        .try_for_each(|registry| write_only_mirror(certs_d, registry, &server))
}

fn publish(host: &TestHost, storage: &Path) -> Result<()> {
    let registry = Registry::serve(host, storage)?;
    for image in all()? {
        let layout = host.path().join("layout");
        write_layout(&layout, image.name, image.layers, &image.config)?;
        registry.push(host, &layout, image.name)?;
        std::fs::remove_dir_all(&layout).context("remove the layout")?;
    }
    Ok(())
}

fn all() -> Result<Vec<TestImage>> {
    let pause_layer = || Layer::default().file("pause", 0o755, pause()?);
    Ok(vec![
        TestImage {
            name: "library/busybox:1.37",
            layers: vec![busybox_layer()?],
            config: ImageConfig { command: vec!["sh".into()], ..busybox_config() },
        },
        TestImage { name: "pause:3.10.1", layers: vec![pause_layer()?], config: entrypoint("/pause") },
        TestImage {
            name: "e2e-test-images/agnhost:2.63.0",
            layers: vec![busybox_layer()?, programs()?, agnhost()?],
            config: ImageConfig { command: vec!["pause".into()], ..entrypoint("/agnhost") },
        },
        TestImage {
            name: "networking/cni-plugins:v1.9.1",
            layers: vec![busybox_layer()?, cni_plugins()?],
            config: busybox_config(),
        },
        TestImage {
            name: "coredns/coredns:v1.14.7",
            layers: vec![tool("coredns", "coredns")?],
            config: entrypoint("/coredns"),
        },
        TestImage {
            name: "kube-proxy:v1.36.3",
            layers: vec![iptables()?, tool("kube-proxy", "usr/local/bin/kube-proxy")?],
            config: entrypoint("/usr/local/bin/kube-proxy"),
        },
        TestImage {
            name: "metrics-server/metrics-server:v0.9.0",
            layers: vec![
                Layer::default().directory("tmp/", 0o1777)?,
                tool("metrics-server", "metrics-server")?,
            ],
            config: entrypoint("/metrics-server"),
        },
    ])
}

fn entrypoint(program: &str) -> ImageConfig {
    ImageConfig { entrypoint: vec![program.into()], ..busybox_config() }
}

fn tool(name: &str, path: &str) -> Result<Layer> {
    let program = std::fs::read(parts::tool(name)).with_context(|| format!("read {name}"))?;
    Layer::default().file(path, 0o755, &program)
}

/// This machine's iptables: what runs on one machine must speak of one set of tables.
fn iptables() -> Result<Layer> {
    let program = std::fs::canonicalize("/usr/sbin/iptables").context("is iptables installed?")?;
    let path = program.to_str().context("a path")?;
    let mut layer = Layer::default().directory("tmp/", 0o1777)?.program(path)?;
    for name in ["iptables", "ip6tables"] {
        for way in ["", "-save", "-restore"] {
            layer = layer.symlink(&format!("usr/sbin/{name}{way}"), path)?;
        }
    }
    for file in std::fs::read_dir(EXTENSIONS).context("iptables' extensions")? {
        let path = file?.path();
        let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        layer = layer.file(path.to_string_lossy().trim_start_matches('/'), 0o644, &content)?;
    }
    Ok(layer)
}

fn cni_plugins() -> Result<Layer> {
    ["bridge", "host-local", "loopback", "portmap"].into_iter().try_fold(Layer::default(), |layer, name| {
        let program =
            std::fs::read(parts::upstream_cni().join(name)).with_context(|| format!("read {name}"))?;
        layer.file(&format!("plugins/{name}"), 0o755, &program)
    })
}

fn programs() -> Result<Layer> {
    PROGRAMS.into_iter().filter(|path| Path::new(path).exists()).try_fold(Layer::default(), Layer::program)
}

/// A user of the image's own is in a group of the image's own: what `runAsUser` and `fsGroup` are told apart by.
fn agnhost() -> Result<Layer> {
    tool("agnhost", "agnhost")?
        .symlink("agnhost-2", "agnhost")?
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nuser-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n")?
        .file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")
}

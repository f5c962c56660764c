//! Images made from this machine's own busybox, as OCI layouts that both sides import, or that skopeo pushes.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::test_host::{output_of, program};

/// The name under which stories know the busybox image.
pub const BUSYBOX: &str = "registry.test/busybox:1";

/// What an image's config says, beside its layers.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub command: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
    /// `User`.
    pub user: String,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `StopSignal`.
    pub stop_signal: String,
    /// `Volumes`.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: Vec<(String, String)>,
}

/// A layer under construction: an uncompressed tar.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Layer {
    /// Adds a regular file.
    ///
    /// # Errors
    /// When the name does not fit in a tar header.
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Result<Self> {
        self.entry(tar::EntryType::Regular, path, mode, None, content)?;
        Ok(self)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// When the name does not fit in a tar header.
    pub fn directory(mut self, path: &str, mode: u32) -> Result<Self> {
        self.entry(tar::EntryType::Directory, path, mode, None, &[])?;
        Ok(self)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When the names do not fit in a tar header.
    pub fn symlink(mut self, path: &str, target: &str) -> Result<Self> {
        self.entry(tar::EntryType::Symlink, path, 0o777, Some(target), &[])?;
        Ok(self)
    }

    /// Adds one of this machine's programs where it is here, with the libraries that it is linked with.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn program(mut self, path: &str) -> Result<Self> {
        let linked = output_of(program("ldd").arg(path)).with_context(|| format!("is {path} installed?"))?;
        let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
        for file in std::iter::once(path).chain(libraries) {
            let content = std::fs::read(file).with_context(|| format!("read {file}"))?;
            self = self.file(file.trim_start_matches('/'), 0o755, &content)?;
        }
        Ok(self)
    }

    /// The header's name bytes are written as they are: hostile names are what some stories are about.
    fn entry(
        &mut self,
        kind: tar::EntryType,
        path: &str,
        mode: u32,
        link: Option<&str>,
        content: &[u8],
    ) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        let name = &mut header.as_old_mut().name;
        anyhow::ensure!(path.len() < name.len(), "{path} is too long for a tar header");
        name[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(target) = link {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_cksum();
        self.0.append(&header, content).with_context(|| format!("append {path}"))
    }

    /// The tar.
    ///
    /// # Errors
    /// Never: it lies in memory.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.0.into_inner().context("finish the layer")
    }
}

/// A layer with `/bin/busybox`, a link for each of its applets, /etc/passwd and /etc/group.
///
/// # Errors
/// When Debian's busybox-static is not installed.
pub fn busybox_layer() -> Result<Layer> {
    let binary =
        std::fs::read("/bin/busybox").context("read /bin/busybox (apt-get install busybox-static)")?;
    let mut layer = Layer::default()
        .directory("bin/", 0o755)?
        .directory("etc/", 0o755)?
        .directory("tmp/", 0o1777)?
        .directory("root/", 0o700)?
        .file("bin/busybox", 0o755, &binary)?
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?
        .file("etc/group", 0o644, b"root:x:0:\nwww-data:x:33:\nusers:x:100:www-data\nnogroup:x:65534:\n")?
        .file("etc/not-executable", 0o644, b"#!/bin/sh\n")?;
    for applet in output_of(program("/bin/busybox").arg("--list"))?.lines() {
        if applet != "busybox" {
            layer = layer.symlink(&format!("bin/{applet}"), "busybox")?;
        }
    }
    Ok(layer)
}

/// The config that [`BUSYBOX`] has.
#[must_use]
pub fn busybox_config() -> ImageConfig {
    ImageConfig {
        command: vec!["/bin/sh".into()],
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        ..ImageConfig::default()
    }
}

/// Writes [`BUSYBOX`] as an OCI layout below `directory` and gives the layout's path.
///
/// # Errors
/// As [`write_layout`] and [`busybox_layer`].
pub fn busybox(directory: &Path) -> Result<PathBuf> {
    let layout = directory.join("busybox.oci");
    write_layout(&layout, BUSYBOX, vec![busybox_layer()?], &busybox_config())?;
    Ok(layout)
}

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As a plain tar.
    Plain,
    /// By gzip, the fast way.
    Gzip,
    /// By zstd, level 3.
    Zstd,
}

impl Packing {
    /// Compresses `tar`.
    ///
    /// # Errors
    /// When the compressor does.
    pub fn pack(self, tar: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(tar),
            Self::Gzip => gzip(&tar),
            Self::Zstd => zstd::encode_all(tar.as_slice(), 3).context("compress"),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Writes an OCI layout with one image of the given layers (gzip) at `layout`, named `name`.
///
/// # Errors
/// When the files cannot be written.
pub fn write_layout(layout: &Path, name: &str, layers: Vec<Layer>, config: &ImageConfig) -> Result<()> {
    let layers = layers.into_iter().map(|layer| Ok((layer.finish()?, Packing::Gzip)));
    write_layout_of_tars(layout, name, layers.collect::<Result<_>>()?, config)
}

/// The same of tars that exist already, each stored in its own way.
///
/// # Errors
/// When the files cannot be written.
pub fn write_layout_of_tars(
    layout: &Path,
    name: &str,
    layers: Vec<(Vec<u8>, Packing)>,
    config: &ImageConfig,
) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).context("create the layout")?;
    let mut diff_ids = Vec::new();
    let mut descriptors = Vec::new();
    for (tar, packing) in layers {
        diff_ids.push(digest(&tar));
        descriptors.push(write_blob(&blobs, packing.media_type(), &packing.pack(tar)?)?);
    }
    let volumes: serde_json::Map<String, Value> =
        config.volumes.iter().map(|volume| (volume.clone(), json!({}))).collect();
    let labels: serde_json::Map<String, Value> =
        config.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Entrypoint": config.entrypoint, "Cmd": config.command, "Env": config.env, "User": config.user,
            "WorkingDir": config.working_dir, "StopSignal": config.stop_signal,
            "Volumes": volumes, "Labels": labels,
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config =
        write_blob(&blobs, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": descriptors,
    });
    let mut manifest =
        write_blob(&blobs, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())?;
    manifest["annotations"] =
        json!({ "org.opencontainers.image.ref.name": name, "io.containerd.image.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(layout.join("index.json"), index.to_string()).context("write index.json")?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("write oci-layout")
}

fn write_blob(blobs: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = digest(bytes);
    std::fs::write(blobs.join(&digest["sha256:".len()..]), bytes).context("write a blob")?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

/// `sha256:` and the hex digest of `bytes`.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).context("compress")?;
    encoder.finish().context("compress")
}

/// Makes the layout's image an entry of a list with one for another platform too, which does not exist here.
///
/// # Errors
/// When the layout cannot be read or written.
pub fn put_index_before(layout: &Path) -> Result<()> {
    let path = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).context("read index.json")?)?;
    let mut own = index["manifests"][0].take();
    let annotations = own["annotations"].take();
    let (here, elsewhere) =
        if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") };
    let manifest = |descriptor: &Value, architecture: &str| {
        json!({
            "mediaType": descriptor["mediaType"], "digest": descriptor["digest"], "size": descriptor["size"],
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let mut list = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest(&own, elsewhere), manifest(&own, here)],
    });
    list["manifests"][0]["platform"]["variant"] = json!("other");
    let blobs = layout.join("blobs/sha256");
    let mut top = write_blob(&blobs, "application/vnd.oci.image.index.v1+json", list.to_string().as_bytes())?;
    top["annotations"] = annotations;
    index["manifests"] = json!([top]);
    std::fs::write(&path, index.to_string()).context("write index.json")
}

//! Images made by tests: layers as tar bytes, put into an OCI layout or served by a registry.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::layout::{self, Descriptor, Index, Manifest, digest_of};

/// An image as blobs.
#[derive(Clone)]
pub(super) struct TestImage {
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
    pub(super) manifest: Descriptor,
    pub(super) id: String,
    pub(super) layers: Vec<String>,
}

/// How a layer is stored.
#[derive(Clone, Copy)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl TestImage {
    /// An image of these layers (tar bytes).
    pub(super) fn new(layers: &[(Vec<u8>, Packing)]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest_of(tar)).collect();
        let platform = layout::host_platform();
        let config = serde_json::json!({
            "architecture": platform.architecture, "os": "linux",
            "config": {"Cmd": ["/bin/hello"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let mut blobs = BTreeMap::new();
        let mut put = |media_type: &str, content: Vec<u8>| {
            let descriptor = Descriptor::of(media_type, &content);
            blobs.insert(descriptor.digest.clone(), content);
            descriptor
        };
        let config = put(layout::OCI_CONFIG, config.to_string().into_bytes());
        let layers: Vec<Descriptor> =
            layers.iter().map(|(tar, packing)| put(layout::OCI_LAYER, packing.pack(tar))).collect();
        let id = config.digest.clone();
        let names = layers.iter().map(|layer| layer.digest.clone()).collect();
        let manifest =
            Manifest { schema_version: 2, media_type: Some(layout::OCI_MANIFEST.to_owned()), config, layers };
        let manifest = put(layout::OCI_MANIFEST, serde_json::to_vec(&manifest).expect("json"));
        Self { blobs, manifest, id, layers: names }
    }

    /// Writes it as an OCI layout.
    pub(super) fn write_layout(&self, directory: &Path, name: Option<&str>) {
        std::fs::create_dir_all(directory.join("blobs/sha256")).expect("mkdir");
        std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
        for (digest, content) in &self.blobs {
            std::fs::write(directory.join("blobs/sha256").join(&digest[7..]), content).expect("write");
        }
        let mut manifest = self.manifest.clone();
        manifest.annotations.extend(name.map(|name| (layout::REF_NAME.to_owned(), name.to_owned())));
        let index = Index { schema_version: 2, media_type: None, manifests: vec![manifest] };
        std::fs::write(directory.join("index.json"), serde_json::to_vec(&index).expect("json"))
            .expect("write");
    }
}

impl Packing {
    pub(super) fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => tar.to_vec(),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).expect("gzip");
                encoder.finish().expect("gzip")
            }
            Self::Zstd => zstd::encode_all(tar, 1).expect("zstd"),
        }
    }
}

/// A tar, entry by entry; names and links go into the header as they are, however wrong.
#[derive(Default)]
pub(super) struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    pub(super) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, path, "", 0o644, content)
    }

    pub(super) fn directory(self, path: &str) -> Self {
        self.entry(tar::EntryType::Directory, path, "", 0o755, b"")
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, path, target, 0o777, b"")
    }

    pub(super) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, path, target, 0o644, b"")
    }

    pub(super) fn entry(
        self,
        kind: tar::EntryType,
        path: &str,
        link: &str,
        mode: u32,
        content: &[u8],
    ) -> Self {
        self.with(kind, path, link, content, |header| header.set_mode(mode))
    }

    pub(super) fn with(
        mut self,
        kind: tar::EntryType,
        path: &str,
        link: &str,
        content: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        let gnu = header.as_gnu_mut().expect("gnu");
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        change(&mut header);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// Extension records for the next entry.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..=4)
                .map(|digits| rest + digits)
                .find(|n| n.to_string().len() + rest == *n)
                .expect("length");
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(tar::EntryType::XHeader, "PaxHeaders/x", "", 0o644, &data)
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

//! The documents of OCI images and Docker's equal ones: descriptors, indexes, manifests, configurations. Pure.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ImageError;
use super::reference::is_digest;

/// What registries are asked for, best first.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The annotations by which layouts name images.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(super) const CONTAINERD_NAME: &str = "io.containerd.image.name";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "is_empty_map", deserialize_with = "null_as_default")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) layers: Vec<Descriptor>,
}

/// The top document of an image: for one platform, or a list for several.
pub(super) enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Descriptor {
    pub(super) fn of(media_type: &str, content: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: digest_of(content),
            size: content.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The hexadecimal part, safe as a file name: a descriptor from outside is checked by [`check`](Self::check) first.
    pub(super) fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }

    pub(super) fn check(&self, what: &str) -> Result<(), ImageError> {
        if is_digest(&self.digest) {
            return Ok(());
        }
        let detail = format!("`{}` is not a sha256 digest", self.digest.escape_debug());
        Err(ImageError::Malformed { what: what.to_owned(), detail })
    }
}

/// `sha256:<hex>` of `content`.
pub(super) fn digest_of(content: &[u8]) -> String {
    finish(Sha256::new_with_prefix(content))
}

/// `sha256:<hex>` of what was hashed.
pub(super) fn finish(hash: Sha256) -> String {
    use std::fmt::Write as _;
    hash.finalize().iter().fold(String::from("sha256:"), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// Reads a manifest or an index, by its content: media types of descriptors are not to be trusted.
pub(super) fn parse_document(what: &str, content: &[u8]) -> Result<Document, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Peek {
        schema_version: Option<u32>,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let malformed = |detail: String| ImageError::Malformed { what: what.to_owned(), detail };
    let peek: Peek = serde_json::from_slice(content).map_err(|error| malformed(error.to_string()))?;
    match peek {
        Peek { schema_version: Some(1), .. } => Err(ImageError::Unsupported {
            what: format!("the Docker schema 1 manifest of {what}"),
            detail: "push the image again with a tool of this decade".to_owned(),
        }),
        // CVE-2021-41190: a document that is both would be read differently by different tools.
        Peek { manifests: Some(_), config, layers, .. } if config.is_some() || layers.is_some() => {
            Err(malformed("it is a manifest and an index at once".to_owned()))
        }
        Peek { manifests: Some(_), .. } => {
            serde_json::from_slice(content).map(Document::Index).map_err(|error| malformed(error.to_string()))
        }
        _ => serde_json::from_slice(content)
            .map(Document::Manifest)
            .map_err(|error| malformed(error.to_string())),
    }
}

pub(super) fn parse_config(what: &str, content: &[u8]) -> Result<ImageConfiguration, ImageError> {
    serde_json::from_slice(content).map_err(|error| ImageError::Malformed {
        what: format!("the configuration of {what}"),
        detail: error.to_string(),
    })
}

/// This machine's platform in Go's words.
pub(super) fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "x86" => ("386", None),
        "powerpc64" => ("ppc64le", None),
        other => (other, None),
    };
    Platform {
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        variant: variant.map(str::to_owned),
    }
}

/// Chooses the entry for this machine: the same variant first, then one without, then a lower one.
pub(super) fn choose<'a>(
    reference: &str,
    index: &'a Index,
    host: &Platform,
) -> Result<&'a Descriptor, ImageError> {
    let rank = |descriptor: &Descriptor| {
        let platform = descriptor.platform.as_ref()?;
        if platform.os != host.os || platform.architecture != host.architecture {
            return None;
        }
        match (platform.variant.as_deref(), host.variant.as_deref()) {
            (variant, own) if variant == own => Some(0),
            (None | Some(""), _) => Some(1),
            (Some(variant), Some(own)) if variant < own => Some(2),
            // amd64 v2 and up need a newer processor than every amd64 machine has.
            _ => None,
        }
    };
    let best =
        index.manifests.iter().filter_map(|entry| Some((rank(entry)?, entry))).min_by_key(|(rank, _)| *rank);
    match (best, index.manifests.as_slice()) {
        (Some((_, entry)), _) => Ok(entry),
        // A list of one without a platform is what simple builders write.
        (None, [only]) if only.platform.is_none() => Ok(only),
        _ => Err(ImageError::NoMatchingPlatform {
            reference: reference.to_owned(),
            wanted: name(host),
            available: match index
                .manifests
                .iter()
                .filter_map(|e| e.platform.as_ref())
                .map(name)
                .collect::<Vec<_>>()
            {
                none if none.is_empty() => "none".to_owned(),
                some => some.join(", "),
            },
        }),
    }
}

fn name(platform: &Platform) -> String {
    let Platform { os, architecture, variant } = platform;
    variant.as_ref().map_or_else(|| format!("{os}/{architecture}"), |v| format!("{os}/{architecture}/{v}"))
}

/// OCI image-spec, config.md, Layer ChainID; hexadecimal, lowest first.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(below) => digest_of(format!("sha256:{below} {diff_id}").as_bytes()),
        };
        chain.push(id.trim_start_matches("sha256:").to_owned());
    }
    chain
}

fn is_empty_map(map: &BTreeMap<String, String>) -> bool {
    map.is_empty()
}

fn null_as_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platform_of_this_machine_is_chosen_by_variant() {
        let entry = |architecture: &str, variant: Option<&str>| Descriptor {
            platform: Some(Platform {
                architecture: architecture.to_owned(),
                os: "linux".to_owned(),
                variant: variant.map(str::to_owned),
            }),
            ..Descriptor::of(OCI_MANIFEST, format!("{architecture}{variant:?}").as_bytes())
        };
        let host = |architecture: &str, variant: Option<&str>| Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        };
        let index = Index {
            schema_version: 2,
            media_type: None,
            manifests: vec![
                entry("amd64", Some("v3")),
                entry("amd64", None),
                entry("arm", Some("v6")),
                entry("arm", Some("v7")),
                entry("arm64", None),
            ],
        };
        for (host, expect) in [
            (host("amd64", None), 1),
            (host("arm", Some("v7")), 3),
            (host("arm", Some("v6")), 2),
            (host("arm64", Some("v8")), 4),
        ] {
            assert_eq!(choose("x", &index, &host).expect("chosen"), &index.manifests[expect], "{host:?}");
        }
        let error = choose("x", &index, &host("riscv64", None)).expect_err("not there").to_string();
        assert!(error.contains("linux/riscv64") && error.contains("linux/arm/v7"), "{error}");
    }

    #[test]
    fn a_document_that_is_manifest_and_index_at_once_is_refused() {
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{"digest":"x","size":1}}"#;
        assert!(matches!(parse_document("x", both), Err(ImageError::Malformed { .. })));
        assert!(matches!(parse_document("x", b"{\"schemaVersion\":1}"), Err(ImageError::Unsupported { .. })));
        assert!(matches!(parse_document("x", b"<html>"), Err(ImageError::Malformed { .. })));
    }

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let a = digest_of(b"a");
        let b = digest_of(b"b");
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(format!("sha256:{}", chain[0]), a);
        assert_eq!(format!("sha256:{}", chain[1]), digest_of(format!("{a} {b}").as_bytes()));
    }

    #[test]
    fn configurations_as_docker_writes_them_are_read() {
        let config = br#"{"architecture":"amd64","os":"linux","config":{"User":"","Env":["A=b"],"Cmd":["sh"],"Entrypoint":null,
            "Volumes":null,"Labels":null,"OnBuild":null,"ExposedPorts":{"80/tcp":{}},"WorkingDir":"","Healthcheck":{"Test":["x"]},
            "ArgsEscaped":true,"StopSignal":"SIGQUIT"},"container":"x","docker_version":"20","created":"2020-01-01T00:00:00Z",
            "history":null,"rootfs":{"type":"layers","diff_ids":[]},"variant":"v2"}"#;
        let parsed = parse_config("x", config).expect("read");
        assert_eq!(
            parsed.config().as_ref().and_then(|c| c.stop_signal().clone()),
            Some("SIGQUIT".to_owned())
        );
    }
}

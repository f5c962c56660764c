//! What `docker save` and `podman save` write: `manifest.json` names each image's configuration and layers by file. Pure; becomes the
//! OCI manifest of the same configuration, so that the image has the id that it has everywhere.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::ImageError;
use super::layout::{self, Descriptor, Manifest};

/// A name of an archive may lead to another one, a few times.
const MAX_LINKS: usize = 8;

/// What an archive has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    /// Content, stored as a blob.
    File(Descriptor),
    /// Another member.
    Link(PathBuf),
}

/// The members of an archive by their names, without `./`.
pub(super) type Members = BTreeMap<PathBuf, Member>;

/// An image of the archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ArchivedImage {
    /// Names with tags, as the archive has them.
    pub(super) names: Vec<String>,
    pub(super) manifest: Manifest,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: PathBuf,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<PathBuf>>,
}

/// Reads `manifest.json`.
pub(super) fn images(what: &str, json: &[u8], members: &Members) -> Result<Vec<ArchivedImage>, ImageError> {
    let malformed = |detail: String| ImageError::Malformed { what: what.to_owned(), detail };
    let listed: Vec<Listed> =
        serde_json::from_slice(json).map_err(|error| malformed(format!("manifest.json: {error}")))?;
    let find = |name: &Path, media_type: &str| match find(members, name) {
        Some(found) => Ok(Descriptor { media_type: media_type.to_owned(), ..found.clone() }),
        None => {
            Err(malformed(format!("manifest.json names {}, which the archive does not have", name.display())))
        }
    };
    let image = |listed: Listed| {
        let layers = listed.layers.unwrap_or_default();
        Ok(ArchivedImage {
            names: listed.repo_tags.unwrap_or_default(),
            manifest: Manifest {
                schema_version: 2,
                media_type: Some(layout::OCI_MANIFEST.to_owned()),
                config: find(&listed.config, layout::OCI_CONFIG)?,
                layers: layers
                    .iter()
                    .map(|layer| find(layer, layout::OCI_LAYER))
                    .collect::<Result<_, _>>()?,
            },
        })
    };
    listed.into_iter().map(image).collect()
}

/// Follows links by name; no file system is asked.
fn find<'a>(members: &'a Members, name: &Path) -> Option<&'a Descriptor> {
    let mut name = normal(Path::new(""), name)?;
    for _ in 0..=MAX_LINKS {
        match members.get(&name)? {
            Member::File(descriptor) => return Some(descriptor),
            Member::Link(target) => name = normal(name.parent().unwrap_or(Path::new("")), target)?,
        }
    }
    None
}

/// `name`, as seen from `directory`; `None` when it leaves the archive.
pub(super) fn normal(directory: &Path, name: &Path) -> Option<PathBuf> {
    let mut path = directory.to_owned();
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir if path.pop() => {}
            Component::RootDir => path = PathBuf::new(),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(content: &str) -> Member {
        Member::File(Descriptor::of("", content.as_bytes()))
    }

    #[test]
    fn layers_are_found_by_name_and_through_links_as_docker_and_podman_write_them() {
        let members = Members::from([
            ("c.json".into(), member("config")),
            ("a/layer.tar".into(), member("a")),
            ("b/layer.tar".into(), Member::Link("../a/layer.tar".into())),
            ("d.tar".into(), member("d")),
        ]);
        let json = br#"[{"Config":"c.json","RepoTags":["x:1","y:2"],"Layers":["a/layer.tar","b/layer.tar","./d.tar"]}]"#;
        let images = images("x", json, &members).expect("read");
        assert_eq!(images[0].names, ["x:1", "y:2"]);
        let digests: Vec<_> = images[0].manifest.layers.iter().map(|layer| layer.digest.as_str()).collect();
        let [a, d] = ["a", "d"].map(|content| layout::digest_of(content.as_bytes()));
        assert_eq!(digests, [a.as_str(), &a, &d]);
        assert_eq!(images[0].manifest.config.digest, layout::digest_of(b"config"));
    }

    #[test]
    fn a_member_that_is_missing_outside_or_a_circle_is_refused_by_name() {
        let members = Members::from([
            ("c.json".into(), member("config")),
            ("out".into(), Member::Link("../../etc/shadow".into())),
            ("circle".into(), Member::Link("circle".into())),
        ]);
        for layer in ["none", "out", "circle", "../c.json"] {
            let json = format!(r#"[{{"Config":"c.json","RepoTags":null,"Layers":["{layer}"]}}]"#);
            let error = images("x", json.as_bytes(), &members).expect_err(layer).to_string();
            assert!(error.contains(layer), "{error}");
        }
        assert!(images("x", b"{}", &members).is_err());
    }
}

//! Takes the parts of an image out of a tar, compressed or not: an OCI layout, or what `docker save` writes. Other members are skipped.
//! What cannot be one of these is not written, and documents are bounded (CVE-2023-25153).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::docker_archive::{Member, Members, normal};
use super::layout::{self, Descriptor};
use super::reference::is_digest;
use super::space::PathWatch;
use super::unpack::{Archive, Kind, UnpackError};
use super::{ImageError, Limits};

const BUFFER: usize = 256 << 10;

/// Writes blobs to `<target>/blobs/sha256`, the documents beside it, and tells what docker's names stand for.
pub(super) fn extract(path: &Path, target: &Path, limits: &Limits) -> Result<Members, ImageError> {
    let blobs = target.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(|error| ImageError::io("create", &blobs, error))?;
    let mut archive = Archive::new(open(path)?);
    let mut members = Members::new();
    let mut entries = 0;
    while let Some(entry) = archive.next().map_err(|error| Failure::Archive(error).of(path))? {
        entries += 1;
        if entries > limits.layer_entries {
            let what = format!("the number of entries of {}", path.display());
            return Err(ImageError::TooLarge { what, limit: limits.layer_entries });
        }
        let name = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
        let Some(name) = normal(Path::new(""), name) else { continue };
        match (entry.kind, role(&name)) {
            (Kind::File, Role::Document) => {
                let bytes = document(&mut archive, path, &name, limits.document_bytes)?;
                let to = target.join(&name);
                std::fs::write(&to, &bytes).map_err(|error| ImageError::io("write", &to, error))?;
            }
            (Kind::File, Role::Content) => {
                let descriptor = content(&mut archive, path, &blobs, limits)?;
                members.insert(name, Member::File(descriptor));
            }
            (Kind::Symlink, Role::Content) => {
                members.insert(name, Member::Link(link(&entry.link)));
            }
            // A hard link's target is seen from the root of the archive.
            (Kind::HardLink, Role::Content) => {
                members.insert(name, Member::Link(Path::new("/").join(link(&entry.link))));
            }
            _ => {}
        }
    }
    Ok(members)
}

#[derive(Debug, PartialEq, Eq)]
enum Role {
    Document,
    Content,
    Other,
}

fn role(name: &Path) -> Role {
    let Some(text) = name.to_str() else { return Role::Other };
    let is_blob = text.strip_prefix("blobs/sha256/").is_some_and(|hex| is_digest(&format!("sha256:{hex}")));
    match text {
        "index.json" | "oci-layout" | "manifest.json" => Role::Document,
        _ if is_blob || [".json", ".tar", ".tar.gz", ".tgz"].iter().any(|end| text.ends_with(end)) => {
            Role::Content
        }
        _ => Role::Other,
    }
}

fn link(target: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(target))
}

fn document(
    archive: &mut Archive<Box<dyn BufRead>>,
    path: &Path,
    name: &Path,
    limit: u64,
) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let copied = archive.body(|chunk| {
        if bytes.len() as u64 + chunk.len() as u64 > limit {
            let what = format!("{} of {}", name.display(), path.display());
            return Err(Failure::Here(ImageError::TooLarge { what, limit }));
        }
        bytes.extend_from_slice(chunk);
        Ok(())
    });
    copied.map_err(|failure| failure.of(path)).map(|()| bytes)
}

/// Stores a member under its own digest: a blob whose name lies is not found by it, and the descriptor decides.
fn content(
    archive: &mut Archive<Box<dyn BufRead>>,
    path: &Path,
    blobs: &Path,
    limits: &Limits,
) -> Result<Descriptor, ImageError> {
    let temporary = blobs.join("incoming");
    let fail = |error: io::Error| ImageError::io("write", &temporary, error);
    let mut file = File::create(&temporary).map_err(fail)?;
    let (mut hash, mut size, mut space) = (Sha256::new(), 0_u64, PathWatch::new(blobs, limits)?);
    let copied = archive.body(|chunk| {
        space.before(chunk.len() as u64, blobs)?;
        hash.update(chunk);
        size += chunk.len() as u64;
        file.write_all(chunk).map_err(|error| Failure::Here(fail(error)))
    });
    copied.map_err(|failure| failure.of(path))?;
    drop(file);
    let descriptor = Descriptor { digest: layout::finish(hash), size, ..Descriptor::of("", &[]) };
    let to = blobs.join(descriptor.hex());
    std::fs::rename(&temporary, &to).map_err(|error| ImageError::io("rename to", &to, error))?;
    Ok(descriptor)
}

/// Why a member could not be copied.
enum Failure {
    Archive(UnpackError),
    Here(ImageError),
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        Self::Archive(error)
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Here(error)
    }
}

impl Failure {
    fn of(self, path: &Path) -> ImageError {
        match self {
            Self::Here(error) => error,
            Self::Archive(UnpackError::Input(error)) => ImageError::io("read", path, error),
            Self::Archive(error) => {
                ImageError::Malformed { what: path.display().to_string(), detail: error.to_string() }
            }
        }
    }
}

/// The bytes of the tar, decompressed by what they begin with.
fn open(path: &Path) -> Result<Box<dyn BufRead>, ImageError> {
    let fail = |error: io::Error| ImageError::io("read", path, error);
    let mut file = BufReader::with_capacity(BUFFER, File::open(path).map_err(fail)?);
    let magic: [u8; 6] = match file.fill_buf().map_err(fail)? {
        [a, b, c, d, e, f, ..] => [*a, *b, *c, *d, *e, *f],
        _ => [0; 6],
    };
    match magic {
        [0x1f, 0x8b, ..] => {
            Ok(Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(file))))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(fail)?;
            Ok(Box::new(BufReader::with_capacity(BUFFER, decoder)))
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(unsupported(path, "xz", "xz -d")),
        [b'B', b'Z', b'h', ..] => Err(unsupported(path, "bzip2", "bzip2 -d")),
        _ => Ok(Box::new(file)),
    }
}

fn unsupported(path: &Path, format: &str, command: &str) -> ImageError {
    ImageError::Unsupported {
        what: format!("{}, compressed by {format},", path.display()),
        detail: format!("plain tar, gzip and zstd are; decompress it first: {command}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_images_consist_of_is_taken_out() {
        let hex = "a".repeat(64);
        for (name, expect) in [
            ("index.json", Role::Document),
            ("manifest.json", Role::Document),
            ("x/index.json", Role::Content),
            (format!("blobs/sha256/{hex}").as_str(), Role::Content),
            ("blobs/sha256/short", Role::Other),
            ("abc/layer.tar", Role::Content),
            ("abc/VERSION", Role::Other),
            ("repositories", Role::Other),
            ("etc/passwd", Role::Other),
        ] {
            assert_eq!(role(Path::new(name)), expect, "{name}");
        }
    }
}

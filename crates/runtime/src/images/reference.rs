//! Image references: `busybox`, `ghcr.io/org/app:1.2`, `localhost:5000/x@sha256:…`, normalised as docker and containerd do.
//! Pure.

use std::fmt;

use super::ImageError;

/// A parsed, normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Registry as users write it: `docker.io`, `localhost:5000`.
    pub domain: String,
    /// Repository path: `library/busybox`.
    pub path: String,
    /// What it points at.
    pub target: Target,
}

/// The part of a reference after the repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// `:tag`; `latest` where none was written.
    Tag(String),
    /// `@sha256:…`; a tag beside it is dropped, as containerd does.
    Digest(String),
}

impl Reference {
    /// Parses and normalises `text`.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| ImageError::InvalidReference {
            reference: text.to_owned(),
            reason: reason.to_owned(),
        })
    }

    /// `domain/path`, as in repo tags and repo digests.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same repository at `digest`.
    pub fn with_digest(&self, digest: &str) -> Self {
        Self { target: Target::Digest(digest.to_owned()), ..self.clone() }
    }

    /// What stands in `/v2/<path>/manifests/<here>`.
    pub fn manifest_name(&self) -> &str {
        match &self.target {
            Target::Tag(name) | Target::Digest(name) => name,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if is_hex64(text) {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => (&name[..colon], Some(&name[colon + 1..])),
        _ => (name, None),
    };
    let (domain, path) = split_domain(name);
    check_domain(&domain)?;
    check_path(&path)?;
    if domain.len() + 1 + path.len() > 255 {
        return Err("the repository name is longer than 255 characters");
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("a tag has 1 to 128 letters, digits, `_`, `.` or `-` and does not begin with `.` or `-`");
    }
    let target = match digest {
        Some(digest) if is_digest(digest) => Target::Digest(digest.to_owned()),
        Some(_) => return Err("the digest must be `sha256:` and 64 lower-case hexadecimal digits"),
        None => Target::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(Reference { domain, path, target })
}

fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    };
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    let official = domain == "docker.io" && !path.contains('/') && !path.is_empty();
    (domain.to_owned(), if official { format!("library/{path}") } else { path.to_owned() })
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    const BAD: &str = "the registry must be a host name or address with an optional port";
    let (host, port) = match domain.rfind(':') {
        Some(colon) if !domain.ends_with(']') => (&domain[..colon], Some(&domain[colon + 1..])),
        _ => (domain, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || port.starts_with('+')) {
        return Err(BAD);
    }
    if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return v6.parse::<std::net::Ipv6Addr>().map(|_| ()).map_err(|_| BAD);
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(label) { Ok(()) } else { Err(BAD) }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository names are lower case");
    }
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err("a repository name consists of a-z and 0-9, separated by `/`, `.`, `_`, `__` or dashes")
    }
}

/// distribution/reference: alphanumerics joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes.split(|b| alphanumeric(*b)).all(|separator| match separator {
        [] | b"." | b"_" | b"__" => true,
        dashes => dashes.iter().all(|b| *b == b'-'),
    })
}

fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    (1..=128).contains(&bytes.len())
        && !matches!(bytes[0], b'.' | b'-')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether this is a digest that podwright verifies: `sha256:` and 64 lower-case hexadecimal digits.
pub(super) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let d = "sha256:".to_owned() + &"a1".repeat(32);
        for (given, expect) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("library/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("org/app", "docker.io/org/app:latest".to_owned()),
            ("ghcr.io/org/app", "ghcr.io/org/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app", "localhost:5000/app:latest".to_owned()),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1".to_owned()),
            ("[::1]:5000/app", "[::1]:5000/app:latest".to_owned()),
            ("[::1]/app", "[::1]/app:latest".to_owned()),
            ("Registry/app", "Registry/app:latest".to_owned()),
            ("a__b/c-d--e.f_g", "docker.io/a__b/c-d--e.f_g:latest".to_owned()),
            (&format!("busybox@{d}"), format!("docker.io/library/busybox@{d}")),
            (&format!("busybox:1@{d}"), format!("docker.io/library/busybox@{d}")),
        ] {
            assert_eq!(Reference::parse(given).expect(given).to_string(), expect, "{given}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let hex = "0".repeat(64);
        let long = "a/".repeat(130) + "a";
        for bad in [
            "",
            " ",
            "Busybox",
            "busy box",
            "busybox:",
            "busybox:-x",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "host.x:port/app",
            "host.x:70000/app",
            "-h.x/app",
            "[::g]/app",
            "busybox@sha256:12",
            "busybox@md5:00",
            "a@b@c",
            "../../etc/passwd",
            "x/../y",
            "http://x/y",
            "a:b:c",
            "b\u{e4}r",
            &hex,
            &long,
            "docker.io/",
            "@",
        ] {
            assert!(
                matches!(Reference::parse(bad), Err(ImageError::InvalidReference { .. })),
                "{bad:?} was taken as {:?}",
                Reference::parse(bad)
            );
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(text in "\\PC{0,80}|[a-z0-9./:@_-]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).expect("normal form"), reference.clone());
                prop_assert!(!reference.path.split('/').any(|part| part == ".." || part.is_empty()));
            }
        }
    }
}

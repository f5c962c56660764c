//! Which credentials a registry is shown: from Secrets of image pulls and docker's files, by the name of the image. Pure. Upstream:
//! pkg/credentialprovider (keyring.go, config.go).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

/// Docker Hub as credentials name it.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// Who pulls. The password is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) username: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credential").field("username", &self.username).finish_non_exhaustive()
    }
}

/// One entry of a docker configuration.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
}

/// A docker `config.json`, of which only the logins are read.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

/// The credentials for that image in the order in which they are tried: those of the longest name first, then by the order
/// of the secrets.
pub(crate) fn credentials(secrets: &[&Secret], image: &str) -> Vec<Credential> {
    select(secrets.iter().flat_map(|secret| entries(secret)), image)
}

impl DockerConfig {
    /// Reads it.
    ///
    /// # Errors
    /// When the text is no such JSON.
    pub fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.auths.keys()).finish()
    }
}

/// User and password for that image in those files, in the order in which they are tried: those of the longest name first, then by
/// the order of the files.
pub fn docker_logins(configs: Vec<DockerConfig>, image: &str) -> Vec<(String, String)> {
    let found = select(configs.into_iter().flat_map(|config| readable(config.auths)), image);
    found.into_iter().map(|Credential { username, password }| (username, password)).collect()
}

fn select(entries: impl Iterator<Item = (String, Credential)>, image: &str) -> Vec<Credential> {
    let mut known: BTreeMap<String, Vec<Credential>> = BTreeMap::new();
    for (registry, credential) in entries {
        known.entry(key_of(&registry)).or_default().push(credential);
    }
    let repository = repository(image);
    let matching = known.iter().rev().filter(|(key, _)| matches(key, &repository));
    let found: Vec<Credential> = matching.flat_map(|(_, credentials)| credentials.clone()).collect();
    match found.is_empty() && is_default(&repository) {
        true => known.remove(DEFAULT_REGISTRY).unwrap_or_default(),
        false => found,
    }
}

/// What a secret says; one that cannot be read says nothing.
fn entries(secret: &Secret) -> Vec<(String, Credential)> {
    let data = |key: &str| secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice());
    let entries = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => data(".dockerconfigjson")
            .and_then(|text| serde_json::from_slice::<DockerConfig>(text).ok())
            .map(|config| config.auths),
        Some("kubernetes.io/dockercfg") => {
            data(".dockercfg").and_then(|text| serde_json::from_slice(text).ok())
        }
        _ => None,
    };
    readable(entries.unwrap_or_default())
}

fn readable(entries: BTreeMap<String, Entry>) -> Vec<(String, Credential)> {
    entries.into_iter().filter_map(|(registry, entry)| Some((registry, credential(entry)?))).collect()
}

/// `auth` is user and password in one, and wins.
fn credential(entry: Entry) -> Option<Credential> {
    let Entry { username, password, auth } = entry;
    if auth.is_empty() {
        return Some(Credential { username, password });
    }
    let bytes = BASE64_STANDARD.decode(&auth).or_else(|_| BASE64_STANDARD_NO_PAD.decode(&auth)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credential { username: username.to_owned(), password: password.to_owned() })
}

/// A registry as it is looked up: without scheme, and without the version of its protocol.
fn key_of(registry: &str) -> String {
    let plain = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://"));
    let plain = plain.unwrap_or(registry);
    let (host, path) = plain.find('/').map_or((plain, ""), |at| plain.split_at(at));
    let path = if path.starts_with("/v1/") || path.starts_with("/v2/") { &path[3..] } else { path };
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

/// The image's full name without tag and digest.
fn repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
    let name = &name[..tag.unwrap_or(name.len())];
    match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "index.docker.io" | "docker.io" if !rest.contains('/') => format!("docker.io/library/{rest}"),
            "index.docker.io" => format!("docker.io/{rest}"),
            _ => name.to_owned(),
        },
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn is_default(repository: &str) -> bool {
    repository.starts_with("docker.io/")
}

/// Whether a key is for that repository: the same port, hosts part by part with globs, a path as a prefix.
fn matches(key: &str, repository: &str) -> bool {
    let split = |text: &str| {
        let (address, path) = text.find('/').map_or((text, ""), |at| text.split_at(at));
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        (host.to_owned(), port.to_owned(), path.to_owned())
    };
    let ((pattern, key_port, prefix), (host, port, path)) = (split(key), split(repository));
    let (pattern, host): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    key_port == port
        && path.starts_with(&prefix)
        && pattern.len() == host.len()
        && pattern.iter().zip(&host).all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
}

/// `*` and `?` of shells, in one part of a name.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            glob(rest, text) || text.split_first().is_some_and(|(_, text)| glob(pattern, text))
        }
        (Some((b'?', pattern)), Some((_, text))) => glob(pattern, text),
        (Some((one, pattern)), Some((other, text))) => one == other && glob(pattern, text),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn secret(kind: &str, content: Value) -> Secret {
        let data = BASE64_STANDARD.encode(content.to_string());
        let object = json!({ "type": format!("kubernetes.io/{kind}"), "data": { format!(".{kind}"): data } });
        serde_json::from_value(object).expect("a secret")
    }

    fn named(user: &str) -> Value {
        json!({ "username": user, "password": "p" })
    }

    fn users(auths: Value, image: &str) -> Vec<String> {
        let secret = secret("dockerconfigjson", json!({ "auths": auths }));
        credentials(&[&secret], image).into_iter().map(|one| one.username).collect()
    }

    #[test]
    fn a_registry_is_found_by_host_port_path_and_globs() {
        for (registry, image, expect) in [
            ("registry.example", "registry.example/a/b:1", true),
            ("https://registry.example/v2/", "registry.example/a@sha256:00", true),
            ("registry.example:5000", "registry.example:5000/a", true),
            ("registry.example", "registry.example:5000/a", false),
            ("registry.example/team", "registry.example/team-x/a", true),
            ("registry.example/team", "registry.example/other/a", false),
            ("*.example", "registry.example/a", true),
            ("reg*.exam?le", "registry.example/a", true),
            ("*.example", "a.registry.example/a", false),
            ("https://index.docker.io/v1/", "nginx", true),
            ("index.docker.io", "team/app:1", true),
            ("docker.io", "docker.io/team/app", true),
            ("index.docker.io", "registry.example/a", false),
        ] {
            let found = users(json!({ registry: named("u") }), image);
            assert_eq!(!found.is_empty(), expect, "{registry} {image}");
        }
    }

    #[test]
    fn the_longest_name_is_tried_first_then_the_first_secret() {
        let auths = json!({ "registry.example": named("host"), "registry.example/team": named("team") });
        let (first, second) = (
            secret("dockerconfigjson", json!({ "auths": auths })),
            secret("dockercfg", json!({ "registry.example": { "auth": BASE64_STANDARD.encode("old:a:b") } })),
        );
        let found = credentials(&[&first, &second], "registry.example/team/app");
        let users: Vec<(&str, &str)> =
            found.iter().map(|one| (one.username.as_str(), one.password.as_str())).collect();
        assert_eq!(users, [("team", "p"), ("host", "p"), ("old", "a:b")]);
    }

    #[test]
    fn files_of_the_node_are_read_as_one() {
        let file = |auths: Value| {
            DockerConfig::parse(json!({ "auths": auths }).to_string().as_bytes()).expect("a file")
        };
        let files = || {
            vec![
                file(json!({ "registry.example": named("first") })),
                file(json!({ "registry.example": named("second"), "registry.example/team": named("team") })),
            ]
        };
        let users =
            |image| docker_logins(files(), image).into_iter().map(|(user, _)| user).collect::<Vec<_>>();
        assert_eq!(users("registry.example/team/app"), ["team", "first", "second"]);
        assert_eq!(users("registry.example/app"), ["first", "second"]);
        assert!(users("other.example/app").is_empty());
        assert_eq!(format!("{:?}", files()[0]), r#"{"registry.example"}"#);
        DockerConfig::parse(b"no JSON").expect_err("no JSON");
    }

    #[test]
    fn what_cannot_be_read_says_nothing_and_nothing_is_printed() {
        assert!(users(json!({ "registry.example": { "auth": "%%" } }), "registry.example/a").is_empty());
        let mut opaque = secret("dockercfg", json!({ "registry.example": named("u") }));
        opaque.type_ = Some("Opaque".into());
        assert!(credentials(&[&opaque], "registry.example/a").is_empty());
        let one = Credential { username: "u".into(), password: "secret".into() };
        assert!(!format!("{one:?}").contains("secret"));
    }

    #[test]
    fn names_are_made_full() {
        for (image, expect) in [
            ("nginx", "docker.io/library/nginx"),
            ("nginx:1", "docker.io/library/nginx"),
            ("team/app:1", "docker.io/team/app"),
            ("index.docker.io/nginx", "docker.io/library/nginx"),
            ("localhost:5000/a:1", "localhost:5000/a"),
            ("localhost/a", "localhost/a"),
        ] {
            assert_eq!(repository(image), expect, "{image}");
        }
    }
}

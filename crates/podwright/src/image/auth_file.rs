//! Passwords of registries as `docker login`, `podman login` and `skopeo login` keep them. Helpers that keep them elsewhere are not run:
//! they are named.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cri::v1::AuthConfig;
use kubelet::{DockerConfig, docker_logins};
use runtime::images::{Auth, Reference};
use serde_json::Value;

use crate::output;

/// `USER:PASSWORD` for that image: from `file`, else from the first of the usual files that exists.
///
/// # Errors
/// When a file cannot be read, or one that was named has no password for the registry.
pub(crate) fn credentials(file: Option<&Path>, reference: &str) -> anyhow::Result<Option<String>> {
    let Some(path) = file.map(Path::to_owned).or_else(usual_file) else { return Ok(None) };
    let text = std::fs::read(&path)
        .with_context(|| format!("read passwords of registries from {}", path.display()))?;
    let found = look(&text, reference).with_context(|| format!("parse {}", path.display()))?;
    let path = path.display();
    match (found, file) {
        (Found::Password(credentials), _) => Ok(Some(credentials)),
        (Found::Helper(helper), Some(_)) => {
            bail!("{path} leaves the password to docker-credential-{helper}, which is not run: use --creds")
        }
        (Found::Helper(helper), None) => {
            output::note(&format!(
                "{path} leaves the password to docker-credential-{helper}, which is not run: pulling without one"
            ));
            Ok(None)
        }
        (Found::Nothing, Some(_)) => bail!("{path} has no password for the registry of {reference}"),
        (Found::Nothing, None) => Ok(None),
    }
}

/// In the order of containers-auth.json(5), then docker's.
fn usual_file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let files = [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
        variable("DOCKER_CONFIG").map(|directory| directory.join("config.json")),
        variable("HOME").map(|directory| directory.join(".docker/config.json")),
    ];
    files.into_iter().flatten().find(|path| path.exists())
}

/// Logins of the node in these files for our runtime, looked up at each pull: who logs in meanwhile need not restart anything.
pub(crate) fn for_runtime(files: Vec<PathBuf>) -> runtime::NodeLogins {
    let auth = |login| {
        let Login { username, password, registry } = login;
        Auth { username, password, server_address: registry, ..Auth::default() }
    };
    runtime::NodeLogins::new(move |image| logins_for(&files, image).into_iter().map(auth).collect())
}

/// Who runs what the kubelet pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Puller {
    /// Our runtime, which shows a login to the registry that it names, and to no mirror of it.
    Own,
    /// Another one. It gets what a stock kubelet sends, which is no address; what runtimes make of one differs.
    Foreign,
}

/// The same for the kubelet.
pub(crate) fn for_kubelet(files: Vec<PathBuf>, puller: Puller) -> kubelet::NodeLogins {
    let auth = move |login| {
        let Login { username, password, registry } = login;
        let server_address = match puller {
            Puller::Own => registry,
            Puller::Foreign => String::new(),
        };
        AuthConfig { username, password, server_address, ..AuthConfig::default() }
    };
    kubelet::NodeLogins::new(move |image| logins_for(&files, image).into_iter().map(auth).collect())
}

struct Login {
    username: String,
    password: String,
    /// The registry of the image.
    registry: String,
}

/// What these files have for an image, best match first. A file that is of no use keeps nobody from pulling what is public.
fn logins_for(files: &[PathBuf], image: &str) -> Vec<Login> {
    let Ok(reference) = Reference::parse(image) else { return Vec::new() };
    let configs = files.iter().filter_map(|file| config_of(file, image)).collect();
    let found = docker_logins(configs, image).into_iter().filter(|(user, _)| !user.is_empty());
    let login = |(username, password)| Login { username, password, registry: reference.domain.clone() };
    let found: Vec<Login> = found.map(login).collect();
    tracing::debug!(image, logins = found.len(), "looked for the node's own logins");
    found
}

fn config_of(file: &Path, image: &str) -> Option<DockerConfig> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot read passwords of registries");
            return None;
        }
    };
    match look(&text, image) {
        Ok(Found::Helper(helper)) => {
            tracing::warn!(file = %file.display(), image, "docker-credential-{helper} has the password and is not run");
        }
        Ok(Found::Password(_) | Found::Nothing) => {}
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot parse passwords of registries");
        }
    }
    DockerConfig::parse(&text).ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Password(String),
    /// A program of docker has it.
    Helper(String),
    Nothing,
}

fn look(text: &[u8], reference: &str) -> serde_json::Result<Found> {
    let logins = docker_logins(vec![DockerConfig::parse(text)?], reference);
    if let Some((user, password)) = logins.into_iter().find(|(user, _)| !user.is_empty()) {
        return Ok(Found::Password(format!("{user}:{password}")));
    }
    let config: Value = serde_json::from_slice(text)?;
    let registry = reference.split('/').next().unwrap_or_default();
    let helper = config["credHelpers"][registry].as_str().or_else(|| config["credsStore"].as_str());
    Ok(helper
        .filter(|helper| !helper.is_empty())
        .map_or(Found::Nothing, |helper| Found::Helper(helper.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_found_and_helpers_are_named() {
        // "alice:s:cret" in base64.
        let login = br#"{"auths":{"r.example":{"auth":"YWxpY2U6czpjcmV0"},"empty.example":{}}}"#;
        let helpers =
            br#"{"auths":{"r.example":{}},"credHelpers":{"r.example":"ecr-login"},"credsStore":"desktop"}"#;
        for (text, reference, expect) in [
            (&login[..], "r.example/a:1", Found::Password("alice:s:cret".into())),
            (&login[..], "other.example/a:1", Found::Nothing),
            (&login[..], "empty.example/a:1", Found::Nothing),
            (&helpers[..], "r.example/a:1", Found::Helper("ecr-login".into())),
            (&helpers[..], "busybox", Found::Helper("desktop".into())),
        ] {
            assert_eq!(look(text, reference).unwrap(), expect, "{reference}");
        }
        look(b"no JSON", "r.example/a").unwrap_err();
    }

    #[test]
    fn logins_of_the_node_are_for_the_registry_and_a_bad_file_hides_no_other() {
        let temp = tempfile::tempdir().unwrap();
        let [gone, bad, good] = ["gone", "bad", "good"].map(|name| temp.path().join(name));
        std::fs::write(&bad, "no JSON").unwrap();
        let auths = r#"{"auths":{"r.example":{"auth":"YWxpY2U6czpjcmV0"},"r.example/team":{"auth":"Ym9iOnA="},"https://index.docker.io/v1/":{"auth":"Ym9iOnA="}}}"#;
        std::fs::write(&good, auths).unwrap();
        let files = [gone, bad, good];
        let found = |image: &str| {
            let logins = logins_for(&files, image).into_iter();
            logins.map(|one| [one.username, one.password, one.registry].join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(found("r.example/a:1"), ["alice s:cret r.example"]);
        assert_eq!(found("r.example/team/a:1"), ["bob p r.example", "alice s:cret r.example"]);
        assert_eq!(found("busybox"), ["bob p docker.io"]);
        assert!(found("other.example/a").is_empty());
        assert!(found("NOT A NAME").is_empty());
    }

    #[test]
    fn a_file_that_was_named_must_have_the_password() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("auth.json");
        credentials(Some(&file), "r.example/a").unwrap_err();
        std::fs::write(&file, r#"{"auths":{}}"#).unwrap();
        let error = credentials(Some(&file), "r.example/a").unwrap_err().to_string();
        assert!(error.contains("auth.json has no password for the registry of r.example/a"), "{error}");
    }
}

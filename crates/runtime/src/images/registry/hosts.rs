//! Which hosts serve a registry: containerd's `certs.d/<registry>/hosts.toml`. The file is read here, its meaning is pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use crate::images::ImageError;

/// A host to ask.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Host {
    /// `https://mirror.example:5000/v2`, without a slash at the end.
    pub(super) base: String,
    /// Host and port, for messages and credentials.
    pub(super) authority: String,
    /// May turn tags into digests.
    pub(super) resolve: bool,
    /// May give content by digest.
    pub(super) pull: bool,
    /// A mirror is told which registry it stands for.
    pub(super) namespace: Option<String>,
    pub(super) tls: Tls,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// How long a connection may take to come up.
    pub(super) dial_timeout: Option<Duration>,
}

/// How to trust it and what to show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) ca: Vec<PathBuf>,
    /// Certificate and key (which may lie in the same file).
    pub(super) client: Vec<(PathBuf, PathBuf)>,
    pub(super) skip_verify: bool,
}

#[derive(Deserialize, Default)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Entry>,
    #[serde(flatten)]
    root: Entry,
}

#[derive(Deserialize, Default)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Mixed(Vec<OneOrMany>),
}

/// The hosts for `domain`, mirrors first, the registry itself last.
pub(super) fn load(directory: &Path, domain: &str) -> Result<Vec<Host>, ImageError> {
    for name in directory_names(domain) {
        let directory = directory.join(name);
        let path = directory.join("hosts.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                return parse(&text, &directory, domain)
                    .map_err(|detail| ImageError::RegistryConfig { path, detail });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(ImageError::io("read", path, error)),
        }
    }
    Ok(parse("", directory, domain).unwrap_or_default())
}

/// containerd's order: `host_port_`, `host:port` or `host`, `_default`.
fn directory_names(domain: &str) -> Vec<String> {
    let with_port = domain.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let escaped = with_port.map(|(host, port)| format!("{host}_{port}_"));
    escaped.into_iter().chain([domain.to_owned(), "_default".to_owned()]).collect()
}

fn parse(text: &str, directory: &Path, domain: &str) -> Result<Vec<Host>, String> {
    let File { server, host, root } =
        toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
    let mut entries: Vec<(Spanned<String>, Entry)> = host.into_iter().collect();
    entries.sort_by_key(|(url, _)| url.span().start); // the order of the file is the order of trying
    let mut hosts = Vec::new();
    for (url, entry) in entries {
        hosts.push(make(url.get_ref(), &entry, directory, domain)?);
    }
    let own_tls = root.ca.is_some() || root.skip_verify || root.client.is_some();
    let server = server.unwrap_or_else(|| match domain {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        local if is_loopback(local) && !own_tls => format!("http://{local}"),
        other => format!("https://{other}"),
    });
    hosts.push(make(&server, &root, directory, domain)?);
    Ok(hosts)
}

fn make(url: &str, entry: &Entry, directory: &Path, domain: &str) -> Result<Host, String> {
    let bad = || format!("`{url}` is not the URL of a registry host (http or https)");
    let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let uri: Uri = full.parse().map_err(|_| bad())?;
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(bad());
    };
    let path = uri.path().trim_end_matches('/');
    let path =
        if entry.override_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
    let authority = authority.as_str().to_owned();
    let known = ["pull", "resolve", "push"];
    if let Some(other) = entry.capabilities.iter().flatten().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("`{other}` is not a capability: they are pull, resolve and push"));
    }
    let capable = |name: &str| {
        entry.capabilities.as_ref().is_none_or(|all| all.iter().any(|capability| capability == name))
    };
    let is_registry = authority == domain || (domain == "docker.io" && authority == "registry-1.docker.io");
    Ok(Host {
        base: format!("{scheme}://{authority}{path}"),
        resolve: capable("resolve"),
        pull: capable("pull"),
        namespace: (!is_registry).then(|| domain.to_owned()),
        tls: Tls {
            ca: files(entry.ca.as_ref(), directory),
            client: client(entry.client.as_ref(), directory)?,
            skip_verify: entry.skip_verify,
        },
        headers: headers(&entry.header)?,
        dial_timeout: entry.dial_timeout.as_deref().map(dial_timeout).transpose()?,
        authority,
    })
}

fn files(given: Option<&OneOrMany>, directory: &Path) -> Vec<PathBuf> {
    given.map(values).unwrap_or_default().into_iter().map(|file| directory.join(file)).collect()
}

fn client(given: Option<&Client>, directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let pair = |cert: &str, key: &str| {
        (directory.join(cert), directory.join(if key.is_empty() { cert } else { key }))
    };
    match given {
        None => Ok(Vec::new()),
        Some(Client::One(file)) => Ok(vec![pair(file, file)]),
        Some(Client::Mixed(entries)) => entries
            .iter()
            .map(|entry| match entry {
                OneOrMany::One(file) => Ok(pair(file, file)),
                OneOrMany::Many(files) => match files.as_slice() {
                    [cert] => Ok(pair(cert, cert)),
                    [cert, key] => Ok(pair(cert, key)),
                    _ => Err("an entry of `client` has a certificate and a key".to_owned()),
                },
            })
            .collect(),
    }
}

/// A duration as Go writes it, `1m30s`; 0 is no limit of its own.
fn dial_timeout(text: &str) -> Result<Duration, String> {
    let bad = || format!("dial_timeout `{text}` is no duration such as 3s or 1m30s");
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(unit_at);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let seconds = match &tail[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_| bad())?;
        sum += Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        rest = &tail[unit..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(sum) }
}

fn headers(given: &BTreeMap<String, OneOrMany>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (name, all) in given {
        for value in values(all) {
            let bad = || format!("the header `{name}` is not valid");
            headers.push((name.parse().map_err(|_| bad())?, value.parse().map_err(|_| bad())?));
        }
    }
    Ok(headers)
}

fn values(given: &OneOrMany) -> Vec<&String> {
    match given {
        OneOrMany::One(value) => vec![value],
        OneOrMany::Many(values) => values.iter().collect(),
    }
}

/// Whether plain HTTP is the default, as docker and containerd have it for this machine itself.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match authority.rfind(':') {
        Some(colon) if !authority.ends_with(']') => &authority[..colon],
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_the_registry_itself_is_asked() {
        for (domain, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("ghcr.io", "https://ghcr.io/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ] {
            let hosts = load(Path::new("/nonexistent"), domain).expect(domain);
            assert_eq!(hosts.iter().map(|host| host.base.as_str()).collect::<Vec<_>>(), [base]);
            assert_eq!(hosts[0].namespace, None, "{domain}");
        }
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://up.example"
            ca = "up.pem"
            [host."https://z.example"]
            capabilities = ["pull"]
            client = [["a.cert", "a.key"], "both.pem"]
            [host."http://a.example:80/prefix"]
            skip_verify = true
            dial_timeout = "1m1.5s"
            ca = ["/abs.pem", "rel.pem"]
            [host."http://a.example:80/prefix".header]
            x-one = "1"
            x-two = ["2", "3"]
            [host."m.example/v2/cache"]
            override_path = true
        "#;
        let hosts = parse(text, Path::new("/d"), "reg.example").expect("parsed");
        let bases: Vec<&str> = hosts.iter().map(|host| host.base.as_str()).collect();
        let expect = [
            "https://z.example/v2",
            "http://a.example:80/prefix/v2",
            "https://m.example/v2/cache",
            "https://up.example/v2",
        ];
        assert_eq!(bases, expect);
        assert_eq!((hosts[0].pull, hosts[0].resolve), (true, false));
        assert_eq!(
            hosts[0].tls.client,
            [("/d/a.cert".into(), "/d/a.key".into()), ("/d/both.pem".into(), "/d/both.pem".into())]
        );
        assert_eq!(hosts[1].tls.ca, [PathBuf::from("/abs.pem"), PathBuf::from("/d/rel.pem")]);
        assert_eq!(hosts[1].headers.len(), 3);
        assert_eq!(hosts[1].dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(hosts[0].dial_timeout, None);
        assert!(hosts[1].tls.skip_verify && !hosts[3].tls.skip_verify);
        assert_eq!(hosts[3].tls.ca, [PathBuf::from("/d/up.pem")]);
        assert!(hosts.iter().all(|host| host.namespace.as_deref() == Some("reg.example")));
    }

    #[test]
    fn directories_are_looked_up_as_containerd_does() {
        assert_eq!(directory_names("r:5000"), ["r_5000_", "r:5000", "_default"]);
        assert_eq!(directory_names("docker.io"), ["docker.io", "_default"]);
        let temp = tempfile::tempdir().expect("temp dir");
        for name in ["_default", "r_5000_"] {
            std::fs::create_dir(temp.path().join(name)).expect("mkdir");
            let text = format!("[host.\"http://{}\"]\n", name.trim_matches('_').replace('_', "-"));
            std::fs::write(temp.path().join(name).join("hosts.toml"), text).expect("write");
        }
        assert_eq!(load(temp.path(), "r:5000").expect("loaded")[0].base, "http://r-5000/v2");
        let default = load(temp.path(), "ghcr.io").expect("loaded");
        assert_eq!(
            (default[0].base.as_str(), default[1].base.as_str()),
            ("http://default/v2", "https://ghcr.io/v2")
        );
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told() {
        for (text, says) in [
            ("server = 3", "server"),
            ("[host.\"ftp://x\"]", "ftp://x"),
            ("[host.\"http://x\"]\ncapabilities = [\"fly\"]", "fly"),
            ("dial_timeout = \"3\"", "dial_timeout `3`"),
            ("dial_timeout = \"soon\"", "dial_timeout `soon`"),
            ("[host", "expected"),
        ] {
            let error = parse(text, Path::new("/d"), "r").expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}

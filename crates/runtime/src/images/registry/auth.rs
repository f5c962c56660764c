//! What a registry demands and what is answered: Basic and Bearer challenges, credentials as CRI gives them. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::images::Auth;

/// What a `WWW-Authenticate` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: Option<String> },
}

/// The challenge to answer, Bearer before Basic.
pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        match parse(header) {
            Some(Challenge::Basic) => basic = Some(Challenge::Basic),
            Some(bearer) => return Some(bearer),
            None => {}
        }
    }
    basic
}

/// RFC 9110 §11.6.1, for headers with one challenge, which is what registries send.
fn parse(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, String::new(), None);
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        let Some((key, after)) = rest.split_once('=') else { break };
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find('"')?;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => value.clone_into(&mut service),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// User and password, from their own fields or from `auth`.
pub(super) fn user_and_password(auth: &Auth) -> Option<(String, String)> {
    if !auth.username.is_empty() || !auth.password.is_empty() {
        return Some((auth.username.clone(), auth.password.clone()));
    }
    let decoded = STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// The value of a Basic `Authorization` header.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Whether credentials for `server_address` are meant for this host (and registry): an empty address is for any, as in containerd.
pub(super) fn is_for(auth: &Auth, authority: &str, domain: &str) -> bool {
    let server = auth.server_address.as_str();
    let server = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let server = server.split('/').next().unwrap_or(server);
    let same = |host: &str| canonical(server) == canonical(host);
    server.is_empty() || same(authority) || (same(domain) && canonical(domain) == canonical(authority))
}

fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Percent-encodes what is not unreserved (RFC 3986 §2.3), for queries and forms.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            other => {
                let _infallible = write!(encoded, "%{other:02X}");
            }
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: &str, scope: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.to_owned(),
            scope: scope.map(str::to_owned),
        };
        for (header, expect) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a/token\",service=\"a\",scope=\"repository:x/y:pull,push\"",
                Some(bearer("https://a/token", "a", Some("repository:x/y:pull,push"))),
            ),
            ("bearer realm=https://a/t, service=s", Some(bearer("https://a/t", "s", None))),
            ("Bearer service=\"s\"", None),
            ("Bearer realm=\"unclosed", None),
            ("Negotiate", None),
        ] {
            assert_eq!(parse(header), expect, "{header}");
        }
        let both = ["Basic realm=\"x\"", "Bearer realm=\"r\""];
        assert_eq!(choose(both.into_iter()), Some(bearer("r", "", None)));
    }

    #[test]
    fn credentials_go_to_the_server_they_are_for() {
        let auth = |server: &str| Auth { server_address: server.to_owned(), ..Auth::default() };
        for (server, authority, domain, expect) in [
            ("", "mirror.x", "docker.io", true),
            ("https://index.docker.io/v1/", "registry-1.docker.io", "docker.io", true),
            ("docker.io", "registry-1.docker.io", "docker.io", true),
            ("docker.io", "mirror.x", "docker.io", false),
            ("mirror.x", "mirror.x", "docker.io", true),
            ("r.x:5000", "r.x:5000", "r.x:5000", true),
            ("r.x", "r.x:5000", "r.x:5000", false),
        ] {
            assert_eq!(is_for(&auth(server), authority, domain), expect, "{server} {authority}");
        }
        let encoded = Auth { auth: STANDARD.encode("u:p:q"), ..Auth::default() };
        assert_eq!(user_and_password(&encoded), Some(("u".to_owned(), "p:q".to_owned())));
        assert!(!format!("{encoded:?}").contains(&encoded.auth));
    }
}

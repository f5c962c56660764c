//! What a client asks of its connection: which transport, which version of which protocol. Pure.

use hyper::HeaderMap;
use hyper::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

/// Versions of the exec and attach protocol over SPDY.
pub(super) const SPDY_COMMAND: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// The port-forward protocol over SPDY.
pub(super) const SPDY_FORWARD: [&str; 1] = ["portforward.k8s.io"];
/// Versions of the exec and attach protocol over WebSocket.
pub(super) const WEBSOCKET_COMMAND: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// Port-forward over WebSocket: SPDY inside, or channels.
pub(super) const WEBSOCKET_FORWARD: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// SPDY in the messages of a WebSocket.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Header by which versions are offered and chosen over SPDY.
pub(super) const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// How a client wants to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// `Upgrade: SPDY/3.1`.
    Spdy,
    /// `Upgrade: websocket`.
    WebSocket,
}

/// The transport that the headers ask for.
pub(super) fn transport(headers: &HeaderMap) -> Option<Transport> {
    let upgrades = values(headers, &CONNECTION).any(|value| value.eq_ignore_ascii_case("upgrade"));
    let wants = |name: &str| values(headers, &UPGRADE).any(|value| value.eq_ignore_ascii_case(name));
    match upgrades {
        true if wants("websocket") => Some(Transport::WebSocket),
        true if wants("SPDY/3.1") => Some(Transport::Spdy),
        _ => None,
    }
}

/// The versions a client offers, best first.
pub(super) fn offered(headers: &HeaderMap, transport: Transport) -> Vec<&str> {
    let name = match transport {
        Transport::Spdy => &STREAM_VERSION,
        Transport::WebSocket => &SEC_WEBSOCKET_PROTOCOL,
    };
    values(headers, name).collect()
}

/// The first offer that is supported. A client that offers nothing speaks the first version, which has no name.
pub(super) fn choose(offers: &[&str], supported: &[&'static str]) -> Option<&'static str> {
    if offers.is_empty() {
        return Some("");
    }
    offers.iter().find_map(|offer| supported.iter().find(|name| *name == offer).copied())
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn the_transport_is_what_the_client_upgrades_to() {
        check(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")], Some(Transport::Spdy));
        check(&[("connection", "keep-alive, upgrade"), ("upgrade", "WebSocket")], Some(Transport::WebSocket));
        check(&[("upgrade", "SPDY/3.1")], None);
        check(&[("connection", "upgrade"), ("upgrade", "h2c")], None);
        check(&[], None);
    }

    #[test]
    fn the_clients_first_offer_that_is_known_is_chosen() {
        let headers = headers(&[
            ("x-stream-protocol-version", "v9.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        let offers = offered(&headers, Transport::Spdy);
        assert_eq!(choose(&offers, &SPDY_COMMAND), Some("v3.channel.k8s.io"));
        assert_eq!(choose(&offers, &SPDY_FORWARD), None);
        assert_eq!(choose(&offered(&headers, Transport::WebSocket), &WEBSOCKET_COMMAND), Some(""));
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let lines = lines.iter();
        lines.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn check(lines: &[(&'static str, &'static str)], expect: Option<Transport>) {
        assert_eq!(transport(&headers(lines)), expect, "{lines:?}");
    }
}

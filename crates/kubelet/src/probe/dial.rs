//! A TCP connection, or why there is none in the words that users know from Go.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::resolver::{ResolveError, Resolver};

/// Whom to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: Host,
    pub(super) port: u16,
}

/// An address, or a name that is resolved on the node whenever somebody connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Host {
    pub(super) fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Ip)
    }
}

/// As in a URL.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Connects within the time limit, to the first address of a name that answers.
pub(super) async fn dial(place: &Place, timeout: Duration) -> Result<TcpStream, String> {
    let limit = Instant::now() + timeout;
    let addresses = match &place.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => lookup(name, limit).await?,
    };
    let mut first = None;
    for ip in addresses {
        match connect(SocketAddr::new(ip, place.port), limit).await {
            Ok(stream) => return Ok(stream),
            Err(message) => first = first.or(Some(message)),
        }
    }
    Err(first.unwrap_or_else(|| format!("dial tcp {place}: no address")))
}

async fn lookup(name: &str, limit: Instant) -> Result<Vec<IpAddr>, String> {
    // The configuration is read anew, as it may have changed: names are rare here.
    let resolver = Resolver::from_system();
    let told = |what: &dyn fmt::Display| format!("dial tcp: lookup {name}: {what}");
    match timeout_at(limit, resolver.addresses(name)).await {
        Err(_) => Err(told(&"i/o timeout")),
        Ok(found) => found.map_err(|error: ResolveError| told(&error)),
    }
}

async fn connect(address: SocketAddr, limit: Instant) -> Result<TcpStream, String> {
    match timeout_at(limit, TcpStream::connect(address)).await {
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", words(&error))),
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// The system's words without what Rust adds: `connection refused`.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_closed_port_is_told_as_go_tells_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let by = |host: &str| Place { host: Host::parse(host), port: address.port() };
        dial(&by("127.0.0.1"), LIMIT).await.expect("somebody listens");
        dial(&by("localhost"), LIMIT).await.expect("somebody listens");
        drop(listener);
        let error = dial(&by("127.0.0.1"), LIMIT).await.expect_err("nobody listens");
        assert_eq!(error, format!("dial tcp {address}: connect: connection refused"));
        let error = dial(&by("localhost"), LIMIT).await.expect_err("nobody listens");
        assert!(error.ends_with(&format!(":{}: connect: connection refused", address.port())), "{error}");
    }

    #[test]
    fn places_are_told_as_in_a_url() {
        for (host, expect) in
            [("10.0.0.1", "10.0.0.1:80"), ("fd00::1", "[fd00::1]:80"), ("a.test", "a.test:80")]
        {
            assert_eq!(Place { host: Host::parse(host), port: 80 }.to_string(), expect);
        }
    }
}

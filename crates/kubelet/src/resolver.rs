//! Names on the node, by hosts(5) and hickory: the C library's resolver cannot be used in a static binary.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;

/// hosts(5).
const HOSTS: &str = "/etc/hosts";

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// Nobody knows it.
    #[error("no such host")]
    NoSuchHost,
    /// There is nobody to ask.
    #[error("/etc/resolv.conf is not usable")]
    NoServers,
    /// It could not be asked.
    #[error(transparent)]
    Failed(Box<NetError>),
}

/// The node's resolver.
#[derive(Clone)]
pub(crate) struct Resolver(Option<Arc<TokioResolver>>);

impl Resolver {
    /// Reads the machine's resolver configuration; without one only the names in hosts(5) and localhost work.
    pub(crate) fn from_system() -> Self {
        let resolver = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
        Self(
            resolver
                .inspect_err(|error| tracing::warn!(%error, "no usable resolver configuration"))
                .ok()
                .map(Arc::new),
        )
    }

    /// The addresses of a name.
    pub(crate) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        // Before DNS, which may be away: control planes are often named in this file only.
        let hosts = tokio::fs::read_to_string(HOSTS).await.unwrap_or_default();
        let known = in_hosts(&hosts, name);
        if !known.is_empty() {
            return Ok(known);
        }
        if name == "localhost" {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        let resolver = self.0.as_ref().ok_or(ResolveError::NoServers)?;
        let found = resolver.lookup_ip(name).await.map_err(|error| match error {
            error if error.is_no_records_found() || error.is_nx_domain() => ResolveError::NoSuchHost,
            error => ResolveError::Failed(Box::new(error)),
        })?;
        Ok(found.iter().collect())
    }
}

/// The addresses of a name in the text of hosts(5).
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let entries = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_the_hosts_file_has_the_addresses_of_all_its_lines() {
        let text =
            "127.0.0.1 localhost\n192.0.2.10\tcp.lab CP # cp3\nfd00::10 cp.lab\nno cp\n#192.0.2.11 cp\n";
        let of = |name| in_hosts(text, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("cp.lab"), ["192.0.2.10", "fd00::10"]);
        assert_eq!(of("cp"), ["192.0.2.10"]);
        assert_eq!(of("cp3"), Vec::<String>::new());
    }
}

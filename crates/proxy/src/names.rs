//! The names of per-Service chains, computed as kube-proxy does, so that its users and tools find what they know.

use sha2::{Digest, Sha256};

use crate::model::{Endpoint, ServicePortName};

/// `KUBE-SVC-…`: spreads connections over a Service port's endpoints.
pub(crate) fn service_chain(name: &ServicePortName) -> String {
    format!("KUBE-SVC-{}", hash(&format!("{name}{}", name.protocol.name())))
}

/// `KUBE-EXT-…`: takes connections from outside the cluster to a Service port.
pub(crate) fn external_chain(name: &ServicePortName) -> String {
    format!("KUBE-EXT-{}", hash(&format!("{name}{}", name.protocol.name())))
}

/// `KUBE-SVL-…`: spreads connections over a Service port's endpoints on this node.
pub(crate) fn local_chain(name: &ServicePortName) -> String {
    format!("KUBE-SVL-{}", hash(&format!("{name}{}", name.protocol.name())))
}

/// `KUBE-FW-…`: lets through whoever may use a load balancer's addresses.
pub(crate) fn firewall_chain(name: &ServicePortName) -> String {
    format!("KUBE-FW-{}", hash(&format!("{name}{}", name.protocol.name())))
}

/// `KUBE-SEP-…`: sends a connection to one endpoint of a Service port.
pub(crate) fn endpoint_chain(name: &ServicePortName, endpoint: &Endpoint) -> String {
    format!("KUBE-SEP-{}", hash(&format!("{name}{}{endpoint}", name.protocol.name())))
}

/// The first 16 characters of the base32 (RFC 4648) form of the SHA-256.
fn hash(text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text);
    let bits = digest.iter().take(10).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    (0..16).rev().map(|place| char::from(ALPHABET[(bits >> (place * 5)) as usize & 31])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use manifest::ObjectKey;

    fn port(namespace: &str, name: &str, port: &str) -> ServicePortName {
        ServicePortName {
            service: ObjectKey::new(namespace, name),
            port: port.to_owned(),
            protocol: Protocol::Tcp,
        }
    }

    /// Chains that every cluster has, and of kube-proxy's own tests.
    #[test]
    fn names_are_those_of_kube_proxy() {
        for (name, expect) in [
            (port("default", "kubernetes", "https"), "KUBE-SVC-NPX46M4PTMTKRN6Y"),
            (port("kube-system", "kube-dns", "dns-tcp"), "KUBE-SVC-ERIFXISQEP7F7OF4"),
            (port("kube-system", "kube-dns", "metrics"), "KUBE-SVC-JD5MR3NA4I4DYORP"),
            (port("ns1", "svc1", "p80"), "KUBE-SVC-XPGD46QRK7WJZT7O"),
            (port("ns2", "svc2", "p80"), "KUBE-SVC-GNZBNJ2PO5MGZ6GT"),
        ] {
            assert_eq!(service_chain(&name), expect, "{name}");
        }
        let name = port("ns1", "svc1", "p80");
        assert_eq!(external_chain(&name), "KUBE-EXT-XPGD46QRK7WJZT7O");
        let endpoint = Endpoint { ip: [10, 180, 0, 1].into(), port: 80 };
        assert_eq!(endpoint_chain(&name, &endpoint), "KUBE-SEP-SXIVWICOYRO3J4NJ");
    }

    #[test]
    fn a_port_without_name_leaves_the_colon_out() {
        assert_eq!(port("a", "b", "").to_string(), "a/b");
        assert_eq!(port("a", "b", "c").to_string(), "a/b:c");
    }
}

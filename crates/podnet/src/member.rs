//! A node of the cluster, as far as the way to its pods goes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1;
use k8s_openapi::jiff::Timestamp;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// When its object was made: of two that claim a range, the older one has it.
    pub since: Option<Timestamp>,
    /// Its name.
    pub name: String,
    /// Its pods' ranges: one, or one of each family; none while the cluster has not given it any.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses, the preferred one first.
    pub addresses: Vec<IpAddr>,
}

impl Member {
    /// As its object has it. What cannot be read is left out: it is the API server's to check.
    #[must_use]
    pub fn of(node: &v1::Node) -> Self {
        let spec = node.spec.as_ref();
        let ranges = spec.and_then(|spec| spec.pod_cidrs.clone()).filter(|ranges| !ranges.is_empty());
        let ranges = ranges.or_else(|| Some(vec![spec?.pod_cidr.clone()?])).unwrap_or_default();
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        Self {
            since: node.metadata.creation_timestamp.as_ref().map(|time| time.0),
            name: node.metadata.name.clone().unwrap_or_default(),
            pod_cidrs: ranges
                .iter()
                .filter_map(|range| range.parse().ok())
                .map(|range: IpNet| range.trunc())
                .collect(),
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
        }
    }

    /// Its address of the family of `like`.
    pub(crate) fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == like.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_read_whatever_it_has() {
        let node = |object| Member::of(&serde_json::from_value(object).expect("a node"));
        let one = node(json!({
            "metadata": { "name": "one" },
            "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64", "none"] },
            "status": { "addresses": [
                { "type": "ExternalIP", "address": "203.0.113.1" },
                { "type": "InternalIP", "address": "192.0.2.11" },
                { "type": "Hostname", "address": "one" },
                { "type": "InternalIP", "address": "fd01::11" },
            ] },
        }));
        let text = |all: &[IpNet]| all.iter().map(IpNet::to_string).collect::<Vec<_>>();
        assert_eq!(text(&one.pod_cidrs), ["10.244.1.0/24", "fd00:1::/64"]);
        assert_eq!(one.addresses, ["192.0.2.11", "fd01::11"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        let old = node(json!({ "spec": { "podCIDR": "10.244.2.7/24" } }));
        assert_eq!(text(&old.pod_cidrs), ["10.244.2.0/24"]);
        assert_eq!(node(json!({})).pod_cidrs, []);
    }
}

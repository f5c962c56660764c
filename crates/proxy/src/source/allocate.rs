//! Which ClusterIP and NodePorts each Service has: what it asks for, what it had, or the lowest free one. Pure.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;
use manifest::ObjectKey;
use serde::{Deserialize, Serialize};

use crate::report::Problem;

/// What is given out.
#[derive(Clone, Debug)]
pub(crate) struct Ranges {
    pub(crate) service_cidr: Ipv4Net,
    pub(crate) node_ports: RangeInclusive<u16>,
}

/// What a Service needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The address it asks for.
    pub(crate) cluster_ip: Option<Ipv4Addr>,
    /// Its ports that need a NodePort, by name.
    pub(crate) node_ports: Vec<PortClaim>,
}

/// A port that needs a NodePort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortClaim {
    /// Empty when it has none.
    pub(crate) name: String,
    /// `spec.ports[0].nodePort`.
    pub(crate) field: String,
    /// The port it asks for.
    pub(crate) wish: Option<u16>,
}

/// What every Service has; written down, so that it keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocations {
    /// By `namespace/name`.
    pub(crate) services: BTreeMap<String, Allocation>,
}

/// What one Service has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Allocation {
    #[serde(rename = "clusterIP", skip_serializing_if = "Option::is_none", default)]
    pub(crate) cluster_ip: Option<Ipv4Addr>,
    /// By the name of the port.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub(crate) node_ports: BTreeMap<String, u16>,
}

impl Allocations {
    /// What a Service has.
    pub(crate) fn of(&self, service: &ObjectKey) -> Option<&Allocation> {
        self.services.get(&service.to_string())
    }
}

/// Who wants one thing: a Service's address, or one of its ports' NodePort.
type Claimant = (ObjectKey, Option<String>);

struct Request<T> {
    claimant: Claimant,
    field: String,
    wish: Option<T>,
    had: Option<T>,
}

/// Gives every claim what it asks for, else what it had, else the lowest that is free.
pub(crate) fn allocate(
    claims: &BTreeMap<ObjectKey, Claim>,
    before: &Allocations,
    ranges: &Ranges,
) -> (Allocations, Vec<Problem>) {
    let (mut addresses, mut ports) = (Vec::new(), Vec::new());
    for (service, claim) in claims {
        let had = before.of(service);
        addresses.push(Request {
            claimant: (service.clone(), None),
            field: "spec.clusterIP".to_owned(),
            wish: claim.cluster_ip,
            had: had.and_then(|had| had.cluster_ip),
        });
        for port in &claim.node_ports {
            ports.push(Request {
                claimant: (service.clone(), Some(port.name.clone())),
                field: port.field.clone(),
                wish: port.wish,
                had: had.and_then(|had| had.node_ports.get(&port.name).copied()),
            });
        }
    }
    let cidr = ranges.service_cidr;
    let usable = |ip: &Ipv4Addr| cidr.contains(ip) && *ip != cidr.network() && *ip != cidr.broadcast();
    let mut problems = Vec::new();
    let addresses =
        give(addresses, usable, cidr.hosts(), &format!("the Service range {cidr}"), &mut problems);
    let range = ranges.node_ports.clone();
    let name = format!("the NodePort range {}-{}", range.start(), range.end());
    let ports = give(ports, |port| range.contains(port), range.clone(), &name, &mut problems);

    let mut now = Allocations::default();
    for ((service, _), ip) in addresses {
        now.services.entry(service.to_string()).or_default().cluster_ip = Some(ip);
    }
    for ((service, port), number) in ports {
        let of_service = now.services.entry(service.to_string()).or_default();
        of_service.node_ports.insert(port.unwrap_or_default(), number);
    }
    (now, problems)
}

/// Three rounds: who keeps what it had, who asks for something, who takes anything.
fn give<T: Copy + Ord + Display>(
    requests: Vec<Request<T>>,
    usable: impl Fn(&T) -> bool,
    all: impl Iterator<Item = T>,
    range: &str,
    problems: &mut Vec<Problem>,
) -> BTreeMap<Claimant, T> {
    let mut holders: BTreeMap<T, Claimant> = BTreeMap::new();
    let mut refuse = |request: &Request<T>, message: String| {
        let service = Some(request.claimant.0.clone());
        problems.push(Problem { service, field: Some(request.field.clone()), message });
    };
    let mut rest = Vec::new();
    for request in requests {
        let had = request.had.filter(|had| request.wish.is_none_or(|wish| wish == *had));
        match had.filter(|had| usable(had) && !holders.contains_key(had)) {
            Some(had) => drop(holders.insert(had, request.claimant)),
            None => rest.push(request),
        }
    }
    let mut anything = Vec::new();
    for request in rest {
        let Some(wish) = request.wish else {
            anything.push(request);
            continue;
        };
        match holders.get(&wish) {
            _ if !usable(&wish) => refuse(&request, format!("{wish} is not in {range}")),
            Some((holder, _)) => refuse(&request, format!("{wish} belongs to Service {holder}")),
            None => drop(holders.insert(wish, request.claimant)),
        }
    }
    let mut all = all;
    for request in anything {
        match all.find(|one| usable(one) && !holders.contains_key(one)) {
            Some(free) => drop(holders.insert(free, request.claimant)),
            None => refuse(&request, format!("{range} is exhausted")),
        }
    }
    holders.into_iter().map(|(what, claimant)| (claimant, what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ranges() -> Ranges {
        Ranges { service_cidr: "10.96.0.0/29".parse().unwrap(), node_ports: 30000..=30003 }
    }

    fn claim(ip: Option<&str>, ports: &[(&str, Option<u16>)]) -> Claim {
        let node_ports = ports.iter().enumerate().map(|(index, (name, wish))| PortClaim {
            name: (*name).to_owned(),
            field: format!("spec.ports[{index}].nodePort"),
            wish: *wish,
        });
        Claim { cluster_ip: ip.map(|ip| ip.parse().unwrap()), node_ports: node_ports.collect() }
    }

    fn claims(claims: &[(&str, Claim)]) -> BTreeMap<ObjectKey, Claim> {
        claims.iter().map(|(name, claim)| (ObjectKey::new("ns", *name), claim.clone())).collect()
    }

    fn ips(allocations: &Allocations) -> Vec<String> {
        let ips = allocations.services.iter();
        ips.map(|(name, had)| {
            format!("{name} {}", had.cluster_ip.map_or("-".to_owned(), |ip| ip.to_string()))
        })
        .collect()
    }

    #[test]
    fn asked_for_comes_first_then_the_lowest_free() {
        let wanted = claims(&[
            ("a", claim(None, &[("http", None), ("https", None)])),
            ("b", claim(Some("10.96.0.1"), &[("", Some(30000))])),
            ("c", claim(None, &[])),
        ]);
        let (now, problems) = allocate(&wanted, &Allocations::default(), &ranges());
        assert_eq!(problems, []);
        assert_eq!(ips(&now), ["ns/a 10.96.0.2", "ns/b 10.96.0.1", "ns/c 10.96.0.3"]);
        let ports = &now.services["ns/a"].node_ports;
        assert_eq!((ports["http"], ports["https"]), (30001, 30002));
        assert_eq!(now.services["ns/b"].node_ports[""], 30000);
    }

    #[test]
    fn what_a_service_has_it_keeps_and_what_is_gone_is_free() {
        let (first, _) = allocate(
            &claims(&[("b", claim(None, &[])), ("c", claim(None, &[("", None)]))]),
            &Allocations::default(),
            &ranges(),
        );
        assert_eq!(ips(&first), ["ns/b 10.96.0.1", "ns/c 10.96.0.2"]);
        let (second, _) = allocate(
            &claims(&[("a", claim(None, &[("", None)])), ("c", claim(None, &[("", None)]))]),
            &first,
            &ranges(),
        );
        assert_eq!(ips(&second), ["ns/a 10.96.0.1", "ns/c 10.96.0.2"]);
        assert_eq!(second.services["ns/c"].node_ports[""], 30000);
        assert_eq!(second.services["ns/a"].node_ports[""], 30001);
    }

    #[test]
    fn conflicts_are_told_with_the_holder_and_nothing_is_taken_from_it() {
        let before =
            allocate(&claims(&[("z", claim(None, &[("", None)]))]), &Allocations::default(), &ranges()).0;
        let wanted = claims(&[
            ("a", claim(Some("10.96.0.1"), &[("x", Some(30000))])),
            ("b", claim(Some("10.97.0.1"), &[("x", Some(80))])),
            ("c", claim(Some("10.96.0.7"), &[])),
            ("z", claim(None, &[("", None)])),
        ]);
        let (now, problems) = allocate(&wanted, &before, &ranges());
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "Service ns/a: field spec.clusterIP: 10.96.0.1 belongs to Service ns/z",
                "Service ns/b: field spec.clusterIP: 10.97.0.1 is not in the Service range 10.96.0.0/29",
                "Service ns/c: field spec.clusterIP: 10.96.0.7 is not in the Service range 10.96.0.0/29",
                "Service ns/a: field spec.ports[0].nodePort: 30000 belongs to Service ns/z",
                "Service ns/b: field spec.ports[0].nodePort: 80 is not in the NodePort range 30000-30003",
            ]
        );
        assert_eq!(now.of(&ObjectKey::new("ns", "z")), before.of(&ObjectKey::new("ns", "z")));
    }

    #[test]
    fn an_exhausted_range_is_told() {
        let many: Vec<String> = (0..8).map(|index| format!("s{index}")).collect();
        let wanted = claims(&many.iter().map(|name| (name.as_str(), claim(None, &[]))).collect::<Vec<_>>());
        let (now, problems) = allocate(&wanted, &Allocations::default(), &ranges());
        assert_eq!((now.services.len(), problems.len()), (6, 2));
        assert!(problems[0].message.contains("exhausted"));
    }

    proptest! {
        #[test]
        fn allocations_are_unique_in_range_and_stable(
            before in proptest::collection::btree_map("[a-e]", (proptest::option::of(0u8..10), proptest::option::of(29999u16..30006)), 0..6),
            after in proptest::collection::btree_map("[a-e]", (proptest::option::of(0u8..10), proptest::option::of(29999u16..30006)), 0..6),
        ) {
            let all = |services: &BTreeMap<String, (Option<u8>, Option<u16>)>| -> BTreeMap<ObjectKey, Claim> {
                services.iter().map(|(name, (ip, port))| {
                    let ip = ip.map(|last| format!("10.96.0.{last}"));
                    (ObjectKey::new("ns", name.clone()), claim(ip.as_deref(), &[("", *port)]))
                }).collect()
            };
            let (first, _) = allocate(&all(&before), &Allocations::default(), &ranges());
            let (again, _) = allocate(&all(&before), &first, &ranges());
            prop_assert_eq!(&first, &again);
            let (second, _) = allocate(&all(&after), &first, &ranges());
            let given: Vec<_> = second.services.values().filter_map(|had| had.cluster_ip).collect();
            prop_assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len());
            for (name, had) in &second.services {
                let key = name.trim_start_matches("ns/");
                if let (Some(wish), Some(ip)) = (after[key].0, had.cluster_ip) {
                    prop_assert_eq!(ip.octets()[3], wish);
                }
                // Who asks for nothing keeps what it had.
                if let (None, Some(kept)) = (after[key].0, first.services.get(name).and_then(|had| had.cluster_ip)) {
                    prop_assert_eq!(had.cluster_ip, Some(kept));
                }
                prop_assert!(had.node_ports.values().all(|port| (30000..=30003).contains(port)));
            }
        }
    }
}

//! Which ClusterIPs and NodePorts each Service has: what it asks for, what it had, or the lowest free one. Pure.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use hostnet::netfilter::Family;
use ipnet::IpNet;
use manifest::ObjectKey;
use serde::{Deserialize, Serialize};

use crate::model::Protocol;
use crate::report::Problem;

/// What is given out.
#[derive(Clone, Debug)]
pub(crate) struct Ranges {
    /// One or two, of different families; the first one's is the family of Services that ask for none.
    pub(crate) service_cidrs: Vec<IpNet>,
    pub(crate) node_ports: RangeInclusive<u16>,
}

impl Ranges {
    /// The families that Services can have, the preferred one first.
    pub(crate) fn families(&self) -> Vec<Family> {
        self.service_cidrs.iter().map(|cidr| Family::of(cidr.addr())).collect()
    }
}

/// What a Service needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its addresses, the primary one first.
    pub(crate) addresses: Vec<AddressClaim>,
    /// Its ports that need a NodePort, by name.
    pub(crate) node_ports: Vec<PortClaim>,
}

/// An address that a Service needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressClaim {
    /// Of which family.
    pub(crate) family: Family,
    /// The address it asks for.
    pub(crate) wish: Option<IpAddr>,
}

/// A port that needs a NodePort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortClaim {
    /// Empty when it has none.
    pub(crate) name: String,
    /// TCP and UDP have ports of their own.
    pub(crate) protocol: Protocol,
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
    /// One for each of its families.
    #[serde(rename = "clusterIPs", skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// By the name of the port.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub(crate) node_ports: BTreeMap<String, u16>,
}

impl Allocation {
    /// Its address in a family.
    pub(crate) fn address(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
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
    let (mut problems, mut now) = (Vec::new(), Allocations::default());
    for cidr in &ranges.service_cidrs {
        let (cidr, family) = (*cidr, Family::of(cidr.addr()));
        let usable = |ip: &IpAddr| {
            cidr.contains(ip) && *ip != cidr.network() && (cidr.addr().is_ipv6() || *ip != cidr.broadcast())
        };
        let range = format!("the Service range {cidr}");
        let given =
            give(address_requests(claims, before, family), usable, cidr.hosts(), &range, &mut problems);
        for ((service, _), ip) in given {
            now.services.entry(service.to_string()).or_default().cluster_ips.push(ip);
        }
    }
    let range = ranges.node_ports.clone();
    let name = format!("the NodePort range {}-{}", range.start(), range.end());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let requests = port_requests(claims, before, protocol);
        let given = give(requests, |port| range.contains(port), range.clone(), &name, &mut problems);
        for ((service, port), number) in given {
            let of_service = now.services.entry(service.to_string()).or_default();
            of_service.node_ports.insert(port.unwrap_or_default(), number);
        }
    }
    for (service, claim) in claims {
        let Some(of_service) = now.services.get_mut(&service.to_string()) else { continue };
        let place =
            |ip: &IpAddr| claim.addresses.iter().position(|address| address.family == Family::of(*ip));
        of_service.cluster_ips.sort_by_key(place);
    }
    (now, problems)
}

fn address_requests(
    claims: &BTreeMap<ObjectKey, Claim>,
    before: &Allocations,
    family: Family,
) -> Vec<Request<IpAddr>> {
    let request = |(service, claim): (&ObjectKey, &Claim)| {
        let address = claim.addresses.iter().find(|address| address.family == family)?;
        Some(Request {
            claimant: (service.clone(), None),
            field: "spec.clusterIP".to_owned(),
            wish: address.wish,
            had: before.of(service).and_then(|had| had.address(family)),
        })
    };
    claims.iter().filter_map(request).collect()
}

fn port_requests(
    claims: &BTreeMap<ObjectKey, Claim>,
    before: &Allocations,
    protocol: Protocol,
) -> Vec<Request<u16>> {
    let all =
        claims.iter().flat_map(|(service, claim)| claim.node_ports.iter().map(move |port| (service, port)));
    let request = |(service, port): (&ObjectKey, &PortClaim)| Request {
        claimant: (service.clone(), Some(port.name.clone())),
        field: port.field.clone(),
        wish: port.wish,
        had: before.of(service).and_then(|had| had.node_ports.get(&port.name).copied()),
    };
    all.filter(|(_, port)| port.protocol == protocol).map(request).collect()
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
mod tests;

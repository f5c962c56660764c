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
mod tests;

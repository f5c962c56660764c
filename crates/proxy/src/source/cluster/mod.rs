//! From the API server's Services and EndpointSlices to what is served. Pure.

mod external;
mod objects;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hostnet::netfilter::{Family, PerFamily};
use manifest::ObjectKey;

use crate::model::{Endpoint, ServiceMap, ServicePort, ServicePortName};
pub use external::ExternalIps;
use objects::{Port, SliceEndpoint, State};
pub(crate) use objects::{Served, Slice, served, slice};
pub(crate) use store::{Change, Store};

/// Which Services and slices are the proxy's: none that name another proxy, and none that are headless, which the slices
/// of a headless Service say too.
pub(crate) const SELECTOR: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// Who answers at each port of each Service.
pub(crate) fn join(
    services: &BTreeMap<ObjectKey, Served>,
    slices: &BTreeMap<ObjectKey, Slice>,
    external_ips: ExternalIps,
) -> PerFamily<ServiceMap> {
    let mut of_service: BTreeMap<&ObjectKey, Vec<&Slice>> = BTreeMap::new();
    for slice in slices.values() {
        of_service.entry(&slice.service).or_default().push(slice);
    }
    let mut maps: PerFamily<ServiceMap> = PerFamily::default();
    for (key, service) in services {
        let external_ips = external_ips.of(service);
        let slices = of_service.get(key).map(Vec::as_slice).unwrap_or_default();
        for &cluster_ip in &service.cluster_ips {
            let family = Family::of(cluster_ip);
            for port in &service.ports {
                let name = ServicePortName {
                    service: key.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                };
                let of_family = |ip: &&IpAddr| Family::of(**ip) == family;
                let base = ServicePort {
                    external_ips: external_ips.iter().filter(of_family).copied().collect(),
                    ..ServicePort::new(cluster_ip, port.number)
                };
                maps.of_mut(family).insert(name, port_of(service, port, base, slices, family));
            }
        }
    }
    maps
}

fn port_of(
    service: &Served,
    port: &Port,
    base: ServicePort,
    slices: &[&Slice],
    family: Family,
) -> ServicePort {
    let of_family = |ips: &BTreeSet<_>| ips.iter().copied().filter(|ip| Family::of(*ip) == family).collect();
    let ranges = service.source_ranges.iter().copied();
    let endpoints: Vec<(Endpoint, &SliceEndpoint)> = endpoints(port, slices, family).collect();
    ServicePort {
        node_port: port.node_port,
        load_balancer_ips: of_family(&service.load_balancer_ips),
        source_ranges: ranges.filter(|range| Family::of(range.addr()) == family).collect(),
        health_check_node_port: service.health_check_node_port,
        affinity: service.affinity,
        external: service.external,
        internal: service.internal,
        local: takers(endpoints.iter().filter(|(_, endpoint)| endpoint.local)),
        endpoints: takers(endpoints.iter()),
        ..base
    }
}

/// Who listens for a port in the slices: each slice has its own number for a port's name.
fn endpoints<'a>(
    port: &'a Port,
    slices: &'a [&'a Slice],
    family: Family,
) -> impl Iterator<Item = (Endpoint, &'a SliceEndpoint)> {
    let slices = slices.iter().filter(move |slice| slice.family == family);
    slices.flat_map(move |slice| {
        let numbers =
            slice.ports.iter().filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        numbers.flat_map(|(_, _, number)| {
            let at = |endpoint: &'a SliceEndpoint| (Endpoint { ip: endpoint.ip, port: *number }, endpoint);
            slice.endpoints.iter().map(at)
        })
    })
}

/// Those that are ready, else those that are ending and still serve.
fn takers<'a>(
    endpoints: impl Iterator<Item = &'a (Endpoint, &'a SliceEndpoint)> + Clone,
) -> BTreeSet<Endpoint> {
    let all_in = |state: State| {
        let some = endpoints.clone().filter(move |(_, endpoint)| endpoint.state == state);
        some.map(|(endpoint, _)| *endpoint).collect::<BTreeSet<_>>()
    };
    let ready = all_in(State::Ready);
    if ready.is_empty() { all_in(State::Ending) } else { ready }
}

//! From Services and pods to what is served, what is told, and what is refused by name. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hostnet::netfilter::{Family, PerFamily};
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Service, ServiceSpec, ServiceStatus};
use manifest::ObjectKey;

use super::allocate::{AddressClaim, Allocation, Allocations, Claim, PortClaim, Ranges, allocate};
use super::endpoints::{matching, of_port, slices};
use crate::model::{Affinity, Protocol, ServiceMap, ServicePort, ServicePortName, TrafficPolicy};
use crate::report::{Problem, ProxyReport};
use crate::run::LocalPod;

/// What one round has found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) allocations: Allocations,
    pub(crate) services: PerFamily<ServiceMap>,
    pub(crate) report: ProxyReport,
}

/// Whose Service it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Served {
    /// It has an address of each of these families, and rules.
    Here(Vec<Family>),
    /// It is only a name: headless, or an alias.
    ByName(Vec<Family>),
    /// Refused, or left to someone else.
    Not,
}

/// Decides what is served from what is wanted and what there is.
pub(crate) fn plan(
    services: &BTreeMap<ObjectKey, Arc<Service>>,
    pods: &[LocalPod],
    before: &Allocations,
    ranges: &Ranges,
    node_name: &str,
) -> Plan {
    let mut problems = Vec::new();
    let served: BTreeMap<&ObjectKey, Served> = services
        .iter()
        .map(|(key, service)| (key, admit(key, service, &ranges.families(), &mut problems)))
        .collect();
    let claims = services.iter().filter_map(|(key, service)| match &served[key] {
        Served::Here(families) => Some((key.clone(), claim(service.spec.as_ref()?, families))),
        Served::ByName(_) | Served::Not => None,
    });
    let (allocations, conflicts) = allocate(&claims.collect(), before, ranges);
    problems.extend(conflicts);

    let mut plan = Plan { allocations, ..Plan::default() };
    for (key, service) in services {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let pods = matching(&key.namespace, &selector, pods);
        let allocation = plan.allocations.of(key).cloned().unwrap_or_default();
        let families: &[Family] = match &served[key] {
            Served::Here(families) => {
                serve(key, service, &allocation, &pods, &mut plan.services);
                families
            }
            Served::ByName(families) => families,
            Served::Not => &[],
        };
        for family in families.iter().filter(|_| !selector.is_empty()) {
            plan.report.endpoints.extend(slices(service, &pods, *family, node_name));
        }
        plan.report.services.push(filled(service, &allocation, families));
    }
    problems.sort();
    plan.report.problems = problems;
    plan
}

/// What a Service asks for that it does not get is told by name.
fn admit(key: &ObjectKey, service: &Service, known: &[Family], problems: &mut Vec<Problem>) -> Served {
    let mut tell = |field: &str, message: &str| {
        let (service, field) = (Some(key.clone()), Some(field.to_owned()));
        problems.push(Problem { service, field, message: message.to_owned() });
    };
    let Some(spec) = &service.spec else {
        tell("spec", "required");
        return Served::Not;
    };
    let labels = service.metadata.labels.iter().flatten();
    if let Some((label, _)) =
        labels.into_iter().find(|(label, _)| *label == "service.kubernetes.io/service-proxy-name")
    {
        tell(&format!("metadata.labels[{label}]"), "left to the proxy that it names");
        return Served::Not;
    }
    if spec.type_.as_deref() == Some("ExternalName") {
        return Served::ByName(Vec::new());
    }
    let families = match families(spec, known) {
        Ok(families) => families,
        Err((field, message)) => {
            tell(field, &format!("{message}: the Service is not served"));
            return Served::Not;
        }
    };
    if spec.cluster_ip.as_deref() == Some("None") {
        return Served::ByName(families);
    }
    ignored(spec, &mut tell);
    Served::Here(families)
}

/// The families of a Service, the primary one first: what it asks for, else the node's first one.
fn families(spec: &ServiceSpec, known: &[Family]) -> Result<Vec<Family>, (&'static str, String)> {
    let mut asked: Vec<Family> = Vec::new();
    for name in spec.ip_families.iter().flatten() {
        asked.push(match name.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            other => return Err(("spec.ipFamilies", format!("{other:?} is neither IPv4 nor IPv6"))),
        });
    }
    let from_addresses = asked.is_empty();
    if from_addresses {
        asked = wishes(spec).into_iter().map(Family::of).collect();
    }
    let policy = spec.ip_family_policy.as_deref().unwrap_or("SingleStack");
    if policy == "RequireDualStack" && known.len() < 2 {
        let message = "the node has Service addresses of one family only (--service-cidr)".to_owned();
        return Err(("spec.ipFamilyPolicy", message));
    }
    if let Some(first) = asked.first().filter(|family| !known.contains(family)) {
        let field = if from_addresses { "spec.clusterIP" } else { "spec.ipFamilies" };
        let name = name_of(*first);
        return Err((field, format!("the node has no {name} Service addresses (--service-cidr)")));
    }
    let mut families = asked;
    families.extend(known);
    let mut seen = Vec::new();
    families.retain(|family| {
        let new = known.contains(family) && !seen.contains(family);
        seen.push(*family);
        new
    });
    if policy == "SingleStack" {
        families.truncate(1);
    }
    Ok(families)
}

fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The addresses that a Service asks for.
fn wishes(spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
    all.filter_map(|ip| ip.parse().ok()).collect()
}

/// What is served without something that it asks for.
fn ignored(spec: &ServiceSpec, tell: &mut impl FnMut(&str, &str)) {
    if spec.type_.as_deref() == Some("LoadBalancer") {
        tell("spec.type", "there is no load balancer on a standalone node: served as NodePort");
    }
    if spec.selector.as_ref().is_none_or(BTreeMap::is_empty) {
        tell(
            "spec.selector",
            "missing: endpoints that a manifest names are not supported, so that it has none",
        );
    }
    let lists = [
        ("spec.externalIPs", &spec.external_ips),
        ("spec.loadBalancerSourceRanges", &spec.load_balancer_source_ranges),
    ];
    for (field, _) in lists.iter().filter(|(_, list)| list.as_ref().is_some_and(|list| !list.is_empty())) {
        tell(field, "not supported yet: ignored");
    }
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if Protocol::parse(Some(protocol)).is_none() {
            let message = format!("{protocol} is not supported yet: this port is not served");
            tell(&format!("spec.ports[{index}].protocol"), &message);
        }
    }
}

fn claim(spec: &ServiceSpec, families: &[Family]) -> Claim {
    let wishes = wishes(spec);
    let wish = |family: Family| wishes.iter().copied().find(|ip| Family::of(*ip) == family);
    let addresses = families.iter().map(|&family| AddressClaim { family, wish: wish(family) });
    Claim { addresses: addresses.collect(), node_ports: node_port_claims(spec) }
}

fn node_port_claims(spec: &ServiceSpec) -> Vec<PortClaim> {
    let wanted = match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    };
    let ports = spec.ports.iter().flatten().enumerate();
    ports
        .filter(|_| wanted)
        .filter_map(|(index, port)| {
            Some(PortClaim {
                name: port.name.clone().unwrap_or_default(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                field: format!("spec.ports[{index}].nodePort"),
                wish: port.node_port.filter(|port| *port != 0).map(|port| u16::try_from(port).unwrap_or(0)),
            })
        })
        .collect()
}

fn serve(
    key: &ObjectKey,
    service: &Service,
    allocation: &Allocation,
    pods: &[&LocalPod],
    maps: &mut PerFamily<ServiceMap>,
) {
    let Some(spec) = &service.spec else { return };
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.port) else { continue };
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
        let port_name = port.name.clone().unwrap_or_default();
        let node_port = allocation.node_ports.get(&port_name).copied();
        let name = ServicePortName { service: key.clone(), port: port_name, protocol };
        for &cluster_ip in &allocation.cluster_ips {
            let family = Family::of(cluster_ip);
            let endpoints = of_port(port, pods, family, unready_too);
            let served = ServicePort {
                node_port,
                affinity: affinity(spec),
                external: policy(spec.external_traffic_policy.as_deref()),
                internal: policy(spec.internal_traffic_policy.as_deref()),
                // Every pod that is known is this node's.
                local: endpoints.clone(),
                endpoints,
                ..ServicePort::new(cluster_ip, number)
            };
            maps.of_mut(family).insert(name.clone(), served);
        }
    }
}

/// Whether a client of a Service keeps its endpoint.
pub(super) fn affinity(spec: &ServiceSpec) -> Affinity {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return Affinity::None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(10_800);
    Affinity::ClientIp(u32::try_from(seconds).unwrap_or(1))
}

/// A traffic policy as a Service writes it.
pub(super) fn policy(name: Option<&str>) -> TrafficPolicy {
    match name {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

/// The Service with what it was given.
fn filled(service: &Service, allocation: &Allocation, families: &[Family]) -> Service {
    let mut service = service.clone();
    service.status = Some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus::default()),
        ..ServiceStatus::default()
    });
    let Some(spec) = &mut service.spec else { return service };
    if !allocation.cluster_ips.is_empty() {
        spec.cluster_ip = Some(allocation.cluster_ips[0].to_string());
        spec.cluster_ips = Some(allocation.cluster_ips.iter().map(ToString::to_string).collect());
    } else if let Some(ip) = spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty()) {
        spec.cluster_ips = Some(vec![ip.clone()]);
    }
    if !families.is_empty() {
        spec.ip_families = Some(families.iter().map(|family| name_of(*family).to_owned()).collect());
    }
    for port in spec.ports.iter_mut().flatten() {
        let name = port.name.clone().unwrap_or_default();
        if let Some(node_port) = allocation.node_ports.get(&name) {
            port.node_port = Some(i32::from(*node_port));
        }
    }
    service
}

#[cfg(test)]
mod tests;

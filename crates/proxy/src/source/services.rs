//! From Services and pods to what is served, what is told, and what is refused by name. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerStatus, Service, ServiceSpec, ServiceStatus};
use manifest::ObjectKey;

use super::allocate::{Allocation, Allocations, Claim, PortClaim, Ranges, allocate};
use super::endpoints::{matching, of_port, slices};
use crate::model::{Protocol, ServiceMap, ServicePort, ServicePortName};
use crate::report::{Problem, ProxyReport};
use crate::run::LocalPod;

/// What one round has found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) allocations: Allocations,
    pub(crate) services: ServiceMap,
    pub(crate) report: ProxyReport,
}

/// Whose Service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// It has an address, and rules.
    Here,
    /// It is only a name: headless, or an alias.
    ByName,
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
    let served: BTreeMap<&ObjectKey, Served> =
        services.iter().map(|(key, service)| (key, admit(key, service, &mut problems))).collect();
    let here = services.iter().filter(|(key, _)| served[key] == Served::Here);
    let claims =
        here.filter_map(|(key, service)| Some((key.clone(), claim(service.spec.as_ref()?)))).collect();
    let (allocations, conflicts) = allocate(&claims, before, ranges);
    problems.extend(conflicts);

    let mut plan = Plan { allocations, ..Plan::default() };
    for (key, service) in services {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let pods = matching(&key.namespace, &selector, pods);
        let allocation = plan.allocations.of(key).cloned().unwrap_or_default();
        if served[key] == Served::Here {
            serve(key, service, &allocation, &pods, &mut plan.services);
        }
        if served[key] != Served::Not && !selector.is_empty() {
            plan.report.endpoints.extend(slices(service, &pods, node_name));
        }
        plan.report.services.push(filled(service, &allocation));
    }
    problems.sort();
    plan.report.problems = problems;
    plan
}

/// What a Service asks for that it does not get is told by name.
fn admit(key: &ObjectKey, service: &Service, problems: &mut Vec<Problem>) -> Served {
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
    if spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None") {
        return Served::ByName;
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if families.first().is_some_and(|family| family == "IPv6") {
        tell("spec.ipFamilies", "IPv6 is not supported yet: the Service is not served");
        return Served::Not;
    }
    if spec.ip_family_policy.as_deref() == Some("RequireDualStack") {
        tell("spec.ipFamilyPolicy", "IPv6 is not supported yet: the Service is not served");
        return Served::Not;
    }
    if spec.cluster_ip.as_deref().is_some_and(|ip| matches!(ip.parse(), Ok(IpAddr::V6(_)))) {
        tell("spec.clusterIP", "IPv6 is not supported yet: the Service is not served");
        return Served::Not;
    }
    ignored(spec, &mut tell);
    Served::Here
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
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        tell(
            "spec.sessionAffinity",
            "ClientIP is not supported yet: ignored, connections go to any endpoint",
        );
    }
    if spec.external_traffic_policy.as_deref() == Some("Local") {
        let message = "Local is not supported yet: ignored, pods see the node's address as the client's";
        tell("spec.externalTrafficPolicy", message);
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
        if protocol != "TCP" {
            let message = format!("{protocol} is not supported yet: this port is not served");
            tell(&format!("spec.ports[{index}].protocol"), &message);
        }
    }
}

fn claim(spec: &ServiceSpec) -> Claim {
    let ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    Claim { cluster_ip: ip.and_then(|ip| ip.parse().ok()), node_ports: node_port_claims(spec) }
}

fn node_port_claims(spec: &ServiceSpec) -> Vec<PortClaim> {
    let wanted = match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    };
    let ports = spec.ports.iter().flatten().enumerate();
    ports
        .filter(|(_, port)| wanted && port.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .map(|(index, port)| PortClaim {
            name: port.name.clone().unwrap_or_default(),
            field: format!("spec.ports[{index}].nodePort"),
            wish: port.node_port.filter(|port| *port != 0).map(|port| u16::try_from(port).unwrap_or(0)),
        })
        .collect()
}

fn serve(
    key: &ObjectKey,
    service: &Service,
    allocation: &Allocation,
    pods: &[&LocalPod],
    map: &mut ServiceMap,
) {
    let (Some(spec), Some(cluster_ip)) = (&service.spec, allocation.cluster_ip) else { return };
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.port) else { continue };
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            continue;
        }
        let name = port.name.clone().unwrap_or_default();
        let node_port = allocation.node_ports.get(&name).copied();
        let endpoints = of_port(port, pods, unready_too);
        let name = ServicePortName { service: key.clone(), port: name, protocol: Protocol::Tcp };
        map.insert(name, ServicePort { cluster_ip, port: number, node_port, endpoints });
    }
}

/// The Service with what it was given.
fn filled(service: &Service, allocation: &Allocation) -> Service {
    let mut service = service.clone();
    service.status = Some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus::default()),
        ..ServiceStatus::default()
    });
    let Some(spec) = &mut service.spec else { return service };
    if let Some(ip) = allocation.cluster_ip {
        spec.cluster_ip = Some(Ipv4Addr::to_string(&ip));
    }
    if let Some(ip) = spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty()) {
        spec.cluster_ips = Some(vec![ip.clone()]);
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

//! What is kept of a Service and of an EndpointSlice: only what rules are made from. A watch of thousands of objects then
//! costs some hundred bytes for each.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hostnet::netfilter::Family;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use manifest::ObjectKey;

use crate::model::{Affinity, Protocol, TrafficPolicy};
use crate::source::services::{affinity, policy};

/// A Service that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// One, or one of each family.
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) ports: Vec<Port>,
    pub(super) external_ips: BTreeSet<IpAddr>,
    pub(super) load_balancer_ips: BTreeSet<IpAddr>,
    pub(super) source_ranges: BTreeSet<IpNet>,
    pub(super) health_check_node_port: Option<u16>,
    pub(super) affinity: Affinity,
    pub(super) external: TrafficPolicy,
    pub(super) internal: TrafficPolicy,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
    pub(super) node_port: Option<u16>,
}

/// Some endpoints of a Service, all with the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(super) service: ObjectKey,
    pub(super) family: Family,
    pub(super) ports: Vec<(String, Protocol, u16)>,
    pub(super) endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceEndpoint {
    pub(super) ip: IpAddr,
    pub(super) state: State,
    /// Whether it runs on this node.
    pub(super) local: bool,
}

/// Whether an endpoint takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It does.
    Ready,
    /// It is ending and still could: when no other does, it does.
    Ending,
}

/// What a Service asks of a node; none when it has no address, or is another proxy's.
pub(crate) fn served(service: &Service) -> Option<Served> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let cluster_ips = cluster_ips(spec);
    if cluster_ips.is_empty() {
        return None;
    }
    let external = policy(spec.external_traffic_policy.as_deref());
    let health = spec.health_check_node_port.filter(|_| external == TrafficPolicy::Local);
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    Some(Served {
        cluster_ips,
        ports: ports(spec),
        external_ips: spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
        load_balancer_ips: load_balancer_ips(service),
        source_ranges: ranges.filter_map(|range| range.trim().parse().ok()).collect(),
        health_check_node_port: health.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
        affinity: affinity(spec),
        external,
        internal: policy(spec.internal_traffic_policy.as_deref()),
    })
}

/// Without any, and with `None`, a Service is only a name.
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten();
    let ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    match ips.is_empty() {
        true => spec.cluster_ip.iter().filter_map(|ip| ip.parse().ok()).collect(),
        false => ips,
    }
}

fn ports(spec: &ServiceSpec) -> Vec<Port> {
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: Protocol::parse(port.protocol.as_deref())?,
            number: u16::try_from(port.port).ok()?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
        })
    };
    spec.ports.iter().flatten().filter_map(port).collect()
}

/// The addresses of a load balancer that delivers packets as they came. One that is a proxy itself (`ipMode: Proxy`) must
/// see its own clients' connections.
fn load_balancer_ips(service: &Service) -> BTreeSet<IpAddr> {
    let is_balanced = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let delivers = |mode: Option<&str>| mode.is_none_or(|mode| mode == "VIP");
    let ingress = ingress.iter().filter(|ingress| is_balanced && delivers(ingress.ip_mode.as_deref()));
    ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// What a slice says; none when it is no Service's, or names hosts instead of addresses.
pub(crate) fn slice(slice: &EndpointSlice, node_name: &str) -> Option<Slice> {
    let metadata = &slice.metadata;
    let service = metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.port?).ok()?;
        Some((port.name.clone().unwrap_or_default(), Protocol::parse(port.protocol.as_deref())?, number))
    });
    let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let of = |get: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
            conditions.and_then(get)
        };
        // What is not said: ready, serving, and not ending.
        let ready = of(|conditions| conditions.ready) != Some(false);
        let serving = of(|conditions| conditions.serving) != Some(false);
        let ending = of(|conditions| conditions.terminating) == Some(true);
        let state = match (ready, serving && ending) {
            (true, _) => State::Ready,
            (false, true) => State::Ending,
            (false, false) => return None,
        };
        // Of several addresses, which all are the same endpoint's, the first one is used, as upstream does.
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let local = endpoint.node_name.as_deref() == Some(node_name);
        (Family::of(ip) == family).then_some(SliceEndpoint { ip, state, local })
    });
    Some(Slice {
        service: ObjectKey::new(metadata.namespace.clone().unwrap_or_default(), service.clone()),
        family,
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    })
}

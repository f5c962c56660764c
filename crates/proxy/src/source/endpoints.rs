//! From a Service's selector and the node's pods to who answers at each of its ports. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hostnet::netfilter::Family;
use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint as SliceEndpoint, EndpointConditions, EndpointPort, EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::{Endpoint, Protocol};
use crate::run::LocalPod;

/// The pods of `namespace` that `selector` matches, by name. An empty selector matches none.
pub(crate) fn matching<'a>(
    namespace: &str,
    selector: &BTreeMap<String, String>,
    pods: &'a [LocalPod],
) -> Vec<&'a LocalPod> {
    let matches = |pod: &LocalPod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    let mut found: Vec<&LocalPod> = pods
        .iter()
        .filter(|pod| !selector.is_empty() && pod.namespace == namespace && matches(pod))
        .collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

/// The address of a pod in a family.
fn address(pod: &LocalPod, family: Family) -> Option<IpAddr> {
    pod.ips.iter().copied().find(|ip| Family::of(*ip) == family)
}

/// The port at which a pod answers for a Service port; none when it has no port of that name.
fn target(port: &ServicePort, pod: &LocalPod) -> Option<u16> {
    match &port.target_port {
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            pod.ports.get(&(protocol, name.clone())).copied()
        }
        None => u16::try_from(port.port).ok(),
    }
}

/// Who takes connections at a port: ready pods, or all where the Service says so.
pub(crate) fn of_port(
    port: &ServicePort,
    pods: &[&LocalPod],
    family: Family,
    unready_too: bool,
) -> BTreeSet<Endpoint> {
    let takers = pods.iter().filter(|pod| pod.ready || unready_too);
    takers.filter_map(|pod| Some(Endpoint { ip: address(pod, family)?, port: target(port, pod)? })).collect()
}

/// The slices that tell of a Service's endpoints in a family: one for the pods that have the same ports.
pub(crate) fn slices(
    service: &Service,
    pods: &[&LocalPod],
    family: Family,
    node_name: &str,
) -> Vec<EndpointSlice> {
    let ports: &[ServicePort] =
        service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let unready_too = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let mut groups: BTreeMap<Vec<Option<u16>>, Vec<SliceEndpoint>> = BTreeMap::new();
    for pod in pods {
        let Some(ip) = address(pod, family) else { continue };
        let targets = ports.iter().map(|port| target(port, pod)).collect();
        groups.entry(targets).or_default().push(SliceEndpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(pod.ready || unready_too),
                serving: Some(pod.ready),
                terminating: Some(false),
            }),
            node_name: Some(node_name.to_owned()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                ..ObjectReference::default()
            }),
            ..SliceEndpoint::default()
        });
    }
    if groups.is_empty() {
        groups.insert(vec![None; ports.len()], Vec::new());
    }
    let groups = groups.into_iter().enumerate();
    groups
        .map(|(index, (targets, endpoints))| slice(service, index, family, ports, &targets, endpoints))
        .collect()
}

fn slice(
    service: &Service,
    index: usize,
    family: Family,
    ports: &[ServicePort],
    targets: &[Option<u16>],
    endpoints: Vec<SliceEndpoint>,
) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let resolved = ports.iter().zip(targets).filter_map(|(port, target)| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(i32::from((*target)?)),
            protocol: port.protocol.clone(),
            app_protocol: port.app_protocol.clone(),
        })
    });
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(match family {
                Family::V4 => format!("{name}-{index}"),
                Family::V6 => format!("{name}-v6-{index}"),
            }),
            namespace: service.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                ("endpointslice.kubernetes.io/managed-by".to_owned(), "podwright".to_owned()),
                ("kubernetes.io/service-name".to_owned(), name),
            ])),
            ..ObjectMeta::default()
        },
        address_type: match family {
            Family::V4 => "IPv4".to_owned(),
            Family::V6 => "IPv6".to_owned(),
        },
        endpoints: Some(endpoints),
        ports: Some(resolved.collect()),
    }
}

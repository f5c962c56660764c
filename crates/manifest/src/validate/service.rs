//! What no Service can be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::container::number;
use super::names::{self, Form};
use super::{metadata, one_of, tell, unique_name};
use crate::decode::Fault;

/// Refuses what no Service can be. Whether addresses and ports are free is for the proxy to say.
pub(crate) fn service(service: &Service, faults: &mut Vec<Fault>) {
    metadata::check(&service.metadata, Form::Label1035, faults);
    let Some(spec) = &service.spec else { return tell(faults, "spec", "required") };
    let types = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    one_of(faults, "spec.type", spec.type_.as_deref(), &types);
    one_of(faults, "spec.sessionAffinity", spec.session_affinity.as_deref(), &["None", "ClientIP"]);
    for (key, value) in spec.selector.iter().flatten() {
        let path = format!("spec.selector[{key}]");
        names::check(faults, &path, key, Form::LabelKey);
        names::check(faults, &path, value, Form::LabelValue);
    }
    addresses(spec, faults);
    policies(spec, faults);
    ports(spec, faults);
}

fn addresses(spec: &ServiceSpec, faults: &mut Vec<Fault>) {
    let kind = spec.type_.as_deref().unwrap_or_default();
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if kind == "ExternalName" {
        match spec.external_name.as_deref().unwrap_or_default() {
            "" => tell(faults, "spec.externalName", "required with type ExternalName"),
            name => names::check(faults, "spec.externalName", name.trim_end_matches('.'), Form::Subdomain),
        }
        if !cluster_ip.is_empty() {
            tell(faults, "spec.clusterIP", "not with type ExternalName");
        }
        return;
    }
    match cluster_ip {
        "" => {}
        "None" if kind != "ClusterIP" => {
            tell(faults, "spec.clusterIP", format!("None is not for type {kind}"))
        }
        "None" => {}
        ip if ip.parse::<IpAddr>().is_err() => {
            tell(faults, "spec.clusterIP", format!("{ip:?} is not an IP address, and not None"));
        }
        _ => {}
    }
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    if all.first().is_some_and(|first| first != cluster_ip) {
        tell(faults, "spec.clusterIPs[0]", "is not the same as spec.clusterIP");
    }
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        if ip.parse::<IpAddr>().is_err() {
            tell(faults, format!("spec.externalIPs[{index}]"), format!("{ip:?} is not an IP address"));
        }
    }
}

fn policies(spec: &ServiceSpec, faults: &mut Vec<Fault>) {
    let kind = spec.type_.as_deref().unwrap_or_default();
    let policy = spec.external_traffic_policy.as_deref();
    one_of(faults, "spec.externalTrafficPolicy", policy, &["Cluster", "Local"]);
    if policy.is_some() && !matches!(kind, "NodePort" | "LoadBalancer") && spec.external_ips.is_none() {
        tell(faults, "spec.externalTrafficPolicy", "is for types NodePort and LoadBalancer");
    }
    let policy = spec.internal_traffic_policy.as_deref();
    one_of(faults, "spec.internalTrafficPolicy", policy, &["Cluster", "Local"]);
    let policy = spec.ip_family_policy.as_deref();
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    one_of(faults, "spec.ipFamilyPolicy", policy, &policies);
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        one_of(faults, &format!("spec.ipFamilies[{index}]"), Some(family), &["IPv4", "IPv6"]);
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let timeout = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
    if let Some(seconds) = timeout.filter(|seconds| !(1..=86_400).contains(seconds)) {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        tell(faults, path, format!("{seconds} is not in 1 to 86400"));
    }
}

fn ports(spec: &ServiceSpec, faults: &mut Vec<Fault>) {
    let kind = spec.type_.as_deref().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !headless && kind != "ExternalName" {
        tell(faults, "spec.ports", "required");
    }
    let mut names_seen = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        match port.name.as_deref().unwrap_or_default() {
            "" if ports.len() > 1 => {
                tell(faults, format!("{at}.name"), "required where there is more than one port")
            }
            "" => {}
            name => unique_name(faults, &format!("{at}.name"), name, Form::Label, &mut names_seen),
        }
        number(faults, &format!("{at}.port"), port.port);
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        one_of(faults, &format!("{at}.protocol"), Some(protocol), &["TCP", "UDP", "SCTP"]);
        if !seen.insert((port.port, protocol)) {
            tell(faults, &at, format!("{} {protocol} is there twice", port.port));
        }
        target(port, &at, faults);
        let Some(node_port) = port.node_port.filter(|port| *port != 0) else { continue };
        let path = format!("{at}.nodePort");
        if !matches!(kind, "NodePort" | "LoadBalancer") {
            tell(faults, path, format!("is not for type {kind}"));
        } else if !node_ports.insert((node_port, protocol)) {
            tell(faults, path, format!("{node_port} {protocol} is there twice"));
        } else {
            number(faults, &path, node_port);
        }
    }
}

fn target(port: &ServicePort, at: &str, faults: &mut Vec<Fault>) {
    let path = format!("{at}.targetPort");
    match &port.target_port {
        None => {}
        Some(IntOrString::Int(port)) => number(faults, &path, *port),
        Some(IntOrString::String(name)) => names::check(faults, &path, name, Form::PortName),
    }
}

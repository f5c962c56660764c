//! What no pod can be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::container::{self, Place, Role};
use super::names::{self, Form};
use super::{metadata, one_of, tell, unique_name, volume};
use crate::decode::Fault;

/// Refuses what no pod can be.
pub(crate) fn pod(pod: &Pod, faults: &mut Vec<Fault>) {
    metadata::check(&pod.metadata, Form::Subdomain, faults);
    let Some(spec) = &pod.spec else { return tell(faults, "spec", "required") };
    spec_values(spec, faults);
    dns(spec, faults);
    let volumes = volume::names(spec.volumes.as_deref().unwrap_or_default(), faults);
    let host_network = spec.host_network == Some(true);
    let mut seen = BTreeSet::new();
    if spec.containers.is_empty() {
        tell(faults, "spec.containers", "required: a pod has at least one container");
    }
    for (list, role, containers) in [
        ("initContainers", Role::Init, spec.init_containers.as_deref().unwrap_or_default()),
        ("containers", Role::Main, spec.containers.as_slice()),
    ] {
        for (index, one) in containers.iter().enumerate() {
            let at = format!("spec.{list}[{index}]");
            unique_name(faults, &format!("{at}.name"), &one.name, Form::Label, &mut seen);
            let place = Place { at: &at, role, host_network, volumes: &volumes };
            container::check(one, &place, faults);
        }
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        tell(
            faults,
            "spec.ephemeralContainers",
            "cannot be part of a new pod: they are added to a running one",
        );
    }
    host_ports(spec, faults);
}

fn spec_values(spec: &PodSpec, faults: &mut Vec<Fault>) {
    let policy = spec.restart_policy.as_deref();
    one_of(faults, "spec.restartPolicy", policy, &["Always", "OnFailure", "Never"]);
    if let Some(grace) = spec.termination_grace_period_seconds.filter(|seconds| *seconds < 0) {
        tell(faults, "spec.terminationGracePeriodSeconds", format!("{grace} is negative"));
    }
    if let Some(deadline) = spec.active_deadline_seconds.filter(|seconds| *seconds < 1) {
        tell(faults, "spec.activeDeadlineSeconds", format!("{deadline} is less than 1"));
    }
    for (path, name) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
            names::check(faults, path, name, Form::Label);
        }
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        tell(faults, "spec.shareProcessNamespace", "and hostPID exclude each other");
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        address(faults, &format!("spec.hostAliases[{index}].ip"), &alias.ip);
        for (name, hostname) in alias.hostnames.iter().flatten().enumerate() {
            names::check(
                faults,
                &format!("spec.hostAliases[{index}].hostnames[{name}]"),
                hostname,
                Form::Subdomain,
            );
        }
    }
    let security = spec.security_context.as_ref();
    let ids = [
        ("runAsUser", security.and_then(|security| security.run_as_user)),
        ("runAsGroup", security.and_then(|security| security.run_as_group)),
        ("fsGroup", security.and_then(|security| security.fs_group)),
    ];
    for (field, id) in ids {
        container::id(faults, &format!("spec.securityContext.{field}"), id);
    }
    if let Some(profile) = security.and_then(|security| security.seccomp_profile.as_ref()) {
        container::seccomp(profile, "spec.securityContext.seccompProfile", faults);
    }
}

fn dns(spec: &PodSpec, faults: &mut Vec<Fault>) {
    let policy = spec.dns_policy.as_deref();
    one_of(faults, "spec.dnsPolicy", policy, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    let config = spec.dns_config.clone().unwrap_or_default();
    let servers = config.nameservers.unwrap_or_default();
    if policy == Some("None") && servers.is_empty() {
        tell(faults, "spec.dnsConfig.nameservers", "required with dnsPolicy None");
    }
    if servers.len() > 3 {
        tell(faults, "spec.dnsConfig.nameservers", "has more than 3");
    }
    for (index, server) in servers.iter().enumerate() {
        address(faults, &format!("spec.dnsConfig.nameservers[{index}]"), server);
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_ref().is_none_or(String::is_empty) {
            tell(faults, format!("spec.dnsConfig.options[{index}].name"), "required");
        }
    }
}

fn address(faults: &mut Vec<Fault>, path: &str, text: &str) {
    if text.parse::<IpAddr>().is_err() {
        tell(faults, path, format!("{text:?} is not an IP address"));
    }
}

/// One port of the node is for one container.
fn host_ports(spec: &PodSpec, faults: &mut Vec<Fault>) {
    let mut taken: BTreeMap<(i32, &str, &str), String> = BTreeMap::new();
    let of = |container: &'_ Container| container.ports.clone().unwrap_or_default();
    let containers: Vec<_> = spec.containers.iter().map(of).collect();
    for (index, ports) in containers.iter().enumerate() {
        for (number, port) in ports.iter().enumerate() {
            let Some(host_port) = port.host_port.filter(|port| *port != 0) else { continue };
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let path = format!("spec.containers[{index}].ports[{number}].hostPort");
            let key = (host_port, protocol, port.host_ip.as_deref().unwrap_or_default());
            if let Some(first) = taken.get(&key) {
                tell(faults, path, format!("{host_port} {protocol} is also {first}"));
            } else {
                taken.insert(key, path);
            }
        }
    }
}

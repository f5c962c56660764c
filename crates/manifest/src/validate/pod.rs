//! What no pod can be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Sysctl};

use super::container::{self, Place, Role};
use super::names::{self, Form};
use super::{metadata, one_of, tell, unique_name, volume};
use crate::decode::Fault;
use crate::resource;

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
            let host_users = spec.host_users != Some(false);
            let place = Place { at: &at, role, host_network, host_users, volumes: &volumes };
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
    file_keys(spec, faults);
    host_ports(spec, faults);
}

/// `hostnameOverride`: any name that the kernel takes, and no other way to name the pod beside it.
fn hostname_override(name: &str, spec: &PodSpec, faults: &mut Vec<Fault>) {
    let path = "spec.hostnameOverride";
    names::check(faults, path, name, Form::Subdomain);
    if name.len() > 64 {
        tell(faults, path, format!("{name:?} is longer than 64 characters"));
    }
    let others = [("setHostnameAsFQDN", spec.set_hostname_as_fqdn), ("hostNetwork", spec.host_network)];
    for (field, _) in others.iter().filter(|(_, given)| *given == Some(true)) {
        tell(faults, path, format!("and {field} exclude each other"));
    }
}

/// `fileKeyRef`: files lie in an emptyDir of the pod.
fn file_keys(spec: &PodSpec, faults: &mut Vec<Fault>) {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for (list, containers) in [("initContainers", init), ("containers", spec.containers.as_slice())] {
        for (index, container) in containers.iter().enumerate() {
            for (variable, one) in container.env.iter().flatten().enumerate() {
                let Some(file) = one.value_from.as_ref().and_then(|from| from.file_key_ref.as_ref()) else {
                    continue;
                };
                let at = format!("spec.{list}[{index}].env[{variable}].valueFrom.fileKeyRef");
                names::check(faults, &format!("{at}.key"), &file.key, Form::Variable);
                match volumes.iter().find(|volume| volume.name == file.volume_name) {
                    None => {
                        let message = format!("no volume is named {:?}", file.volume_name);
                        tell(faults, format!("{at}.volumeName"), message);
                    }
                    Some(volume) if volume.empty_dir.is_none() => {
                        let message = format!("{:?} is not an emptyDir", file.volume_name);
                        tell(faults, format!("{at}.volumeName"), message);
                    }
                    Some(_) => {}
                }
                let path = std::path::Path::new(&file.path);
                if file.path.is_empty() {
                    tell(faults, format!("{at}.path"), "required");
                } else if path.components().any(|part| part == std::path::Component::ParentDir) {
                    tell(faults, format!("{at}.path"), "must not contain '..'");
                }
            }
        }
    }
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
    if let Some(name) = spec.hostname_override.as_deref() {
        hostname_override(name, spec, faults);
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
    for (index, group) in
        security.into_iter().flat_map(|security| security.supplemental_groups.iter().flatten()).enumerate()
    {
        container::id(faults, &format!("spec.securityContext.supplementalGroups[{index}]"), Some(*group));
    }
    let words = |field: &'static str, value: Option<&String>, words: [&str; 2], faults: &mut Vec<Fault>| {
        one_of(faults, &format!("spec.securityContext.{field}"), value.map(String::as_str), &words);
    };
    let policy = security.and_then(|security| security.supplemental_groups_policy.as_ref());
    words("supplementalGroupsPolicy", policy, ["Merge", "Strict"], faults);
    let policy = security.and_then(|security| security.fs_group_change_policy.as_ref());
    words("fsGroupChangePolicy", policy, ["OnRootMismatch", "Always"], faults);
    sysctls(security.and_then(|security| security.sysctls.as_deref()).unwrap_or_default(), faults);
    if let Some(profile) = security.and_then(|security| security.app_armor_profile.as_ref()) {
        container::apparmor(profile, "spec.securityContext.appArmorProfile", faults);
    }
    host_users(spec, faults);
    own_resources(spec, faults);
    if let Some(profile) = security.and_then(|security| security.seccomp_profile.as_ref()) {
        container::seccomp(profile, "spec.securityContext.seccompProfile", faults);
    }
}

/// What a pod asks for as a whole is what its containers can share.
fn own_resources(spec: &PodSpec, faults: &mut Vec<Fault>) {
    let Some(own) = &spec.resources else { return };
    container::resources(own, "spec.resources", faults);
    for (kind, amounts) in [("limits", &own.limits), ("requests", &own.requests)] {
        for name in amounts.iter().flat_map(|amounts| amounts.keys()) {
            if !resource::is_for_whole_pods(name) {
                let what = "is not for a whole pod: cpu, memory and hugepages-SIZE are";
                tell(faults, format!("spec.resources.{kind}[{name}]"), what);
            }
        }
    }
}

fn sysctls(sysctls: &[Sysctl], faults: &mut Vec<Fault>) {
    let mut seen = BTreeSet::new();
    for (index, sysctl) in sysctls.iter().enumerate() {
        let path = format!("spec.securityContext.sysctls[{index}].name");
        let part = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let inner = |byte: u8| plain(byte) || matches!(byte, b'-' | b'_');
            part.bytes().all(inner)
                && part.bytes().next().is_some_and(plain)
                && part.bytes().last().is_some_and(plain)
        };
        if sysctl.name.is_empty() {
            tell(faults, path, "required");
        } else if sysctl.name.len() > 253 || !sysctl.name.split(['.', '/']).all(part) {
            tell(faults, path, format!("{:?} is not the name of a sysctl", sysctl.name));
        } else if !seen.insert(sysctl.name.replace('/', ".")) {
            tell(faults, path, format!("{:?} is there twice", sysctl.name));
        }
    }
}

/// A pod with users of its own has none of the node's namespaces.
fn host_users(spec: &PodSpec, faults: &mut Vec<Fault>) {
    if spec.host_users != Some(false) {
        return;
    }
    for (field, given) in
        [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)]
    {
        if given == Some(true) {
            tell(faults, format!("spec.{field}"), "and hostUsers: false exclude each other");
        }
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
    let searches = config.searches.unwrap_or_default();
    if searches.len() > 32 {
        tell(faults, "spec.dnsConfig.searches", "has more than 32");
    }
    if searches.join(" ").len() > 2048 {
        tell(faults, "spec.dnsConfig.searches", "has more than 2048 characters");
    }
    for (index, search) in searches.iter().enumerate() {
        let name = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            names::check(faults, &format!("spec.dnsConfig.searches[{index}]"), name, Form::Search);
        }
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

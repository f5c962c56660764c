//! What no container can be.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, ContainerPort, EnvFromSource, EnvVar, ResourceRequirements, SeccompProfile,
    SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::names::{self, Form};
use super::{downward, one_of, probe, tell, unique_name, volume};
use crate::decode::Fault;
use crate::quantity::{self, Amount};

/// Which list a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Init,
    Main,
}

/// Where a container stands, and what is around it.
pub(super) struct Place<'a> {
    /// `spec.containers[0]`.
    pub(super) at: &'a str,
    pub(super) role: Role,
    pub(super) host_network: bool,
    /// Root of the pod is root of the node.
    pub(super) host_users: bool,
    /// The names of the pod's volumes.
    pub(super) volumes: &'a BTreeSet<String>,
}

pub(super) fn check(container: &Container, place: &Place<'_>, faults: &mut Vec<Fault>) {
    let at = place.at;
    match container.image.as_deref().unwrap_or_default() {
        "" => tell(faults, format!("{at}.image"), "required"),
        image if image.trim() != image => {
            tell(faults, format!("{at}.image"), format!("{image:?} has white space at an end"));
        }
        _ => {}
    }
    let policy = container.image_pull_policy.as_deref();
    one_of(faults, &format!("{at}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    let policy = container.termination_message_policy.as_deref();
    let policies = ["File", "FallbackToLogsOnError"];
    one_of(faults, &format!("{at}.terminationMessagePolicy"), policy, &policies);
    ports(container.ports.as_deref().unwrap_or_default(), place, faults);
    env(container.env.as_deref().unwrap_or_default(), at, faults);
    env_from(container.env_from.as_deref().unwrap_or_default(), at, faults);
    volume::mounts(container, at, place.volumes, faults);
    if let Some(found) = &container.resources {
        resources(found, &format!("{at}.resources"), faults);
    }
    if let Some(found) = &container.security_context {
        security(found, place, faults);
    }
    restart_policy(container, place, faults);
    probe::all(container, place, faults);
}

fn restart_policy(container: &Container, place: &Place<'_>, faults: &mut Vec<Fault>) {
    let policies: &[&str] = match place.role {
        Role::Init => &["Always"],
        Role::Main => &["Always", "OnFailure", "Never"],
    };
    one_of(faults, &format!("{}.restartPolicy", place.at), container.restart_policy.as_deref(), policies);
}

fn ports(ports: &[ContainerPort], place: &Place<'_>, faults: &mut Vec<Fault>) {
    let mut seen = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = format!("{}.ports[{index}]", place.at);
        number(faults, &format!("{at}.containerPort"), port.container_port);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            unique_name(faults, &format!("{at}.name"), name, Form::PortName, &mut seen);
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        one_of(faults, &format!("{at}.protocol"), Some(protocol), &["TCP", "UDP", "SCTP"]);
        let host_port = port.host_port.unwrap_or(0);
        if !numbers.insert((
            port.container_port,
            protocol,
            host_port,
            port.host_ip.as_deref().unwrap_or_default(),
        )) {
            tell(faults, &at, format!("{} {protocol} is there twice", port.container_port));
        }
        if host_port != 0 {
            number(faults, &format!("{at}.hostPort"), host_port);
            if place.host_network && host_port != port.container_port {
                tell(faults, format!("{at}.hostPort"), "with hostNetwork it is the same as containerPort");
            }
        }
        if let Some(ip) =
            port.host_ip.as_deref().filter(|ip| !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err())
        {
            tell(faults, format!("{at}.hostIP"), format!("{ip:?} is not an IP address"));
        }
    }
}

/// Tells of a number that is no port.
pub(super) fn number(faults: &mut Vec<Fault>, path: &str, port: i32) {
    if !(1..=65535).contains(&port) {
        tell(faults, path, format!("{port} is not a port: 1 to 65535"));
    }
}

fn env(variables: &[EnvVar], at: &str, faults: &mut Vec<Fault>) {
    for (index, variable) in variables.iter().enumerate() {
        let at = format!("{at}.env[{index}]");
        names::check(faults, &format!("{at}.name"), &variable.name, Form::Variable);
        let Some(source) = &variable.value_from else { continue };
        if variable.value.as_ref().is_some_and(|value| !value.is_empty()) {
            tell(faults, format!("{at}.valueFrom"), "and value exclude each other");
        }
        let given = [
            source.config_map_key_ref.is_some(),
            source.secret_key_ref.is_some(),
            source.field_ref.is_some(),
            source.resource_field_ref.is_some(),
            source.file_key_ref.is_some(),
        ];
        exactly_one(faults, &format!("{at}.valueFrom"), &given);
        if let Some(reference) = &source.config_map_key_ref {
            reference_key(
                faults,
                &format!("{at}.valueFrom.configMapKeyRef"),
                &reference.name,
                &reference.key,
            );
        }
        if let Some(reference) = &source.secret_key_ref {
            reference_key(faults, &format!("{at}.valueFrom.secretKeyRef"), &reference.name, &reference.key);
        }
        if let Some(field) = &source.field_ref {
            downward::field(field, downward::Place::Variable, &format!("{at}.valueFrom.fieldRef"), faults);
        }
        if let Some(resource) = &source.resource_field_ref {
            downward::resource(
                resource,
                downward::Place::Variable,
                &format!("{at}.valueFrom.resourceFieldRef"),
                faults,
            );
        }
    }
}

fn reference_key(faults: &mut Vec<Fault>, at: &str, name: &str, key: &str) {
    names::check(faults, &format!("{at}.name"), name, Form::Subdomain);
    names::check(faults, &format!("{at}.key"), key, Form::DataKey);
}

fn env_from(sources: &[EnvFromSource], at: &str, faults: &mut Vec<Fault>) {
    for (index, source) in sources.iter().enumerate() {
        let at = format!("{at}.envFrom[{index}]");
        exactly_one(faults, &at, &[source.config_map_ref.is_some(), source.secret_ref.is_some()]);
        if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            names::check(faults, &format!("{at}.prefix"), prefix, Form::Variable);
        }
        let references = [
            ("configMapRef", source.config_map_ref.as_ref().map(|reference| &reference.name)),
            ("secretRef", source.secret_ref.as_ref().map(|reference| &reference.name)),
        ];
        for (field, name) in references {
            if let Some(name) = name {
                names::check(faults, &format!("{at}.{field}.name"), name, Form::Subdomain);
            }
        }
    }
}

pub(super) fn exactly_one(faults: &mut Vec<Fault>, path: &str, given: &[bool]) {
    match given.iter().filter(|given| **given).count() {
        0 => tell(faults, path, "says nothing: one of its fields is required"),
        1 => {}
        _ => tell(faults, path, "says more than one thing: its fields exclude each other"),
    }
}

pub(super) fn resources(found: &ResourceRequirements, at: &str, faults: &mut Vec<Fault>) {
    let limits = amounts(found.limits.as_ref(), None, &format!("{at}.limits"), faults);
    let requests = amounts(found.requests.as_ref(), found.limits.as_ref(), &format!("{at}.requests"), faults);
    for (name, request) in &requests {
        match limits.get(name) {
            Some(limit) if request > limit => {
                tell(
                    faults,
                    format!("{at}.requests[{name}]"),
                    format!("{request} is more than the limit {limit}"),
                );
            }
            Some(limit) if request != limit && is_whole(name) => {
                tell(faults, format!("{at}.requests[{name}]"), format!("{request} is not the limit {limit}"));
            }
            None if is_whole(name) => {
                tell(faults, format!("{at}.limits[{name}]"), "required, the same as the request");
            }
            _ => {}
        }
    }
}

/// Devices and huge pages are not shared.
fn is_whole(name: &str) -> bool {
    name.starts_with("hugepages-") || name.contains('/')
}

fn amounts<'a>(
    given: Option<&'a BTreeMap<String, Quantity>>,
    checked: Option<&BTreeMap<String, Quantity>>,
    at: &str,
    faults: &mut Vec<Fault>,
) -> BTreeMap<&'a str, Amount> {
    let mut amounts = BTreeMap::new();
    for (name, quantity) in given.into_iter().flatten() {
        let path = format!("{at}[{name}]");
        // A request that is the limit, as a default is, has the limit's faults.
        if checked.and_then(|checked| checked.get(name)) == Some(quantity) {
            continue;
        }
        names::check(faults, &path, name, Form::LabelKey);
        if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") && !is_whole(name) {
            tell(
                faults,
                &path,
                "not a resource: cpu, memory, ephemeral-storage, hugepages-SIZE or DOMAIN/NAME",
            );
        }
        match quantity::parse(&quantity.0) {
            Err(error) => tell(faults, path, format!("{:?} {error}", quantity.0)),
            Ok(amount) if amount.is_negative() => tell(faults, path, format!("{amount} is negative")),
            Ok(amount) if is_whole(name) && !amount.is_whole() => {
                tell(faults, path, format!("{amount} is not a whole number"));
            }
            Ok(amount) => drop(amounts.insert(name.as_str(), amount)),
        }
    }
    amounts
}

fn security(security: &SecurityContext, place: &Place<'_>, faults: &mut Vec<Fault>) {
    let at = &format!("{}.securityContext", place.at);
    id(faults, &format!("{at}.runAsUser"), security.run_as_user);
    id(faults, &format!("{at}.runAsGroup"), security.run_as_group);
    one_of(faults, &format!("{at}.procMount"), security.proc_mount.as_deref(), &["Default", "Unmasked"]);
    if security.proc_mount.as_deref() == Some("Unmasked") && place.host_users {
        tell(faults, format!("{at}.procMount"), "Unmasked is for pods with hostUsers: false");
    }
    if let Some(profile) = &security.app_armor_profile {
        apparmor(profile, &format!("{at}.appArmorProfile"), faults);
    }
    if let Some(profile) = &security.seccomp_profile {
        seccomp(profile, &format!("{at}.seccompProfile"), faults);
    }
    if security.allow_privilege_escalation == Some(false) {
        let added = security.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
        let admin = added
            .is_some_and(|added| added.iter().any(|name| name == "CAP_SYS_ADMIN" || name == "SYS_ADMIN"));
        if security.privileged == Some(true) {
            tell(faults, format!("{at}.allowPrivilegeEscalation"), "false and privileged exclude each other");
        } else if admin {
            tell(
                faults,
                format!("{at}.allowPrivilegeEscalation"),
                "false and CAP_SYS_ADMIN exclude each other",
            );
        }
    }
}

/// Tells of a number that is no user or group.
pub(super) fn id(faults: &mut Vec<Fault>, path: &str, id: Option<i64>) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        tell(faults, path, format!("{id} is not an id: 0 to {}", i32::MAX));
    }
}

pub(super) fn apparmor(profile: &AppArmorProfile, at: &str, faults: &mut Vec<Fault>) {
    one_of(
        faults,
        &format!("{at}.type"),
        Some(&profile.type_),
        &["RuntimeDefault", "Unconfined", "Localhost"],
    );
    let path = format!("{at}.localhostProfile");
    match (profile.type_ == "Localhost", profile.localhost_profile.as_deref().unwrap_or_default()) {
        (true, "") => tell(faults, path, "required with type Localhost"),
        (true, _) | (false, "") => {}
        (false, _) => tell(faults, path, "only with type Localhost"),
    }
}

pub(super) fn seccomp(profile: &SeccompProfile, at: &str, faults: &mut Vec<Fault>) {
    let types = ["RuntimeDefault", "Unconfined", "Localhost"];
    one_of(faults, &format!("{at}.type"), Some(&profile.type_), &types);
    let file = profile.localhost_profile.as_deref().unwrap_or_default();
    let path = format!("{at}.localhostProfile");
    match (profile.type_ == "Localhost", file) {
        (true, "") => tell(faults, path, "required with type Localhost"),
        (true, file) => volume::descending(faults, &path, file),
        (false, "") => {}
        (false, _) => tell(faults, path, "only with type Localhost"),
    }
}

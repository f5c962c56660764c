//! From the admitted pod to CRI requests, with the labels, annotations and paths that kubelets use: pure.

use std::collections::HashMap;
use std::path::Path;

use cri::v1::security_profile::ProfileType;
use cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    PortMapping, Protocol, SecurityProfile, Signal, SupplementalGroupsPolicy,
};
use host::proc_paths;
use k8s_openapi::api::core::v1;

use crate::environment::expand;
use crate::names::kernel_name;
use crate::pod::model::{Container, Pod};
use crate::user_namespaces::PodIds;

/// Label keys of kubelets.
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation keys of kubelets.
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub(crate) const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Whether the pod is on the node's network.
pub(crate) fn on_host_network(pod: &Pod) -> bool {
    pod.source.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The sandbox.
///
/// # Errors
/// When the pod's host name is too long.
pub(crate) fn sandbox(
    pod: &Pod,
    attempt: u32,
    log_directory: &str,
    cgroup_parent: &str,
    dns: DnsConfig,
    cluster_domain: &str,
    ids: Option<PodIds>,
) -> Result<PodSandboxConfig, String> {
    let meta = &pod.source.metadata;
    let mut labels: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    for (key, value) in [(POD_NAME, &pod.name), (POD_NAMESPACE, &pod.namespace), (POD_UID, &pod.uid)] {
        labels.insert(key.to_owned(), value.clone());
    }
    let mut annotations: HashMap<String, String> =
        meta.annotations.clone().unwrap_or_default().into_iter().collect();
    annotations.insert(GRACE.to_owned(), pod.grace.as_secs().to_string());
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            attempt,
        }),
        hostname: if on_host_network(pod) { String::new() } else { kernel_name(pod, cluster_domain)? },
        log_directory: log_directory.to_owned(),
        dns_config: Some(dns),
        port_mappings: port_mappings(pod),
        labels,
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_owned(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod, ids)),
                seccomp: Some(profile(ProfileType::RuntimeDefault)),
                privileged: has_privileged(pod),
                supplemental_groups: supplemental_groups(pod),
                supplemental_groups_policy: groups_policy(pod).into(),
                ..Default::default()
            }),
            sysctls: sysctls(pod),
            ..Default::default()
        }),
        windows: None,
    })
}

fn pod_security(pod: &Pod) -> v1::PodSecurityContext {
    pod.source.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default()
}

fn has_privileged(pod: &Pod) -> bool {
    let mut all = pod.init_containers.iter().chain(&pod.containers);
    all.any(|one| one.spec.security_context.as_ref().and_then(|own| own.privileged) == Some(true))
}

fn sysctls(pod: &Pod) -> HashMap<String, String> {
    let given = pod_security(pod).sysctls.unwrap_or_default();
    given.into_iter().map(|sysctl| (sysctl.name, sysctl.value)).collect()
}

/// Ports of the node that lead to the pod; on the node's own network there are none to lead anywhere.
fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if on_host_network(pod) {
        return Vec::new();
    }
    let all = pod.init_containers.iter().chain(&pod.containers);
    let ports = all.flat_map(|container| container.spec.ports.iter().flatten());
    let published = ports.filter_map(|port| {
        let host_port = port.host_port.filter(|port| *port > 0)?;
        Some(PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            host_port,
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
    });
    published.collect()
}

/// The fsGroup owns the pod's volumes: its processes are in it.
fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let security = pod_security(pod);
    security.fs_group.into_iter().chain(security.supplemental_groups.into_iter().flatten()).collect()
}

fn groups_policy(pod: &Pod) -> SupplementalGroupsPolicy {
    match pod_security(pod).supplemental_groups_policy.as_deref() {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

/// What a container is made of beside the manifest.
pub(crate) struct Ingredients<'a> {
    pub(crate) attempt: u32,
    /// The id that the pull gave.
    pub(crate) image: &'a str,
    pub(crate) env: &'a [(String, String)],
    pub(crate) mounts: Vec<Mount>,
    /// What the node says of seccomp profiles.
    pub(crate) seccomp: Seccomp<'a>,
    /// The id of the container at whose processes it looks.
    pub(crate) target: Option<String>,
    /// The pod's own ids, if it has any.
    pub(crate) ids: Option<PodIds>,
    /// Its limits.
    pub(crate) resources: LinuxContainerResources,
}

/// What a node says of seccomp profiles.
#[derive(Clone, Copy)]
pub(crate) struct Seccomp<'a> {
    /// Where its own lie.
    pub(crate) profiles: &'a Path,
    /// Whether who names none has the runtime's.
    pub(crate) runtime_default: bool,
}

/// A container.
///
/// # Errors
/// When its seccomp profile has no name.
pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    ingredients: Ingredients<'_>,
) -> Result<ContainerConfig, String> {
    let spec = &container.spec;
    let Ingredients { attempt, image, env, mut mounts, seccomp, target, ids, resources } = ingredients;
    let mut security = security_context(pod, spec, seccomp)?;
    security.namespace_options = Some(namespaces_of(pod, target, ids));
    if let Some(ids) = ids {
        ids.map(&mut mounts);
    }
    let stop_signal = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let expanded =
        |words: &Option<Vec<String>>| words.iter().flatten().map(|word| expand(word, env)).collect();
    let labels = [
        (CONTAINER_NAME, &container.name),
        (POD_NAME, &pod.name),
        (POD_NAMESPACE, &pod.namespace),
        (POD_UID, &pod.uid),
    ];
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expanded(&spec.command),
        args: expanded(&spec.args),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: env
            .iter()
            .map(|(key, value)| KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        mounts,
        labels: labels.map(|(key, value)| (key.to_owned(), value.clone())).into(),
        annotations: [(RESTART_COUNT, attempt.to_string()), (GRACE, pod.grace.as_secs().to_string())]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        log_path: format!("{}/{attempt}.log", container.name),
        linux: Some(LinuxContainerConfig { resources: Some(resources), security_context: Some(security) }),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        stop_signal: stop_signal.and_then(Signal::from_str_name).unwrap_or_default().into(),
        ..Default::default()
    })
}

/// The container's own settings win over the pod's.
fn security_context(
    pod: &Pod,
    spec: &v1::Container,
    node: Seccomp<'_>,
) -> Result<LinuxContainerSecurityContext, String> {
    let of_pod = pod_security(pod);
    let own = spec.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.unwrap_or_default();
    let asked = own.seccomp_profile.or(of_pod.seccomp_profile);
    let seccomp = seccomp(asked, Seccomp { runtime_default: node.runtime_default && !privileged, ..node })?;
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        run_as_user: own.run_as_user.or(of_pod.run_as_user).map(|value| Int64Value { value }),
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(|value| Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: if unmasked { Vec::new() } else { proc_paths::masked().to_vec() },
        readonly_paths: if unmasked { Vec::new() } else { proc_paths::READONLY.map(str::to_owned).to_vec() },
        seccomp: Some(seccomp),
        ..Default::default()
    })
}

/// A profile of the node is a file below `profiles`. One without a name is an error, never "unconfined" (CVE-2023-2431).
fn seccomp(asked: Option<v1::SeccompProfile>, node: Seccomp<'_>) -> Result<SecurityProfile, String> {
    let default = if node.runtime_default { ProfileType::RuntimeDefault } else { ProfileType::Unconfined };
    let Some(asked) = asked else { return Ok(profile(default)) };
    match asked.type_.as_str() {
        "Unconfined" => Ok(profile(ProfileType::Unconfined)),
        "RuntimeDefault" => Ok(profile(ProfileType::RuntimeDefault)),
        "Localhost" => match asked.localhost_profile.filter(|name| !name.is_empty()) {
            Some(name) => Ok(SecurityProfile {
                profile_type: ProfileType::Localhost.into(),
                localhost_ref: node.profiles.join(name).display().to_string(),
            }),
            None => Err("localhostProfile must be set if seccompProfile type is Localhost.".into()),
        },
        other => Err(format!("seccompProfile type {other:?} is not known")),
    }
}

/// `runAsNonRoot` against who the process would be: the image's user when the pod names none. Computed at each start
/// (CVE-2019-11245).
///
/// # Errors
/// Upstream's sentence: the container waits with CreateContainerConfigError.
pub(crate) fn check_non_root(pod: &Pod, spec: &v1::Container, image: &cri::v1::Image) -> Result<(), String> {
    let of_pod = pod_security(pod);
    let own = spec.security_context.clone().unwrap_or_default();
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let of_image = image.uid.as_ref().map(|uid| uid.value);
    match own.run_as_user.or(of_pod.run_as_user) {
        Some(0) => Err("container's runAsUser breaks non-root policy".into()),
        Some(_) => Ok(()),
        None if of_image == Some(0) => Err("container has runAsNonRoot and image will run as root".into()),
        None if of_image.is_some() => Ok(()),
        None if image.username.is_empty() => {
            Err("container has runAsNonRoot and image will run as root".into())
        }
        None => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root",
            image.username
        )),
    }
}

fn namespaces(pod: &Pod, ids: Option<PodIds>) -> NamespaceOption {
    let spec = pod.source.spec.clone().unwrap_or_default();
    let shared = spec.share_process_namespace.unwrap_or(false);
    let node_or = |on_node: Option<bool>, other: NamespaceMode| {
        if on_node.unwrap_or(false) { NamespaceMode::Node } else { other }.into()
    };
    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod),
        pid: node_or(spec.host_pid, if shared { NamespaceMode::Pod } else { NamespaceMode::Container }),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
        userns_options: ids.map(PodIds::options),
        ..Default::default()
    }
}

/// Those of one container: with a target, whose processes are not the whole pod's or node's, it sees that one's.
fn namespaces_of(pod: &Pod, target: Option<String>, ids: Option<PodIds>) -> NamespaceOption {
    let options = namespaces(pod, ids);
    match target.filter(|_| options.pid() == NamespaceMode::Container) {
        Some(target_id) => NamespaceOption { pid: NamespaceMode::Target.into(), target_id, ..options },
        None => options,
    }
}

fn profile(kind: ProfileType) -> SecurityProfile {
    SecurityProfile { profile_type: kind.into(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::model::tests::pod_of;

    fn pod(mut spec: Value, container: Value) -> Pod {
        let mut own = json!({ "name": "a", "image": "i" });
        own.as_object_mut().expect("an object").extend(container.as_object().cloned().unwrap_or_default());
        spec["containers"] = json!([own]);
        pod_of(spec)
    }

    fn security(spec: Value, own: Value) -> Result<LinuxContainerSecurityContext, String> {
        security_on(false, spec, own)
    }

    fn security_on(
        runtime_default: bool,
        spec: Value,
        own: Value,
    ) -> Result<LinuxContainerSecurityContext, String> {
        let pod = pod(spec, json!({ "securityContext": own }));
        let node = Seccomp { profiles: Path::new("/k/seccomp"), runtime_default };
        security_context(&pod, &pod.containers[0].spec, node)
    }

    #[test]
    fn who_names_no_seccomp_profile_has_the_node_s_default() {
        let unconfined = json!({ "seccompProfile": { "type": "Unconfined" } });
        for (runtime_default, of_pod, own, expect) in [
            (false, json!({}), json!({}), ProfileType::Unconfined),
            (true, json!({}), json!({}), ProfileType::RuntimeDefault),
            (true, unconfined.clone(), json!({}), ProfileType::Unconfined),
            (true, json!({}), unconfined, ProfileType::Unconfined),
            (true, json!({}), json!({ "privileged": true }), ProfileType::Unconfined),
        ] {
            let made = security_on(runtime_default, json!({ "securityContext": of_pod }), own.clone());
            let kind = made.expect("made").seccomp.expect("a profile").profile_type();
            assert_eq!(kind, expect, "{runtime_default} {own}");
        }
    }

    #[test]
    fn cve_2023_2431_a_localhost_profile_without_a_name_is_an_error() {
        let profile =
            |name: Value| json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": name } });
        for name in [json!(""), Value::Null] {
            let error = security(json!({}), profile(name)).expect_err("no name");
            assert!(error.contains("localhostProfile must be set"), "{error}");
        }
        let named =
            security(json!({}), profile(json!("d/p.json"))).expect("named").seccomp.expect("a profile");
        assert_eq!(named.localhost_ref, "/k/seccomp/d/p.json");
        assert_eq!(named.profile_type(), ProfileType::Localhost);
    }

    #[test]
    fn a_container_has_the_pod_s_groups_and_its_own_rights() {
        let of_pod = json!({ "fsGroup": 7, "supplementalGroups": [8, 9], "supplementalGroupsPolicy": "Strict", "runAsUser": 5 });
        let made = security(
            json!({ "securityContext": of_pod, "shareProcessNamespace": true }),
            json!({ "runAsUser": 6, "allowPrivilegeEscalation": false, "procMount": "Default" }),
        )
        .expect("made");
        assert_eq!(made.supplemental_groups, [7, 8, 9]);
        assert_eq!(made.supplemental_groups_policy(), SupplementalGroupsPolicy::Strict);
        assert_eq!(made.run_as_user.as_ref().map(|id| id.value), Some(6));
        assert!(made.no_new_privs);
        for path in ["/proc/interrupts", "/sys/devices/virtual/powercap"] {
            assert!(made.masked_paths.iter().any(|masked| masked == path), "{path}");
        }
        let unmasked = security(json!({}), json!({ "procMount": "Unmasked" })).expect("made");
        assert!(unmasked.masked_paths.is_empty() && unmasked.readonly_paths.is_empty());
    }

    #[test]
    fn who_looks_at_a_container_sees_its_processes() {
        let made = |spec: Value, target: Option<&str>| {
            let pod =
                pod(spec, json!({ "stdin": true, "tty": true, "lifecycle": { "stopSignal": "SIGUSR1" } }));
            let ingredients = Ingredients {
                attempt: 0,
                image: "i",
                env: &[],
                mounts: Vec::new(),
                seccomp: Seccomp { profiles: Path::new("/"), runtime_default: false },
                target: target.map(str::to_owned),
                ids: None,
                resources: LinuxContainerResources::default(),
            };
            container(&pod, &pod.containers[0], ingredients).expect("made")
        };
        let pid = |spec: Value, target: Option<&str>| {
            let security = made(spec, target).linux.and_then(|linux| linux.security_context);
            let options = security.and_then(|security| security.namespace_options).unwrap_or_default();
            (options.pid(), options.target_id)
        };
        assert_eq!(pid(json!({}), None), (NamespaceMode::Container, String::new()));
        assert_eq!(pid(json!({}), Some("c")), (NamespaceMode::Target, "c".into()));
        let shared = json!({ "shareProcessNamespace": true });
        assert_eq!(pid(shared, Some("c")), (NamespaceMode::Pod, String::new()));
        let config = made(json!({}), None);
        assert!(config.stdin && config.tty && !config.stdin_once);
        assert_eq!(config.stop_signal(), Signal::Sigusr1);
    }

    #[test]
    fn a_sandbox_publishes_ports_only_of_a_network_of_its_own() {
        let ports = json!({ "ports": [{ "containerPort": 80, "hostPort": 8080, "protocol": "UDP", "hostIP": "127.0.0.1" }, { "containerPort": 81 }] });
        let made = |spec: Value| {
            let pod = pod(spec, ports.clone());
            sandbox(&pod, 0, "", "", DnsConfig::default(), "", None).expect("made").port_mappings
        };
        let mappings = made(json!({}));
        assert_eq!((mappings.len(), mappings[0].host_port, mappings[0].protocol()), (1, 8080, Protocol::Udp));
        assert_eq!(made(json!({ "hostNetwork": true })), []);
    }

    #[test]
    fn cve_2019_11245_run_as_non_root_is_judged_by_who_the_process_would_be() {
        let check = |own: Value, uid: Option<i64>, name: &str| {
            let pod = pod(
                json!({ "securityContext": { "runAsNonRoot": true } }),
                json!({ "securityContext": own }),
            );
            let image = cri::v1::Image {
                uid: uid.map(|value| Int64Value { value }),
                username: name.to_owned(),
                ..Default::default()
            };
            check_non_root(&pod, &pod.containers[0].spec, &image)
        };
        for (own, uid, name, expect) in [
            (json!({ "runAsUser": 5 }), Some(0), "", None),
            (json!({}), Some(5), "", None),
            (json!({ "runAsNonRoot": false }), Some(0), "", None),
            (json!({ "runAsUser": 0 }), Some(5), "", Some("breaks non-root policy")),
            (json!({}), Some(0), "", Some("image will run as root")),
            (json!({}), None, "", Some("image will run as root")),
            (json!({}), None, "web", Some("non-numeric user (web)")),
        ] {
            match (check(own.clone(), uid, name), expect) {
                (Ok(()), None) => {}
                (Err(error), Some(expect)) => assert!(error.contains(expect), "{error}"),
                (other, _) => panic!("{own} {uid:?} {name}: {other:?}"),
            }
        }
    }
}

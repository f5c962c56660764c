//! From the admitted pod to CRI requests, with the labels, annotations and paths that kubelets use: pure.

use std::collections::HashMap;

use cri::v1::security_profile::ProfileType;
use cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SecurityProfile,
};
use k8s_openapi::api::core::v1;

use crate::cgroups::container_resources;
use crate::environment::expand;
use crate::pod::model::{Container, Pod};

/// Label keys of kubelets.
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation keys of kubelets.
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub(crate) const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// What an ordinary container must not see. Upstream: pkg/securitycontext.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The host name inside: `spec.hostname`, else the pod's name, 63 characters at most.
pub(crate) fn hostname(pod: &Pod) -> String {
    let asked =
        pod.source.spec.as_ref().and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let name = asked.unwrap_or_else(|| pod.name.clone());
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// Whether the pod is on the node's network.
pub(crate) fn on_host_network(pod: &Pod) -> bool {
    pod.source.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The sandbox.
pub(crate) fn sandbox(
    pod: &Pod,
    attempt: u32,
    log_directory: &str,
    cgroup_parent: &str,
    dns: DnsConfig,
) -> PodSandboxConfig {
    let meta = &pod.source.metadata;
    let mut labels: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    for (key, value) in [(POD_NAME, &pod.name), (POD_NAMESPACE, &pod.namespace), (POD_UID, &pod.uid)] {
        labels.insert(key.to_owned(), value.clone());
    }
    let mut annotations: HashMap<String, String> =
        meta.annotations.clone().unwrap_or_default().into_iter().collect();
    annotations.insert(GRACE.to_owned(), pod.grace.as_secs().to_string());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            attempt,
        }),
        hostname: if on_host_network(pod) { String::new() } else { hostname(pod) },
        log_directory: log_directory.to_owned(),
        dns_config: Some(dns),
        port_mappings: Vec::new(),
        labels,
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_owned(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                seccomp: Some(profile(ProfileType::RuntimeDefault)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        windows: None,
    }
}

/// A container. `image` is the id that the pull gave.
pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    image: &str,
    env: &[(String, String)],
    mounts: Vec<Mount>,
) -> ContainerConfig {
    let spec = &container.spec;
    let expanded =
        |words: &Option<Vec<String>>| words.iter().flatten().map(|word| expand(word, env)).collect();
    let labels = [
        (CONTAINER_NAME, &container.name),
        (POD_NAME, &pod.name),
        (POD_NAMESPACE, &pod.namespace),
        (POD_UID, &pod.uid),
    ];
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expanded(&spec.command),
        args: expanded(&spec.args),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: env.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts,
        labels: labels.map(|(key, value)| (key.to_owned(), value.clone())).into(),
        annotations: [(RESTART_COUNT, attempt.to_string()), (GRACE, pod.grace.as_secs().to_string())]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        log_path: format!("{}/{attempt}.log", container.name),
        linux: Some(LinuxContainerConfig {
            resources: Some(container_resources(pod, spec)),
            security_context: Some(security_context(pod, spec)),
        }),
        ..Default::default()
    }
}

/// The container's own settings win over the pod's.
fn security_context(pod: &Pod, spec: &v1::Container) -> LinuxContainerSecurityContext {
    let of_pod = pod.source.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = spec.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.unwrap_or_default();
    let seccomp = own.seccomp_profile.or(of_pod.seccomp_profile).map(|profile| profile.type_);
    let seccomp = match seccomp.as_deref() {
        Some("RuntimeDefault") => ProfileType::RuntimeDefault,
        _ => ProfileType::Unconfined,
    };
    let paths = |paths: &[&str]| {
        if privileged { Vec::new() } else { paths.iter().map(|&path| path.to_owned()).collect() }
    };
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: own.run_as_user.or(of_pod.run_as_user).map(|value| Int64Value { value }),
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(|value| Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: of_pod.supplemental_groups.unwrap_or_default(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: Some(profile(seccomp)),
        ..Default::default()
    }
}

/// `runAsNonRoot` against who the process would be: the image's user when the pod names none. Computed at each start
/// (CVE-2019-11245).
///
/// # Errors
/// Upstream's sentence: the container waits with CreateContainerConfigError.
pub(crate) fn check_non_root(pod: &Pod, spec: &v1::Container, image: &cri::v1::Image) -> Result<(), String> {
    let of_pod = pod.source.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
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

fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = pod.source.spec.clone().unwrap_or_default();
    let node_or = |on_node: Option<bool>, other: NamespaceMode| {
        if on_node.unwrap_or(false) { NamespaceMode::Node } else { other }.into()
    };
    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod),
        pid: node_or(spec.host_pid, NamespaceMode::Container),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
        ..Default::default()
    }
}

fn profile(kind: ProfileType) -> SecurityProfile {
    SecurityProfile { profile_type: kind.into(), ..Default::default() }
}

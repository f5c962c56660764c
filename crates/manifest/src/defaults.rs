//! What an API server fills in where a manifest is silent. Pure; applying it twice is applying it once.

mod own_resources;

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, Lifecycle, Pod, Probe, Service, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Files of volumes, unless the manifest says otherwise.
const FILE_MODE: i32 = 0o644;

/// The namespace `default`.
pub(crate) fn default_metadata(metadata: &mut ObjectMeta) {
    if metadata.namespace.as_ref().is_none_or(String::is_empty) {
        metadata.namespace = Some("default".to_owned());
    }
}

/// Fills in what an API server would.
pub fn default_pod(pod: &mut Pod) {
    default_metadata(&mut pod.metadata);
    let Some(spec) = &mut pod.spec else { return };
    set(&mut spec.restart_policy, "Always");
    set(&mut spec.dns_policy, "ClusterFirst");
    set(&mut spec.scheduler_name, "default-scheduler");
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    let host_network = spec.host_network == Some(true);
    let init = spec.init_containers.iter_mut().flatten();
    for container in init.chain(&mut spec.containers) {
        default_container(container);
        for port in container.ports.iter_mut().flatten().filter(|_| host_network) {
            port.host_port.get_or_insert(port.container_port);
        }
    }
    own_resources::complete(spec);
    for volume in spec.volumes.iter_mut().flatten() {
        default_volume(volume);
    }
}

fn default_container(container: &mut Container) {
    if container.image_pull_policy.as_ref().is_none_or(String::is_empty) {
        let image = container.image.as_deref().unwrap_or_default();
        container.image_pull_policy = Some(pull_policy(image).to_owned());
    }
    set(&mut container.termination_message_path, "/dev/termination-log");
    set(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        set(&mut port.protocol, "TCP");
    }
    let probes =
        [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    for probe in probes.into_iter().flatten() {
        default_probe(probe);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        default_lifecycle(lifecycle);
    }
    for variable in container.env.iter_mut().flatten() {
        let source = variable.value_from.as_mut();
        if let Some(field) = source.and_then(|source| source.field_ref.as_mut()) {
            set(&mut field.api_version, "v1");
        }
    }
    if let Some(resources) = &mut container.resources
        && let Some(limits) = &resources.limits
    {
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
}

/// `latest`, said or meant, is pulled always; a digest or another tag only when it is not there.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn default_probe(probe: &mut Probe) {
    set_number(&mut probe.timeout_seconds, 1);
    set_number(&mut probe.period_seconds, 10);
    set_number(&mut probe.success_threshold, 1);
    set_number(&mut probe.failure_threshold, 3);
    if let Some(http) = &mut probe.http_get {
        set(&mut http.path, "/");
        set(&mut http.scheme, "HTTP");
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn default_lifecycle(lifecycle: &mut Lifecycle) {
    for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
        if let Some(http) = &mut handler.http_get {
            set(&mut http.path, "/");
            set(&mut http.scheme, "HTTP");
        }
    }
}

fn default_volume(volume: &mut Volume) {
    let named_only = Volume { name: volume.name.clone(), ..Volume::default() };
    if *volume == named_only {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(host_path) = &mut volume.host_path {
        host_path.type_.get_or_insert_default();
    }
    if let Some(image) = &mut volume.image
        && image.pull_policy.as_ref().is_none_or(String::is_empty)
    {
        image.pull_policy = Some(pull_policy(image.reference.as_deref().unwrap_or_default()).to_owned());
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(config_map) = &mut volume.config_map {
        config_map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(FILE_MODE);
        default_downward_files(downward.items.as_mut());
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            if let Some(downward) = &mut source.downward_api {
                default_downward_files(downward.items.as_mut());
            }
        }
    }
}

fn default_downward_files(items: Option<&mut Vec<DownwardAPIVolumeFile>>) {
    for field in items.into_iter().flatten().filter_map(|item| item.field_ref.as_mut()) {
        set(&mut field.api_version, "v1");
    }
}

/// Fills in what an API server would, but for the families, addresses and ports that it allocates.
pub fn default_service(service: &mut Service) {
    default_metadata(&mut service.metadata);
    let Some(spec) = &mut service.spec else { return };
    set(&mut spec.type_, "ClusterIP");
    set(&mut spec.session_affinity, "None");
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let client_ip =
            spec.session_affinity_config.get_or_insert_default().client_ip.get_or_insert_default();
        client_ip.timeout_seconds.get_or_insert(10_800);
    }
    let external = spec.type_.as_deref() == Some("ExternalName");
    if !external {
        set(&mut spec.internal_traffic_policy, "Cluster");
        set(&mut spec.ip_family_policy, "SingleStack");
    }
    if matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")) {
        set(&mut spec.external_traffic_policy, "Cluster");
    }
    if spec.type_.as_deref() == Some("LoadBalancer") {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    for port in spec.ports.iter_mut().flatten() {
        set(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::String(name)) => name.is_empty(),
            Some(IntOrString::Int(_)) => false,
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
}

/// The API takes an empty string for a missing one.
fn set(field: &mut Option<String>, default: &str) {
    if field.as_ref().is_none_or(String::is_empty) {
        *field = Some(default.to_owned());
    }
}

/// The API takes a zero for a missing number.
fn set_number(field: &mut Option<i32>, default: i32) {
    if field.is_none_or(|number| number == 0) {
        *field = Some(default);
    }
}

#[cfg(test)]
mod tests;

//! What is refused although each of its fields is known: pure, but for asking whether the kernel has AppArmor or SELinux.

use std::path::Path;

use k8s_openapi::api::core::v1;

/// There while the kernel enforces SELinux's labels.
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// AppArmor before it was a field.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Every problem, as upstream words it where upstream has one.
pub(super) fn problems(pod: &v1::Pod) -> Vec<String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut problems = Vec::new();
    problems.extend(host_users(&spec));
    if wants_apparmor(pod, &spec) {
        problems.push(apparmor(host::lsm::has_apparmor()));
    }
    if wants_selinux(&spec) && Path::new(SELINUX).exists() {
        problems.push("an SELinux label (seLinuxOptions) is not supported yet".into());
    }
    problems
}

/// Users of its own and the node's namespaces exclude each other: nothing there would be the pod's.
fn host_users(spec: &v1::PodSpec) -> Option<String> {
    let on_node =
        [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
    let mut asked = on_node.into_iter().filter(|(_, given)| *given == Some(true));
    let (field, _) = asked.next().filter(|_| spec.host_users == Some(false))?;
    Some(format!("spec.hostUsers: false with spec.{field}: true is not supported"))
}

/// Without SELinux on the host a label has no meaning, and nobody minds it.
fn wants_selinux(spec: &v1::PodSpec) -> bool {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut of_containers = containers.filter_map(|container| container.security_context.as_ref());
    spec.security_context.as_ref().is_some_and(|security| security.se_linux_options.is_some())
        || of_containers.any(|security| security.se_linux_options.is_some())
}

fn wants_apparmor(pod: &v1::Pod, spec: &v1::PodSpec) -> bool {
    let asked = |profile: Option<&v1::AppArmorProfile>| profile.is_some_and(|one| one.type_ != "Unconfined");
    let of_pod = spec.security_context.as_ref().and_then(|security| security.app_armor_profile.as_ref());
    let of_containers =
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| {
            asked(
                container.security_context.as_ref().and_then(|security| security.app_armor_profile.as_ref()),
            )
        });
    let annotated = pod.metadata.annotations.iter().flatten();
    let by_annotation = annotated
        .filter(|(key, _)| key.starts_with(APPARMOR_ANNOTATION))
        .any(|(_, value)| value != "unconfined");
    asked(of_pod) || of_containers || by_annotation
}

fn apparmor(is_enabled: bool) -> String {
    match is_enabled {
        true => "an AppArmor profile (appArmorProfile) is not supported yet".into(),
        false => "Cannot enforce AppArmor: AppArmor is not enabled on the host".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(spec: Value, annotations: Value) -> Vec<String> {
        let pod = json!({ "metadata": { "name": "p", "annotations": annotations }, "spec": spec });
        problems(&serde_json::from_value(pod).expect("a pod"))
    }

    fn check(mut spec: Value, expect: Option<&str>) {
        spec["containers"] = json!([{ "name": "a" }]);
        let told = told(spec.clone(), json!({}));
        match expect {
            None => assert!(told.is_empty(), "{spec}: {told:?}"),
            Some(expect) => {
                assert!(told.len() == 1 && told[0].contains(expect), "{spec}: {told:?}");
            }
        }
    }

    #[test]
    fn user_namespaces_and_apparmor_are_never_silently_dropped() {
        check(json!({ "hostUsers": true }), None);
        check(json!({ "hostUsers": false, "hostNetwork": false }), None);
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            check(json!({ "hostUsers": false, field: true }), Some(field));
            check(json!({ field: true }), None);
        }
        let profile = |kind: &str| json!({ "securityContext": { "appArmorProfile": { "type": kind } } });
        check(profile("Unconfined"), None);
        check(profile("RuntimeDefault"), Some("AppArmor"));
        let key = format!("{APPARMOR_ANNOTATION}a");
        let annotated =
            |value: &str| told(json!({ "containers": [{ "name": "a" }] }), json!({ &key: value })).len();
        assert_eq!((annotated("unconfined"), annotated("runtime/default")), (0, 1));
        assert_eq!(apparmor(false), "Cannot enforce AppArmor: AppArmor is not enabled on the host");
    }
}

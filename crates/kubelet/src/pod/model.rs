//! The admitted pod: parsed once from `v1::Pod`. A field that we do not do is refused by name, never dropped.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use serde_json::Value;

/// A pod that this kubelet can run.
#[derive(Clone, Debug)]
pub struct Pod {
    /// As in `metadata`.
    pub namespace: String,
    /// As in `metadata`.
    pub name: String,
    /// As in `metadata`: another uid is another pod.
    pub uid: String,
    /// Before the others, one after the other: run to their end, or started where they are sidecars.
    pub init_containers: Vec<Container>,
    /// The pod's containers.
    pub containers: Vec<Container>,
    /// Those that were added to look at a pod that runs (`kubectl debug`).
    pub ephemeral_containers: Vec<Container>,
    /// From the stop signal to SIGKILL.
    pub grace: Duration,
    /// The cgroup class.
    pub qos: QosClass,
    /// As the manifest has it, defaulted.
    pub source: Arc<v1::Pod>,
}

impl Pod {
    /// The init containers, then the main ones, then the ephemeral ones.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers).chain(&self.ephemeral_containers)
    }

    /// The container of that name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|container| container.name == name)
    }
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// Unique in the pod.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// When it is started again: its own policy, else what the pod's means for its role.
    pub restart_policy: RestartPolicy,
    /// As the manifest has it, defaulted.
    pub spec: v1::Container,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before what comes after it.
    Init,
    /// An init container with `restartPolicy: Always`: started before what comes after it, stopped after the main ones.
    Sidecar,
    /// The pod's purpose: the pod ends with these.
    Main,
    /// Started once whenever it is added, never again; the pod's readiness and end do not depend on it.
    Ephemeral,
}

/// `restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// After another exit code than 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// Quality of service, from requests and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has equal requests and limits for cpu and memory.
    Guaranteed,
    /// Some container has a request or a limit.
    Burstable,
    /// None has any.
    BestEffort,
}

impl QosClass {
    /// As `status.qosClass` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What we carry out. `*` stands for any key of a map, `[]` for any entry of a list; a path allows all below it only when
/// it ends in `**`.
const SUPPORTED: &[&str] = &[
    "activeDeadlineSeconds",
    "containers[].args",
    "containers[].command",
    "containers[].env[].name",
    "containers[].env[].value",
    "containers[].env[].valueFrom.configMapKeyRef.**",
    "containers[].env[].valueFrom.secretKeyRef.**",
    "containers[].env[].valueFrom.fieldRef.**",
    "containers[].env[].valueFrom.resourceFieldRef.**",
    "containers[].env[].valueFrom.fileKeyRef.**",
    "containers[].envFrom[].configMapRef.**",
    "containers[].envFrom[].secretRef.**",
    "containers[].envFrom[].prefix",
    "containers[].image",
    "containers[].imagePullPolicy",
    "containers[].lifecycle.postStart.HOOK",
    "containers[].lifecycle.preStop.HOOK",
    "containers[].lifecycle.stopSignal",
    "containers[].livenessProbe.PROBE",
    "containers[].name",
    "containers[].ports[].containerPort",
    "containers[].ports[].hostIP",
    "containers[].ports[].hostPort",
    "containers[].ports[].name",
    "containers[].ports[].protocol",
    "containers[].readinessProbe.PROBE",
    "containers[].resources.limits.*",
    "containers[].resources.requests.*",
    "containers[].restartPolicy",
    "containers[].securityContext.allowPrivilegeEscalation",
    "containers[].securityContext.appArmorProfile.type",
    "containers[].securityContext.appArmorProfile.localhostProfile",
    "containers[].securityContext.capabilities.**",
    "containers[].securityContext.privileged",
    "containers[].securityContext.procMount",
    "containers[].securityContext.readOnlyRootFilesystem",
    "containers[].securityContext.runAsGroup",
    "containers[].securityContext.runAsNonRoot",
    "containers[].securityContext.runAsUser",
    "containers[].securityContext.seLinuxOptions.**",
    "containers[].securityContext.seccompProfile.type",
    "containers[].startupProbe.PROBE",
    "containers[].stdin",
    "containers[].stdinOnce",
    "containers[].targetContainerName",
    "containers[].terminationMessagePath",
    "containers[].terminationMessagePolicy",
    "containers[].securityContext.seccompProfile.localhostProfile",
    "containers[].tty",
    "containers[].volumeMounts[].mountPath",
    "containers[].volumeMounts[].mountPropagation",
    "containers[].volumeMounts[].name",
    "containers[].volumeMounts[].readOnly",
    "containers[].volumeMounts[].recursiveReadOnly",
    "containers[].volumeMounts[].subPath",
    "containers[].volumeMounts[].subPathExpr",
    "containers[].workingDir",
    "dnsConfig.**",
    "dnsPolicy",
    "enableServiceLinks",
    "hostAliases.**",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets.**",
    "os.name",
    "overhead.*",
    "readinessGates.**",
    "resources.limits.*",
    "resources.requests.*",
    "restartPolicy",
    "runtimeClassName",
    "securityContext.appArmorProfile.type",
    "securityContext.appArmorProfile.localhostProfile",
    "securityContext.fsGroup",
    "securityContext.fsGroupChangePolicy",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
    "securityContext.runAsUser",
    "securityContext.seLinuxOptions.**",
    "securityContext.seccompProfile.type",
    "securityContext.seccompProfile.localhostProfile",
    "securityContext.supplementalGroups",
    "securityContext.supplementalGroupsPolicy",
    "securityContext.sysctls.**",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "volumes[].name",
    "volumes[].downwardAPI.**",
    "volumes[].emptyDir.**",
    "volumes[].hostPath.**",
    "volumes[].image.**",
    "volumes[].projected.defaultMode",
    "volumes[].projected.sources[].configMap.**",
    "volumes[].projected.sources[].downwardAPI.**",
    "volumes[].projected.sources[].secret.**",
    "volumes[].projected.sources[].serviceAccountToken.**",
    "volumes[].configMap.**",
    "volumes[].secret.**",
];

/// What a probe may have.
const PROBE: &[&str] = &[
    "exec.command",
    "grpc.**",
    "httpGet.**",
    "tcpSocket.**",
    "initialDelaySeconds",
    "periodSeconds",
    "timeoutSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
];

/// What a hook may have.
const HOOK: &[&str] = &["exec.command", "httpGet.**", "sleep.seconds"];

/// What is decided before containers are: by the scheduler, by the API server, by admission on the node.
const IGNORED: &[&str] = &[
    "affinity.**",
    "automountServiceAccountToken",
    "containers[].resizePolicy.**",
    "nodeName",
    "nodeSelector.*",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "schedulerName",
    "schedulingGates.**",
    "serviceAccount",
    "serviceAccountName",
    "tolerations.**",
    "topologySpreadConstraints.**",
];

/// The annotation of a pod of the API server that could not be read: why not.
pub(crate) const UNREADABLE: &str = "podwright/unreadable";

/// Values that ask for nothing.
fn is_idle(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

/// Parses a pod.
///
/// # Errors
/// Every field that is not supported, by name.
pub fn admit(source: &Arc<v1::Pod>) -> Result<Pod, Vec<String>> {
    if let Some(why) = source.metadata.annotations.as_ref().and_then(|all| all.get(UNREADABLE)) {
        return Err(vec![format!("the pod cannot be read: {why}")]);
    }
    let spec = source.spec.clone().unwrap_or_default();
    let mut problems = Vec::new();
    let value = serde_json::to_value(&spec).unwrap_or_default();
    unsupported(&value, "", &mut problems);
    problems.extend(super::refuse::problems(source));
    if !problems.is_empty() {
        return Err(problems);
    }
    let policy = policy_of(spec.restart_policy.as_deref()).unwrap_or(RestartPolicy::Always);
    let init = spec.init_containers.iter().flatten().map(|init| init_container(init, policy));
    let main = spec.containers.iter().map(|container| Container {
        name: container.name.clone(),
        role: Role::Main,
        restart_policy: policy_of(container.restart_policy.as_deref()).unwrap_or(policy),
        spec: container.clone(),
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(ephemeral_container);
    let meta = &source.metadata;
    Ok(Pod {
        namespace: meta.namespace.clone().unwrap_or_else(|| "default".into()),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        init_containers: init.collect(),
        containers: main.collect(),
        ephemeral_containers: ephemeral.collect(),
        grace: Duration::from_secs(
            meta.deletion_grace_period_seconds
                .or(spec.termination_grace_period_seconds)
                .and_then(|seconds| u64::try_from(seconds).ok())
                .unwrap_or(30),
        ),
        qos: qos_of(&spec),
        source: source.clone(),
    })
}

/// An init container that has done its work is never started again.
fn init_container(spec: &v1::Container, policy: RestartPolicy) -> Container {
    let (role, restart_policy) = match (policy_of(spec.restart_policy.as_deref()), policy) {
        (Some(RestartPolicy::Always), _) => (Role::Sidecar, RestartPolicy::Always),
        (None, RestartPolicy::Never) | (Some(RestartPolicy::Never), _) => (Role::Init, RestartPolicy::Never),
        (None | Some(RestartPolicy::OnFailure), _) => (Role::Init, RestartPolicy::OnFailure),
    };
    Container { name: spec.name.clone(), role, restart_policy, spec: spec.clone() }
}

/// An ephemeral container is a container but for what it is for; whom it looks at is only in the manifest.
fn ephemeral_container(source: &v1::EphemeralContainer) -> Container {
    // The fields are the same ones, which a container does not refuse.
    let value = serde_json::to_value(source).unwrap_or_default();
    let spec: v1::Container = serde_json::from_value(value).unwrap_or_default();
    Container { name: spec.name.clone(), role: Role::Ephemeral, restart_policy: RestartPolicy::Never, spec }
}

fn policy_of(text: Option<&str>) -> Option<RestartPolicy> {
    match text? {
        "Never" => Some(RestartPolicy::Never),
        "OnFailure" => Some(RestartPolicy::OnFailure),
        _ => Some(RestartPolicy::Always),
    }
}

fn unsupported(value: &Value, path: &str, problems: &mut Vec<String>) {
    let path = ["initContainers", "ephemeralContainers"]
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix))
        .map_or_else(|| path.to_owned(), |rest| format!("containers{rest}"));
    if !path.is_empty() && (allows(&path) || is_idle(value)) {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                unsupported(value, &below, problems);
            }
        }
        Value::Array(entries) => {
            entries.iter().for_each(|entry| unsupported(entry, &format!("{path}[]"), problems))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let problem = format!("spec.{path} is not supported yet");
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }
}

fn allows(path: &str) -> bool {
    SUPPORTED.iter().chain(IGNORED).any(|pattern| {
        let (prefix, below) = match pattern.rsplit_once('.') {
            Some((prefix, "PROBE")) => (prefix, PROBE),
            Some((prefix, "HOOK")) => (prefix, HOOK),
            _ => return matches(pattern, path),
        };
        let rest = path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
        rest.is_some_and(|rest| below.iter().any(|pattern| matches(pattern, rest)))
    })
}

fn matches(pattern: &str, path: &str) -> bool {
    if let Some(prefix) = pattern.strip_suffix(".**") {
        return path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(['.', '[']));
    }
    if let Some(prefix) = pattern.strip_suffix(".*") {
        return path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    }
    pattern == path || path.strip_suffix("[]") == Some(pattern)
}

/// By the pod's own resources where it has any. Upstream: pkg/apis/core/v1/helper/qos.
pub(crate) fn qos_of(spec: &v1::PodSpec) -> QosClass {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let all: Vec<_> = match &spec.resources {
        Some(own) => vec![own.clone()],
        None => all.map(|container| container.resources.clone().unwrap_or_default()).collect(),
    };
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        let (limits, requests) =
            (resources.limits.unwrap_or_default(), resources.requests.unwrap_or_default());
        for name in ["cpu", "memory"] {
            let amount = |map: &std::collections::BTreeMap<
                String,
                k8s_openapi::apimachinery::pkg::api::resource::Quantity,
            >| {
                map.get(name)
                    .and_then(|quantity| manifest::quantity::parse(&quantity.0).ok())
                    .filter(|amount| !amount.is_zero())
            };
            let (limit, request) = (amount(&limits), amount(&requests));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod with containers of these names.
    pub(crate) fn pod(names: &[&str]) -> Pod {
        let containers: Vec<Value> =
            names.iter().map(|name| serde_json::json!({ "name": name, "image": "busybox" })).collect();
        pod_of(serde_json::json!({ "containers": containers }))
    }

    /// A pod with this spec.
    pub(crate) fn pod_of(spec: Value) -> Pod {
        admit(&source(spec)).expect("admitted")
    }

    fn source(spec: Value) -> Arc<v1::Pod> {
        let metadata = serde_json::json!({ "name": "p", "namespace": "default", "uid": "u" });
        Arc::new(
            serde_json::from_value(serde_json::json!({ "metadata": metadata, "spec": spec })).expect("a pod"),
        )
    }

    fn container(extra: Value) -> Value {
        let mut container = serde_json::json!({ "name": "a", "image": "i" });
        container.as_object_mut().expect("an object").extend(extra.as_object().cloned().unwrap_or_default());
        serde_json::json!({ "containers": [container] })
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (spec, field) in [
            (
                container(serde_json::json!({ "lifecycle": { "preStop": { "tcpSocket": { "port": 1 } } } })),
                "spec.containers[].lifecycle.preStop.tcpSocket.port",
            ),
            (
                container(serde_json::json!({ "restartPolicyRules": [{ "action": "Restart" }] })),
                "spec.containers[].restartPolicyRules[].action",
            ),
            (serde_json::json!({ "resourceClaims": [{ "name": "gpu" }] }), "spec.resourceClaims[].name"),
        ] {
            let problems = admit(&source(spec)).expect_err(field);
            assert!(problems.iter().any(|problem| problem.contains(field)), "{problems:?}");
        }
    }

    #[test]
    fn an_ordinary_pod_is_admitted() {
        let mut spec = container(serde_json::json!({
            "args": ["x"], "tty": false, "env": [{ "name": "A", "value": "b" }], "resources": { "limits": { "memory": "1Mi" } },
            "livenessProbe": { "httpGet": { "path": "/", "port": "http", "scheme": "HTTP" }, "periodSeconds": 1 },
            "startupProbe": { "grpc": { "port": 1, "service": "" }, "terminationGracePeriodSeconds": 1 },
            "readinessProbe": { "tcpSocket": { "host": "db", "port": 1 } },
            "lifecycle": { "postStart": { "exec": { "command": ["x"] } }, "preStop": { "sleep": { "seconds": 1 } } },
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "securityContext": { "capabilities": { "drop": ["ALL"] } }, "volumeMounts": [{ "name": "v", "mountPath": "/v" }],
        }));
        spec["volumes"] = serde_json::json!([{ "name": "v", "emptyDir": {} }, { "name": "c", "configMap": { "name": "x", "items": [{ "key": "a", "path": "b" }] } }]);
        spec["securityContext"] = serde_json::json!({});
        spec["tolerations"] = serde_json::json!([{ "operator": "Exists" }]);
        assert_eq!(admit(&source(spec)).map(|pod| pod.qos), Ok::<_, Vec<String>>(QosClass::Burstable));
    }

    #[test]
    fn a_pod_as_an_api_server_gives_it_is_admitted() {
        let mut spec = container(serde_json::json!({
            "stdin": true, "stdinOnce": true, "tty": true, "imagePullPolicy": "Always",
            "lifecycle": { "stopSignal": "SIGUSR1" }, "resizePolicy": [{ "resourceName": "cpu", "restartPolicy": "NotRequired" }],
        }));
        let more = serde_json::json!({
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "nodeName": "n", "nodeSelector": { "a": "b" },
            "preemptionPolicy": "PreemptLowerPriority", "priority": 0, "schedulerName": "default-scheduler",
            "imagePullSecrets": [{ "name": "s" }], "readinessGates": [{ "conditionType": "x/y" }],
            "serviceAccount": "default", "serviceAccountName": "default", "terminationGracePeriodSeconds": 30,
            "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }],
            "ephemeralContainers": [{ "name": "debug", "image": "i", "stdin": true, "tty": true, "targetContainerName": "a" }],
            "volumes": [{ "name": "kube-api-access-x", "projected": { "defaultMode": 420, "sources": [
                { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } },
            ] } }],
        });
        spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let pod = admit(&source(spec)).expect("admitted");
        let debug = &pod.ephemeral_containers[0];
        assert_eq!((debug.name.as_str(), debug.role, debug.spec.tty), ("debug", Role::Ephemeral, Some(true)));
        assert_eq!(pod.container("debug").map(|one| one.restart_policy), Some(RestartPolicy::Never));
    }

    #[test]
    fn each_container_has_the_restart_policy_of_its_role() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (policy, of_init, of_main) in
            [("Always", OnFailure, Always), ("OnFailure", OnFailure, OnFailure), ("Never", Never, Never)]
        {
            let mut spec = container(serde_json::json!({}));
            spec["restartPolicy"] = policy.into();
            spec["initContainers"] = serde_json::json!([
                { "name": "i", "image": "i" }, { "name": "s", "image": "i", "restartPolicy": "Always" },
            ]);
            let pod = admit(&source(spec)).expect("admitted");
            let of = |container: &Container| (container.role, container.restart_policy);
            let all: Vec<_> = pod.init_containers.iter().chain(&pod.containers).map(of).collect();
            assert_eq!(
                all,
                [(Role::Init, of_init), (Role::Sidecar, Always), (Role::Main, of_main)],
                "{policy}"
            );
        }
    }

    #[test]
    fn qos_of_a_pod_with_resources_of_its_own_is_theirs() {
        let whole = serde_json::json!({ "limits": { "cpu": "1", "memory": "1Gi" } });
        for (own, expect) in [
            (whole.clone(), QosClass::Guaranteed),
            (serde_json::json!({ "limits": { "cpu": "1" } }), QosClass::Burstable),
            (serde_json::json!({ "requests": { "memory": "1Gi" } }), QosClass::Burstable),
        ] {
            let pod = serde_json::json!({ "resources": own, "containers": [
                { "name": "a", "image": "i", "resources": { "requests": { "cpu": "100m" } } },
                { "name": "b", "image": "i" },
            ] });
            assert_eq!(pod_of(pod).qos, expect, "{own}");
        }
    }

    #[test]
    fn qos_follows_requests_and_limits() {
        for (resources, expect) in [
            (serde_json::json!({}), QosClass::BestEffort),
            (serde_json::json!({ "requests": { "cpu": "1" } }), QosClass::Burstable),
            (serde_json::json!({ "limits": { "cpu": "1000m", "memory": "1Gi" } }), QosClass::Guaranteed),
            (
                serde_json::json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m" } }),
                QosClass::Guaranteed,
            ),
            (
                serde_json::json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "500m" } }),
                QosClass::Burstable,
            ),
        ] {
            let pod =
                admit(&source(container(serde_json::json!({ "resources": resources })))).expect("admitted");
            assert_eq!(pod.qos, expect, "{resources}");
        }
    }
}

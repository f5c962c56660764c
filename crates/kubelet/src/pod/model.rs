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
    /// Run to their end one after the other, first.
    pub init_containers: Vec<Container>,
    /// The pod's containers.
    pub containers: Vec<Container>,
    /// What is started again.
    pub restart_policy: RestartPolicy,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// The cgroup class.
    pub qos: QosClass,
    /// As the manifest has it, defaulted.
    pub source: Arc<v1::Pod>,
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// Unique in the pod.
    pub name: String,
    /// As the manifest has it, defaulted.
    pub spec: v1::Container,
}

/// `spec.restartPolicy`.
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
    "containers[].args",
    "containers[].command",
    "containers[].env[].name",
    "containers[].env[].value",
    "containers[].env[].valueFrom.configMapKeyRef.**",
    "containers[].env[].valueFrom.secretKeyRef.**",
    "containers[].env[].valueFrom.fieldRef.**",
    "containers[].envFrom[].configMapRef.**",
    "containers[].envFrom[].secretRef.**",
    "containers[].envFrom[].prefix",
    "containers[].image",
    "containers[].imagePullPolicy",
    "containers[].livenessProbe.PROBE",
    "containers[].name",
    "containers[].ports[].containerPort",
    "containers[].ports[].name",
    "containers[].ports[].protocol",
    "containers[].readinessProbe.PROBE",
    "containers[].resources.limits.*",
    "containers[].resources.requests.*",
    "containers[].securityContext.allowPrivilegeEscalation",
    "containers[].securityContext.capabilities.**",
    "containers[].securityContext.privileged",
    "containers[].securityContext.readOnlyRootFilesystem",
    "containers[].securityContext.runAsGroup",
    "containers[].securityContext.runAsNonRoot",
    "containers[].securityContext.runAsUser",
    "containers[].securityContext.seccompProfile.type",
    "containers[].volumeMounts[].mountPath",
    "containers[].volumeMounts[].name",
    "containers[].volumeMounts[].readOnly",
    "containers[].workingDir",
    "dnsConfig.**",
    "dnsPolicy",
    "hostAliases.**",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostname",
    "restartPolicy",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
    "securityContext.runAsUser",
    "securityContext.seccompProfile.type",
    "securityContext.supplementalGroups",
    "terminationGracePeriodSeconds",
    "volumes[].name",
    "volumes[].hostPath.**",
    "volumes[].configMap.**",
    "volumes[].secret.**",
];

/// What a probe may have.
const PROBE: &[&str] = &[
    "exec.command",
    "httpGet.path",
    "httpGet.port",
    "httpGet.host",
    "httpGet.httpHeaders.**",
    "tcpSocket.**",
    "initialDelaySeconds",
    "periodSeconds",
    "timeoutSeconds",
    "successThreshold",
    "failureThreshold",
];

/// What has no meaning on a node of its own: accepted and without effect.
const IGNORED: &[&str] = &[
    "affinity.**",
    "automountServiceAccountToken",
    "enableServiceLinks",
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
    "imagePullSecrets.**",
    "containers[].terminationMessagePath",
    "containers[].terminationMessagePolicy",
];

/// Values that ask for nothing.
fn is_idle(path: &str, value: &Value) -> bool {
    match path {
        "httpGet.scheme" => value == "HTTP",
        "volumes[].emptyDir.medium" => value == "",
        _ => matches!(value, Value::Null | Value::Bool(false)),
    }
}

/// Parses a pod.
///
/// # Errors
/// Every field that is not supported, by name.
pub fn admit(source: &Arc<v1::Pod>) -> Result<Pod, Vec<String>> {
    let spec = source.spec.clone().unwrap_or_default();
    let mut problems = Vec::new();
    let value = serde_json::to_value(&spec).unwrap_or_default();
    unsupported(&value, "", &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let containers = |list: &[v1::Container]| {
        list.iter().map(|spec| Container { name: spec.name.clone(), spec: spec.clone() }).collect::<Vec<_>>()
    };
    let meta = &source.metadata;
    Ok(Pod {
        namespace: meta.namespace.clone().unwrap_or_else(|| "default".into()),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        init_containers: containers(spec.init_containers.as_deref().unwrap_or_default()),
        containers: containers(&spec.containers),
        restart_policy: match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        },
        grace: Duration::from_secs(
            spec.termination_grace_period_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .unwrap_or(30),
        ),
        qos: qos_of(&spec),
        source: source.clone(),
    })
}

fn unsupported(value: &Value, path: &str, problems: &mut Vec<String>) {
    let path = path
        .strip_prefix("initContainers")
        .map_or_else(|| path.to_owned(), |rest| format!("containers{rest}"));
    let probe = path.split_once("Probe.").map(|(_, rest)| rest);
    let short = probe.unwrap_or(&path);
    if !path.is_empty() && (allows(&path, probe) || is_idle(short, value)) {
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

fn allows(path: &str, probe: Option<&str>) -> bool {
    if let Some(rest) = probe {
        let known = path.starts_with("containers[].readinessProbe.")
            || path.starts_with("containers[].livenessProbe.");
        return known && PROBE.iter().any(|pattern| matches(pattern, rest));
    }
    SUPPORTED.iter().chain(IGNORED).any(|pattern| matches(pattern, path))
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

/// Upstream: pkg/apis/core/v1/helper/qos.
fn qos_of(spec: &v1::PodSpec) -> QosClass {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let (mut any, mut guaranteed) = (false, true);
    for container in all {
        let resources = container.resources.clone().unwrap_or_default();
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
        admit(&source(serde_json::json!({ "containers": containers }))).expect("admitted")
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
                container(serde_json::json!({ "startupProbe": { "exec": { "command": ["x"] } } })),
                "spec.containers[].startupProbe.exec.command",
            ),
            (
                container(serde_json::json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } } })),
                "lifecycle",
            ),
            (
                container(serde_json::json!({ "readinessProbe": { "grpc": { "port": 1 } } })),
                "readinessProbe.grpc.port",
            ),
            (container(serde_json::json!({ "tty": true })), "spec.containers[].tty"),
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
            "securityContext": { "capabilities": { "drop": ["ALL"] } }, "volumeMounts": [{ "name": "v", "mountPath": "/v" }],
        }));
        spec["volumes"] = serde_json::json!([{ "name": "v", "emptyDir": {} }, { "name": "c", "configMap": { "name": "x", "items": [{ "key": "a", "path": "b" }] } }]);
        spec["securityContext"] = serde_json::json!({});
        spec["tolerations"] = serde_json::json!([{ "operator": "Exists" }]);
        assert_eq!(admit(&source(spec)).map(|pod| pod.qos), Ok::<_, Vec<String>>(QosClass::Burstable));
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

//! Conditions that others set and that a pod waits for. Pure. Upstream: pkg/kubelet/status/generate.go.

use crate::pod::model::Pod;

/// Why the pod is not ready although its containers are; nothing where it is.
pub(super) fn unready(pod: &Pod) -> Option<(&'static str, String)> {
    let spec = pod.source.spec.as_ref()?;
    let told = pod.source.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let missing = spec.readiness_gates.iter().flatten().filter_map(|gate| {
        let kind = &gate.condition_type;
        match told.iter().find(|condition| condition.type_ == *kind) {
            None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(condition) if condition.status != "True" => Some(format!(
                "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                condition.status
            )),
            Some(_) => None,
        }
    });
    let messages: Vec<String> = missing.collect();
    (!messages.is_empty()).then(|| ("ReadinessGatesNotReady", messages.join(", ")))
}

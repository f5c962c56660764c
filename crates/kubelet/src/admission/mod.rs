//! Whether this node takes a pod that it understands: a function of values. What a node does not understand of a pod is
//! refused in [`crate::pod::model`].
//!
//! The scheduler has decided before, but not for pods that name their node themselves, nor with what has happened since.
//! Upstream: pkg/kubelet/lifecycle/predicate.go, whose order, reasons and words these are.

mod affinity;
mod ports;
pub(crate) mod preempt;
mod resources;
mod sysctls;
mod taints;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use crate::pod::model::Pod;
use crate::static_pod::is_static;
use crate::tokens;

pub(crate) use resources::requests;

/// Pods of this priority and above keep a node working: they are not evicted. Upstream: SystemCriticalPriority.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// The taint of a node under memory pressure.
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// Why a pod is not taken: its status says so, with phase Failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`, without what every rejection begins with.
    pub message: String,
}

impl Rejection {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    /// Fields that are not supported, by name. Problems that upstream has a reason of its own for keep that.
    #[must_use]
    pub fn unsupported(problems: &[String]) -> Self {
        let is_apparmor = |problem: &String| problem.starts_with("Cannot enforce AppArmor:");
        let reason = if problems.iter().all(is_apparmor) { "AppArmor" } else { "UnsupportedPodSpec" };
        Self::new(reason, problems.join("; "))
    }
}

/// What decides beside the pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeFacts<'a> {
    /// Whether somebody gives tokens of service accounts.
    pub has_tokens: bool,
    /// The node as its cluster has it. A node of its own, or one that has not been heard of, has no labels and no taints.
    pub node: Option<&'a v1::Node>,
    /// What pods may ask for all together, by resource, CPUs in thousandths; anything on a node of its own.
    pub allocatable: Option<&'a BTreeMap<String, i64>>,
    /// The pods that were taken and have not ended.
    pub others: &'a [&'a Pod],
    /// Whether memory runs short.
    pub memory_pressure: bool,
    /// `allowedUnsafeSysctls`.
    pub allowed_sysctls: &'a [String],
}

/// Takes the pod, or says why not.
///
/// # Errors
/// The first reason against it, in upstream's order.
pub fn admit(pod: &Pod, facts: &NodeFacts<'_>) -> Result<(), Rejection> {
    if !facts.has_tokens && !tokens::wanted(pod).is_empty() {
        let problem =
            "spec.volumes[].projected.sources[].serviceAccountToken is not supported without an API server";
        return Err(Rejection::unsupported(&[problem.to_owned()]));
    }
    under_pressure(pod, facts)?;
    sysctls::allowed(pod, facts.allowed_sysctls)?;
    operating_system(pod)?;
    if let Some(allocatable) = facts.allocatable {
        resources::fit(pod, facts.others, allocatable)?;
    }
    if let Some(node) = facts.node {
        affinity::fits(pod, node)?;
    }
    ports::fit(pod, facts.others)?;
    match facts.node {
        Some(node) if !is_static(pod) => taints::tolerated(pod, node),
        _ => Ok(()),
    }
}

/// Whether the node needs the pod more than any other: it is not evicted, and is taken when memory runs short.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    let priority = pod.source.spec.as_ref().and_then(|spec| spec.priority);
    is_static(pod) || priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY)
}

/// Upstream: pkg/kubelet/eviction/eviction_manager.go, Admit.
fn under_pressure(pod: &Pod, facts: &NodeFacts<'_>) -> Result<(), Rejection> {
    let best_effort = pod.qos == crate::pod::model::QosClass::BestEffort;
    if !facts.memory_pressure || !best_effort || is_critical(pod) {
        return Ok(());
    }
    let taint = v1::Taint {
        key: MEMORY_PRESSURE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..v1::Taint::default()
    };
    if taints::tolerates(pod, &taint) {
        return Ok(());
    }
    Err(Rejection::new("Evicted", "The node had condition: [MemoryPressure]. "))
}

fn operating_system(pod: &Pod) -> Result<(), Rejection> {
    let wanted = pod.source.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if wanted.is_some_and(|wanted| wanted != "linux") {
        return Err(Rejection::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    let named = pod.source.spec.as_ref().and_then(|spec| spec.os.as_ref());
    if named.is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Rejection::new("PodOSNotSupported", message));
    }
    Ok(())
}

/// A filter of the scheduler's that the node applies once more.
fn predicate(name: &str, description: &str) -> Rejection {
    Rejection::new(name, format!("Predicate {name} failed: {description}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::model::tests::pod_of;

    pub(super) fn check(spec: Value, facts: &NodeFacts<'_>, expect: Option<(&str, &str)>) {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{ "name": "a", "image": "i" }]);
        }
        let rejection = admit(&pod_of(spec.clone()), facts).err();
        let told = rejection.as_ref().map(|one| (one.reason.as_str(), one.message.as_str()));
        assert_eq!(told, expect, "{spec}");
    }

    pub(super) fn node(value: Value) -> v1::Node {
        serde_json::from_value(value).expect("a node")
    }

    #[test]
    fn tokens_are_only_for_nodes_to_which_somebody_gives_them() {
        let pod = pod_of(json!({
            "containers": [{ "name": "a", "image": "i" }],
            "volumes": [{ "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }],
        }));
        let refused = admit(&pod, &NodeFacts::default()).expect_err("refused");
        assert_eq!(refused.reason, "UnsupportedPodSpec");
        assert!(refused.message.contains("serviceAccountToken"), "{}", refused.message);
        assert_eq!(admit(&pod, &NodeFacts { has_tokens: true, ..NodeFacts::default() }), Ok(()));
    }

    #[test]
    fn a_pod_for_another_system_is_not_taken() {
        let facts = NodeFacts::default();
        check(json!({ "os": { "name": "linux" } }), &facts, None);
        let expect = ("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
        check(json!({ "os": { "name": "windows" } }), &facts, Some(expect));
    }

    #[test]
    fn with_memory_short_no_pod_comes_that_promises_nothing() {
        let facts = NodeFacts { memory_pressure: true, ..NodeFacts::default() };
        let expect = ("Evicted", "The node had condition: [MemoryPressure]. ");
        check(json!({}), &facts, Some(expect));
        check(json!({ "priority": 2_000_000_000 }), &facts, None);
        check(json!({ "tolerations": [{ "operator": "Exists" }] }), &facts, None);
        let requests = json!({ "requests": { "memory": "1Mi" } });
        check(json!({ "containers": [{ "name": "a", "image": "i", "resources": requests }] }), &facts, None);
    }

    #[test]
    fn a_refusal_has_upstream_s_reason_where_there_is_one() {
        let reason = |problems: &[&str]| {
            Rejection::unsupported(&problems.iter().map(|&one| one.to_owned()).collect::<Vec<_>>()).reason
        };
        assert_eq!(reason(&["Cannot enforce AppArmor: AppArmor is not enabled on the host"]), "AppArmor");
        assert_eq!(
            reason(&["Cannot enforce AppArmor: no", "spec.x is not supported yet"]),
            "UnsupportedPodSpec"
        );
    }
}

//! Whether the node is one that the pod names by labels: pure. Upstream: component-helpers/scheduling/corev1/nodeaffinity.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use super::{Rejection, predicate};
use crate::pod::model::Pod;

/// Both the selector and the required affinity must match.
pub(super) fn fits(pod: &Pod, node: &v1::Node) -> Result<(), Rejection> {
    match pod.source.spec.as_ref().is_none_or(|spec| matches(spec, node)) {
        true => Ok(()),
        false => Err(predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")),
    }
}

fn matches(spec: &v1::PodSpec, node: &v1::Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    if !spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| term_matches(term, labels, name))
    })
}

/// A term that says nothing matches nothing.
fn term_matches(term: &v1::NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let of_labels = || term.match_expressions.iter().flatten();
    let of_fields = || term.match_fields.iter().flatten();
    if of_labels().next().is_none() && of_fields().next().is_none() {
        return false;
    }
    let field = |key: &str| (key == "metadata.name").then_some(name);
    of_labels().all(|one| holds(one, labels.get(&one.key).map(String::as_str)))
        && of_fields().all(|one| holds(one, field(&one.key)))
}

fn holds(requirement: &v1::NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = value.is_some_and(|value| values.iter().any(|one| one == value));
    let numbers = || -> Option<(i64, i64)> { Some((value?.parse().ok()?, values.first()?.parse().ok()?)) };
    match requirement.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::NodeFacts;
    use super::super::tests::{check, node};

    #[test]
    fn selector_and_required_affinity_must_both_match() {
        let node = node(json!({ "metadata": { "name": "n", "labels": { "pool": "edge", "cores": "8" } } }));
        let facts = NodeFacts { node: Some(&node), ..NodeFacts::default() };
        let against = Some((
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ));
        let one = |key: &str, operator: &str, values: &[&str]| json!({ "key": key, "operator": operator, "values": values });
        for (terms, expect) in [
            (json!([{ "matchExpressions": [one("pool", "In", &["edge", "core"])] }]), None),
            (json!([{ "matchExpressions": [one("pool", "NotIn", &["edge"])] }]), against),
            (json!([{ "matchExpressions": [one("gpu", "NotIn", &["a"])] }]), None),
            (
                json!([{ "matchExpressions": [one("pool", "Exists", &[]), one("gpu", "DoesNotExist", &[])] }]),
                None,
            ),
            (json!([{ "matchExpressions": [one("cores", "Gt", &["7"]), one("cores", "Lt", &["9"])] }]), None),
            (json!([{ "matchExpressions": [one("cores", "Gt", &["8"])] }]), against),
            (json!([{ "matchExpressions": [one("pool", "Gt", &["8"])] }]), against),
            (json!([{ "matchFields": [one("metadata.name", "In", &["n"])] }]), None),
            (json!([{ "matchFields": [one("metadata.name", "In", &["m"])] }]), against),
            (
                json!([{ "matchFields": [one("metadata.name", "In", &["m"])] }, { "matchExpressions": [one("pool", "Exists", &[])] }]),
                None,
            ),
            (json!([{}]), against),
        ] {
            let required = json!({ "nodeSelectorTerms": terms });
            let affinity =
                json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } });
            check(json!({ "affinity": affinity }), &facts, expect);
            check(json!({ "affinity": affinity, "nodeSelector": { "pool": "core" } }), &facts, against);
        }
        check(json!({ "nodeSelector": { "pool": "edge", "cores": "8" } }), &facts, None);
    }
}

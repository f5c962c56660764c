//! Taints that a pod does not tolerate: pure. Upstream: component-helpers/scheduling/corev1.

use k8s_openapi::api::core::v1;

use super::{Rejection, predicate};
use crate::pod::model::Pod;

/// Only `NoExecute` keeps a pod from running: the other effects are the scheduler's.
pub(super) fn tolerated(pod: &Pod, node: &v1::Node) -> Result<(), Rejection> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut against = taints.filter(|taint| taint.effect == "NoExecute");
    match against.any(|taint| !tolerates(pod, taint)) {
        true => Err(predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate")),
        false => Ok(()),
    }
}

/// Whether one of the pod's tolerations is for that taint.
pub(super) fn tolerates(pod: &Pod, taint: &v1::Taint) -> bool {
    let tolerations = pod.source.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    tolerations.into_iter().any(|toleration| is_for(toleration, taint))
}

fn is_for(toleration: &v1::Toleration, taint: &v1::Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    let names = (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key);
    names
        && match text(&toleration.operator).as_str() {
            "Exists" => true,
            "" | "Equal" => text(&toleration.value) == text(&taint.value) && !key.is_empty(),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::NodeFacts;
    use super::super::tests::{check, node};

    #[test]
    fn a_taint_with_no_execute_is_to_be_tolerated() {
        let tainted = node(json!({ "spec": { "taints": [
            { "key": "a", "value": "b", "effect": "NoExecute" }, { "key": "c", "effect": "NoSchedule" },
        ] } }));
        let facts = NodeFacts { node: Some(&tainted), ..NodeFacts::default() };
        let expect = Some((
            "TaintToleration",
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
        ));
        for (tolerations, expect) in [
            (json!([]), expect),
            (json!([{ "operator": "Exists" }]), None),
            (json!([{ "key": "a", "operator": "Exists", "effect": "NoExecute" }]), None),
            (json!([{ "key": "a", "value": "b" }]), None),
            (json!([{ "key": "a", "value": "x" }]), expect),
            (json!([{ "key": "a", "operator": "Exists", "effect": "NoSchedule" }]), expect),
            (json!([{ "key": "x", "operator": "Exists" }]), expect),
        ] {
            check(json!({ "tolerations": tolerations }), &facts, expect);
        }
    }
}

//! Whether this node takes a pod that it understands: a function of values. What a node does not understand of a pod is
//! refused in [`crate::pod::model`].

use crate::pod::model::Pod;
use crate::tokens;

/// Why a pod is not taken: its status says so, with phase Failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// `status.reason`.
    pub reason: &'static str,
    /// `status.message`, without what every rejection begins with.
    pub message: String,
}

impl Rejection {
    /// Fields that are not supported, by name.
    #[must_use]
    pub fn unsupported(problems: &[String]) -> Self {
        Self { reason: "UnsupportedPodSpec", message: problems.join("; ") }
    }
}

/// What decides beside the pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeFacts {
    /// Whether somebody gives tokens of service accounts.
    pub has_tokens: bool,
}

/// Takes the pod, or says why not.
///
/// # Errors
/// The first reason against it, in upstream's order.
pub fn admit(pod: &Pod, node: &NodeFacts) -> Result<(), Rejection> {
    if !node.has_tokens && !tokens::wanted(pod).is_empty() {
        let problem =
            "spec.volumes[].projected.sources[].serviceAccountToken is not supported without an API server";
        return Err(Rejection::unsupported(&[problem.to_owned()]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::model::tests::pod_of;

    #[test]
    fn tokens_are_only_for_nodes_to_which_somebody_gives_them() {
        let pod = pod_of(json!({
            "containers": [{ "name": "a", "image": "i" }],
            "volumes": [{ "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }],
        }));
        let refused = admit(&pod, &NodeFacts::default()).expect_err("refused");
        assert_eq!(refused.reason, "UnsupportedPodSpec");
        assert!(refused.message.contains("serviceAccountToken"), "{}", refused.message);
        assert_eq!(admit(&pod, &NodeFacts { has_tokens: true }), Ok(()));
    }
}

//! What a node may read beyond a kubelet's rights: Services' endpoints for the proxy, other nodes for routes to their pods. The
//! node authorizer gives neither.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

/// Something to be listed and watched in the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// The API group.
    pub group: &'static str,
    /// The resource.
    pub resource: &'static str,
    /// What lacks without it.
    pub purpose: &'static str,
}

/// For the service proxy.
pub const ENDPOINTS: Right = Right {
    group: "discovery.k8s.io",
    resource: "endpointslices",
    purpose: "no Service is served here unless a kube-proxy pod does it",
};

/// For the built-in pod network.
pub const NODES: Right = Right {
    group: "",
    resource: "nodes",
    purpose: "other nodes' pods are not reached by the built-in network",
};

/// Those of the rights that the client's user lacks.
///
/// # Errors
/// When the API server does not say.
pub async fn missing(client: &Client, wanted: &[Right]) -> Result<Vec<Right>, kube::Error> {
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut missing = Vec::new();
    for right in wanted {
        for verb in ["list", "watch"] {
            let review = reviews.create(&PostParams::default(), &question(*right, verb)).await?;
            if !review.status.is_some_and(|status| status.allowed) {
                missing.push(*right);
                break;
            }
        }
    }
    Ok(missing)
}

fn question(right: Right, verb: &str) -> SelfSubjectAccessReview {
    let attributes = ResourceAttributes {
        group: Some(right.group.to_owned()),
        resource: Some(right.resource.to_owned()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}

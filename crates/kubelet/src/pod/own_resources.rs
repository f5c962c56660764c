//! What a pod as a whole asks for and may have (`spec.resources`): it stands before what its containers say. Upstream: KEP-2837,
//! component-helpers/resource.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use manifest::resource::is_for_whole_pods;

/// The pod's own limit of that resource, unless it is zero.
pub(crate) fn limit<'a>(spec: &'a v1::PodSpec, name: &str) -> Option<&'a Quantity> {
    is_for_whole_pods(name)
        .then(|| spec.resources.as_ref()?.limits.as_ref()?.get(name))
        .flatten()
        .filter(|quantity| is_given(quantity))
}

/// The pod's own request of that resource; a limit without a request is the request too.
pub(crate) fn request<'a>(spec: &'a v1::PodSpec, name: &str) -> Option<&'a Quantity> {
    let own =
        is_for_whole_pods(name).then(|| spec.resources.as_ref()?.requests.as_ref()?.get(name)).flatten();
    own.or_else(|| limit(spec, name))
}

/// The resources that the pod as a whole names.
pub(crate) fn names(spec: &v1::PodSpec) -> impl Iterator<Item = &String> {
    let given = spec.resources.iter().flat_map(|all| [&all.requests, &all.limits]).flatten();
    given.flat_map(|amounts| amounts.keys()).filter(|name| is_for_whole_pods(name))
}

fn is_given(quantity: &Quantity) -> bool {
    manifest::quantity::parse(&quantity.0).is_ok_and(|amount| !amount.is_zero())
}

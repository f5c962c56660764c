//! What a pod as a whole asks for (`spec.resources`) where it only says what it may have. Upstream:
//! `setDefaultPodLevelResources` of pkg/apis/core/v1.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::{self, Amount};
use crate::resource;

/// What its containers ask for together, else its limit. Nothing for a pod that says nothing of itself as a whole.
pub(super) fn complete(spec: &mut PodSpec) {
    let of_containers = most_at_once(spec);
    let Some(own) = &mut spec.resources else { return };
    if own.requests.iter().chain(&own.limits).all(BTreeMap::is_empty) {
        return;
    }
    let requests = own.requests.get_or_insert_default();
    for (name, amount) in of_containers {
        if resource::is_for_whole_pods(&name) {
            requests.entry(name).or_insert_with(|| Quantity(amount.to_string()));
        }
    }
    for (name, limit) in own.limits.iter().flatten() {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

/// Main containers and sidecars together, or one init container with the sidecars before it.
fn most_at_once(spec: &PodSpec) -> BTreeMap<String, Amount> {
    let (mut sidecars, mut most) = (BTreeMap::new(), BTreeMap::new());
    for init in spec.init_containers.iter().flatten() {
        let mut now = sidecars.clone();
        add(&mut now, init);
        for (name, amount) in &now {
            let known = most.entry(name.clone()).or_insert(Amount::ZERO);
            *known = (*known).max(*amount);
        }
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = now;
        }
    }
    for container in &spec.containers {
        add(&mut sidecars, container);
    }
    for (name, amount) in sidecars {
        let known = most.entry(name).or_insert(Amount::ZERO);
        *known = (*known).max(amount);
    }
    most
}

fn add(sum: &mut BTreeMap<String, Amount>, container: &Container) {
    let requests = container.resources.iter().filter_map(|resources| resources.requests.as_ref()).flatten();
    for (name, Quantity(text)) in requests {
        if let Ok(amount) = quantity::parse(text) {
            let known = sum.entry(name.clone()).or_insert(Amount::ZERO);
            *known = known.plus(amount);
        }
    }
}

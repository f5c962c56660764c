//! What pods ask for and what there is: pure. Upstream: component-helpers/resource, PodRequests; scheduler, noderesources.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Rejection;
use crate::cgroups::most_at_once;
use crate::pod::model::Pod;
use crate::pod::own_resources;

/// What is looked at first, in this order.
const FIRST: [&str; 4] = ["pods", "cpu", "memory", "ephemeral-storage"];

/// Whether what is asked for is there. Resources that the node does not have are somebody else's to give.
pub(super) fn fit(pod: &Pod, others: &[&Pod], allocatable: &BTreeMap<String, i64>) -> Result<(), Rejection> {
    let wanted = with_itself(requests(pod));
    let used = sum(others.iter().map(|other| with_itself(requests(other))));
    let rest = wanted.keys().map(String::as_str).filter(|name| !FIRST.contains(name));
    for name in FIRST.into_iter().chain(rest) {
        let of = |amounts: &BTreeMap<String, i64>| amounts.get(name).copied().unwrap_or(0);
        let (Some(&capacity), requested, used) = (allocatable.get(name), of(&wanted), of(&used)) else {
            continue;
        };
        if requested > 0 && requested.saturating_add(used) > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            );
            return Err(Rejection::new(format!("OutOf{name}"), message));
        }
    }
    Ok(())
}

/// What the pod asks for at its most demanding moment, with what its runtime needs beside it; CPUs in thousandths.
pub(crate) fn requests(pod: &Pod) -> BTreeMap<String, i64> {
    let spec = pod.source.spec.as_ref();
    let containers = pod.init_containers.iter().chain(&pod.containers);
    let resources = containers.filter_map(|container| container.spec.resources.as_ref());
    let given = resources.flat_map(|all| [&all.requests, &all.limits]).flatten();
    let own = spec.into_iter().flat_map(own_resources::names);
    let mut names: Vec<&String> = given.flat_map(BTreeMap::keys).chain(own).collect();
    names.sort();
    names.dedup();
    let of_containers = names.into_iter().map(|name| {
        if let Some(own) = spec.and_then(|spec| own_resources::request(spec, name)) {
            return BTreeMap::from([(name.clone(), amount_of(name, own))]);
        }
        let amount = most_at_once(pod, &|container| {
            let all = container.resources.as_ref();
            let request = all.and_then(|all| all.requests.as_ref()?.get(name));
            let limit = all.and_then(|all| all.limits.as_ref()?.get(name));
            Some(request.or(limit).map_or(0, |quantity| amount_of(name, quantity)))
        });
        BTreeMap::from([(name.clone(), amount.unwrap_or(0))])
    });
    let overhead = spec.iter().flat_map(|spec| spec.overhead.iter().flatten());
    let overhead =
        overhead.map(|(name, quantity)| BTreeMap::from([(name.clone(), amount_of(name, quantity))]));
    sum(of_containers.chain(overhead))
}

fn with_itself(mut requests: BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    requests.insert("pods".to_owned(), 1);
    requests
}

fn sum(all: impl Iterator<Item = BTreeMap<String, i64>>) -> BTreeMap<String, i64> {
    let mut sum: BTreeMap<String, i64> = BTreeMap::new();
    for (name, amount) in all.flatten() {
        let known = sum.entry(name).or_default();
        *known = known.saturating_add(amount);
    }
    sum
}

fn amount_of(name: &str, quantity: &Quantity) -> i64 {
    let amount = manifest::quantity::parse(&quantity.0);
    amount.map_or(0, |amount| if name == "cpu" { amount.milli() } else { amount.ceil() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::NodeFacts;
    use super::super::tests::check;
    use super::*;
    use crate::pod::model::tests::pod_of;

    fn spec(requests: Value) -> Value {
        json!({ "containers": [{ "name": "a", "image": "i", "resources": { "requests": requests } }] })
    }

    #[test]
    fn what_is_not_there_is_not_given() {
        let other = pod_of(spec(json!({ "cpu": "500m", "memory": "1Ki" })));
        let others = [&other];
        let allocatable = ["cpu 2000", "memory 4096", "pods 3", "ephemeral-storage 10", "hugepages-2Mi 0"];
        let allocatable: BTreeMap<String, i64> = allocatable
            .iter()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, amount)| (name.to_owned(), amount.parse().expect("a number")))
            .collect();
        let facts = NodeFacts { others: &others, allocatable: Some(&allocatable), ..NodeFacts::default() };
        let out = |name: &str, numbers: &str| {
            let message = format!("Node didn't have enough resource: {name}, {numbers}");
            Some((format!("OutOf{name}"), message))
        };
        for (requests, expect) in [
            (json!({}), None),
            (json!({ "cpu": "1500m", "memory": "3Ki" }), None),
            (json!({ "cpu": "1501m" }), out("cpu", "requested: 1501, used: 500, capacity: 2000")),
            (json!({ "memory": "4Ki" }), out("memory", "requested: 4096, used: 1024, capacity: 4096")),
            (
                json!({ "ephemeral-storage": "11" }),
                out("ephemeral-storage", "requested: 11, used: 0, capacity: 10"),
            ),
            (
                json!({ "hugepages-2Mi": "2Mi" }),
                out("hugepages-2Mi", "requested: 2097152, used: 0, capacity: 0"),
            ),
            (json!({ "example.com/gpu": "1" }), None),
        ] {
            let expect = expect.as_ref().map(|(reason, message)| (reason.as_str(), message.as_str()));
            check(spec(requests), &facts, expect);
        }
        let full = [&other, &other, &other];
        let facts = NodeFacts { others: &full, ..facts };
        let message = "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3";
        check(spec(json!({})), &facts, Some(("OutOfpods", message)));
    }

    #[test]
    fn what_a_pod_asks_for_as_a_whole_stands_before_its_containers() {
        let pod = pod_of(json!({
            "overhead": { "cpu": "100m" },
            "resources": { "requests": { "cpu": "1" }, "limits": { "hugepages-2Mi": "4Mi" } },
            "containers": [
                { "name": "a", "image": "i", "resources": { "requests": { "cpu": "200m", "memory": "1Ki" } } },
            ],
        }));
        let expect = [("cpu", 1100), ("hugepages-2Mi", 4 << 20), ("memory", 1024)];
        assert_eq!(requests(&pod), expect.map(|(name, amount)| (name.to_owned(), amount)).into());
    }

    #[test]
    fn a_pod_asks_for_its_overhead_and_its_most_demanding_moment() {
        let pod = pod_of(json!({
            "overhead": { "cpu": "100m", "memory": "1Ki" },
            "initContainers": [{ "name": "i", "image": "i", "resources": { "requests": { "cpu": "2" } } }],
            "containers": [
                { "name": "a", "image": "i", "resources": { "requests": { "cpu": "1" } } },
                { "name": "b", "image": "i", "resources": { "limits": { "cpu": "500m" } } },
            ],
        }));
        let expect = [("cpu".to_owned(), 2100), ("memory".to_owned(), 1024)];
        assert_eq!(requests(&pod), BTreeMap::from(expect));
    }
}

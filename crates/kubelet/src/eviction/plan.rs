//! Which pod goes first when memory runs short, and what is said of it: pure. Upstream: pkg/kubelet/eviction/helpers.go.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::admission::{is_critical, requests};
use crate::pod::model::Pod;
use crate::pod::plan::Failure;
use crate::time::BootTime;

/// What is left to a pod that is evicted because a threshold was crossed. Upstream: immediateEvictionGracePeriodSeconds.
const GRACE: Duration = Duration::from_secs(1);

/// How the node's memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Bytes that can still be had.
    pub(super) available: u64,
    /// Bytes below which pods are evicted.
    pub(super) threshold: u64,
}

impl Memory {
    pub(super) fn is_short(self) -> bool {
        self.available < self.threshold
    }
}

/// Bytes that each container uses, by name.
pub(super) type Usage = BTreeMap<String, u64>;

/// The pod that is evicted first, if any may be: one that uses more than it asked for, of the lowest priority, and the
/// largest above what it asked for.
pub(super) fn first<'a>(pods: &'a [Pod], usage: &BTreeMap<String, Usage>) -> Option<&'a Pod> {
    let rank = |pod: &&Pod| {
        let used: u64 = usage.get(&pod.uid).map_or(0, |all| all.values().sum());
        let above = i64::try_from(used).unwrap_or(i64::MAX).saturating_sub(memory_request(pod));
        (above <= 0, priority(pod), std::cmp::Reverse(above))
    };
    pods.iter().filter(|pod| !is_critical(pod)).min_by_key(rank)
}

/// Why that pod ends.
pub(super) fn failure(pod: &Pod, memory: Memory, usage: Option<&Usage>) -> Failure {
    let mut message = format!(
        "The node was low on resource: memory. Threshold quantity: {}, available: {}. ",
        quantity(memory.threshold),
        quantity(memory.available / 1024 * 1024),
    );
    for (name, used) in usage.into_iter().flatten() {
        let container = pod.container(name);
        let request = container.and_then(|one| one.spec.resources.as_ref()?.requests.as_ref()?.get("memory"));
        let bytes = request.and_then(|request| manifest::quantity::parse(&request.0).ok());
        let bytes = bytes.map_or(0, |bytes| u64::try_from(bytes.ceil()).unwrap_or(0));
        if *used > bytes {
            let request = request.map_or("0", |request| request.0.as_str());
            message += &format!(
                "Container {name} was using {}, request is {request}, has larger consumption of memory. ",
                quantity(used / 1024 * 1024),
            );
        }
    }
    Failure { reason: "Evicted".to_owned(), disruption: Some(message.clone()), message, grace: Some(GRACE) }
}

/// Whether the node tells of pressure: at once, and until it has been over for a while.
pub(super) fn pressure(last_short: Option<BootTime>, transition: Duration, now: BootTime) -> bool {
    last_short.is_some_and(|last| now < last.after(transition))
}

fn priority(pod: &Pod) -> i32 {
    pod.source.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

fn memory_request(pod: &Pod) -> i64 {
    requests(pod).get("memory").copied().unwrap_or(0)
}

/// Bytes as the API writes them.
fn quantity(bytes: u64) -> String {
    let units = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    let whole = |shift: u32| bytes != 0 && bytes.is_multiple_of(1 << shift);
    match units.into_iter().find(|(shift, _)| whole(*shift)) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::model::tests::pod_of;

    fn pod(uid: &str, request: &str, priority: i32) -> Pod {
        let resources = json!({ "requests": { "memory": request } });
        let resources = if request.is_empty() { Value::Null } else { resources };
        let spec = json!({ "priority": priority, "containers": [{ "name": "a", "image": "i", "resources": resources }] });
        Pod { uid: uid.into(), ..pod_of(spec) }
    }

    fn using(all: &[(&str, u64)]) -> BTreeMap<String, Usage> {
        let one = |used: u64| Usage::from([("a".to_owned(), used)]);
        all.iter().map(|(uid, used)| ((*uid).to_owned(), one(*used))).collect()
    }

    #[test]
    fn who_uses_more_than_was_asked_for_goes_first() {
        let check = |pods: &[Pod], usage: &[(&str, u64)], expect: Option<&str>| {
            assert_eq!(first(pods, &using(usage)).map(|pod| pod.uid.as_str()), expect);
        };
        let mib = 1 << 20;
        let pods = [pod("modest", "100Mi", 0), pod("greedy", "10Mi", 0), pod("small", "", 0)];
        check(&pods, &[("modest", 90 * mib), ("greedy", 50 * mib), ("small", 20 * mib)], Some("greedy"));
        check(&pods, &[("modest", 90 * mib), ("greedy", 10 * mib), ("small", 20 * mib)], Some("small"));
        check(&pods, &[("modest", 90 * mib), ("greedy", 5 * mib), ("small", 0)], Some("small"));
        let pods = [pod("high", "", 100), pod("low", "", 1)];
        check(&pods, &[("high", 500 * mib), ("low", mib)], Some("low"));
        check(&[pod("critical", "", 2_000_000_000)], &[("critical", 500 * mib)], None);
    }

    #[test]
    fn the_pod_is_told_what_was_missing_and_what_it_used() {
        let memory = Memory { available: (40 << 20) + 7, threshold: 50 << 20 };
        assert!(memory.is_short());
        let usage = Usage::from([("a".to_owned(), 200 << 20)]);
        let failure = failure(&pod("u", "1Mi", 0), memory, Some(&usage));
        assert_eq!(
            failure.message,
            "The node was low on resource: memory. Threshold quantity: 50Mi, available: 40Mi. \
             Container a was using 200Mi, request is 1Mi, has larger consumption of memory. "
        );
        assert_eq!((failure.reason.as_str(), failure.grace), ("Evicted", Some(Duration::from_secs(1))));
    }

    #[test]
    fn pressure_is_told_a_while_longer_than_it_lasts() {
        let (start, transition) = (BootTime(1_000), Duration::from_secs(300));
        assert!(!pressure(None, transition, start));
        assert!(pressure(Some(start), transition, start));
        assert!(pressure(Some(start), transition, start.after(Duration::from_secs(299))));
        assert!(!pressure(Some(start), transition, start.after(transition)));
    }
}

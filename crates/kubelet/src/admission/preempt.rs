//! Which pods make room for one that the node needs more: pure. Upstream: pkg/kubelet/preemption/preemption.go.

use std::collections::BTreeMap;

use super::{is_critical, resources};
use crate::pod::model::{Pod, QosClass};

/// The pods that end so that a critical one fits: of the least class first, of a lower priority always, and no more than it
/// takes. Nothing when all of them would not be enough.
pub(crate) fn victims<'a>(
    pod: &Pod,
    others: &[&'a Pod],
    allocatable: &BTreeMap<String, i64>,
) -> Option<Vec<&'a Pod>> {
    if !is_critical(pod) {
        return None;
    }
    let mut candidates: Vec<&'a Pod> = others
        .iter()
        .copied()
        .filter(|other| !is_critical(other) && priority(other) < priority(pod))
        .collect();
    candidates.sort_by_key(|other| (class(other), priority(other), other.uid.clone()));
    let fits = |gone: &[&Pod]| {
        let is_gone = |other: &Pod| gone.iter().any(|one| one.uid == other.uid);
        let left: Vec<&Pod> = others.iter().copied().filter(|other| !is_gone(other)).collect();
        resources::fit(pod, &left, allocatable).is_ok()
    };
    let enough = (1..=candidates.len()).find(|count| fits(&candidates[..*count]))?;
    let mut gone = candidates[..enough].to_vec();
    // Who was chosen on the way and is not needed in the end stays.
    for one in candidates[..enough].iter().take(enough - 1) {
        let without: Vec<&Pod> = gone.iter().copied().filter(|other| other.uid != one.uid).collect();
        if fits(&without) {
            gone = without;
        }
    }
    Some(gone)
}

fn priority(pod: &Pod) -> i32 {
    let priority = pod.source.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    // A static pod without one is as critical as it gets.
    if is_critical(pod) { priority.max(super::CRITICAL_PRIORITY) } else { priority }
}

fn class(pod: &Pod) -> u8 {
    match pod.qos {
        QosClass::BestEffort => 0,
        QosClass::Burstable => 1,
        QosClass::Guaranteed => 2,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::model::tests::pod_of;

    fn pod(uid: &str, cpu: &str, priority: i32) -> Pod {
        let resources = json!({ "requests": { "cpu": cpu } });
        let container = json!({ "name": "a", "image": "i", "resources": resources });
        Pod { uid: uid.into(), ..pod_of(json!({ "priority": priority, "containers": [container] })) }
    }

    #[test]
    fn the_least_important_pods_make_room_and_no_more_of_them_than_it_takes() {
        let allocatable = BTreeMap::from([("cpu".to_owned(), 1000), ("pods".to_owned(), 10)]);
        let all = [pod("small", "100m", 0), pod("large", "700m", 1), pod("high", "200m", 100)];
        let others: Vec<&Pod> = all.iter().collect();
        let told = |wanted: &Pod| {
            let victims = victims(wanted, &others, &allocatable)?;
            Some(victims.into_iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>())
        };
        let critical = |cpu: &str| pod("critical", cpu, 2_000_000_000);
        assert_eq!(told(&pod("ordinary", "500m", 1_000)), None, "the scheduler sees to that");
        assert_eq!(told(&critical("100m")), Some(vec!["small".to_owned()]));
        assert_eq!(told(&critical("500m")), Some(vec!["large".to_owned()]), "the small one is not needed");
        assert_eq!(told(&critical("1")).map(|all| all.len()), Some(3));
        assert_eq!(told(&critical("2")), None, "nobody ends for nothing");
    }
}

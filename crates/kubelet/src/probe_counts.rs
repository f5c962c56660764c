//! How often each probe succeeded and failed, for metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pod::model::Pod;
use crate::probe::{Answer, ProbeKind};

/// Which probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProbeOf {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    /// As upstream writes it.
    pub(crate) kind: &'static str,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) successful: u64,
    pub(crate) failed: u64,
    /// Nobody could be asked.
    pub(crate) unknown: u64,
}

/// Counts, shared by who probes and who tells. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct ProbeCounts(Arc<Mutex<BTreeMap<ProbeOf, Count>>>);

impl ProbeCounts {
    /// One answer.
    pub(crate) fn note(&self, pod: &Pod, container: &str, kind: ProbeKind, answer: &Answer) {
        let of = ProbeOf {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: container.to_owned(),
            kind: kind.name(),
        };
        let mut all = self.lock();
        let count = all.entry(of).or_default();
        match answer {
            Answer::Success | Answer::Warning(_) => count.successful += 1,
            Answer::Failure(_) => count.failed += 1,
            Answer::Error(_) => count.unknown += 1,
        }
    }

    /// A pod is gone, and its counts with it.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().retain(|of, _| of.uid != uid);
    }

    /// All of them.
    pub(crate) fn list(&self) -> Vec<(ProbeOf, Count)> {
        self.lock().iter().map(|(of, count)| (of.clone(), *count)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProbeOf, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1;

    use super::*;

    #[test]
    fn answers_are_counted_until_the_pod_is_gone() {
        let source = v1::Pod { metadata: Default::default(), spec: None, status: None };
        let mut pod = crate::pod::model::admit(&Arc::new(source)).unwrap();
        pod.uid = "u".into();
        let counts = ProbeCounts::default();
        let twin = counts.clone();
        for answer in [Answer::Success, Answer::Warning("slow".into()), Answer::Failure("no".into())] {
            counts.note(&pod, "c", ProbeKind::Liveness, &answer);
        }
        let told: Vec<Count> = twin.list().into_iter().map(|(_, count)| count).collect();
        assert_eq!(told, [Count { successful: 2, failed: 1, unknown: 0 }]);
        twin.forget("u");
        assert!(counts.list().is_empty());
    }
}

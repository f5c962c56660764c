//! `/metrics/probes`: how often each probe succeeded and failed. Pure. Upstream: pkg/kubelet/prober.

use super::exposition::Kind::Counter;
use super::exposition::Page;
use crate::probe_counts::{Count, ProbeOf};

/// The page.
pub(super) fn page(counts: &[(ProbeOf, Count)]) -> String {
    let mut page = Page::default();
    let name = "prober_probe_total";
    page.family(name, Counter, "Number of liveness, readiness and startup probes of a container, by result");
    for (of, count) in counts {
        for (result, times) in
            [("successful", count.successful), ("failed", count.failed), ("unknown", count.unknown)]
        {
            let labels = [
                ("container", of.container.as_str()),
                ("namespace", &of.namespace),
                ("pod", &of.pod),
                ("pod_uid", &of.uid),
                ("probe_type", of.kind),
                ("result", result),
            ];
            if times > 0 {
                page.sample(name, &labels, times, None);
            }
        }
    }
    page.into_text()
}

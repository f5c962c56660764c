//! `/metrics/cadvisor`: the runtime's metrics, which have cadvisor's names, and the machine's. Pure.
//!
//! Values of CRI are whole numbers, which is coarse for seconds: CPU time is taken from the statistics, which have nanoseconds.

use std::collections::BTreeMap;

use cri::v1 as crv1;
use cri::v1::MetricType;

use super::exposition::{Kind, Page};
use super::resource::seconds;
use crate::downward::Capacity;

const CPU: &str = "container_cpu_usage_seconds_total";

/// The page.
pub(super) fn page(
    descriptors: &[crv1::MetricDescriptor],
    sandboxes: &[crv1::PodSandboxMetrics],
    stats: &[crv1::PodSandboxStats],
    capacity: &Capacity,
) -> String {
    let mut page = Page::default();
    page.single("machine_cpu_cores", Kind::Gauge, "Number of logical CPU cores", capacity.cpus);
    page.single("machine_memory_bytes", Kind::Gauge, "Amount of memory, in bytes", capacity.memory);
    let mut by_name: BTreeMap<&str, Vec<(&crv1::Metric, &str)>> = BTreeMap::new();
    for sandbox in sandboxes {
        let of_containers = sandbox.container_metrics.iter();
        let of_containers = of_containers
            .flat_map(|one| one.metrics.iter().map(|metric| (metric, one.container_id.as_str())));
        let of_pod = sandbox.metrics.iter().map(|metric| (metric, sandbox.pod_sandbox_id.as_str()));
        for (metric, id) in of_pod.chain(of_containers) {
            by_name.entry(&metric.name).or_default().push((metric, id));
        }
    }
    let exact = cpu_times(stats);
    for descriptor in descriptors {
        let Some(metrics) = by_name.get(descriptor.name.as_str()) else { continue };
        let counts = metrics.iter().any(|(metric, _)| metric.metric_type() == MetricType::Counter);
        page.family(&descriptor.name, if counts { Kind::Counter } else { Kind::Gauge }, &descriptor.help);
        for (metric, id) in metrics {
            let labels = descriptor.label_keys.iter().map(String::as_str);
            let labels: Vec<(&str, &str)> =
                labels.zip(metric.label_values.iter().map(String::as_str)).collect();
            let whole = || metric.value.map_or(0, |value| value.value).to_string();
            let value =
                exact.get(id).filter(|_| metric.name == CPU).map_or_else(whole, |time| seconds(*time));
            page.sample(&metric.name, &labels, value, Some(metric.timestamp).filter(|at| *at > 0));
        }
    }
    page.into_text()
}

/// Nanoseconds by container.
fn cpu_times(stats: &[crv1::PodSandboxStats]) -> BTreeMap<&str, u64> {
    let linux = stats.iter().filter_map(|sandbox| sandbox.linux.as_ref());
    let all = linux.flat_map(|linux| &linux.containers).filter_map(|container| {
        let id = container.attributes.as_ref()?.id.as_str();
        Some((id, container.cpu.as_ref()?.usage_core_nano_seconds?.value))
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_exact_and_everything_else_the_runtimes() {
        let descriptor = |name: &str, labels: &[&str]| crv1::MetricDescriptor {
            name: name.into(),
            help: "H".into(),
            label_keys: labels.iter().map(|&label| label.to_owned()).collect(),
        };
        let metric = |name: &str, kind: MetricType, value| crv1::Metric {
            name: name.into(),
            timestamp: 2_000_000,
            metric_type: kind.into(),
            label_values: vec!["p".into()],
            value: Some(crv1::UInt64Value { value }),
        };
        let sandbox = crv1::PodSandboxMetrics {
            pod_sandbox_id: "s".into(),
            metrics: vec![metric("net", MetricType::Counter, 9)],
            container_metrics: vec![crv1::ContainerMetrics {
                container_id: "c".into(),
                metrics: vec![metric(CPU, MetricType::Counter, 1), metric("mem", MetricType::Gauge, 3)],
            }],
        };
        let stats = crv1::PodSandboxStats {
            linux: Some(crv1::LinuxPodSandboxStats {
                containers: vec![crv1::ContainerStats {
                    attributes: Some(crv1::ContainerAttributes { id: "c".into(), ..Default::default() }),
                    cpu: Some(crv1::CpuUsage {
                        usage_core_nano_seconds: Some(crv1::UInt64Value { value: 1_250_000_000 }),
                        ..Default::default()
                    }),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let descriptors = [
            descriptor(CPU, &["pod"]),
            descriptor("mem", &["pod"]),
            descriptor("net", &["pod"]),
            descriptor("none", &[]),
        ];
        let text = page(&descriptors, &[sandbox], &[stats], &Capacity::default());
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "machine_cpu_cores 0",
                "machine_memory_bytes 0",
                "container_cpu_usage_seconds_total{pod=\"p\"} 1.25 2",
                "mem{pod=\"p\"} 3 2",
                "net{pod=\"p\"} 9 2",
            ]
        );
        assert!(text.contains("# TYPE mem gauge") && text.contains("# TYPE net counter"));
    }
}

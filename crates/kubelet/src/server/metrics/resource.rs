//! `/metrics/resource`: what metrics-server reads, from the summary. Pure. Upstream: pkg/kubelet/metrics/collectors.

use super::super::stats::summary::{ContainerStats, Cpu, Memory, PodStats, Summary};
use super::exposition::Kind::{Counter, Gauge};
use super::exposition::Page;

/// The page; without a summary it says that there is none.
pub(super) fn page(summary: Option<&Summary>) -> String {
    let mut page = Page::default();
    if let Some(summary) = summary {
        node(&mut page, summary);
        containers(&mut page, &summary.pods);
        pods(&mut page, &summary.pods);
    }
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    page.single("resource_scrape_error", Gauge, help, u8::from(summary.is_none()));
    page.single("scrape_error", Gauge, help, u8::from(summary.is_none()));
    page.into_text()
}

fn node(page: &mut Page, summary: &Summary) {
    page.family("node_cpu_usage_seconds_total", Counter, "CPU time consumed by the node, in core-seconds");
    cpu(page, "node_cpu_usage_seconds_total", &[], summary.node.cpu.as_ref());
    page.family("node_memory_working_set_bytes", Gauge, "Working set of the node, in bytes");
    memory(page, "node_memory_working_set_bytes", &[], summary.node.memory.as_ref());
    if let Some(swap) = &summary.node.swap {
        page.family("node_swap_usage_bytes", Gauge, "Swap used by the node, in bytes");
        page.sample("node_swap_usage_bytes", &[], swap.swap_usage_bytes, Some(swap.at));
    }
}

fn containers(page: &mut Page, pods: &[PodStats]) {
    let all = || {
        pods.iter()
            .flat_map(|pod| pod.containers.iter().map(move |container| (labels(pod, container), container)))
    };
    let name = "container_start_time_seconds";
    page.family(name, Gauge, "When the container was started, in seconds since 1970");
    for (labels, container) in all() {
        if let Some(start) = &container.start_time {
            page.sample(name, &labels, start.0.as_second(), None);
        }
    }
    let name = "container_cpu_usage_seconds_total";
    page.family(name, Counter, "CPU time consumed by the container, in core-seconds");
    all().for_each(|(labels, container)| cpu(page, name, &labels, container.cpu.as_ref()));
    let name = "container_memory_working_set_bytes";
    page.family(name, Gauge, "Working set of the container, in bytes");
    all().for_each(|(labels, container)| memory(page, name, &labels, container.memory.as_ref()));
    let name = "container_swap_usage_bytes";
    page.family(name, Gauge, "Swap used by the container, in bytes");
    for (labels, container) in all() {
        if let Some(swap) = &container.swap {
            page.sample(name, &labels, swap.swap_usage_bytes, Some(swap.at));
        }
    }
}

fn pods(page: &mut Page, pods: &[PodStats]) {
    let labels = |pod| -> [(&str, &str); 2] { of_pod(pod) };
    let name = "pod_cpu_usage_seconds_total";
    page.family(name, Counter, "CPU time consumed by the pod, in core-seconds");
    pods.iter().for_each(|pod| cpu(page, name, &labels(pod), pod.cpu.as_ref()));
    let name = "pod_memory_working_set_bytes";
    page.family(name, Gauge, "Working set of the pod, in bytes");
    pods.iter().for_each(|pod| memory(page, name, &labels(pod), pod.memory.as_ref()));
}

fn of_pod(pod: &PodStats) -> [(&str, &str); 2] {
    [("namespace", &pod.pod_ref.namespace), ("pod", &pod.pod_ref.name)]
}

fn labels<'a>(pod: &'a PodStats, container: &'a ContainerStats) -> [(&'a str, &'a str); 3] {
    let [namespace, name] = of_pod(pod);
    [("container", &container.name), namespace, name]
}

fn cpu(page: &mut Page, name: &str, labels: &[(&str, &str)], cpu: Option<&Cpu>) {
    let Some(cpu) = cpu else { return };
    if let Some(total) = cpu.usage_core_nano_seconds {
        page.sample(name, labels, seconds(total), Some(cpu.at));
    }
}

fn memory(page: &mut Page, name: &str, labels: &[(&str, &str)], memory: Option<&Memory>) {
    let Some(memory) = memory else { return };
    if let Some(bytes) = memory.working_set_bytes {
        page.sample(name, labels, bytes, Some(memory.at));
    }
}

/// Nanoseconds as seconds, to the last digit.
pub(super) fn seconds(nanoseconds: u64) -> String {
    let text = format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_exact() {
        for (nanoseconds, expect) in
            [(0, "0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (10_000_000_000, "10")]
        {
            assert_eq!(seconds(nanoseconds), expect);
        }
    }

    #[test]
    fn metrics_server_finds_node_and_containers() {
        let (mut cpu, mut memory) = (Cpu::default(), Memory::default());
        (cpu.at, cpu.usage_core_nano_seconds) = (5_000_000, Some(2_500_000_000));
        (memory.at, memory.working_set_bytes) = (6_000_000, Some(42));
        let mut container = ContainerStats::default();
        (container.name, container.cpu, container.memory) =
            ("c".into(), Some(cpu.clone()), Some(memory.clone()));
        let mut pod = PodStats::default();
        (pod.pod_ref.name, pod.pod_ref.namespace) = ("p".into(), "n".into());
        pod.containers.push(container);
        let mut summary = Summary::default();
        (summary.node.cpu, summary.node.memory) = (Some(cpu), Some(memory));
        summary.pods.push(pod);
        let text = page(Some(&summary));
        for line in [
            "node_cpu_usage_seconds_total 2.5 5",
            "node_memory_working_set_bytes 42 6",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 2.5 5",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 42 6",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        assert!(page(None).contains("resource_scrape_error 1\n"));
    }
}

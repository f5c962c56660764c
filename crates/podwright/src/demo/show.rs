//! What the demo shows, in order: pods coming up, who answers, how long it took, the rules that do it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hostnet::netfilter::{Family, Programs};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::times::{self, PodTimes};
use super::{isolation, traffic};
use crate::agent::{Reports, Sources};
use crate::image::built_in;
use crate::node::Node;
use crate::output;
use crate::status::table;

/// How long everything may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests to each address.
const REQUESTS: u32 = 30;

/// Shows it all; an error where something does not work.
pub(super) async fn everything(sources: &Sources, start: Instant) -> anyhow::Result<()> {
    let known = sources.reports.as_ref().context("the node runs no manifests")?;
    let problems: Vec<String> = known.manifests.borrow().problems.iter().map(ToString::to_string).collect();
    if !problems.is_empty() {
        bail!("the manifest has problems:\n{}", problems.join("\n"));
    }
    let clock = Clock(start);
    clock.say(&format!("node {} at {}", sources.node.name, isolation::NODE_ADDRESS));
    let image = image(sources).await?;
    clock.say(&format!("image {image}"));
    let ready = tokio::time::timeout(PATIENCE, async {
        pods_ready(known, clock).await?;
        endpoints_ready(known, clock).await
    });
    match ready.await {
        Ok(ready) => ready?,
        Err(_) => bail!("not everything was ready after {} s:\n{}", PATIENCE.as_secs(), pods(known)),
    }
    for (title, address) in addresses(&known.proxy.borrow().services)? {
        let answers = traffic::send(address, REQUESTS).await?;
        output::text(&format!("\n{}", traffic::render(&title, &answers)));
    }
    output::text(&format!("\nstart times by step\n{}", times::render(&pod_times(known))));
    output::text(&format!("\niptables -t nat -S KUBE-SERVICES\n{}", chain().await?));
    Ok(())
}

/// Seconds since the demo began, before each line of progress.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn say(self, text: &str) {
        output::line(&format!("{:6.2}s  {text}", self.0.elapsed().as_secs_f64()));
    }
}

/// The built-in image; without it every pod of the example would wait for ever.
async fn image(sources: &Sources) -> anyhow::Result<String> {
    let image = built_in::import(sources.images()?).await?;
    Ok(format!("{} of this very binary, {}", built_in::NAME, output::bytes(image.size)))
}

/// Follows the kubelet's report, one line for each change of a pod.
async fn pods_ready(known: &Reports, clock: Clock) -> anyhow::Result<()> {
    let wanted = known.manifests.borrow().objects.pods.len();
    let mut reports = known.kubelet.clone();
    let mut told = BTreeMap::new();
    loop {
        let pods = reports.borrow_and_update().pods.clone();
        for pod in &pods {
            let now = table::line(pod);
            if told.get(&pod.metadata.name) != Some(&now) {
                clock.say(&format!("pod {} {now}", pod.metadata.name.as_deref().unwrap_or_default()));
                told.insert(pod.metadata.name.clone(), now);
            }
        }
        if pods.len() >= wanted && pods.iter().all(|pod| is_ready(pod)) {
            return Ok(());
        }
        reports.changed().await.context("the kubelet reports no more")?;
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Waits until the rules of every Service lead to a pod.
async fn endpoints_ready(known: &Reports, clock: Clock) -> anyhow::Result<()> {
    let wanted = known.manifests.borrow().objects.services.len();
    let pods = known.kubelet.borrow().pods.len();
    let mut reports = known.proxy.clone();
    let report = reports
        .wait_for(|report| {
            let complete = report.endpoints.iter().filter(|slice| ready_endpoints(slice) >= pods);
            complete.count() >= wanted
        })
        .await
        .context("the proxy reports no more")?;
    clock.say(&format!("{} Services with their endpoints in the rules", report.services.len()));
    Ok(())
}

fn ready_endpoints(slice: &EndpointSlice) -> usize {
    let endpoints = slice.endpoints.iter().flatten();
    let ready = endpoints.filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    ready.count()
}

fn pods(known: &Reports) -> String {
    let pods: Vec<Pod> = known.kubelet.borrow().pods.iter().map(|pod| (**pod).clone()).collect();
    table::pods(&pods, table::Width::Wide, crate::status::now()).unwrap_or_default()
}

fn pod_times(known: &Reports) -> Vec<PodTimes> {
    let report = known.kubelet.borrow();
    let ip_of = |uid: &str| {
        let pod = report.pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid));
        pod.and_then(|pod| pod.status.as_ref()?.pod_ip.clone()).unwrap_or_else(|| "-".to_owned())
    };
    let mut times: Vec<PodTimes> = report
        .starts
        .iter()
        .map(|start| PodTimes {
            name: start.name.clone(),
            ip: ip_of(&start.uid),
            steps: start.steps.clone(),
            total: start.total,
        })
        .collect();
    times.sort_by(|a, b| a.name.cmp(&b.name));
    times
}

/// Where requests go: a Service's address and port, or this node's where that is what it is for.
fn addresses(services: &[Service]) -> anyhow::Result<Vec<(String, SocketAddr)>> {
    let mut found = Vec::new();
    for service in services {
        let spec = service.spec.clone().unwrap_or_default();
        let name = service.metadata.name.clone().unwrap_or_default();
        let Some(port) = spec.ports.iter().flatten().next() else { continue };
        let (kind, ip, port) = match port.node_port {
            Some(node_port) => ("NodePort", IpAddr::V4(isolation::NODE_ADDRESS), node_port),
            None => {
                let ip = spec.cluster_ip.as_deref().unwrap_or_default();
                let ip = ip.parse().with_context(|| format!("the ClusterIP {ip:?} of Service {name}"))?;
                ("ClusterIP", ip, port.port)
            }
        };
        let port = u16::try_from(port).with_context(|| format!("the port {port} of Service {name}"))?;
        let address = SocketAddr::new(ip, port);
        found.push((format!("{kind} {address} of Service {name}"), address));
    }
    Ok(found)
}

/// The rules at which Services begin, as the kernel has them.
async fn chain() -> anyhow::Result<String> {
    rules().await.map(|saved| service_chain(&saved))
}

/// Every rule of this network namespace.
pub(super) async fn rules() -> anyhow::Result<String> {
    let saved = tokio::task::spawn_blocking(|| Programs::find(Family::V4)?.save()).await?;
    saved.context("read the netfilter rules")
}

/// The chain's lines out of `iptables-save`, in the form that `iptables -S` prints.
fn service_chain(saved: &str) -> String {
    let rules = saved.lines().filter(|line| line.starts_with("-A KUBE-SERVICES "));
    std::iter::once("-N KUBE-SERVICES").chain(rules).map(|line| format!("{line}\n")).collect()
}

/// Tells how to go into the demo's network and mounts.
pub(super) fn how_to_look_around(node: &Node) {
    let enter = format!("nsenter --target {} --net --mount", std::process::id());
    output::line("\nthe node stays up until Ctrl-C; look around with");
    output::line(&format!("  {enter} crictl --runtime-endpoint unix://{} ps", node.listen.display()));
    output::line(&format!("  {enter} curl http://{}:30080/", isolation::NODE_ADDRESS));
    output::line(&format!(
        "  {enter} {} status --root {} --state {}",
        std::env::current_exe().map_or_else(|_| "podwright".into(), |path| path.display().to_string()),
        node.root.display(),
        node.state.display()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_go_to_the_cluster_ip_or_to_the_node() {
        let service = |name: &str, port: serde_json::Value| -> Service {
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"clusterIP": "10.96.0.7", "ports": [port]},
            }))
            .unwrap()
        };
        let services =
            [service("a", json!({"port": 80})), service("b", json!({"port": 80, "nodePort": 30080}))];
        let found = addresses(&services).unwrap();
        let expect = [
            ("ClusterIP 10.96.0.7:80 of Service a".to_owned(), "10.96.0.7:80".parse().unwrap()),
            ("NodePort 192.0.2.10:30080 of Service b".to_owned(), "192.0.2.10:30080".parse().unwrap()),
        ];
        assert_eq!(found, expect);
    }

    #[test]
    fn the_chain_is_shown_without_the_others() {
        let saved = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-X\nCOMMIT\n";
        assert_eq!(
            service_chain(saved),
            "-N KUBE-SERVICES\n-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-X\n"
        );
    }
}

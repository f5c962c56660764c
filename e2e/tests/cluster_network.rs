//! What reaches what in a cluster, seen by whoever sends: Services, DNS, ports of the node. Told on our node and on the stock
//! kubelet with kube-proxy.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::TestHost;
use e2e::cluster::ClusterStory;
use e2e::cluster::images::AGNHOST;
use e2e::test_host::eventually;

e2e::cluster_stories![a_service_spreads_connections_over_its_pods];

/// Connections, each of which asks who answers.
const CONNECTIONS: u32 = 3_000;

/// Asks so often, each time by a connection of its own.
fn ask(from: &TestHost, url: &str, requests: u32) -> Result<String> {
    let url = format!("{url}?[1-{requests}]");
    from.run("curl", &["-sS", "--max-time", "5", "-H", "Connection: close", "-w", "\n", &url])
}

/// How often each pod answered.
fn answers(text: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

/// Each pod gets its share, give or take six standard deviations: one false alarm in 500 million.
fn ensure_spread(counts: &BTreeMap<String, u32>, pods: u32) -> Result<()> {
    let total: u32 = counts.values().sum();
    ensure!(total == CONNECTIONS, "{total} answers: {counts:?}");
    ensure!(u32::try_from(counts.len())? == pods, "not by {pods} pods: {counts:?}");
    let share = 1.0 / f64::from(pods);
    let (expected, deviation) = (f64::from(total) * share, (f64::from(total) * share * (1.0 - share)).sqrt());
    let far = counts.values().any(|count| (f64::from(*count) - expected).abs() > 6.0 * deviation);
    ensure!(!far, "not spread evenly: {counts:?}");
    Ok(())
}

/// Pods that tell their names over HTTP, and answer a word over UDP.
fn servers(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: {AGNHOST}
        args: [netexec, --http-port=8080, --udp-port=8081]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"
    )
}

fn a_service_spreads_connections_over_its_pods(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "{}---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
",
        servers("web", 4),
    ))?;
    story.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    let spec = story.get("service/web")?["spec"].clone();
    let inside = format!("http://{}/hostname", spec["clusterIP"].as_str().context("a ClusterIP")?);
    let machine = &story.node.machine;
    eventually("every pod answers", || {
        (answers(&ask(&machine.host, &inside, 100).ok()?).len() == 4).then_some(())
    })?;
    let text = ask(&machine.host, &inside, CONNECTIONS)?;
    ensure_spread(&answers(&text), 4).context("from the node, by the ClusterIP")?;
    let outside = format!("http://{}:{}/hostname", machine.address, spec["ports"][0]["nodePort"]);
    let text = ask(story.cluster.lab.router(), &outside, CONNECTIONS)?;
    ensure_spread(&answers(&text), 4).context("from outside, by the NodePort")
}

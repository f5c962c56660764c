//! What reaches what in a cluster, seen by whoever sends: Services, DNS, ports of the node. Told on our node and on the stock
//! kubelet with kube-proxy.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use e2e::TestHost;
use e2e::cluster::images::AGNHOST;
use e2e::cluster::{ClusterStory, NodeKind};
use e2e::test_host::eventually;

e2e::cluster_stories![
    a_service_spreads_connections_over_its_pods,
    a_udp_service_goes_on_with_another_pod,
    names_are_resolved_in_pods,
    ports_of_the_node_lead_to_pods,
    cve_2020_8554_a_service_does_not_get_the_addresses_that_it_names,
];

/// Connections, each of which asks who answers.
const CONNECTIONS: u32 = 3_000;

/// curl's words for so many requests, each by a connection of its own.
fn curl(url: &str, requests: u32) -> [String; 9] {
    let url = format!("{url}?[1-{requests}]");
    ["curl", "-sS", "--max-time", "5", "-H", "Connection: close", "-w", "\n", &url].map(str::to_owned)
}

/// What machines of the lab are answered.
fn ask(from: &TestHost, url: &str, requests: u32) -> Result<String> {
    let words = curl(url, requests);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    from.run(words[0], &words[1..])
}

/// What a pod is answered.
fn ask_in(story: &ClusterStory, pod: &str, url: &str, requests: u32) -> Result<String> {
    let words = curl(url, requests);
    let exec = ["exec", pod, "--"].into_iter().chain(words.iter().map(String::as_str));
    story.kubectl(&exec.collect::<Vec<_>>())
}

/// A pod that waits to be told what to ask for.
fn client() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {AGNHOST}}}]
---
"
    )
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
        "{}{}---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
",
        client(),
        servers("web", 4),
    ))?;
    story.ready("client")?;
    story.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    let spec = story.get("service/web")?["spec"].clone();
    let inside = format!("http://{}/hostname", spec["clusterIP"].as_str().context("a ClusterIP")?);
    let machine = &story.node.machine;
    eventually("every pod answers", || {
        (answers(&ask(&machine.host, &inside, 100).ok()?).len() == 4).then_some(())
    })?;
    let text = ask_in(story, "client", &inside, CONNECTIONS)?;
    ensure_spread(&answers(&text), 4).context("from a pod, by the ClusterIP")?;
    let outside = format!("http://{}:{}/hostname", machine.address, spec["ports"][0]["nodePort"]);
    let text = ask(story.cluster.lab.router(), &outside, CONNECTIONS)?;
    ensure_spread(&answers(&text), 4).context("from outside, by the NodePort")
}

fn a_udp_service_goes_on_with_another_pod(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "{}---
apiVersion: v1
kind: Service
metadata: {{name: names}}
spec: {{selector: {{app: names}}, ports: [{{port: 53, targetPort: 8081, protocol: UDP}}]}}
",
        servers("names", 1)
    ))?;
    story.kubectl(&["rollout", "status", "deployment/names", "--timeout=120s"])?;
    // One socket for ever: without care its packets would go where the first one went.
    let script = "exec 3<>/dev/udp/$NAMES_SERVICE_HOST/$NAMES_SERVICE_PORT
while :; do printf hostname >&3; timeout 1 dd bs=1500 count=1 <&3; echo; sleep 0.2; done 2>/dev/null";
    let args = serde_json::to_string(&["bash", "-c", script])?;
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: asker}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {AGNHOST}, command: {args}}}]
"
    ))?;
    story.ready("asker")?;
    let server =
        || story.kubectl(&["get", "pods", "-l", "app=names", "-o", "jsonpath={.items[*].metadata.name}"]);
    let answers = |pod: &str| {
        let log = story.kubectl(&["logs", "asker", "--tail=4"]).ok()?;
        log.lines().any(|line| line == pod).then_some(())
    };
    let first = server()?;
    eventually("the pod answers", || answers(&first))?;
    story.kubectl(&["delete", "pod", &first])?;
    story.kubectl(&["rollout", "status", "deployment/names", "--timeout=120s"])?;
    let second = server()?;
    assert_ne!(first, second);
    eventually("the other pod answers on the same socket", || answers(&second))
}

fn names_are_resolved_in_pods(story: &ClusterStory) -> Result<()> {
    static DNS: OnceLock<()> = OnceLock::new();
    DNS.get_or_init(|| story.cluster.run_dns().expect("run the cluster's DNS"));
    let member = |name: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: db}}}}
spec:
  hostname: {name}
  subdomain: db
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {AGNHOST}, args: [netexec, --http-port=8080]}}]
---
"
        )
    };
    story.apply(&format!(
        "{}{}{}{}---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: db}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 8080}}]}}
",
        client(),
        member("db-0"),
        member("db-1"),
        servers("web", 1),
    ))?;
    ["client", "db-0", "db-1"].into_iter().try_for_each(|pod| story.ready(pod))?;
    story.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    let ask = |name: &str| story.exec("client", &format!("curl -sS --max-time 5 http://{name}/hostname"));
    eventually("a Service's name is resolved", || ask("web").ok())?;
    let web = story.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"])?;
    let namespace = &story.namespace;
    for name in ["web", &format!("web.{namespace}"), &format!("web.{namespace}.svc.cluster.local.")] {
        assert_eq!(ask(name)?, web, "{name}");
    }
    for pod in ["db-0", "db-1"] {
        assert_eq!(ask(&format!("{pod}.db:8080"))?, pod);
    }
    let addresses =
        story.kubectl(&["get", "pods", "-l", "app=db", "-o", "jsonpath={.items[*].status.podIP}"])?;
    let looked_up = story.exec("client", &format!("busybox nslookup db.{namespace}.svc.cluster.local"))?;
    for address in addresses.split(' ') {
        ensure!(looked_up.contains(address), "{address} in {looked_up}");
    }
    let version = story.exec("client", "curl -sSk --max-time 5 https://kubernetes.default/version")?;
    ensure!(version.contains("gitVersion"), "{version}");
    ensure!(ask("nobody").is_err(), "there is no such name");
    Ok(())
}

fn ports_of_the_node_lead_to_pods(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: on-the-node}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: main, image: {AGNHOST}, args: [netexec, --http-port=18081, --udp-port=18082]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: behind-a-port}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {AGNHOST}
    args: [netexec, --http-port=8080]
    ports: [{{containerPort: 8080, hostPort: 18080}}]
"
    ))?;
    story.ready("on-the-node")?;
    story.ready("behind-a-port")?;
    let machine = &story.node.machine;
    assert_eq!(story.get("pod/on-the-node")?["status"]["podIP"].as_str(), Some(machine.address.as_str()));
    let outside = |port: u16| {
        ask(story.cluster.lab.router(), &format!("http://{}:{port}/hostname", machine.address), 1)
    };
    // Ready without a probe: they run, and may not listen yet.
    eventually("the pod on the node answers", || outside(18081).ok())?;
    eventually("the pod behind a port answers", || outside(18080).ok())?;
    assert_eq!(outside(18081)?.trim(), machine.name, "it is the node's network and name");
    assert_eq!(outside(18080)?.trim(), "behind-a-port", "from outside");
    let local = ask(&machine.host, "http://127.0.0.1:18080/hostname", 1)?;
    assert_eq!(local.trim(), "behind-a-port", "from the node itself");
    story.kubectl(&["delete", "pod", "behind-a-port"])?;
    eventually("nobody answers", || outside(18080).is_err().then_some(()))
}

/// The stock proxy serves whatever a Service names, and so shows that the story itself is right.
fn cve_2020_8554_a_service_does_not_get_the_addresses_that_it_names(story: &ClusterStory) -> Result<()> {
    let router = e2e::lab::ROUTER;
    story.apply(&format!(
        "{}{}---
apiVersion: v1
kind: Service
metadata: {{name: greedy}}
spec: {{selector: {{app: greedy}}, externalIPs: ['{router}'], ports: [{{port: 18090, targetPort: 8080}}]}}
",
        client(),
        servers("greedy", 1),
    ))?;
    story.ready("client")?;
    story.kubectl(&["rollout", "status", "deployment/greedy", "--timeout=120s"])?;
    let address = story.get("service/greedy")?["spec"]["clusterIP"].clone();
    let url = format!("http://{}:18090/hostname", address.as_str().context("a ClusterIP")?);
    eventually("the Service answers by its ClusterIP", || ask_in(story, "client", &url, 1).ok())?;
    let taken = ask_in(story, "client", &format!("http://{router}:18090/hostname"), 1);
    if story.node.kind == NodeKind::Stock {
        return taken.map(drop).context("whoever follows the Service gets what was meant for the router");
    }
    ensure!(taken.is_err(), "what was meant for the router went to {taken:?}");
    let log = story.node.log();
    let told = format!("Service {}/greedy: field spec.externalIPs: left out", story.namespace);
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&told)).collect();
    ensure!(lines.len() == 1 && lines[0].contains("WARN"), "told once: {lines:?}");
    let rules = story.node.machine.host.run("iptables-save", &[])?;
    ensure!(!rules.contains("18090 -j KUBE-EXT"), "{rules}");
    Ok(())
}

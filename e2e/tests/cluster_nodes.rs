//! A cluster of several of our nodes, with the built-in network of pods: what reaches what, and what nodes come and go for.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::images::AGNHOST;
use e2e::cluster::node::Half;
use e2e::cluster::objects::server;
use e2e::cluster::story::{shared, shared_node, tell_anywhere};
use e2e::cluster::{ClusterNode, ClusterStory, NodeKind};
use e2e::parts::podwright;
use e2e::test_host::eventually;
use serde_json::Value;

fn here() -> &'static ClusterNode {
    shared_node(NodeKind::Podwright)
}

/// A node on the same switch.
fn near() -> &'static ClusterNode {
    static NEAR: OnceLock<ClusterNode> = OnceLock::new();
    NEAR.get_or_init(|| shared().node(NodeKind::Podwright, "near").expect("start the node near"))
}

/// A node behind the router.
fn far() -> &'static ClusterNode {
    static FAR: OnceLock<ClusterNode> = OnceLock::new();
    FAR.get_or_init(|| shared().far_node(NodeKind::Podwright, "far").expect("start the node far"))
}

/// What a shell script in a server's pod prints, told by the server itself.
fn inside(node: &ClusterNode, address: &str, script: &str) -> Result<String> {
    let (url, script) = (format!("http://{address}:8080/shell"), format!("shellCommand={script}"));
    let text = node
        .machine
        .host
        .run("curl", &["-sS", "--max-time", "60", "-G", "--data-urlencode", &script, &url])?;
    let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(answer["error"].is_null(), "{answer}");
    Ok(answer["output"].as_str().unwrap_or_default().to_owned())
}

/// The address from which a server says that it was asked.
fn seen_by(asked: &str) -> String {
    asked.rsplit_once(':').map_or(asked, |(address, _)| address).to_owned()
}

#[test]
#[ignore = "needs a cluster"]
fn neighbours_pods_speak_as_themselves() {
    tell_anywhere(here(), "neighbours_pods_speak_as_themselves", |story| {
        let node = here().machine.address.clone();
        // As Docker leaves a machine.
        near().machine.host.run("iptables", &["-P", "FORWARD", "DROP"])?;
        pods_speak_as_themselves(story, near(), &node)
    });
}

#[test]
#[ignore = "needs a cluster"]
fn pods_behind_a_router_speak_as_themselves() {
    tell_anywhere(here(), "pods_behind_a_router_speak_as_themselves", |story| {
        // As distributions set it: what comes by another link than the way back leads over is dropped.
        let strict = "echo 1 | tee /proc/sys/net/ipv4/conf/all/rp_filter";
        far().machine.host.run("sh", &["-c", strict])?;
        // In the network that wraps packets a node has an address of its own: the first of its range.
        let range = here().object(story.cluster)?["spec"]["podCIDR"].clone();
        let node = range.as_str().and_then(|range| range.split_once('/')).context("a range")?.0;
        pods_speak_as_themselves(story, far(), node)?;
        // A new agent finds the device as it is to be: another one would have another number.
        let device = || far().machine.host.run("ip", &["-o", "link", "show", "podwright-vx"]);
        let before = device()?;
        far().crash(Half::Kubelet)?;
        eventually("the agent is back", || far().log().contains("registered").then_some(()))?;
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(device()?, before);
        Ok(())
    });
}

/// Pods here and there, and both nodes. `node` is the address by which this node is known to pods there.
fn pods_speak_as_themselves(story: &ClusterStory, there: &ClusterNode, node: &str) -> Result<()> {
    story.apply(&format!(
        "{}{}{}apiVersion: v1
kind: Service
metadata: {{name: there}}
spec: {{selector: {{app: there}}, ports: [{{port: 80, targetPort: 8080}}]}}
",
        server("here", here(), ""),
        server("there", there, ""),
        server("node", there, "hostNetwork: true"),
    ))?;
    ["here", "there", "node"].into_iter().try_for_each(|pod| story.ready(pod))?;
    let (pod_here, pod_there) = (story.address_of("here")?, story.address_of("there")?);
    let ask = |url: &str| format!("curl -sS --max-time 5 {url}/clientip");
    let from_here = |url: &str| -> Result<String> { Ok(seen_by(&inside(here(), &pod_here, &ask(url))?)) };
    let with_port = format!("{pod_there}:8080");
    eventually("there is a way", || from_here(&with_port).ok())?;
    assert_eq!(from_here(&with_port)?, pod_here, "pod to pod");
    let back = inside(there, &pod_there, &ask(&format!("{pod_here}:8080")))?;
    assert_eq!(seen_by(&back), pod_there, "and back");
    let service =
        story.get("service/there")?["spec"]["clusterIP"].as_str().context("a ClusterIP")?.to_owned();
    assert_eq!(eventually("the Service is served", || from_here(&service).ok())?, pod_here, "by a Service");
    // Two nodes forwarded it, and nobody else.
    let ping = inside(here(), &pod_here, &format!("busybox ping -c 1 -W 5 {pod_there}"))?;
    ensure!(ping.contains("ttl=62"), "{ping}");
    // A packet of the largest size, and more than one. They must fit when they are wrapped.
    for (node, pod) in [(here(), &pod_here), (there, &pod_there)] {
        assert_eq!(inside(node, pod, "cat /sys/class/net/eth0/mtu")?.trim(), "1450");
    }
    inside(here(), &pod_here, &format!("busybox ping -c 1 -W 5 -s 1422 {pod_there}"))?;
    inside(there, &pod_there, "mkdir /uploads")?;
    let upload = format!("head -c 3000000 /dev/zero | curl -sS --max-time 20 -F file=@- {with_port}/upload");
    let upload = inside(here(), &pod_here, &upload)?;
    ensure!(upload.contains("output"), "{upload}");
    let from_node = here().machine.host.run("curl", &["-sS", &format!("{pod_there}:8080/clientip")])?;
    assert_eq!(seen_by(&from_node), node, "node to pod");
    // What leaves the network of pods leaves as the node.
    assert_eq!(from_here(&format!("{}:8080", there.machine.address))?, here().machine.address, "pod to node");
    Ok(())
}

/// A Deployment with one pod and a Service, which goes where `prefers` says as long as that node is there.
fn movable(name: &str, prefers: &ClusterNode) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            preference: {{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{}]}}]}}
      containers:
      - name: main
        image: {AGNHOST}
        args: [netexec, --http-port=8080]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
",
        prefers.name()
    )
}

#[test]
#[ignore = "needs a cluster"]
fn a_node_without_its_link_loses_pods_and_comes_back() {
    let node = shared().node(NodeKind::Podwright, "cut").expect("start the node");
    tell_anywhere(here(), "a_node_without_its_link_loses_pods_and_comes_back", |story| {
        let stays = "tolerations: [{operator: Exists}]";
        story.apply(&format!("{}{}", movable("moves", &node), server("stays", &node, stays)))?;
        story.ready("stays")?;
        story.kubectl(&["rollout", "status", "deployment/moves", "--timeout=60s"])?;
        let first = story.kubectl(&["get", "pods", "-l", "app=moves", "-o", "name"])?.trim().to_owned();
        assert_eq!(story.get(&first)?["spec"]["nodeName"], node.name());
        let address = format!("{}:8080", story.address_of("stays")?);
        let service =
            story.get("service/moves")?["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
        let ask = |what: &str| {
            let url = format!("http://{what}/hostname");
            here().machine.host.run("curl", &["-sS", "--max-time", "2", &url])
        };
        eventually("the Service answers", || ask(&service).ok())?;
        eventually("the pod answers", || ask(&address).ok())?;

        story.cluster.lab.cut(&node.machine)?;
        ensure!(ask(&address).is_err(), "the cable is pulled");
        let unknown = "--for=condition=Ready=Unknown";
        story.kubectl(&["wait", unknown, &format!("node/{}", node.name()), "--timeout=120s"])?;
        let second = eventually("another pod takes the place of the lost one", || {
            let name = ask(&service).ok()?;
            (!first.ends_with(&name)).then_some(name)
        })?;
        assert_ne!(story.get(&format!("pod/{second}"))?["spec"]["nodeName"], node.name());

        story.cluster.lab.heal(&node.machine)?;
        eventually("the pod that stayed answers again", || ask(&address).ok())?;
        node.wait_ready(story.cluster)?;
        story.wait(&first, "delete")?;
        story.ready("stays")?;
        let stayed = story.get("pod/stays")?;
        assert_eq!(stayed["status"]["containerStatuses"][0]["restartCount"], 0, "{}", stayed["status"]);
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster"]
fn the_ways_to_a_node_end_with_its_object() {
    let node = shared().node(NodeKind::Podwright, "leaving").expect("start the node");
    tell_anywhere(here(), "the_ways_to_a_node_end_with_its_object", |story| {
        let range = node.object(story.cluster)?["spec"]["podCIDR"].as_str().context("a range")?.to_owned();
        let ways = || here().machine.host.run("ip", &["route", "show", &range]).unwrap_or_default();
        eventually("there is a way", || ways().contains(&node.machine.address).then_some(()))?;
        // What somebody else routes there is theirs; when they have gone, it is led there again.
        let back = here().object(story.cluster)?["spec"]["podCIDR"].as_str().context("a range")?.to_owned();
        let ip = |words: &[&str]| node.machine.host.run("ip", &[&["route"], words].concat());
        let is_ours = || ip(&["show", &back]).ok()?.contains("proto 112").then_some(());
        eventually("there is a way back", is_ours)?;
        ip(&["replace", &back, "via", &here().machine.address, "proto", "static"])?;
        eventually("the agent says whose it is", || {
            node.log().contains("somebody else routes that range").then_some(())
        })?;
        ensure!(ip(&["show", &back])?.contains("proto static"), "{}", ip(&["show"])?);
        ip(&["delete", &back])?;
        eventually("there is a way back again", is_ours)?;
        // While the agent is away, nothing changes.
        node.end_agent();
        ensure!(ways().contains(&node.machine.address), "{}", ways());
        story.kubectl(&["delete", "node", node.name()])?;
        eventually("there is no way", || ways().is_empty().then_some(()))?;
        // And it takes its own ways and rules along when it is reset.
        let traces = || node.machine.host.run("sh", &["-c", "ip route; iptables-save"]);
        for trace in ["proto 112", "PODNET-", "KUBE-SERVICES"] {
            ensure!(traces()?.contains(trace), "{trace} in {}", traces()?);
        }
        let cgroups = format!("--cgroup-root={}", node.machine.cgroup);
        node.machine.host.run(podwright(), &["reset", &cgroups])?;
        let left = traces()?;
        for trace in ["proto 112", "PODNET-", "PODWRIGHT-", "KUBE-"] {
            ensure!(!left.contains(trace), "{trace} in {left}");
        }
        Ok(())
    });
}

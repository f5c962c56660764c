//! What happens to traffic while parts of a node or of its cluster change hands: agents that start again, an API server that is
//! away, a network of pods and a service proxy that the cluster brings.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::TestHost;
use e2e::cluster::images::{AGNHOST, CNI_PLUGINS};
use e2e::cluster::node::Half;
use e2e::cluster::objects::{NODE_RIGHTS, kube_proxy, server};
use e2e::cluster::story::{shared, shared_node, tell_anywhere};
use e2e::cluster::{Cluster, ClusterNode, Component, NodeKind};
use e2e::parts::podwright;
use e2e::test_host::{Daemon, eventually};

fn here() -> &'static ClusterNode {
    shared_node(NodeKind::Podwright)
}

fn service_of(app: &str, name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {app}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
"
    )
}

/// Keeps asking, each time by a connection of its own, until dropped.
struct Caller {
    directory: PathBuf,
    daemon: Daemon,
}

impl Caller {
    fn start(host: &TestHost, url: &str) -> Result<Self> {
        let directory = host.path().to_owned();
        let script = format!(
            "n=0; while [ ! -e {}/enough ]; do
                 curl -sS --max-time 5 -o /dev/null {url} || echo \"request $n failed\"
                 n=$((n + 1))
             done; echo \"$n requests\"",
            directory.display()
        );
        let daemon = host.spawn("caller", host.command("bash").args(["-c", &script]))?;
        Ok(Self { directory, daemon })
    }

    /// How many requests were made; an error when one failed.
    fn end(mut self) -> Result<u32> {
        let (stop, log) = (self.directory.join("enough"), self.directory.join("caller.log"));
        std::fs::write(&stop, "")?;
        let log = self.daemon.wait_until("done", || {
            std::fs::read_to_string(&log).ok().filter(|log| log.contains(" requests"))
        })?;
        std::fs::remove_file(stop)?;
        ensure!(!log.contains("failed"), "{log}");
        let count = log.lines().last().and_then(|line| line.strip_suffix(" requests"));
        Ok(count.context("a count")?.parse()?)
    }
}

#[test]
#[ignore = "needs a cluster"]
fn no_request_fails_while_pods_are_replaced_and_the_agent_starts_again() {
    let node = shared().node(NodeKind::Podwright, "rolling").expect("start the node");
    tell_anywhere(here(), "no_request_fails_while_pods_are_replaced_and_the_agent_starts_again", |story| {
        story.apply(&format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 3
  strategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      nodeSelector: {{kubernetes.io/hostname: {}}}
      containers:
      - name: main
        image: {AGNHOST}
        args: [netexec, --http-port=8080]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
        lifecycle: {{preStop: {{sleep: {{seconds: 2}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
",
            node.name()
        ))?;
        let rolled = || story.kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
        rolled()?;
        let port = &story.get("service/web")?["spec"]["ports"][0]["nodePort"];
        let url = format!("http://{}:{port}/hostname", node.machine.address);
        let router = story.cluster.lab.router();
        eventually("the Service answers", || router.run("curl", &["-sSf", &url]).ok())?;
        let caller = Caller::start(router, &url)?;
        story.kubectl(&["rollout", "restart", "deployment/web"])?;
        // In the middle of the roll-out, and once more by a crash.
        story.wait("deployment/web", "jsonpath={.status.updatedReplicas}=2")?;
        node.crash(Half::Kubelet)?;
        rolled()?;
        let requests = caller.end()?;
        ensure!(requests > 50, "only {requests} requests");
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster"]
fn without_the_api_server_services_and_ways_stay_also_for_an_agent_that_starts_again() {
    let told = without_the_api_server();
    if let Err(error) = told {
        panic!("{error:?}");
    }
}

/// A cluster of its own: it is out of order for a while.
fn without_the_api_server() -> Result<()> {
    let cluster = Cluster::start()?;
    let one = cluster.node(NodeKind::Podwright, "one")?;
    let two = cluster.node(NodeKind::Podwright, "two")?;
    cluster.apply(&format!(
        "{}{}{}",
        server("web-one", &one, ""),
        server("web-two", &two, ""),
        "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {kind: server}, ports: [{port: 80, targetPort: 8080}]}
"
    ))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pods", "--all", "--timeout=60s"])?;
    let service =
        cluster.get(&["service", "web"])?["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
    let url = format!("http://{service}/hostname");
    eventually("the Service answers", || one.machine.host.run("curl", &["-sSf", &url]).ok())?;
    cluster.control_plane.kill(Component::ApiServer);
    let caller = Caller::start(&one.machine.host, &url)?;
    one.crash(Half::Kubelet)?;
    // The new agent asks and gets no answer: it knows nothing, and leaves everything as it is.
    std::thread::sleep(Duration::from_secs(10));
    let requests = caller.end()?;
    ensure!(requests > 50, "only {requests} requests");
    cluster.control_plane.start_component(Component::ApiServer)?;
    one.wait_ready(&cluster)?;
    // From now on changes arrive again.
    cluster.kubectl(&["delete", "pod", "web-two"])?;
    eventually("only the other pod answers", || {
        let many = format!("{url}?[1-50]");
        let text =
            one.machine.host.run("curl", &["-sS", "-H", "Connection: close", "-w", "\n", &many]).ok()?;
        text.lines().filter(|line| !line.is_empty()).all(|pod| pod == "web-one").then_some(())
    })
}

#[test]
#[ignore = "needs a cluster"]
fn a_node_without_rights_says_what_to_apply() {
    if let Err(error) = without_rights() {
        panic!("{error:?}");
    }
}

/// A cluster of its own, whose administrator has not granted anything.
fn without_rights() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.kubectl(&["delete", "clusterrolebinding", "podwright:service-proxy", "podwright:pod-network"])?;
    let node = cluster.node(NodeKind::Podwright, "one")?;
    let status = || node.machine.host.run(podwright(), &["status"]);
    let what = "kubectl apply -f deploy/rbac.yaml";
    eventually("status tells it", || status().ok()?.contains(what).then_some(()))?;
    ensure!(node.log().contains("other nodes' pods are not reached"), "{}", node.log());
    cluster.apply(&format!("{}{}", server("web", &node, ""), service_of("web", "web")))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])?;
    let service =
        cluster.get(&["service", "web"])?["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
    let ask =
        || node.machine.host.run("curl", &["-sSf", "--max-time", "2", &format!("http://{service}/hostname")]);
    ensure!(ask().is_err(), "nobody serves it");
    cluster.apply(NODE_RIGHTS)?;
    eventually("the Service answers", || ask().ok())?;
    let status = status()?;
    ensure!(status.contains(&service) && !status.contains(what), "{status}");
    Ok(())
}

/// What a network's DaemonSet does: it brings programs and a configuration, and runs before there is a network.
fn installer(range: &str, node: &str) -> String {
    let conflist = format!(
        r#"{{"cniVersion":"1.0.0","name":"brought","plugins":[
            {{"type":"bridge","bridge":"brought0","isGateway":true,"ipMasq":true,"hairpinMode":true,
              "ipam":{{"type":"host-local","ranges":[[{{"subnet":"{range}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
            {{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#
    );
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: network}}
data:
  10-brought.conflist: |
    {}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: network}}
spec:
  selector: {{matchLabels: {{app: network}}}}
  template:
    metadata: {{labels: {{app: network}}}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      nodeSelector: {{kubernetes.io/hostname: {node}}}
      tolerations: [{{operator: Exists}}]
      initContainers:
      - name: install
        image: {CNI_PLUGINS}
        command: [sh, -c, 'cp /plugins/* /host/bin/ && cp /network/10-brought.conflist /host/net.d/.new && mv /host/net.d/.new /host/net.d/10-brought.conflist']
        volumeMounts:
        - {{name: bin, mountPath: /host/bin}}
        - {{name: net, mountPath: /host/net.d}}
        - {{name: network, mountPath: /network}}
      containers:
      - name: stay
        image: {CNI_PLUGINS}
        command: [sleep, '1000000']
      volumes:
      - {{name: bin, hostPath: {{path: /opt/cni/bin, type: DirectoryOrCreate}}}}
      - {{name: net, hostPath: {{path: /etc/cni/net.d}}}}
      - {{name: network, configMap: {{name: network}}}}
---
",
        conflist.lines().map(str::trim).collect::<String>()
    )
}

#[test]
#[ignore = "needs a cluster"]
fn a_daemon_set_brings_the_network_of_pods() {
    let node = shared().node_without_network("bare").expect("start the node");
    tell_anywhere(here(), "a_daemon_set_brings_the_network_of_pods", |story| {
        let ready = || {
            let node = node.object(story.cluster).ok()?;
            let conditions = node["status"]["conditions"].as_array()?;
            conditions.iter().find(|condition| condition["type"] == "Ready").cloned()
        };
        let condition = eventually("the node says what it waits for", ready)?;
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&"False".into(), &"KubeletNotReady".into())
        );
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(message.contains("NetworkReady=false reason:NetworkPluginNotReady"), "{message}");
        let range = node.object(story.cluster)?["spec"]["podCIDR"].as_str().context("a range")?.to_owned();
        story.apply(&server("early", &node, "tolerations: [{operator: Exists}]"))?;
        story.apply(&installer(&range, node.name()))?;
        node.wait_ready(story.cluster)?;
        // Also the pod that was there before.
        story.ready("early")?;
        let address = story.address_of("early")?;
        let prefix = range.rsplit_once('.').context("a range")?.0;
        ensure!(address.starts_with(prefix), "{address} in {range}");
        let links = node.machine.host.run("ip", &["-br", "link", "show", "type", "bridge"])?;
        ensure!(links.contains("brought0") && !links.contains("podwright0"), "{links}");
        let answer = node.machine.host.run("curl", &["-sS", &format!("http://{address}:8080/hostname")])?;
        assert_eq!(answer, "early");
        // Our proxy serves this network's pods, too.
        story.apply(
            "apiVersion: v1
kind: Service
metadata: {name: early}
spec: {selector: {app: early}, ports: [{port: 80, targetPort: 8080}]}
",
        )?;
        let service =
            story.get("service/early")?["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
        eventually("the Service answers", || {
            node.machine
                .host
                .run("curl", &["-sSf", "--max-time", "2", &format!("http://{service}/hostname")])
                .ok()
        })?;
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster"]
fn the_proxy_gives_way_to_a_kube_proxy_pod_and_comes_back() {
    let node = shared().node(NodeKind::Podwright, "shared-out").expect("start the node");
    tell_anywhere(here(), "the_proxy_gives_way_to_a_kube_proxy_pod_and_comes_back", |story| {
        let host = &node.machine.host;
        let get = |url: &str| host.run("curl", &["-sSf", "--max-time", "2", url]);
        let health = format!("http://{}:10256/healthz", node.machine.address);
        eventually("the proxy is well", || get(&health).ok())?;
        story.apply(&format!("{}{}", server("web", &node, ""), service_of("web", "before")))?;
        story.ready("web")?;
        let address = |service: &str| {
            let service = story.get(&format!("service/{service}"))?;
            Ok::<_, anyhow::Error>(format!(
                "http://{}/hostname",
                service["spec"]["clusterIP"].as_str().context("an address")?
            ))
        };
        let before = address("before")?;
        eventually("the Service answers", || get(&before).ok())?;
        let rules = || host.run("iptables-save", &[]);
        let nodes = format!("kubernetes.io/hostname: {}", node.name());
        story.cluster.apply(&kube_proxy(&story.cluster.control_plane, &nodes))?;
        let in_system = |words: &[&str]| story.cluster.kubectl(&[&["-n", "kube-system"], words].concat());
        in_system(&["rollout", "status", "daemonset/kube-proxy", "--timeout=120s"]).with_context(|| {
            in_system(&["logs", "daemonset/kube-proxy"]).unwrap_or_else(|error| error.to_string())
        })?;
        eventually("the agent says so", || node.log().contains("the service proxy is off").then_some(()))?;
        eventually("kube-proxy watches its rules", || {
            rules().ok()?.contains("KUBE-PROXY-CANARY").then_some(())
        })?;
        // What is there is served on, by its rules in place of ours.
        get(&before)?;
        story.apply(&service_of("web", "after"))?;
        let after = address("after")?;
        eventually("kube-proxy serves a new one", || get(&after).ok())?;
        // Two who write would take turns, and two who jump would do so twice.
        let jumps = || -> Result<Vec<String>> {
            let builtins =
                ["INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"].map(|name| format!("-A {name} "));
            let rules = rules()?;
            let is_jump = |line: &&str| {
                builtins.iter().any(|builtin| line.starts_with(builtin)) && line.contains("-j KUBE-")
            };
            Ok(rules.lines().filter(is_jump).map(|line| line.to_owned()).collect())
        };
        let theirs = jumps()?;
        assert_eq!(theirs.iter().collect::<BTreeSet<_>>().len(), theirs.len(), "{theirs:#?}");
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(jumps()?, theirs);
        ensure!(!node.log().contains("somebody changed our netfilter rules"), "{}", node.log());
        in_system(&["delete", "daemonset", "kube-proxy", "--cascade=foreground", "--timeout=60s"])?;
        eventually("the proxy is on again", || {
            (node.log().matches("the service proxy is on").count() == 2).then_some(())
        })?;
        story.apply(&service_of("web", "at-last"))?;
        let last = address("at-last")?;
        eventually("the proxy serves again", || get(&last).ok())?;
        [before, after].iter().try_for_each(|service| get(service).map(drop))?;
        let ours = jumps()?;
        assert_eq!(ours.iter().collect::<BTreeSet<_>>().len(), ours.len(), "{ours:#?}");
        get(&health).map(drop)
    });
}

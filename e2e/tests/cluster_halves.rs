//! Each half of the node with the field's other half: our kubelet on containerd, and the stock kubelet on our CRI socket.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use e2e::cluster::images::{AGNHOST, BUSYBOX};
use e2e::cluster::story::private_registry;
use e2e::cluster::{ClusterStory, Half, NodeKind};
use e2e::registry::Registry;
use e2e::test_host::eventually;
use serde_json::{Value, json};

e2e::half_stories![twenty_pods_outlive_a_crash_of_either_half, logins_of_the_node_reach_the_runtime];

const PODS: usize = 20;

/// One story at a time: each crashes halves, and what is being started on that node just then is started again.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn web(replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {AGNHOST}
        args: [netexec, --http-port=8080]
        readinessProbe: {{exec: {{command: [sh, -c, 'test -d /proc/1']}}, periodSeconds: 2}}
        livenessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 2}}
"
    )
}

/// What must not change over a crash: by pod, the container's id and how often it was started again.
fn containers(story: &ClusterStory) -> Result<BTreeMap<String, (String, i64)>> {
    let pods = story.get("pods")?;
    let pods = pods["items"].as_array().context("a list")?.iter().map(|pod| {
        let container = &pod["status"]["containerStatuses"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let restarts = container["restartCount"].as_i64().context("a count")?;
        Ok((text(&pod["metadata"]["name"]), (text(&container["containerID"]), restarts)))
    });
    pods.collect()
}

/// Exec, logs and statistics, as kubectl and metrics-server ask for them.
fn everything_answers(story: &ClusterStory, pods: &BTreeMap<String, (String, i64)>) -> Result<()> {
    for pod in pods.keys().take(3) {
        // A kubelet that has just started does not know its pods yet.
        let answer = eventually("exec works", || story.exec(pod, "echo $((6 * 7))").ok())?;
        ensure!(answer.trim() == "42", "exec in {pod}: {answer}");
        let log = story.kubectl(&["logs", pod])?;
        ensure!(log.contains("Started HTTP server"), "the log of {pod}: {log}");
    }
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", story.node.name());
    let measured = || {
        let summary: Value =
            serde_json::from_str(&story.cluster.kubectl(&["get", "--raw", &path]).ok()?).ok()?;
        let told = summary["pods"].as_array()?.iter().filter(|pod| {
            let name = pod["podRef"]["name"].as_str().unwrap_or_default();
            pods.contains_key(name) && pod["containers"][0]["memory"]["workingSetBytes"].as_u64() > Some(0)
        });
        (told.count() == pods.len()).then_some(())
    };
    eventually("statistics name every pod", measured)
}

fn twenty_pods_outlive_a_crash_of_either_half(story: &ClusterStory) -> Result<()> {
    let _alone = alone();
    story.apply(&web(PODS))?;
    story.kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"])?;
    let before = containers(story)?;
    let runtime = match story.node.kind {
        NodeKind::PodwrightOnContainerd => "containerd://",
        _ => "podwright://",
    };
    ensure!(before.values().all(|(id, _)| id.starts_with(runtime)), "{before:?}");
    ensure!(before.len() == PODS && before.values().all(|(_, restarts)| *restarts == 0), "{before:?}");
    everything_answers(story, &before)?;

    for half in [Half::Runtime, Half::Kubelet] {
        story.node.crash(half)?;
        story.node.wait_ready(story.cluster)?;
        everything_answers(story, &before).with_context(|| format!("after a crash of the {half:?}"))?;
        ensure!(containers(story)? == before, "after a crash of the {half:?}: {:?}", containers(story)?);
    }

    // The pods go, and new ones come: nothing was lost on the way.
    story.apply(&web(1))?;
    eventually("nineteen pods are gone", || (containers(story).ok()?.len() == 1).then_some(()))?;
    story.kubectl(&["scale", "deployment/web", "--replicas=2"])?;
    story.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).map(drop)
}

/// The kubelet finds them in docker's file and sends each in turn, that of the longest name first.
fn logins_of_the_node_reach_the_runtime(story: &ClusterStory) -> Result<()> {
    let _alone = alone();
    private_registry(story.node)?;
    let pod = |name: &str| {
        let image = BUSYBOX.replace("docker.io", "private.example");
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: '{image}', imagePullPolicy: Always, command: [sleep, '1000']}}]
"
        )
    };
    story.apply(&pod("locked-out"))?;
    let reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ImagePullBackOff";
    story.wait("pod/locked-out", reason)?;

    let (user, password) = Registry::USER;
    let login = |password: &str| json!({ "username": user, "password": password });
    let auths = json!({ "private.example/library": login("not-it"), "private.example": login(password) });
    let file = "/var/lib/kubelet/config.json";
    let script = format!("cat > {file} <<'END'\n{}\nEND", json!({ "auths": auths }));
    story.node.machine.host.run("sh", &["-c", &script])?;
    // A stock kubelet looks at the file every five minutes, and when it starts.
    story.node.crash(Half::Kubelet)?;
    story.node.wait_ready(story.cluster)?;
    story.apply(&pod("let-in"))?;
    story.ready("let-in")?;
    story.node.machine.host.run("rm", &[file]).map(drop)
}

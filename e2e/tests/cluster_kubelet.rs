//! What a kubelet decides by itself, seen by kubectl: which pods it takes, when it ends them, what it tells of itself. Told on our
//! node and on the stock kubelet with containerd.

use anyhow::{Context, Result, ensure};
use e2e::cluster::images::{AGNHOST, BUSYBOX};
use e2e::cluster::story::{self, condition, text};
use e2e::cluster::{ClusterNode, ClusterStory, NodeKind, NodeSettings};
use e2e::registry::Registry;
use e2e::test_host::eventually;
use serde_json::{Value, json};

e2e::cluster_stories![
    the_node_tells_what_its_runtime_can,
    what_the_node_cannot_do_is_refused_with_a_reason,
    a_runtime_class_names_a_handler_and_an_overhead,
    a_deadline_ends_a_pod,
    a_status_says_of_which_generation_it_is,
    an_image_is_pulled_with_a_secret,
    what_takes_more_of_the_disk_than_it_may_is_evicted,
    a_config_map_of_a_mebibyte_reaches_its_file,
];

/// A pod that sleeps; `more` are further fields of its spec, indented by two.
fn sleeper(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '1000']}}]
{more}"
    )
}

fn the_node_tells_what_its_runtime_can(story: &ClusterStory) -> Result<()> {
    let node = story.node.object(story.cluster)?;
    let handlers = node["status"]["runtimeHandlers"].as_array().context("handlers")?;
    let default = handlers.iter().find(|handler| text(&handler["name"]).is_empty());
    let features = &default.context("the default handler")?["features"];
    ensure!(features["recursiveReadOnlyMounts"] == true, "{features}");
    ensure!(node["status"]["features"]["supplementalGroupsPolicy"] == true, "{}", node["status"]["features"]);
    let selector =
        format!("--field-selector=involvedObject.kind=Node,involvedObject.name={}", story.node.name());
    let events = story.cluster.kubectl(&["get", "events", &selector, "-o", "jsonpath={.items[*].reason}"])?;
    ensure!(events.contains("Starting") && events.contains("NodeReady"), "{events}");
    // An image that a pod used is told of.
    story.apply(&sleeper("one", ""))?;
    story.ready("one")?;
    eventually("the node names the image", || {
        let node = story.node.object(story.cluster).ok()?;
        let images = node["status"]["images"].as_array()?.clone();
        let names = images.iter().flat_map(|image| image["names"].as_array().cloned().unwrap_or_default());
        names.into_iter().any(|name| text(&name) == BUSYBOX).then_some(())
    })
}

fn what_the_node_cannot_do_is_refused_with_a_reason(story: &ClusterStory) -> Result<()> {
    let node = story.node.name();
    // The scheduler is not asked.
    let bound = |name: &str, more: &str| sleeper(name, &format!("  nodeName: {node}\n{more}"));
    let requests = |name: &str, requests: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '1000'], resources: {{requests: {requests}}}}}]
"
        )
    };
    let port = |name: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '1000'], ports: [{{containerPort: 80, hostPort: 8181}}]}}]
"
        )
    };
    story.apply(&port("first"))?;
    story.ready("first")?;
    let sysctl = "  securityContext: {sysctls: [{name: kernel.msgmax, value: '65536'}]}\n";
    for (manifest, name, reason, message) in [
        (
            requests("cpu", "{cpu: '1000'}"),
            "cpu",
            "OutOfcpu",
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: ",
        ),
        (
            requests("memory", "{memory: 100Ti}"),
            "memory",
            "OutOfmemory",
            "Pod was rejected: Node didn't have enough resource: memory, requested: 109951162777600, used: ",
        ),
        (
            bound("selector", "  nodeSelector: {pool: none}\n"),
            "selector",
            "NodeAffinity",
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (
            port("second"),
            "second",
            "NodePorts",
            "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ),
        (
            bound("sysctl", sysctl),
            "sysctl",
            "SysctlForbidden",
            "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
    ] {
        story.apply(&manifest)?;
        let pod = format!("pod/{name}");
        story.wait(&pod, "jsonpath={.status.phase}=Failed")?;
        let status = story.get(&pod)?["status"].clone();
        assert_eq!(status["reason"], reason, "{status}");
        ensure!(text(&status["message"]).starts_with(message), "{status}");
        let selector = format!("--field-selector=involvedObject.name={name},reason={reason}");
        eventually("an event says so", || {
            let events = story.kubectl(&["get", "events", &selector, "-o", "name"]).ok()?;
            (!events.is_empty()).then_some(())
        })?;
    }
    Ok(())
}

fn a_runtime_class_names_a_handler_and_an_overhead(story: &ClusterStory) -> Result<()> {
    let name = &story.namespace;
    // On cgroup v1 and v2 alike it is a file of the pod's own cgroup.
    story.apply(&format!(
        "apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {{name: {name}}}
handler: runc
overhead: {{podFixed: {{memory: 16Mi, cpu: 100m}}}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {{name: {name}-none}}
handler: none
---
apiVersion: v1
kind: Pod
metadata: {{name: heavy}}
spec:
  runtimeClassName: {name}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '1000']
    resources: {{limits: {{memory: 32Mi, cpu: 100m}}}}
---
{}",
        sleeper("never", &format!("  runtimeClassName: {name}-none\n"))
    ))?;
    story.ready("heavy")?;
    let pod = story.get("pod/heavy")?;
    assert_eq!(pod["spec"]["overhead"]["memory"], "16Mi");
    let uid = text(&pod["metadata"]["uid"]);
    let machine = &story.node.machine;
    let find = format!(
        "find /sys/fs/cgroup/memory{0} /sys/fs/cgroup{0} -path '*pod{uid}*' -prune -type d 2>/dev/null | head -1",
        machine.cgroup
    );
    let directory = machine.host.run("sh", &["-c", &find])?;
    let read =
        format!("cd '{}' && cat memory.limit_in_bytes 2>/dev/null || cat memory.max", directory.trim());
    assert_eq!(machine.host.run("sh", &["-c", &read])?.trim(), (48_u64 << 20).to_string());
    let selector = "--field-selector=involvedObject.name=never,reason=FailedCreatePodSandBox";
    eventually("the handler that is not there is told of", || {
        let messages =
            story.kubectl(&["get", "events", selector, "-o", "jsonpath={.items[*].message}"]).ok()?;
        messages.contains("\"none\"").then_some(())
    })?;
    story.kubectl(&["delete", "runtimeclass", name, &format!("{name}-none")]).map(drop)
}

fn a_deadline_ends_a_pod(story: &ClusterStory) -> Result<()> {
    story.apply(&sleeper("slow", "  activeDeadlineSeconds: 3\n"))?;
    story.wait("pod/slow", "jsonpath={.status.phase}=Failed")?;
    let status = story.get("pod/slow")?["status"].clone();
    assert_eq!(status["reason"], "DeadlineExceeded", "{status}");
    assert_eq!(status["message"], "Pod was active on the node longer than the specified deadline");
    ensure!(status["containerStatuses"][0]["state"]["terminated"].is_object(), "{status}");
    Ok(())
}

fn a_status_says_of_which_generation_it_is(story: &ClusterStory) -> Result<()> {
    story.kubectl(&["run", "typo", "--image=docker.io/library/busybox:1.73", "--", "sleep", "1000"])?;
    let observed = |generation: i64| {
        eventually("the status is of that generation", || {
            let pod = story.get("pod/typo").ok()?;
            let conditions = pod["status"]["conditions"].as_array()?;
            let ready = conditions.iter().find(|one| one["type"] == "Ready")?;
            let both = [&pod["status"]["observedGeneration"], &ready["observedGeneration"]];
            (pod["metadata"]["generation"] == generation && both.iter().all(|seen| **seen == generation))
                .then_some(())
        })
    };
    observed(1)?;
    story.kubectl(&["set", "image", "pod/typo", &format!("typo={BUSYBOX}")])?;
    story.ready("typo")?;
    observed(2)
}

fn an_image_is_pulled_with_a_secret(story: &ClusterStory) -> Result<()> {
    story::private_registry(story.node)?;
    let (user, password) = Registry::USER;
    let pod = |name: &str, more: &str| {
        sleeper(name, more)
            .replace(BUSYBOX, "private.example/library/busybox:1.37")
            .replace("command:", "imagePullPolicy: Always, command:")
    };
    story.apply(&pod("locked-out", ""))?;
    story.wait(
        "pod/locked-out",
        "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ImagePullBackOff",
    )?;
    story.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "key",
        "--docker-server=private.example",
        &format!("--docker-username={user}"),
        &format!("--docker-password={password}"),
    ])?;
    story.apply(&pod("let-in", "  imagePullSecrets: [{name: key}]\n"))?;
    story.ready("let-in")
}

fn what_takes_more_of_the_disk_than_it_may_is_evicted(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: filler}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'dd if=/dev/urandom of=/v/big bs=1M count=5; exec sleep 1000']
    volumeMounts: [{{name: v, mountPath: /v}}]
  volumes: [{{name: v, emptyDir: {{sizeLimit: 1Mi}}}}]
"
    ))?;
    story.wait("pod/filler", "jsonpath={.status.phase}=Failed")?;
    let status = story.get("pod/filler")?["status"].clone();
    assert_eq!(status["reason"], "Evicted", "{status}");
    assert_eq!(text(&status["message"]).trim(), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\".");
    Ok(())
}

/// A stock kubelet that already stops a container does not hear of it.
fn a_shorter_grace_ends_a_pod_sooner(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: stubborn}}
spec:
  terminationGracePeriodSeconds: 600
  containers: [{{name: main, image: {BUSYBOX}, command: [sh, -c, 'trap \"\" TERM; while :; do sleep 1; done']}}]
"
    ))?;
    story.ready("stubborn")?;
    story.kubectl(&["delete", "pod", "stubborn", "--wait=false"])?;
    eventually("its end has begun", || {
        let selector = "--field-selector=involvedObject.name=stubborn,reason=Killing";
        let events = story.kubectl(&["get", "events", selector, "-o", "name"]).ok()?;
        (!events.is_empty()).then_some(())
    })?;
    story.kubectl(&["delete", "pod", "stubborn", "--grace-period=1", "--timeout=60s"]).map(drop)
}

fn a_config_map_of_a_mebibyte_reaches_its_file(story: &ClusterStory) -> Result<()> {
    // With its name it stays just below what an API server takes.
    let big: String =
        (0..1_000_000_u32).map(|at| char::from(b'a' + u8::try_from(at * 7 % 26).unwrap_or(0))).collect();
    let machine = &story.cluster.control_plane.machine().host;
    let file = machine.path().join(format!("{}.big", story.namespace));
    std::fs::write(&file, &big)?;
    story.kubectl(&["create", "configmap", "big", &format!("--from-file=big={}", file.display())])?;
    let volume = "  volumes: [{name: v, configMap: {name: big}}]\n";
    let pod =
        sleeper("reader", volume).replace("command:", "volumeMounts: [{name: v, mountPath: /v}], command:");
    story.apply(&pod)?;
    story.ready("reader")?;
    let sum = story.exec("reader", "sha256sum < /v/big")?;
    let expected = machine.run("sha256sum", &[&file.to_string_lossy()])?;
    assert_eq!(sum.split(' ').next(), expected.split(' ').next());
    Ok(())
}

/// A node of its own for one story, with its own namespace.
fn special(kind: NodeKind, name: &str, settings: &NodeSettings, story: fn(&ClusterStory) -> Result<()>) {
    let name = format!("{name}-{}", if kind == NodeKind::Stock { "stock" } else { "podwright" });
    let node = story::shared().node_with(kind, &name, settings).expect("start the node");
    let node: &'static ClusterNode = Box::leak(Box::new(node));
    let told = ClusterStory::start(story::shared(), node, &name).and_then(|told| {
        let result = story(&told);
        result.with_context(|| told.picture())
    });
    let gone = story::shared().kubectl(&["delete", "node", &name]);
    if let Err(error) = told.and(gone) {
        panic!("{error:?}");
    }
}

fn what_does_not_tolerate_a_taint_is_evicted(story: &ClusterStory) -> Result<()> {
    story.apply(&sleeper("plain", ""))?;
    story.apply(&sleeper("tolerant", "  tolerations: [{key: maintenance, operator: Exists}]\n"))?;
    story.ready("plain")?;
    story.ready("tolerant")?;
    let before = story.get("pod/tolerant")?["status"]["containerStatuses"][0]["containerID"].clone();
    story.cluster.kubectl(&["taint", "nodes", story.node.name(), "maintenance=now:NoExecute"])?;
    story.wait("pod/plain", "delete")?;
    let tolerant = story.get("pod/tolerant")?;
    assert_eq!(condition(&tolerant, "Ready")["status"], "True");
    assert_eq!(tolerant["status"]["containerStatuses"][0]["containerID"], before);
    // Nor does one come that names the node itself.
    story.apply(&sleeper("late", &format!("  nodeName: {}\n", story.node.name())))?;
    let selector = "--field-selector=involvedObject.name=late,reason=TaintToleration";
    eventually("it is refused", || {
        let events =
            story.kubectl(&["get", "events", selector, "-o", "jsonpath={.items[*].message}"]).ok()?;
        events.contains("node(s) had taints that the pod didn't tolerate").then_some(())
    })
}

/// The node of [`a_node_keeps_what_is_reserved`].
fn reserving() -> NodeSettings {
    let kubelet = json!({
        "maxPods": 7,
        "kubeReserved": { "cpu": "200m", "memory": "256Mi", "pid": "1000" },
        "systemReserved": { "cpu": "300m", "memory": "256Mi", "pid": "500" },
        "podPidsLimit": 20, "seccompDefault": true,
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
    });
    NodeSettings { kubelet, ..NodeSettings::default() }
}

fn a_node_keeps_what_is_reserved(story: &ClusterStory) -> Result<()> {
    let status = story.node.object(story.cluster)?["status"].clone();
    let kib = |amounts: &Value| text(&amounts["memory"]).trim_end_matches("Ki").parse::<u64>().unwrap_or(0);
    let (capacity, allocatable) = (&status["capacity"], &status["allocatable"]);
    assert_eq!(kib(capacity) - kib(allocatable), (256 + 256 + 100) * 1024);
    let cpus: u64 = text(&capacity["cpu"]).parse()?;
    assert_eq!(text(&allocatable["cpu"]), format!("{}m", cpus * 1000 - 500));
    assert_eq!((&capacity["pods"], &allocatable["pods"]), (&"7".into(), &"7".into()));
    // What pods may have together is held by their cgroup.
    let machine = &story.node.machine;
    let read = format!(
        "cat /sys/fs/cgroup/memory{0}/kubepods/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup{0}/kubepods/memory.max",
        machine.cgroup
    );
    let limit: u64 = machine.host.run("sh", &["-c", &read])?.trim().parse()?;
    assert_eq!(limit, (kib(capacity) - 512 * 1024) * 1024);
    let bound = format!("  nodeName: {}\n", story.node.name());
    a_pod_is_held_too(story, &bound)?;
    for count in 0..8 {
        story.apply(&sleeper(&format!("p{count}"), &bound))?;
    }
    eventually("one of eight is too many", || {
        let pods = story.get("pods").ok()?;
        let reasons = pods["items"].as_array()?.iter().map(|pod| text(&pod["status"]["reason"]).to_owned());
        (reasons.filter(|reason| reason == "OutOfpods").count() == 1).then_some(())
    })?;
    // One that the node needs more takes the place of another.
    story.cluster.apply(&format!(
        "{}  priorityClassName: system-node-critical\n",
        sleeper("critical", &bound).replace("{name: critical}", "{name: critical, namespace: kube-system}")
    ))?;
    let critical = ["-n", "kube-system", "wait", "--for=condition=Ready", "pod/critical", "--timeout=60s"];
    story.cluster.kubectl(&critical)?;
    eventually("one has made room", || {
        let pods = story.get("pods").ok()?;
        let reasons = pods["items"].as_array()?.iter().map(|pod| text(&pod["status"]["reason"]).to_owned());
        (reasons.filter(|reason| reason == "Preempting").count() == 1).then_some(())
    })?;
    story.cluster.kubectl(&["-n", "kube-system", "delete", "pod", "critical"]).map(drop)
}

/// `pid` of the reservations, podPidsLimit and seccompDefault.
fn a_pod_is_held_too(story: &ClusterStory, bound: &str) -> Result<()> {
    story.apply(&sleeper("held", bound))?;
    story.ready("held")?;
    let mode = story.exec("held", "grep Seccomp: /proc/1/status | tr -d '[:space:]'")?;
    ensure!(mode.trim() == "Seccomp:2", "{mode}");
    let forks =
        "(for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 2 & done; wait) 2>&1; true";
    let said = story.exec("held", forks)?;
    ensure!(said.contains("can't fork"), "{said}");
    let (machine, pod) = (&story.node.machine, story.get("pod/held")?);
    let read = format!(
        "cd /sys/fs/cgroup/pids{0}/kubepods 2>/dev/null || cd /sys/fs/cgroup{0}/kubepods; cat pids.max besteffort/pod{1}/pids.max; \
         sort -n /proc/sys/kernel/pid_max /proc/sys/kernel/threads-max | head -n 1",
        machine.cgroup,
        text(&pod["metadata"]["uid"])
    );
    let told = machine.host.run("sh", &["-c", &read])?;
    let numbers: Vec<u64> = told.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(numbers == [numbers[2] - 1500, 20, numbers[2]], "{told}");
    story.kubectl(&["delete", "pod", "held", "--wait", "--timeout=60s"]).map(drop)
}

fn with_memory_short_the_greediest_pod_is_evicted(story: &ClusterStory) -> Result<()> {
    let node = format!("node/{}", story.node.name());
    let capacity = story.node.object(story.cluster)?["status"]["capacity"]["memory"].clone();
    assert_eq!(capacity, "384Mi", "the limit of its cgroup");
    story.apply(
        &sleeper("modest", "").replace("command:", "resources: {requests: {memory: 20Mi}}, command:"),
    )?;
    story.ready("modest")?;
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: greedy}}
spec:
  containers:
  - name: main
    image: {AGNHOST}
    args: [stress, --mem-total, '300000000', --mem-alloc-size, '5000000', --mem-alloc-sleep, 50ms]
"
    ))?;
    story.wait("pod/greedy", "jsonpath={.status.phase}=Failed")?;
    let greedy = story.get("pod/greedy")?;
    assert_eq!(greedy["status"]["reason"], "Evicted", "{}", greedy["status"]);
    let message = text(&greedy["status"]["message"]).to_owned();
    ensure!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: 100Mi, available: "),
        "{message}"
    );
    ensure!(message.contains("Container main was using "), "{message}");
    let disruption = condition(&greedy, "DisruptionTarget");
    assert_eq!(
        (&disruption["status"], &disruption["reason"]),
        (&"True".into(), &"TerminationByKubelet".into())
    );
    let selector = "--field-selector=involvedObject.name=greedy,reason=Evicted";
    ensure!(!story.kubectl(&["get", "events", selector, "-o", "name"])?.is_empty(), "no event");
    // The node says so, and the cluster keeps new pods away, until it is over.
    story.cluster.kubectl(&["wait", "--for=condition=MemoryPressure=True", &node, "--timeout=60s"])?;
    let tainted = || {
        let node = story.node.object(story.cluster).ok()?;
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        Some(taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/memory-pressure"))
    };
    eventually("the node is tainted", || tainted().filter(|tainted| *tainted).map(drop))?;
    story.cluster.kubectl(&["wait", "--for=condition=MemoryPressure=False", &node, "--timeout=90s"])?;
    eventually("the taint is gone", || tainted().filter(|tainted| !*tainted).map(drop))?;
    let modest = story.get("pod/modest")?;
    assert_eq!(condition(&modest, "Ready")["status"], "True", "{}", modest["status"]);
    assert_eq!(modest["status"]["containerStatuses"][0]["restartCount"], 0);
    Ok(())
}

fn a_pod_that_asks_for_what_is_not_done_fails_and_the_others_run(story: &ClusterStory) -> Result<()> {
    for (name, more, field) in [
        (
            "claims",
            "  volumes: [{name: v, persistentVolumeClaim: {claimName: none}}]\n",
            "spec.volumes[].persistentVolumeClaim",
        ),
        (
            "network-files",
            "  volumes: [{name: v, nfs: {server: 192.0.2.9, path: /}}]\n",
            "spec.volumes[].nfs",
        ),
        ("apparmor", "  securityContext: {appArmorProfile: {type: RuntimeDefault}}\n", "AppArmor"),
    ] {
        story.apply(&sleeper(name, &format!("  nodeName: {}\n{more}", story.node.name())))?;
        story.wait(&format!("pod/{name}"), "jsonpath={.status.phase}=Failed")?;
        let status = story.get(&format!("pod/{name}"))?["status"].clone();
        ensure!(text(&status["message"]).contains(field), "{status}");
    }
    story.apply(&sleeper("ordinary", ""))?;
    story.ready("ordinary")?;
    assert_eq!(condition(&story.node.object(story.cluster)?, "Ready")["status"], "True");
    Ok(())
}

fn twenty_pods_run_among_two_thousand_of_others(story: &ClusterStory) -> Result<()> {
    let pod = |name: &str, whose: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{whose: {whose}}}}}, spec: {{{}, terminationGracePeriodSeconds: 1, automountServiceAccountToken: false, containers: [{{name: main, image: '{BUSYBOX}', command: [sleep, '1000']}}]}}}}",
            if whose == "ours" {
                format!("nodeName: {}", story.node.name())
            } else {
                "schedulerName: nobody".to_owned()
            }
        )
    };
    let mut all: Vec<String> = (0..2_000).map(|count| pod(&format!("theirs-{count}"), "theirs")).collect();
    for count in 0..20 {
        all.insert(count * 100, pod(&format!("ours-{count}"), "ours"));
    }
    let file = story.cluster.control_plane.machine().host.path().join("many.yaml");
    std::fs::write(&file, format!("{{apiVersion: v1, kind: List, items: [{}]}}", all.join(",\n")))?;
    story.kubectl(&["create", "-f", &file.to_string_lossy()])?;
    story.kubectl(&["wait", "--for=condition=Ready", "pods", "-l", "whose=ours", "--timeout=120s"])?;
    let pods = story.get("pods")?;
    let told =
        pods["items"].as_array().context("pods")?.iter().filter(|pod| pod["status"]["startTime"].is_string());
    assert_eq!(told.count(), 20, "nobody else's");
    story.kubectl(&["delete", "pods", "-l", "whose=ours", "--timeout=120s"])?;
    story.kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false"]).map(drop)
}

fn a_pod_that_wants_the_cluster_s_name_server_is_told_that_there_is_none(story: &ClusterStory) -> Result<()> {
    story.apply(&sleeper("asking", ""))?;
    story.ready("asking")?;
    let selector = "--field-selector=involvedObject.name=asking,reason=MissingClusterDNS";
    eventually("it is told", || {
        let events =
            story.kubectl(&["get", "events", selector, "-o", "jsonpath={.items[*].message}"]).ok()?;
        events.contains("kubelet does not have ClusterDNS IP configured").then_some(())
    })
}

/// A node that was not told where the cluster's name server is.
fn nameless() -> NodeSettings {
    NodeSettings { kubelet: json!({ "clusterDNS": [] }), ..NodeSettings::default() }
}

/// A node with 384 MiB that evicts below 100 MiB.
fn small() -> NodeSettings {
    let kubelet = json!({
        "evictionHard": { "memory.available": "100Mi" }, "evictionPressureTransitionPeriod": "10s",
    });
    NodeSettings { kubelet, memory: Some(384 << 20), ..NodeSettings::default() }
}

/// Each on a node of its own.
mod on_a_podwright_of_its_own {
    use super::*;

    #[test]
    #[ignore = "needs a cluster"]
    fn with_memory_short_the_greediest_pod_is_evicted() {
        special(
            NodeKind::Podwright,
            "small",
            &small(),
            super::with_memory_short_the_greediest_pod_is_evicted,
        );
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn a_pod_that_wants_the_cluster_s_name_server_is_told_that_there_is_none() {
        let told = super::a_pod_that_wants_the_cluster_s_name_server_is_told_that_there_is_none;
        special(NodeKind::Podwright, "nameless", &nameless(), told);
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn twenty_pods_run_among_two_thousand_of_others() {
        let told = super::twenty_pods_run_among_two_thousand_of_others;
        story::tell(NodeKind::Podwright, "twenty_pods_run_among_two_thousand", told);
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn a_shorter_grace_ends_a_pod_sooner() {
        let told = super::a_shorter_grace_ends_a_pod_sooner;
        story::tell(NodeKind::Podwright, "a_shorter_grace_ends_a_pod_sooner", told);
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn a_pod_that_asks_for_what_is_not_done_fails_and_the_others_run() {
        let told = super::a_pod_that_asks_for_what_is_not_done_fails_and_the_others_run;
        story::tell(NodeKind::Podwright, "a_pod_that_asks_for_what_is_not_done_fails", told);
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn what_does_not_tolerate_a_taint_is_evicted() {
        let settings = NodeSettings::default();
        special(NodeKind::Podwright, "tainted", &settings, super::what_does_not_tolerate_a_taint_is_evicted);
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn a_node_keeps_what_is_reserved() {
        special(NodeKind::Podwright, "reserving", &reserving(), super::a_node_keeps_what_is_reserved);
    }
}

/// The same on the reference.
mod on_a_stock_of_its_own {
    use super::*;

    #[test]
    #[ignore = "needs a cluster"]
    fn a_pod_that_wants_the_cluster_s_name_server_is_told_that_there_is_none() {
        let told = super::a_pod_that_wants_the_cluster_s_name_server_is_told_that_there_is_none;
        special(NodeKind::Stock, "nameless", &nameless(), told);
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn what_does_not_tolerate_a_taint_is_evicted() {
        let settings = NodeSettings::default();
        special(NodeKind::Stock, "tainted", &settings, super::what_does_not_tolerate_a_taint_is_evicted);
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn a_node_keeps_what_is_reserved() {
        special(NodeKind::Stock, "reserving", &reserving(), super::a_node_keeps_what_is_reserved);
    }
}

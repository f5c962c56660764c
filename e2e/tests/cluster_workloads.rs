//! What a user of a cluster does in the first week, by kubectl, on our node and, as the check that the story is right, on
//! the stock kubelet with containerd: running things, keeping them running, and changing them.

use anyhow::{Context, Result, ensure};
use e2e::cluster::ClusterStory;
use e2e::cluster::images::{AGNHOST, BUSYBOX};
use e2e::cluster::story::{condition, text};
use e2e::test_host::eventually;
use serde_json::Value;

e2e::cluster_stories![
    a_node_registers_with_what_it_has,
    a_pod_runs_logs_and_is_deleted,
    a_pod_gets_another_image,
    a_deployment_rolls_out_and_scales_to_twenty_and_back,
    a_job_and_a_cron_jobs_job_complete,
    a_stateful_set_keeps_its_names,
    a_daemon_set_runs_on_the_node,
    a_static_pod_has_a_mirror,
];

/// Kubernetes' notation of bytes, as far as nodes write it.
fn bytes(quantity: &Value) -> u64 {
    let quantity = text(quantity);
    let (number, factor) = match quantity.strip_suffix("Ki") {
        Some(number) => (number, 1024),
        None => (quantity, 1),
    };
    number.parse::<u64>().unwrap_or_default() * factor
}

fn a_node_registers_with_what_it_has(story: &ClusterStory) -> Result<()> {
    let node = story.node.object(story.cluster)?;
    let name = story.node.name();
    assert_eq!(condition(&node, "Ready")["status"], "True");
    for pressure in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert_eq!(condition(&node, pressure)["status"], "False", "{pressure}");
    }
    let labels = &node["metadata"]["labels"];
    assert_eq!(labels["kubernetes.io/hostname"], name);
    assert_eq!(
        (&labels["kubernetes.io/os"], &labels["beta.kubernetes.io/os"]),
        (&"linux".into(), &"linux".into())
    );
    let addresses = node["status"]["addresses"].as_array().context("addresses")?;
    let address =
        |kind: &str| addresses.iter().find(|one| one["type"] == kind).map(|one| text(&one["address"]));
    assert_eq!(address("InternalIP"), Some(story.node.machine.address.as_str()));
    assert_eq!(address("Hostname"), Some(name));
    let (capacity, allocatable) = (&node["status"]["capacity"], &node["status"]["allocatable"]);
    assert_eq!((&capacity["pods"], &allocatable["pods"]), (&"110".into(), &"110".into()));
    assert!(bytes(&capacity["memory"]) > 1 << 29, "{capacity}");
    assert!(bytes(&allocatable["memory"]) <= bytes(&capacity["memory"]), "{allocatable}");
    for resource in ["cpu", "ephemeral-storage", "hugepages-2Mi"] {
        assert!(capacity[resource].is_string(), "{resource} in {capacity}");
    }
    let info = &node["status"]["nodeInfo"];
    assert!(text(&info["kubeletVersion"]).starts_with('v'), "{info}");
    assert!(text(&info["containerRuntimeVersion"]).contains("://"), "{info}");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    assert_eq!(text(&info["kernelVersion"]), kernel.trim());
    assert!(text(&node["spec"]["podCIDR"]).starts_with("10.244."), "{}", node["spec"]);
    // It tells that it lives by renewing its Lease.
    let lease = || story.cluster.get(&["-n", "kube-node-lease", &format!("lease/{name}")]);
    let before = lease()?["spec"]["renewTime"].clone();
    eventually("the lease is renewed", || (lease().ok()?["spec"]["renewTime"] != before).then_some(()))
}

fn a_pod_runs_logs_and_is_deleted(story: &ClusterStory) -> Result<()> {
    let image = format!("--image={BUSYBOX}");
    story.kubectl(&[
        "run",
        "hello",
        &image,
        "--restart=Never",
        "--",
        "sh",
        "-c",
        "echo hello $HOSTNAME; exec sleep 1000",
    ])?;
    story.ready("hello")?;
    assert_eq!(story.kubectl(&["logs", "hello"])?, "hello hello\n");
    let pod = story.get("pod/hello")?;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(text(&pod["status"]["hostIP"]), story.node.machine.address);
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&pod, kind)["status"], "True", "{kind}");
    }
    let reasons = events(story, "hello")?;
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(reasons.contains(&reason.to_owned()), "{reason} in {reasons:?}");
    }
    story.kubectl(&["delete", "pod", "hello", "--grace-period=1", "--timeout=60s"])?;
    ensure!(story.get("pod/hello").is_err(), "the pod is still there");
    Ok(())
}

/// The container is replaced in its pod, whatever its restart policy.
fn a_pod_gets_another_image(story: &ClusterStory) -> Result<()> {
    for policy in ["Always", "Never"] {
        let name = format!("is-{}", policy.to_lowercase());
        story.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: {policy}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '100000']}}]
"
        ))?;
        story.ready(&name)?;
        let before = story.get(&format!("pod/{name}"))?;
        story.kubectl(&["set", "image", &format!("pod/{name}"), &format!("main={AGNHOST}")])?;
        story.wait(&format!("pod/{name}"), "jsonpath={.status.containerStatuses[0].restartCount}=1")?;
        story.ready(&name)?;
        let after = story.get(&format!("pod/{name}"))?;
        let of = |pod: &Value, field: &str| pod["status"]["containerStatuses"][0][field].clone();
        assert_eq!(of(&after, "image"), AGNHOST, "{policy}");
        assert_ne!(of(&after, "imageID"), of(&before, "imageID"), "{policy}");
        assert_eq!(after["status"]["podIP"], before["status"]["podIP"], "its sandbox stays: {policy}");
        let selector = format!("--field-selector=involvedObject.name={name},reason=Killing");
        let told = story.kubectl(&["get", "events", &selector, "-o", "jsonpath={.items[*].message}"])?;
        assert_eq!(told, "Container main definition changed, will be restarted", "{policy}");
    }
    Ok(())
}

/// The reasons of an object's events, each once.
fn events(story: &ClusterStory, object: &str) -> Result<Vec<String>> {
    let selector = format!("--field-selector=involvedObject.name={object}");
    let text = story.kubectl(&[
        "get",
        "events",
        &selector,
        "-o",
        "jsonpath={range .items[*]}{.reason}{'\\n'}{end}",
    ])?;
    let mut reasons: Vec<String> = text.lines().map(str::to_owned).collect();
    reasons.dedup();
    Ok(reasons)
}

fn a_deployment_rolls_out_and_scales_to_twenty_and_back(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: {AGNHOST}
        args: [netexec, --http-port=8080]
        env: [{{name: RELEASE, value: one}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"
    ))?;
    let rolled = || story.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    rolled()?;
    story.kubectl(&["set", "env", "deployment/web", "RELEASE=two"])?;
    rolled()?;
    let pods = || story.get("pods");
    let releases = pods()?["items"]
        .as_array()
        .context("pods")?
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| text(&pod["spec"]["containers"][0]["env"][0]["value"]).to_owned())
        .collect::<Vec<_>>();
    assert_eq!(releases, ["two", "two", "two"]);
    story.kubectl(&["scale", "deployment/web", "--replicas=20"])?;
    story.wait("deployment/web", "jsonpath={.status.readyReplicas}=20")?;
    let all = pods()?;
    let mut addresses: Vec<&str> = all["items"]
        .as_array()
        .context("pods")?
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| text(&pod["status"]["podIP"]))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 20, "each has an address of its own");
    story.kubectl(&["scale", "deployment/web", "--replicas=0"])?;
    story.kubectl(&["wait", "--for=delete", "pods", "-l", "app=web", "--timeout=120s"]).map(drop)
}

fn a_job_and_a_cron_jobs_job_complete(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: sum}}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{{name: sum, image: {BUSYBOX}, command: [sh, -c, 'echo $((6 * 7))']}}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {{name: nightly}}
spec:
  schedule: '0 3 * * *'
  jobTemplate:
    spec:
      backoffLimit: 3
      template:
        spec:
          restartPolicy: OnFailure
          # Fails once: the node starts the container again in the same pod.
          containers:
          - name: try
            image: {BUSYBOX}
            command: [sh, -c, '[ -e /tries/1 ] || {{ touch /tries/1; exit 1; }}; echo again']
            volumeMounts: [{{name: tries, mountPath: /tries}}]
          volumes: [{{name: tries, emptyDir: {{}}}}]
"
    ))?;
    story.kubectl(&["create", "job", "--from=cronjob/nightly", "tonight"])?;
    story.wait("job/sum", "condition=Complete")?;
    story.wait("job/tonight", "condition=Complete")?;
    assert_eq!(story.get("job/sum")?["status"]["succeeded"], 3);
    assert_eq!(story.kubectl(&["logs", "job/sum"])?, "42\n");
    let pods = story.kubectl(&[
        "get",
        "pods",
        "-l",
        "job-name=tonight",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[0].restartCount}",
    ])?;
    assert_eq!(pods, "1");
    let ips = ["get", "pods", "-l", "job-name=sum", "-o", "jsonpath={range .items[*]}[{.status.podIP}]{end}"];
    let ips = story.kubectl(&ips)?;
    ensure!(ips.matches("[10.244.").count() == 3, "pods that have ended keep the address they had: {ips}");
    Ok(())
}

fn a_stateful_set_keeps_its_names(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: db}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 3
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: db
        image: {BUSYBOX}
        command: [sh, -c, 'hostname -f; exec sleep 1000']
        volumeMounts: [{{name: data, mountPath: /data}}]
      volumes: [{{name: data, emptyDir: {{}}}}]
"
    ))?;
    story.wait("statefulset/db", "jsonpath={.status.readyReplicas}=3")?;
    let domain = format!("db.{}.svc.cluster.local", story.namespace);
    for pod in ["db-0", "db-1", "db-2"] {
        assert_eq!(story.kubectl(&["logs", pod])?.trim(), format!("{pod}.{domain}"));
    }
    let before = story.get("pod/db-1")?["metadata"]["uid"].clone();
    story.kubectl(&["delete", "pod", "db-1"])?;
    eventually("db-1 is another pod of the same name", || {
        (story.get("pod/db-1").ok()?["metadata"]["uid"] != before).then_some(())
    })?;
    story.ready("db-1")?;
    story.kubectl(&["scale", "statefulset/db", "--replicas=1"])?;
    story.wait("pod/db-1", "delete")?;
    ensure!(story.get("pod/db-2").is_err(), "the last one goes first");
    Ok(())
}

fn a_daemon_set_runs_on_the_node(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: agent}}
spec:
  selector: {{matchLabels: {{app: agent}}}}
  template:
    metadata: {{labels: {{app: agent}}}}
    spec:
      terminationGracePeriodSeconds: 1
      hostNetwork: true
      nodeSelector: {{kubernetes.io/hostname: {}}}
      containers:
      - name: agent
        image: {BUSYBOX}
        command: [sh, -c, 'echo on $NODE at $ADDRESS; exec sleep 1000']
        env:
        - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
        - {{name: ADDRESS, valueFrom: {{fieldRef: {{fieldPath: status.hostIP}}}}}}
",
        story.node.name()
    ))?;
    story.kubectl(&["rollout", "status", "daemonset/agent", "--timeout=120s"])?;
    let machine = &story.node.machine;
    let expected = format!("on {} at {}\n", machine.name, machine.address);
    assert_eq!(story.kubectl(&["logs", "daemonset/agent"])?, expected);
    let pod = story.get("pods")?["items"][0].clone();
    assert_eq!(text(&pod["status"]["podIP"]), machine.address, "it has the node's network");
    story.kubectl(&["delete", "pod", text(&pod["metadata"]["name"])])?;
    story.kubectl(&["rollout", "status", "daemonset/agent", "--timeout=120s"]).map(drop)
}

fn a_static_pod_has_a_mirror(story: &ClusterStory) -> Result<()> {
    let (namespace, node) = (&story.namespace, story.node.name());
    let file = story.node.machine.host.path().join("kubernetes/manifests/web.yaml");
    let manifest = format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: fixed, namespace: {namespace}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {BUSYBOX}, command: [sh, -c, 'echo fixed; exec sleep 1000']}}]
"
    );
    std::fs::write(&file, manifest)?;
    let mirror = format!("fixed-{node}");
    story.ready(&mirror)?;
    assert_eq!(story.kubectl(&["logs", &mirror])?, "fixed\n");
    assert_eq!(story.exec(&mirror, "cat /proc/1/comm; hostname")?, format!("sleep\n{mirror}\n"));
    let seen = story.get(&format!("pod/{mirror}"))?;
    let annotations = &seen["metadata"]["annotations"];
    assert!(annotations["kubernetes.io/config.mirror"].is_string(), "{annotations}");
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(seen["metadata"]["ownerReferences"][0]["kind"], "Node");
    // Whoever deletes the mirror does not end the pod: it is shown again, the same container.
    let (uid, container) = (&seen["metadata"]["uid"], &seen["status"]["containerStatuses"][0]["containerID"]);
    story.kubectl(&["delete", "pod", &mirror, "--wait=false"])?;
    let again = eventually("the mirror is back", || {
        let again = story.get(&format!("pod/{mirror}")).ok()?;
        let ready = condition(&again, "Ready")["status"] == "True";
        (ready && again["metadata"]["uid"] != *uid).then_some(again)
    })?;
    assert_eq!(again["status"]["containerStatuses"][0]["containerID"], *container);
    std::fs::remove_file(&file)?;
    story.wait(&format!("pod/{mirror}"), "delete")
}

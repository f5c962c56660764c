//! What becomes of the containers of a pod in a cluster, seen by kubectl: order, probes, hooks, ends, limits, rights and
//! files. Told on our node and on the stock kubelet with containerd.

use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use e2e::cluster::ClusterStory;
use e2e::cluster::images::{AGNHOST, BUSYBOX};
use e2e::cluster::story::text;
use e2e::test_host::eventually;
use serde_json::Value;

e2e::cluster_stories![
    probes_gate_the_endpoints_of_a_service,
    health_is_asked_over_grpc,
    init_containers_and_sidecars_keep_their_order,
    a_crashing_container_backs_off_and_tells_its_last_words,
    a_container_beyond_its_memory_is_oom_killed,
    an_end_runs_the_hook_then_the_signal_and_keeps_the_grace,
    a_changed_config_map_reaches_the_file,
    an_init_container_leaves_variables_and_a_name_overrides,
    a_security_context_is_what_the_process_has,
    limits_are_what_the_cgroup_has,
    a_projected_token_works_against_the_api,
    an_image_that_is_not_there_can_be_mended,
];

/// The state of a pod's first container.
fn container(story: &ClusterStory, pod: &str) -> Option<Value> {
    Some(story.get(&format!("pod/{pod}")).ok()?["status"]["containerStatuses"][0].clone())
}

fn probes_gate_the_endpoints_of_a_service(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: {AGNHOST}
    args: [netexec, --http-port=8080]
    startupProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
    readinessProbe: {{exec: {{command: [test, -e, /tmp/open]}}, periodSeconds: 1}}
    livenessProbe: {{exec: {{command: [test, '!', -e, /tmp/dead]}}, periodSeconds: 1, failureThreshold: 2}}
"
    ))?;
    story.wait("pod/web", "jsonpath={.status.containerStatuses[0].started}=true")?;
    let ready = || {
        let slices = story.kubectl(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "jsonpath={.items[0].endpoints[*].conditions.ready}",
        ]);
        slices.unwrap_or_default()
    };
    eventually("the endpoint is there and not ready", || (ready() == "false").then_some(()))?;
    story.exec("web", "touch /tmp/open")?;
    story.ready("web")?;
    eventually("the endpoint is ready", || (ready() == "true").then_some(()))?;
    story.exec("web", "rm /tmp/open")?;
    story.wait("pod/web", "condition=Ready=false")?;
    eventually("the endpoint is not ready again", || (ready() == "false").then_some(()))?;
    story.exec("web", "touch /tmp/dead")?;
    story.wait("pod/web", "jsonpath={.status.containerStatuses[0].restartCount}=1")?;
    story.exec("web", "touch /tmp/open")?;
    story.ready("web")
}

fn health_is_asked_over_grpc(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: healthy}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {AGNHOST}
    args: [grpc-health-checking, --service=db]
    startupProbe: {{grpc: {{port: 5000, service: db}}, periodSeconds: 1, failureThreshold: 100}}
    readinessProbe: {{grpc: {{port: 5000, service: db}}, periodSeconds: 1, failureThreshold: 1}}
  - name: unknown
    image: {AGNHOST}
    args: [grpc-health-checking, --port=5001, --http-port=8081]
    livenessProbe: {{grpc: {{port: 5001, service: web}}, periodSeconds: 1, failureThreshold: 2}}
"
    ))?;
    let ready = || container(story, "healthy").map(|one| one["ready"].clone());
    eventually("the server is healthy", || (ready()? == true).then_some(()))?;
    story.exec("healthy", "curl -sS http://localhost:8080/make-not-serving")?;
    eventually("it says that it is not", || (ready()? == false).then_some(()))?;
    story.exec("healthy", "curl -sS http://localhost:8080/make-serving")?;
    eventually("it is healthy again", || (ready()? == true).then_some(()))?;
    assert_eq!(container(story, "healthy").context("a status")?["restartCount"], 0);
    eventually("who does not know the service that is asked for is killed", || {
        let pod = story.get("pod/healthy").ok()?;
        (pod["status"]["containerStatuses"][1]["restartCount"].as_i64()? > 0).then_some(())
    })?;
    for (kind, said) in [
        ("Readiness", "service unhealthy (responded with \"NOT_SERVING\")"),
        ("Liveness", "rpc error: code = NotFound desc = unknown service"),
    ] {
        let events = story.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"])?;
        ensure!(
            events.contains(&format!("{kind} probe failed: ")) && events.contains(said),
            "{kind}: {said}: {events}"
        );
    }
    Ok(())
}

fn init_containers_and_sidecars_keep_their_order(story: &ClusterStory) -> Result<()> {
    let container = |name: &str, script: &str, more: &str| {
        format!(
            "{{name: {name}, image: {BUSYBOX}, command: [sh, -c, {script:?}], volumeMounts: [{{name: w, mountPath: /w}}]{more}}}"
        )
    };
    let sidecar_end =
        "trap 'echo sidecar ends; exit 0' TERM; echo sidecar >> /w/log; while :; do sleep 0.1; done";
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: ordered}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  volumes: [{{name: w, emptyDir: {{}}}}]
  initContainers:
  - {}
  - {}
  - {}
  containers:
  - {}
",
        container("first", "echo first >> /w/log", ""),
        container(
            "sidecar",
            sidecar_end,
            ", restartPolicy: Always, startupProbe: {exec: {command: [test, -e, /w/log]}, periodSeconds: 1}"
        ),
        container("second", "echo second >> /w/log", ""),
        container("main", "echo main >> /w/log; cat /w/log", ""),
    ))?;
    story.wait("pod/ordered", "jsonpath={.status.phase}=Succeeded")?;
    assert_eq!(story.kubectl(&["logs", "ordered", "-c", "main"])?, "first\nsidecar\nsecond\nmain\n");
    assert_eq!(story.kubectl(&["logs", "ordered", "-c", "sidecar"])?, "sidecar ends\n");
    let status = story.get("pod/ordered")?["status"].clone();
    let reasons: Vec<&str> = status["initContainerStatuses"]
        .as_array()
        .context("init containers")?
        .iter()
        .map(|one| text(&one["state"]["terminated"]["reason"]))
        .collect();
    assert_eq!(reasons, ["Completed", "Completed", "Completed"]);
    Ok(())
}

fn a_crashing_container_backs_off_and_tells_its_last_words(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: crash}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'echo try; echo the reason > /dev/termination-log; exit 3']
"
    ))?;
    // Between two starts: a status that was read a moment later may be one of the next start.
    eventually("the back-off and the last words are told", || {
        let status = container(story, "crash")?;
        let (waiting, last) = (&status["state"]["waiting"], &status["lastState"]["terminated"]);
        let backs_off = waiting["reason"] == "CrashLoopBackOff"
            && text(&waiting["message"]).starts_with("back-off ")
            && status["restartCount"].as_i64() >= Some(1);
        let told = last["exitCode"] == 3 && last["reason"] == "Error" && last["message"] == "the reason\n";
        (backs_off && told).then_some(())
    })?;
    assert_eq!(story.kubectl(&["logs", "crash", "--previous"])?, "try\n");
    eventually("an event tells it", || {
        let selector = "--field-selector=involvedObject.name=crash,reason=BackOff";
        let events =
            story.kubectl(&["get", "events", selector, "-o", "jsonpath={.items[*].message}"]).ok()?;
        events.contains("Back-off restarting failed container main in pod crash").then_some(())
    })
}

fn a_container_beyond_its_memory_is_oom_killed(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: hungry}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'exec tail /dev/zero']
    resources: {{limits: {{memory: 32Mi}}}}
"
    ))?;
    story.wait("pod/hungry", "jsonpath={.status.phase}=Failed")?;
    let ended = container(story, "hungry").context("a status")?["state"]["terminated"].clone();
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&"OOMKilled".into(), &137.into()), "{ended}");
    Ok(())
}

fn an_end_runs_the_hook_then_the_signal_and_keeps_the_grace(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: polite}}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'trap \"echo signal; exit 0\" TERM; echo up; while :; do sleep 0.1; done']
    lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo hook > /proc/1/fd/1']}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: stubborn, finalizers: [podwright.test/look]}}
spec:
  terminationGracePeriodSeconds: 3
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'trap \"echo no\" TERM; echo up; while :; do sleep 0.1; done']
"
    ))?;
    let follow = |pod: &str| -> Result<_> {
        story.ready(pod)?;
        let mut logs = story.kubectl_command(&["logs", "-f", pod]).stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(logs.stdout.take().context("piped")?);
        let mut written = String::new();
        stdout.read_line(&mut written)?;
        Ok((logs, stdout, written))
    };
    let (mut logs, mut stdout, mut written) = follow("polite")?;
    story.kubectl(&["delete", "pod", "polite", "--timeout=60s"])?;
    stdout.read_to_string(&mut written)?;
    logs.wait()?;
    assert_eq!(written, "up\nhook\nsignal\n");

    let (mut logs, mut stdout, mut written) = follow("stubborn")?;
    story.kubectl(&["delete", "pod", "stubborn", "--wait=false"])?;
    // When its grace is over; once it has ended the object says when that was.
    let until = story.get("pod/stubborn")?["metadata"]["deletionTimestamp"].clone();
    story.wait("pod/stubborn", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=137")?;
    stdout.read_to_string(&mut written)?;
    logs.wait()?;
    assert_eq!(written, "up\nno\n");
    let ended = container(story, "stubborn").context("a status")?["state"]["terminated"].clone();
    ensure!(text(&ended["finishedAt"]) >= text(&until), "it lived until {until}: {ended}");
    story.kubectl(&[
        "patch",
        "pod",
        "stubborn",
        "--type=merge",
        "-p",
        "{\"metadata\":{\"finalizers\":null}}",
    ])?;
    story.wait("pod/stubborn", "delete")
}

fn an_init_container_leaves_variables_and_a_name_overrides(story: &ClusterStory) -> Result<()> {
    let from = |key: &str, more: &str| {
        format!("valueFrom: {{fileKeyRef: {{volumeName: config, path: made.env, key: {key}{more}}}}}")
    };
    let pod = |name: &str, env: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  hostnameOverride: db.example.com
  volumes: [{{name: config, emptyDir: {{}}}}]
  initContainers:
  - name: init
    image: {BUSYBOX}
    command: [sh, -c, 'printf \"# made\\nWORD=\\x27of a file\\x27 # comment\\nLINES=\\x27a\\nb\\x27\\n\" > /config/made.env']
    volumeMounts: [{{name: config, mountPath: /config}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'hostname; echo \"$WORD|$LINES|$BOTH|${{NONE-unset}}\"']
    env:
    - {{name: WORD, {env}}}
    - {{name: LINES, {}}}
    - {{name: BOTH, value: $(WORD)!}}
    - {{name: NONE, {}}}
---
",
            from("LINES", ""),
            from("NONE", ", optional: true"),
        )
    };
    story.apply(&[pod("told", &from("WORD", "")), pod("missing", &from("ABSENT", ""))].concat())?;
    story.wait("pod/told", "jsonpath={.status.phase}=Succeeded")?;
    assert_eq!(
        story.kubectl(&["logs", "told", "-c", "main"])?,
        "db.example.com\nof a file|a\nb|of a file!|unset\n"
    );
    eventually("a key that is not there is waited for", || {
        let waiting = container(story, "missing")?["state"]["waiting"].clone();
        let is_told =
            text(&waiting["message"]).contains("environment variable key \"ABSENT\" not found in file");
        (waiting["reason"] == "CreateContainerConfigError" && is_told).then_some(())
    })
}

fn a_changed_config_map_reaches_the_file(story: &ClusterStory) -> Result<()> {
    story.kubectl(&["create", "configmap", "settings", "--from-literal=colour=red"])?;
    story.kubectl(&["create", "secret", "generic", "word", "--from-literal=word=xyzzy"])?;
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: reader}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '1000']
    env: [{{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}]
    volumeMounts:
    - {{name: settings, mountPath: /settings}}
    - {{name: word, mountPath: /word, readOnly: true}}
  volumes:
  - name: settings
    configMap: {{name: settings}}
  - name: word
    secret: {{secretName: word, defaultMode: 0400}}
"
    ))?;
    story.ready("reader")?;
    assert_eq!(
        story.exec(
            "reader",
            "cat /settings/colour; echo; cat /word/word; echo; stat -Lc %a /word/word; echo $COLOUR"
        )?,
        "red\nxyzzy\n400\nred\n"
    );
    story
        .kubectl(&[
            "create",
            "configmap",
            "settings",
            "--from-literal=colour=blue",
            "--dry-run=client",
            "-o",
            "yaml",
        ])
        .and_then(|changed| story.apply(&changed))?;
    // A stock kubelet looks at the volumes again when the pod changes, else once a minute.
    story.kubectl(&["annotate", "pod", "reader", "looked=again"])?;
    eventually("the file says blue", || {
        (story.exec("reader", "cat /settings/colour").ok()? == "blue").then_some(())
    })?;
    assert_eq!(story.exec("reader", "echo $COLOUR")?, "red\n", "the environment does not change");
    Ok(())
}

fn a_security_context_is_what_the_process_has(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: confined}}
spec:
  restartPolicy: Never
  securityContext: {{runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000], seccompProfile: {{type: RuntimeDefault}}}}
  volumes: [{{name: data, emptyDir: {{}}}}]
  containers:
  - name: main
    image: {AGNHOST}
    command: [sh, -c]
    args:
    - |
      id -u; id -g; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '; echo
      grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t' ' '
      touch /data/file && stat -c '%g %a' /data && stat -c '%u %g' /data/file
      touch /file 2>/dev/null || echo read-only
    volumeMounts: [{{name: data, mountPath: /data}}]
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {{drop: [ALL], add: [NET_BIND_SERVICE]}}
"
    ))?;
    story.wait("pod/confined", "jsonpath={.status.phase}=Succeeded")?;
    assert_eq!(
        story.kubectl(&["logs", "confined"])?,
        // The image puts user 1000 into group 50000.
        "1000\n3000\n2000 3000 4000 50000 \n\
         CapEff: 0000000000000000\nCapBnd: 0000000000000400\nNoNewPrivs: 1\nSeccomp: 2\n\
         2000 2777\n1000 2000\nread-only\n"
    );
    // What says root must not run is held to it.
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: root}}
spec:
  containers: [{{name: main, image: {BUSYBOX}, securityContext: {{runAsNonRoot: true}}}}]
"
    ))?;
    story.wait(
        "pod/root",
        "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CreateContainerConfigError",
    )?;
    let message = container(story, "root").context("a status")?["state"]["waiting"]["message"].clone();
    assert!(text(&message).contains("container has runAsNonRoot and image will run as root"), "{message}");
    Ok(())
}

fn limits_are_what_the_cgroup_has(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: small}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '1000']
    resources:
      requests: {{cpu: 250m, memory: 32Mi}}
      limits: {{cpu: 500m, memory: 64Mi}}
"
    ))?;
    story.ready("small")?;
    let v2 = "cat /sys/fs/cgroup/memory.max; cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
    let v1 = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares";
    let script = format!("if [ -e /sys/fs/cgroup/memory.max ]; then {v2}; else {v1}; fi");
    let read = story.exec("small", &script)?;
    ensure!(["67108864\n50000\n256\n", "67108864\n50000\n"].contains(&read.as_str()), "limits: {read}");
    assert_eq!(story.get("pod/small")?["status"]["qosClass"], "Burstable");
    // A pod may be limited as a whole: a container without a limit may have all of it.
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: whole}}
spec:
  terminationGracePeriodSeconds: 1
  resources: {{limits: {{cpu: 500m, memory: 64Mi}}}}
  containers:
  - {{name: main, image: {BUSYBOX}, command: [sleep, '1000']}}
  - {{name: other, image: {BUSYBOX}, command: [sleep, '1000']}}
"
    ))?;
    story.ready("whole")?;
    let read = story.exec("whole", &script)?;
    ensure!(["67108864\n50000\n512\n", "67108864\n50000\n"].contains(&read.as_str()), "limits: {read}");
    assert_eq!(story.get("pod/whole")?["status"]["qosClass"], "Guaranteed");
    Ok(())
}

/// Not on the stock kubelet, which needs a user `kubelet` with ids to give away.
mod users_of_a_pod {
    use e2e::cluster::NodeKind::{Podwright, PodwrightOnContainerd};
    use e2e::cluster::story::tell;

    const NAME: &str = "a_pod_with_users_of_its_own_has_root_inside_only";

    #[test]
    #[ignore = "needs a cluster"]
    fn on_podwright() {
        tell(Podwright, NAME, super::a_pod_with_users_of_its_own_has_root_inside_only);
    }

    #[test]
    #[ignore = "needs a cluster"]
    fn on_containerd() {
        tell(PodwrightOnContainerd, NAME, super::a_pod_with_users_of_its_own_has_root_inside_only);
    }
}

fn a_pod_with_users_of_its_own_has_root_inside_only(story: &ClusterStory) -> Result<()> {
    // runc wants every directory above a root to be open to the container's root.
    let own = story.node.machine.host.path().to_owned();
    for directory in [own.join("containerd"), own].into_iter().filter(|directory| directory.exists()) {
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o711))?;
    }
    let handlers = story.node.object(story.cluster)?["status"]["runtimeHandlers"].clone();
    let handlers = handlers.as_array().context("handlers")?;
    ensure!(handlers.iter().all(|handler| handler["features"]["userNamespaces"] == true), "{handlers:?}");
    story.kubectl(&["create", "secret", "generic", "words", "--from-literal=key=hush"])?;
    for (name, seconds) in [("one", 71_001), ("two", 71_002)] {
        story.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  volumes: [{{name: s, secret: {{secretName: words, defaultMode: 0400}}}}, {{name: e, emptyDir: {{}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '{seconds}']
    volumeMounts: [{{name: s, mountPath: /s}}, {{name: e, mountPath: /e}}]
"
        ))?;
        story.ready(name)?;
    }
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let script =
        format!("id -u; cat /s/key; touch /e/made && stat -c ' %u' /e/made; test -s {token} && echo token");
    assert_eq!(story.exec("one", &script)?, "0\nhush 0\ntoken\n");
    let owner = |seconds: u32| -> Result<u32> {
        let host = &story.node.machine.host;
        let pid = host.run("pgrep", &["-fx", &format!("sleep {seconds}")])?;
        host.run("stat", &["-c", "%u", &format!("/proc/{}", pid.trim())])?.trim().parse().context("an id")
    };
    let ids = [owner(71_001)?, owner(71_002)?];
    ensure!(ids.iter().all(|id| *id >= 1 << 16 && id % (1 << 16) == 0) && ids[0] != ids[1], "{ids:?}");
    Ok(())
}

fn a_projected_token_works_against_the_api(story: &ClusterStory) -> Result<()> {
    story.kubectl(&["create", "role", "reader", "--verb=get,list", "--resource=pods"])?;
    let account = format!("--serviceaccount={}:default", story.namespace);
    story.kubectl(&["create", "rolebinding", "reader", "--role=reader", &account])?;
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {AGNHOST}, args: [pause]}}]
"
    ))?;
    story.ready("client")?;
    let ask = format!(
        "cd /var/run/secrets/kubernetes.io/serviceaccount
         curl -sS --max-time 10 --cacert ca.crt -H \"Authorization: Bearer $(cat token)\" \
         https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/$(cat namespace)/{}",
        "pods/client"
    );
    let pod: Value = serde_json::from_str(&story.exec("client", &ask)?)?;
    assert_eq!(pod["metadata"]["name"], "client", "{pod}");
    let refused: Value =
        serde_json::from_str(&story.exec("client", &ask.replace("pods/client", "secrets"))?)?;
    assert_eq!((&refused["code"], &refused["reason"]), (&403.into(), &"Forbidden".into()), "{refused}");
    Ok(())
}

fn an_image_that_is_not_there_can_be_mended(story: &ClusterStory) -> Result<()> {
    story.kubectl(&["run", "typo", "--image=docker.io/library/busybox:1.73", "--", "sleep", "1000"])?;
    story
        .wait("pod/typo", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ImagePullBackOff")?;
    let message = container(story, "typo").context("a status")?["state"]["waiting"]["message"].clone();
    assert!(text(&message).contains("docker.io/library/busybox:1.73"), "{message}");
    story.kubectl(&["set", "image", "pod/typo", &format!("typo={BUSYBOX}")])?;
    story.ready("typo")
}

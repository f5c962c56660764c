//! A standalone node: manifests become running pods behind Services, files are watched, crashes lose nothing.

use anyhow::{Context, Result};
use e2e::story::{Story, condition, container_id, web_pod};
use e2e::test_host::{NODE_ADDRESS, eventually, text_of};
use e2e::{TestHost, image, parts, requests};

const SERVICES: &str = "apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.80
  selector:
    app: web
  ports:
  - port: 80
    targetPort: 8080
---
apiVersion: v1
kind: Service
metadata:
  name: web-node
spec:
  type: NodePort
  selector:
    app: web
  ports:
  - port: 80
    targetPort: 8080
    nodePort: 30080
";

#[test]
#[ignore = "needs root"]
fn services_spread_over_the_ready_pods() -> Result<()> {
    let story = Story::start(&[
        ("pods.yaml", &["a", "b", "c"].map(|name| web_pod(name, "")).join("---\n")),
        ("services.yaml", SERVICES),
    ])?;
    for name in ["a", "b", "c"] {
        story.ready(name)?;
    }
    for address in ["10.96.0.80".to_owned(), format!("{NODE_ADDRESS}:30080")] {
        eventually("all three answer", || {
            let mut seen: Vec<String> = (0..20).filter_map(|_| story.get(&address)).collect();
            seen.sort();
            seen.dedup();
            (seen == ["a", "b", "c"]).then_some(())
        })
        .with_context(|| {
            format!("{address}:\n{}", story.host.run("iptables-save", &[]).unwrap_or_default())
        })?;
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..150 {
            *counts.entry(story.get(&address).context("an answer")?).or_insert(0) += 1;
        }
        // 150 draws of 1/3: 50 ± 6 standard deviations of 5.8.
        assert!(counts.values().all(|&count| (16..=84).contains(&count)), "{address}: {counts:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let story = Story::start(&[("services.yaml", SERVICES)])?;
    eventually("refused", || {
        let output =
            story.host.command("curl").args(["-s", "--max-time", "5", "http://10.96.0.80/"]).output().ok()?;
        // curl: 7 is "connection refused", 28 a time-out.
        (output.status.code() == Some(7)).then_some(())
    })
}

#[test]
#[ignore = "needs root"]
fn files_added_changed_and_removed_take_effect() -> Result<()> {
    let story = Story::start(&[("a.yaml", &web_pod("a", "")), ("services.yaml", SERVICES)])?;
    let before = story.ready("a")?;
    story.write("b.yaml", &web_pod("b", ""))?;
    story.ready("b")?;
    story.write("a.yaml", &web_pod("a", "").replace("echo a >", "echo changed >"))?;
    story.pod_until("a", "the pod is replaced", |pod| {
        pod["metadata"]["uid"] != before["metadata"]["uid"] && condition(pod, "Ready") == Some("True")
    })?;
    std::fs::remove_file(story.manifests.join("b.yaml"))?;
    eventually("b is gone", || story.object("Pod", "b").is_none().then_some(()))?;
    eventually("only the changed pod answers", || {
        let seen: Vec<String> = (0..10).filter_map(|_| story.get("10.96.0.80")).collect();
        (seen.len() == 10 && seen.iter().all(|name| name == "changed")).then_some(())
    })
}

#[test]
#[ignore = "needs root"]
fn bad_documents_are_told_and_the_others_run() -> Result<()> {
    let text = format!(
        "{}---\napiVersion: v1\nkind: Gadget\nmetadata:\n  name: odd\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: typo\nspec:\n  containres: []\n",
        web_pod("good", "")
    );
    let mut story = Story::start(&[("mixed.yaml", &text), ("broken.yaml", "kind: [Pod\n")])?;
    story.ready("good")?;
    let log = story.node().log();
    for wanted in ["mixed.yaml", "Gadget", "containres", "broken.yaml"] {
        assert!(log.contains(wanted), "no {wanted} in\n{log}");
    }
    assert!(story.object("Pod", "typo").is_none());
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn manifests_that_are_not_there_are_told_and_nothing_is_made() -> Result<()> {
    let host = TestHost::new()?;
    let (root, state) = (host.path().join("root"), host.path().join("state"));
    let missing = host.path().join("typo.yaml");
    let mut command = host.command(parts::podwright());
    command.args(["run", "-f"]).arg(&missing).arg("--root").arg(&root).arg("--state").arg(&state);
    let output = command.output()?;
    assert!(!output.status.success());
    assert!(text_of(&output).contains("typo.yaml: No such file"), "{}", text_of(&output));
    assert!(!root.exists() && !state.exists(), "something was made");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn duplicate_pod_names_are_told_and_one_runs() -> Result<()> {
    let text =
        [web_pod("twin", ""), web_pod("twin", "").replace("echo twin >", "echo second >")].join("---\n");
    let mut story = Story::start(&[("twins.yaml", &text)])?;
    story.ready("twin")?;
    let log = story.node().log();
    assert!(log.contains("twins.yaml document 2") && log.contains("is also in document 1"), "{log}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_missing_image_is_waited_for_with_the_reason() -> Result<()> {
    let pod = web_pod("noimage", "").replace("IMAGE", "registry.test/absent:1");
    let story = Story::start(&[("pod.yaml", &pod), ("good.yaml", &web_pod("good", ""))])?;
    story.pod_until("noimage", "the reason is told", |pod| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        ["ErrImagePull", "ImagePullBackOff"].iter().any(|wanted| reason == wanted)
    })?;
    story.ready("good").map(drop)
}

#[test]
#[ignore = "needs root"]
fn a_crashing_container_is_restarted_with_back_off() -> Result<()> {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: crash\nspec:\n  containers:\n  - name: c\n    image: IMAGE\n    command: [/bin/sh, -c, exit 3]\n";
    let story = Story::start(&[("pod.yaml", pod)])?;
    let pod = story.pod_until("crash", "it backs off", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3, "{status}");
    assert_eq!(pod["status"]["phase"], "Running", "{}", pod["status"]);
    let restarts = status["restartCount"].as_i64().context("a count")?;
    story.pod_until("crash", "it is restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_i64() > Some(restarts)
    })?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn restart_policies_decide_the_phase() -> Result<()> {
    let pod = |name: &str, policy: &str, command: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: {policy}\n  containers:\n  - name: c\n    image: IMAGE\n    command: [/bin/sh, -c, {command}]\n---\n"
        )
    };
    let text = pod("done", "Never", "exit 0")
        + &pod("failed", "Never", "exit 1")
        + &pod("twice", "OnFailure", "exit 0");
    let story = Story::start(&[("pods.yaml", &text)])?;
    for (name, phase) in [("done", "Succeeded"), ("failed", "Failed"), ("twice", "Succeeded")] {
        story.pod_until(name, phase, |pod| pod["status"]["phase"] == phase)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn readiness_gates_the_endpoints_and_liveness_restarts() -> Result<()> {
    let gated = web_pod(
        "gated",
        "    readinessProbe:
      exec:
        command: [test, -e, /tmp/ready]
      periodSeconds: 1
    livenessProbe:
      httpGet:
        path: /
        port: http
      periodSeconds: 1
      failureThreshold: 2
",
    );
    let story = Story::start(&[("gated.yaml", &gated), ("services.yaml", SERVICES)])?;
    let pod = story.pod_until("gated", "it runs unready", |pod| {
        pod["status"]["phase"] == "Running" && condition(pod, "Ready") == Some("False")
    })?;
    assert!(story.get("10.96.0.80").is_none(), "an unready pod is no endpoint");
    let id = container_id(&pod)?;
    story.exec(&id, "touch /tmp/ready")?;
    story.ready("gated")?;
    eventually("the Service answers", || story.get("10.96.0.80").filter(|name| name == "gated").map(drop))?;
    story.exec(&id, "rm /tmp/www/index.html")?;
    story.pod_until("gated", "liveness restarts it", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
    })?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn volumes_environment_and_identity_reach_the_container() -> Result<()> {
    let text = "apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
data:
  color: green
---
apiVersion: v1
kind: Secret
metadata:
  name: hidden
stringData:
  token: s3cret
---
apiVersion: v1
kind: Pod
metadata:
  name: rich
spec:
  hostname: richhost
  restartPolicy: Never
  volumes:
  - name: scratch
    emptyDir: {}
  - name: settings
    configMap:
      name: settings
  - name: hidden
    secret:
      secretName: hidden
      defaultMode: 0400
  containers:
  - name: c
    image: IMAGE
    command: [/bin/sh, -c]
    args:
    - |
      cat /settings/color; echo; cat /hidden/token; echo
      stat -L -c %a /hidden/token
      echo x > /scratch/f && cat /scratch/f
      echo $(GREETING) $GREETING
      id -u; hostname; grep -c rich /etc/hosts
      (echo x > /etc/x) 2>/dev/null || echo readonly
      cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max
      grep ^CapEff /proc/self/status
    env:
    - name: GREETING
      value: hello
    resources:
      requests:
        cpu: 100m
        memory: 32Mi
      limits:
        memory: 64Mi
    securityContext:
      runAsUser: 0
      readOnlyRootFilesystem: true
      capabilities:
        drop: [ALL]
        add: [KILL]
      seccompProfile:
        type: RuntimeDefault
    volumeMounts:
    - name: scratch
      mountPath: /scratch
    - name: settings
      mountPath: /settings
    - name: hidden
      mountPath: /hidden
";
    let story = Story::start(&[("rich.yaml", text)])?;
    let pod = story.pod_until("rich", "it ends", |pod| pod["status"]["phase"] == "Succeeded")?;
    assert_eq!(pod["status"]["qosClass"], "Burstable");
    let log =
        eventually("its log is there", || story.logs(&pod).ok().filter(|text| text.contains("CapEff")))?;
    let wanted =
        "green\ns3cret\n400\nx\nhello hello\n0\nrichhost\n1\nreadonly\n67108864\nCapEff:\t0000000000000020\n";
    assert_eq!(log, wanted);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn killing_the_agent_loses_nothing() -> Result<()> {
    let ticking = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: ticking\nspec:\n  containers:\n  - name: c\n    image: IMAGE\n    command: [/bin/sh, -c, 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done']\n";
    let mut story =
        Story::start(&[("pod.yaml", ticking), ("a.yaml", &web_pod("a", "")), ("services.yaml", SERVICES)])?;
    let before = story.ready("ticking")?;
    story.ready("a")?;
    let id = container_id(&before)?;
    let (pid, started) = story.facts(&id)?;
    let rules = story.host.run("iptables-save", &["-t", "nat"])?;

    story.node().crash();
    let lines = log_lines(&story)?;
    eventually("the log grows without an agent", || (log_lines(&story).ok()? > lines + 5).then_some(()))?;
    assert!(story.get("10.96.0.80").is_some(), "the Service works without an agent");
    story.restart()?;

    let after = story.ready("ticking")?;
    assert_eq!(container_id(&after)?, id);
    assert_eq!(story.facts(&id)?, (pid, started));
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(after["status"]["startTime"], before["status"]["startTime"]);
    let pods = story.status()?["items"]
        .as_array()
        .context("items")?
        .iter()
        .filter(|item| item["kind"] == "Pod")
        .count();
    assert_eq!(pods, 2);
    let text = std::fs::read_to_string(story.log_path("ticking")?)?;
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is lost or repeated");
    let counters = |text: &str| {
        text.lines().filter(|line| line.starts_with("-A KUBE-S")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(counters(&story.host.run("iptables-save", &["-t", "nat"])?), counters(&rules));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn removing_a_pod_and_resetting_leave_nothing() -> Result<()> {
    let mut story = Story::start(&[("a.yaml", &web_pod("a", "")), ("services.yaml", SERVICES)])?;
    story.ready("a")?;
    let cgroup_root = story.node().cgroup_root().to_owned();
    let refused = story.node.as_ref().context("the node")?.command(&story.host, &["reset"]).output()?;
    assert!(!refused.status.success(), "reset refuses while an agent runs: {}", text_of(&refused));
    // A mistyped root is nobody's: the cgroups that it would share stay as they are.
    let mistyped = ["--root", "/no/such/root", "--state", "/no/such/state", "--cgroup-root", &cgroup_root];
    let told = story.host.run(parts::podwright(), &[&["reset"], mistyped.as_slice()].concat())?;
    assert!(told.contains("there is no node in /no/such/root"), "{told}");
    assert_eq!(condition(&story.object("Pod", "a").context("the pod")?, "Ready"), Some("True"));
    let node = story.node.take().context("the node")?;
    let state = node.state();
    node.reset(&story.host);
    let rules = story.host.run("iptables-save", &[])?;
    assert!(["KUBE-", "CNI-", "PODWRIGHT-"].iter().all(|prefix| !rules.contains(prefix)), "{rules}");
    assert!(!story.host.run("ip", &["-o", "link"])?.contains("veth"), "a veth is left");
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let left = hierarchy.path().join(cgroup_root.trim_start_matches('/'));
        assert!(!left.exists(), "{} is left", left.display());
    }
    assert!(!state.join("sandboxes").exists() || std::fs::read_dir(state.join("sandboxes"))?.count() == 0);
    Ok(())
}

fn log_lines(story: &Story) -> Result<usize> {
    Ok(std::fs::read_to_string(story.log_path("ticking")?)?.lines().count())
}

/// The harness's requests and the manifests of this file name the same image.
#[test]
fn stories_use_the_image_that_the_harness_imports() {
    let container = requests::container("c", &["true"]);
    assert_eq!(container.image.map(|image| image.image).as_deref(), Some(image::BUSYBOX));
}

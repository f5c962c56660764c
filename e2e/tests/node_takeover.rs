//! The agent is killed and started again: the same command takes over what runs, and nothing flips meanwhile.

use anyhow::{Context, Result};
use e2e::Story;
use e2e::story::{condition, container_id, web_pod};
use e2e::test_host::{eventually, output_of};
use serde_json::Value;

const SERVICE: &str = "apiVersion: v1
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
";

fn since<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    let mut conditions = pod["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == kind)?["lastTransitionTime"].as_str()
}

/// The rules that lead a Service to its endpoints.
fn rules(story: &Story) -> Result<Vec<String>> {
    let text = story.host.run("iptables-save", &["-t", "nat"])?;
    Ok(text.lines().filter(|line| line.starts_with("-A KUBE-S")).map(str::to_owned).collect())
}

#[test]
#[ignore = "needs root"]
fn a_probed_pod_stays_an_endpoint_over_kill_and_restart() -> Result<()> {
    // The startup probe would fail now, and readiness is not asked again for an hour: only what is remembered keeps it.
    let probes = "    startupProbe:
      exec:
        command: [/bin/sh, -c, 'test ! -e /tmp/once && touch /tmp/once']
      periodSeconds: 1
    readinessProbe:
      exec:
        command: [/bin/sh, -c, 'test ! -e /tmp/asked && touch /tmp/asked']
      periodSeconds: 3600
";
    let mut story = Story::start(&[("pod.yaml", &web_pod("kept", probes)), ("service.yaml", SERVICE)])?;
    let before = story.ready("kept")?;
    eventually("the Service answers", || story.get("10.96.0.80").map(drop))?;
    let programmed = rules(&story)?;

    // A connection per millisecond or so, all the time.
    let stop = story.host.path().join("stop");
    let script = "while [ ! -e $0 ]; do nc -w 5 10.96.0.80 80 -e true || echo lost; done; echo over";
    let mut watcher = story.host.command("/bin/busybox");
    watcher.args(["sh", "-c", script]).arg(&stop);
    let watcher = std::thread::spawn(move || output_of(&mut watcher));
    story.node().crash();
    story.restart()?;
    let after = eventually("the pod is told of", || story.object("Pod", "kept"))?;
    assert_eq!(condition(&after, "Ready"), Some("True"), "{}", after["status"]);
    story.ready("kept")?;
    eventually("the proxy has settled", || (rules(&story).ok()? == programmed).then_some(()))?;
    std::fs::write(&stop, "")?;
    let watched = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    assert_eq!(watched.trim(), "over", "a connection was refused meanwhile");

    let after = story.ready("kept")?;
    for kind in ["Ready", "ContainersReady", "Initialized"] {
        assert_eq!(since(&after, kind), since(&before, kind), "{kind} has flipped");
    }
    assert_eq!(container_id(&after)?, container_id(&before)?);
    let status = &after["status"]["containerStatuses"][0];
    assert_eq!((&status["restartCount"], &status["started"]), (&0.into(), &true.into()), "{status}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_crash_loop_goes_on_waiting() -> Result<()> {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: crash\nspec:\n  containers:\n  - name: c\n    image: IMAGE\n    command: [/bin/sh, -c, exit 3]\n";
    let mut story = Story::start(&[("pod.yaml", pod)])?;
    let waits = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    };
    let before = story.pod_until("crash", "it backs off", waits)?;
    story.node().crash();
    story.restart()?;
    let after = eventually("the pod is told of", || story.object("Pod", "crash"))?;
    let status = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
    assert_eq!(status(&after), status(&before), "the same count, the same back-off, the same last exit");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_was_ending_goes_on_ending() -> Result<()> {
    let pod = |log: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: ending
spec:
  volumes:
  - name: w
    hostPath:
      path: {log}
  containers:
  - name: c
    image: IMAGE
    command: [/bin/sh, -c, 'trap \"echo end >> /w/log; exit 0\" TERM; while :; do sleep 0.05; done']
    lifecycle:
      preStop:
        exec:
          command: [/bin/sh, -c, 'echo pre >> /w/log; while [ ! -e /w/go ]; do sleep 0.05; done; echo over >> /w/log']
    volumeMounts:
    - name: w
      mountPath: /w
"
        )
    };
    let mut story = Story::start(&[])?;
    let shared = story.host.path().join("shared");
    std::fs::create_dir(&shared)?;
    story.write("pod.yaml", &pod(&shared.display().to_string()))?;
    story.ready("ending")?;
    let log = || std::fs::read_to_string(shared.join("log")).unwrap_or_default();
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    eventually("the hook has begun", || log().contains("pre").then_some(()))?;
    let before =
        story.pod_until("ending", "it is ending", |pod| pod["metadata"]["deletionTimestamp"].is_string())?;
    story.node().crash();
    story.restart()?;
    let after = eventually("it is still ending", || story.object("Pod", "ending"))?;
    let deadline = |pod: &Value| pod["metadata"]["deletionTimestamp"].clone();
    assert_eq!(deadline(&after), deadline(&before), "its grace does not begin again");
    std::fs::write(shared.join("go"), "")?;
    eventually("it is gone", || {
        story.status().ok().filter(|_| story.object("Pod", "ending").is_none()).map(drop)
    })?;
    let text = log();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"end"), "the signal came after the hook: {lines:?}");
    assert!(lines.contains(&"over"), "{lines:?}");
    assert_eq!(story.crictl(&["ps", "-a", "-q"])?.trim(), "");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pod_whose_manifest_goes_while_no_agent_is_there_ends_in_good_order() -> Result<()> {
    let mut story = Story::start(&[])?;
    let shared = story.host.path().join("shared");
    std::fs::create_dir(&shared)?;
    let hook = format!(
        "    lifecycle:
      preStop:
        exec:
          command: [/bin/sh, -c, 'echo pre >> /w/log']
    volumeMounts:
    - name: w
      mountPath: /w
  terminationGracePeriodSeconds: 2
  volumes:
  - name: w
    hostPath:
      path: {}
",
        shared.display()
    );
    story.write("pod.yaml", &web_pod("orphan", &hook))?;
    story.ready("orphan")?;
    story.node().crash();
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    story.restart()?;
    eventually("it is gone", || {
        story.crictl(&["pods", "-q"]).ok().filter(|ids| ids.trim().is_empty()).map(drop)
    })?;
    assert_eq!(std::fs::read_to_string(shared.join("log")).context("the hook's log")?, "pre\n");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pod_goes_on_while_its_manifest_cannot_be_read_and_the_agent_starts_again() -> Result<()> {
    let manifest = web_pod("kept", "");
    let mut story = Story::start(&[("pod.yaml", &manifest), ("other.yaml", &web_pod("other", ""))])?;
    let before = story.ready("kept")?;
    story.ready("other")?;
    story.write("pod.yaml", "spec: [")?;
    story.node().crash();
    std::fs::remove_file(story.manifests.join("other.yaml"))?;
    story.restart()?;
    // Nobody knows whose manifest that was: both go on.
    for name in ["kept", "other"] {
        story.ready(name)?;
    }
    let after = story.ready("kept")?;
    assert_eq!(container_id(&after)?, container_id(&before)?);
    assert_eq!(story.crictl(&["pods", "-q"])?.lines().count(), 2);

    story.write("pod.yaml", &manifest)?;
    eventually("what no manifest asks for ends", || {
        story.crictl(&["pods", "-q"]).ok().filter(|ids| ids.lines().count() == 1).map(drop)
    })?;
    assert_eq!(container_id(&story.ready("kept")?)?, container_id(&before)?);
    Ok(())
}

/// As after a downgrade: the record means nothing to the agent that finds it.
#[test]
#[ignore = "needs root"]
fn a_pod_with_a_record_that_nobody_understands_leaves_nothing() -> Result<()> {
    let mut story = Story::start(&[])?;
    let volume = "    volumeMounts:
    - name: cache
      mountPath: /cache
  volumes:
  - name: cache
    emptyDir: {}
";
    story.write("pod.yaml", &web_pod("orphan", volume))?;
    let pod = story.ready("orphan")?;
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
    // Its logs, links to them, volumes, records: all that is named after it.
    let find = format!("find {} -name '*{uid}*' -o -lname '*{uid}*'", story.host.path().display());
    let traces = |story: &Story| story.host.run("sh", &["-c", &find]);
    let kinds = ["/kubelet/", "/pods/", "/logs/containers/"];
    let before = traces(&story)?;
    assert!(kinds.iter().all(|kind| before.contains(kind)), "{before}");
    let record = before.lines().find(|path| path.ends_with(&format!("/kubelet/{uid}.json")));
    story.node().crash();
    std::fs::write(record.context("a record")?, r#"{"version":"of another age"}"#)?;
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    story.restart()?;
    eventually("nothing of it is left", || {
        let gone = story.crictl(&["pods", "-q"]).ok()?.trim().is_empty();
        (gone && traces(&story).ok()?.is_empty()).then_some(())
    })?;
    Ok(())
}

//! Hooks and probes that ask over HTTP, of servers that write down who asked; and hooks that only wait.

use anyhow::{Context, Result};
use e2e::story::{Story, condition};
use e2e::test_host::eventually;
use serde_json::Value;

/// Writes down `QUERY AGENT`, and answers.
const SERVER: &str = r#"mkdir -p /tmp/www/cgi-bin
cat > /tmp/www/cgi-bin/hook <<'END'
#!/bin/sh
echo "$QUERY_STRING ${HTTP_USER_AGENT%/*}" >> /w/log
[ "$QUERY_STRING" != ended ] || printf 'Status: 500 No\r\n'
printf 'Content-type: text/plain\r\n\r\nok\n'
END
chmod +x /tmp/www/cgi-bin/hook
trap 'exit 0' TERM
httpd -f -p 8080 -h /tmp/www & wait"#;

/// A pod whose containers share `/w` and with a sidecar that serves `/cgi-bin/hook` on port 8080; `containers` are indented
/// by two, `more` fields of the spec too.
fn pod(name: &str, more: &str, containers: &str) -> String {
    let script = SERVER.replace('\n', "\n      ");
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
{more}  volumes:
  - name: w
    hostPath:
      path: SHARED
  initContainers:
  - name: server
    image: IMAGE
    restartPolicy: Always
    command: [/bin/sh, -c]
    args:
    - |
      {script}
    startupProbe:
      periodSeconds: 1
      failureThreshold: 100
      tcpSocket:
        port: 8080
    volumeMounts:
    - name: w
      mountPath: /w
  containers:
{containers}"
    )
}

/// A container that writes its name at its start, and `NAME ends` when it is asked to end; `extra` are more fields, indented
/// by four.
fn container(name: &str, extra: &str) -> String {
    let script = format!(
        "trap 'echo {name} ends >> /w/log; exit 0' TERM; echo {name} >> /w/log; while :; do sleep 0.05; done"
    );
    format!(
        "  - name: {name}
    image: IMAGE
    command: [/bin/sh, -c, {script:?}]
    volumeMounts:
    - name: w
      mountPath: /w
{extra}"
    )
}

fn delete(story: &Story, pod: &str) -> Result<()> {
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    eventually("the pod is gone", || story.object("Pod", pod).is_none().then_some(()))
}

#[test]
#[ignore = "needs root"]
fn hooks_ask_over_http_after_the_start_and_before_the_end() -> Result<()> {
    // Whatever is answered to a hook will do; `web` is a port of the container's own, by name.
    let hooks = "    ports:
    - name: web
      containerPort: 8080
    lifecycle:
      postStart:
        httpGet:
          path: /cgi-bin/hook?started
          port: web
      preStop:
        httpGet:
          path: /cgi-bin/hook?ended
          port: 8080
";
    let story = Story::sharing(&pod("asking", "", &container("c", hooks)))?;
    story.ready("asking")?;
    let mut begun = eventually("hook and container have begun", || {
        Some(story.shared_log()).filter(|log| log.len() == 2)
    })?;
    begun.sort();
    assert_eq!(begun, ["c", "started kube-lifecycle"]);
    delete(&story, "asking")?;
    assert_eq!(story.shared_log()[2..], ["ended kube-lifecycle", "c ends"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_hook_that_nobody_answers_fails() -> Result<()> {
    let hook = |kind: &str| format!("    lifecycle:\n      {kind}:\n        httpGet:\n          port: 9\n");
    let text = pod(
        "unheard",
        "  terminationGracePeriodSeconds: 5\n",
        &[container("post", &hook("postStart")), container("pre", &hook("preStop"))].concat(),
    );
    let story = Story::sharing(&text)?;
    let pod = story.pod_until("unheard", "the reason is told", |pod| {
        let status = &pod["status"]["containerStatuses"];
        status[0]["state"]["waiting"]["reason"] == "PostStartHookError"
            && status[1]["state"]["running"].is_object()
    })?;
    let ip = pod["status"]["podIP"].as_str().context("an address")?;
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    let refused = format!("dial tcp {ip}:9: connect: connection refused");
    assert!(message.contains("HTTP lifecycle hook") && message.contains(&refused), "{message}");
    delete(&story, "unheard")?;
    assert!(
        story.shared_log().contains(&"pre ends".to_owned()),
        "it still got its signal: {:?}",
        story.shared_log()
    );
    let events = story.events("unheard")?;
    for reason in ["FailedPostStartHook", "FailedPreStopHook"] {
        assert!(events.iter().any(|(found, _)| found == reason), "{reason}: {events:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn hooks_may_only_wait() -> Result<()> {
    let waiting = "    lifecycle:
      postStart:
        sleep:
          seconds: 1
      preStop:
        sleep:
          seconds: 2
";
    let story = Story::sharing(&pod("patient", "", &[container("c", waiting), container("d", "")].concat()))?;
    let pod = story.ready("patient")?;
    let started = |index: usize| -> Result<u128> {
        let id = pod["status"]["containerStatuses"][index]["containerID"].as_str().context("an id")?;
        let (pid, _) = story.facts(id.trim_start_matches("podwright://"))?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after = stat.rsplit_once(')').context("a state")?.1;
        Ok(after.split_whitespace().nth(19).context("a start time")?.parse()?)
    };
    // In hundredths of a second since the boot.
    let apart = started(1)? - started(0)?;
    assert!(apart >= 99, "the next container waits for the hook: {apart}");
    eventually("both have begun", || (story.shared_log().len() == 2).then_some(()))?;
    delete(&story, "patient")?;
    // The one without a hook is asked at once.
    assert_eq!(story.shared_log()[2..], ["d ends", "c ends"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn probes_and_hooks_may_name_the_host_that_they_ask() -> Result<()> {
    // Names are the node's: `localhost` is the node itself, where a pod on the node's network serves.
    let fields = "    lifecycle:
      postStart:
        httpGet:
          host: localhost
          path: /cgi-bin/hook?started
          port: 8080
    readinessProbe:
      periodSeconds: 1
      httpGet:
        host: localhost
        path: /cgi-bin/hook?ready
        port: 8080
    livenessProbe:
      periodSeconds: 1
      tcpSocket:
        host: localhost
        port: 8080
";
    let unknown = "    readinessProbe:
      periodSeconds: 1
      httpGet:
        host: nobody.invalid
        port: 8080
    startupProbe:
      periodSeconds: 1
      failureThreshold: 100
      exec:
        command: [/bin/true]
";
    let text = pod(
        "naming",
        "  hostNetwork: true\n",
        &[container("c", fields), container("unknown", unknown)].concat(),
    );
    let story = Story::sharing(&text)?;
    story.pod_until("naming", "the first container is ready", |pod| {
        pod["status"]["containerStatuses"][0]["ready"] == true
    })?;
    assert!(story.shared_log().contains(&"started kube-lifecycle".to_owned()), "{:?}", story.shared_log());
    assert!(story.shared_log().contains(&"ready kube-probe".to_owned()), "{:?}", story.shared_log());
    let failed = "Readiness probe failed: Get \"http://nobody.invalid:8080/\": dial tcp: lookup nobody.invalid: no such host";
    let mut events = Vec::new();
    eventually("a name that nobody knows is a failed probe", || {
        events = story.events("naming").ok()?;
        events.iter().any(|(reason, text)| reason == "Unhealthy" && text == failed).then_some(())
    })
    .with_context(|| format!("{events:#?}"))?;
    let pod = story.object("Pod", "naming").context("the pod")?;
    assert_eq!(condition(&pod, "Ready"), Some("False"));
    assert_eq!(pod["status"]["containerStatuses"][1]["restartCount"], Value::from(0));
    Ok(())
}

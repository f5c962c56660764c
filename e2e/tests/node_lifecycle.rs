//! The life of a pod's containers on a standalone node: init containers and sidecars, probes, hooks, last words.

use anyhow::{Context, Result};
use e2e::story::{Story, condition, container_id};
use e2e::test_host::eventually;
use e2e::{TestHost, image};
use serde_json::Value;

/// A pod whose containers share `/w`; `spec` is indented by two.
fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  volumes:
  - name: w
    hostPath:
      path: SHARED
{spec}"
    )
}

/// A container that does `script` with `/w` mounted; `extra` are more fields, indented by four.
fn container(name: &str, script: &str, extra: &str) -> String {
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

/// Notes its name when it is told to end.
fn ending(name: &str) -> String {
    format!("trap 'echo {name} >> /w/log; exit 0' TERM; touch /w/{name}-up; while :; do sleep 0.05; done")
}

fn event_until(story: &Story, pod: &str, reason: &str, message: &str) -> Result<()> {
    let mut last = Vec::new();
    let found = eventually(message, || {
        last = story.events(pod).ok()?;
        last.iter().any(|(why, text)| why == reason && text.contains(message)).then_some(())
    });
    found.with_context(|| format!("events of {pod}: {last:#?}"))
}

fn gone(story: &Story, pod: &str) -> Result<()> {
    eventually("the pod is gone", || {
        let status = story.status().ok()?;
        let pods = status["items"].as_array()?.iter().filter(|item| item["kind"] == "Pod");
        pods.clone().all(|item| item["metadata"]["name"] != pod).then_some(())
    })
}

#[test]
#[ignore = "needs root"]
fn init_containers_run_in_order_and_are_tried_again() -> Result<()> {
    let first = "echo one >> /w/log; [ -e /w/tried ] || { touch /w/tried; exit 1; }";
    let text = pod(
        "prepared",
        &format!(
            "  initContainers:\n{}{}  containers:\n{}",
            container("one", first, ""),
            container("two", "echo two >> /w/log", ""),
            container("main", &format!("echo main >> /w/log; {}", ending("end")), ""),
        ),
    );
    let story = Story::sharing(&text)?;
    let pod = story.ready("prepared")?;
    assert_eq!(story.shared_log(), ["one", "one", "two", "main"]);
    assert_eq!(condition(&pod, "Initialized"), Some("True"));
    let init = &pod["status"]["initContainerStatuses"];
    assert_eq!(init[0]["restartCount"], 1, "{init}");
    for index in [0, 1] {
        assert_eq!(init[index]["state"]["terminated"]["reason"], "Completed", "{init}");
        assert_eq!(init[index]["ready"], true, "{init}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_failed_init_container_fails_a_pod_that_is_never_restarted() -> Result<()> {
    let text = pod(
        "broken",
        &format!(
            "  restartPolicy: Never\n  initContainers:\n{}  containers:\n{}",
            container("init", "exit 3", ""),
            container("main", "true", ""),
        ),
    );
    let story = Story::sharing(&text)?;
    let pod = story.pod_until("broken", "it has failed", |pod| pod["status"]["phase"] == "Failed")?;
    assert_eq!(condition(&pod, "Initialized"), Some("False"), "{}", pod["status"]);
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
    assert_eq!(waiting, "PodInitializing");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn sidecars_start_first_and_end_last_in_reverse_order() -> Result<()> {
    let sidecar = "    restartPolicy: Always
    startupProbe:
      exec:
        command: [test, -e, /w/go]
      periodSeconds: 1
      failureThreshold: 100
";
    let main = "echo main >> /w/log; while [ ! -e /w/finish ]; do sleep 0.05; done";
    let text = pod(
        "accompanied",
        &format!(
            "  restartPolicy: Never\n  initContainers:\n{}{}  containers:\n{}",
            container("s1", &ending("s1"), sidecar),
            container("s2", &ending("s2"), "    restartPolicy: Always\n"),
            container("main", main, ""),
        ),
    );
    let story = Story::sharing(&text)?;
    let shared = story.host.path().join("shared");
    let pod = story.pod_until("accompanied", "the first sidecar runs", |pod| {
        pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
    })?;
    let init = &pod["status"]["initContainerStatuses"];
    assert_eq!((&init[0]["started"], &init[0]["ready"]), (&false.into(), &false.into()), "{init}");
    assert!(!shared.join("s2-up").exists(), "the second one waits for the first one's startup probe");
    assert_eq!(condition(&pod, "Initialized"), Some("False"));

    std::fs::write(shared.join("go"), "")?;
    let pod = story.ready("accompanied")?;
    assert!(shared.join("s2-up").exists() && story.shared_log() == ["main"], "{:?}", story.shared_log());
    let id = pod["status"]["initContainerStatuses"][1]["containerID"].as_str().context("an id")?.to_owned();
    let (pid, _) = story.facts(id.trim_start_matches("podwright://"))?;
    story.host.run("kill", &["-KILL", &pid.to_string()])?;
    story.pod_until("accompanied", "a sidecar is started again, whatever the pod's policy", |pod| {
        pod["status"]["initContainerStatuses"][1]["restartCount"] == 1
            && condition(pod, "Ready") == Some("True")
    })?;

    std::fs::write(shared.join("finish"), "")?;
    story.pod_until("accompanied", "it has succeeded", |pod| pod["status"]["phase"] == "Succeeded")?;
    assert_eq!(story.shared_log(), ["main", "s2", "s1"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_deleted_pod_ends_its_sidecars_after_its_containers() -> Result<()> {
    let slow = "trap 'sleep 0.5; echo main >> /w/log; exit 0' TERM; while :; do sleep 0.05; done";
    let text = pod(
        "ended",
        &format!(
            "  initContainers:\n{}  containers:\n{}",
            container("s", &ending("s"), "    restartPolicy: Always\n"),
            container("main", slow, ""),
        ),
    );
    let story = Story::sharing(&text)?;
    story.ready("ended")?;
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    gone(&story, "ended")?;
    assert_eq!(story.shared_log(), ["main", "s"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_startup_probe_holds_the_others_back() -> Result<()> {
    let probes = "    startupProbe:
      exec:
        command: [test, -e, /w/up]
      periodSeconds: 1
      failureThreshold: 100
    livenessProbe:
      exec:
        command: [test, -e, /w/live]
      periodSeconds: 1
      failureThreshold: 1
";
    let text = pod("slow", &format!("  containers:\n{}", container("c", &ending("c"), probes)));
    let story = Story::sharing(&text)?;
    let shared = story.host.path().join("shared");
    event_until(&story, "slow", "Unhealthy", "Startup probe failed: ")?;
    let pod = story.object("Pod", "slow").context("the pod")?;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!((&status["started"], &status["ready"]), (&false.into(), &false.into()), "{status}");
    std::fs::write(shared.join("live"), "")?;
    std::fs::write(shared.join("up"), "")?;
    let pod = story.ready("slow")?;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!((&status["started"], &status["restartCount"]), (&true.into(), &0.into()), "{status}");
    std::fs::remove_file(shared.join("live"))?;
    event_until(&story, "slow", "Killing", "Container c failed liveness probe, will be restarted")?;
    std::fs::write(shared.join("live"), "")?;
    story.pod_until("slow", "it is restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1 && condition(pod, "Ready") == Some("True")
    })?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_failed_startup_probe_kills_within_its_own_grace() -> Result<()> {
    // The container ignores SIGTERM: with the pod's grace of ten minutes it would still be there.
    let probe = "    startupProbe:
      exec:
        command: [\"false\"]
      periodSeconds: 1
      failureThreshold: 1
      terminationGracePeriodSeconds: 1
";
    let stubborn = "trap '' TERM; while :; do sleep 0.05; done";
    let text = pod(
        "stubborn",
        &format!("  terminationGracePeriodSeconds: 600\n  containers:\n{}", container("c", stubborn, probe)),
    );
    let story = Story::sharing(&text)?;
    event_until(&story, "stubborn", "Killing", "Container c failed startup probe, will be restarted")?;
    let pod = story.pod_until("stubborn", "it was killed", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_i64() > Some(0)
    })?;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137, "{}", pod["status"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_probe_speaks_https_and_verifies_nothing() -> Result<()> {
    let probe = "    readinessProbe:
      httpGet:
        scheme: HTTPS
        host: 192.0.2.2
        port: 8443
        path: /
      periodSeconds: 1
";
    let text = pod("tls", &format!("  containers:\n{}", container("c", &ending("c"), probe)));
    let story = Story::sharing(&text)?;
    let refused = "Readiness probe failed: Get \"https://192.0.2.2:8443/\": dial tcp 192.0.2.2:8443: connect: connection refused";
    event_until(&story, "tls", "Unhealthy", refused)?;
    let (key, cert) = (story.host.path().join("key.pem"), story.host.path().join("cert.pem"));
    let (key, cert) = (key.display().to_string(), cert.display().to_string());
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=nobody", "-days", "1"];
    story.host.run("openssl", &[request.as_slice(), &["-keyout", &key, "-out", &cert]].concat())?;
    let server = ["s_server", "-accept", "8443", "-www", "-quiet", "-key", &key, "-cert", &cert];
    let _server = story.host.spawn("openssl", story.host.command("openssl").args(server))?;
    story.ready("tls").map(drop)
}

#[test]
#[ignore = "needs root"]
fn hooks_run_after_the_start_and_before_the_end() -> Result<()> {
    let hooks = "    lifecycle:
      postStart:
        exec:
          command: [/bin/sh, -c, sleep 0.3; echo post >> /w/log]
      preStop:
        exec:
          command: [/bin/sh, -c, sleep 0.3; echo pre >> /w/log]
";
    let text = pod(
        "hooked",
        &format!(
            "  containers:\n{}{}",
            container("c", &ending("end"), hooks),
            container("d", "echo d >> /w/log; trap 'exit 0' TERM; while :; do sleep 0.05; done", ""),
        ),
    );
    let story = Story::sharing(&text)?;
    story.ready("hooked")?;
    eventually("d has started", || (story.shared_log().len() == 2).then_some(()))?;
    assert_eq!(story.shared_log(), ["post", "d"], "the next container waits for the hook");
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    gone(&story, "hooked")?;
    assert_eq!(story.shared_log(), ["post", "d", "pre", "end"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_failed_post_start_hook_kills_the_container() -> Result<()> {
    let hook = "    lifecycle:
      postStart:
        exec:
          command: [/bin/sh, -c, echo why; exit 7]
";
    let text = pod("unhooked", &format!("  containers:\n{}", container("c", &ending("end"), hook)));
    let story = Story::sharing(&text)?;
    event_until(&story, "unhooked", "FailedPostStartHook", "PostStartHook failed")?;
    let pod = story.pod_until("unhooked", "the reason is told", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["state"]["waiting"]["reason"] == "PostStartHookError"
            && status["lastState"]["terminated"].is_object()
    })?;
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    assert!(message.contains("Exec lifecycle hook ([/bin/sh -c echo why; exit 7])"), "{message}");
    assert!(message.contains("why"), "{message}");
    assert_eq!(story.shared_log().first().map(String::as_str), Some("end"), "it was asked to end");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pre_stop_hook_ends_with_the_grace() -> Result<()> {
    let hook = "    lifecycle:
      preStop:
        exec:
          command: [/bin/sh, -c, sleep 600]
";
    let text = pod(
        "lingering",
        &format!(
            "  terminationGracePeriodSeconds: 1\n  containers:\n{}",
            container("c", &ending("end"), hook)
        ),
    );
    let story = Story::sharing(&text)?;
    story.ready("lingering")?;
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    gone(&story, "lingering")?;
    assert_eq!(story.shared_log(), ["end"], "it still got its signal");
    let events = story.events("lingering")?;
    assert!(events.iter().any(|(reason, _)| reason == "FailedPreStopHook"), "{events:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn last_words_come_from_the_file_or_the_log() -> Result<()> {
    let falls_back = "    terminationMessagePolicy: FallbackToLogsOnError\n";
    let text = pod(
        "words",
        &format!(
            "  restartPolicy: Never\n  containers:\n{}{}{}{}",
            container("file", "echo -n written > /dev/termination-log; exit 1", ""),
            container("log", "echo logged; echo too >&2; exit 1", falls_back),
            container("well", "echo logged", falls_back),
            container("own", "echo -n own > /w-words; exit 1", "    terminationMessagePath: /w-words\n"),
        ),
    );
    let story = Story::sharing(&text)?;
    let pod = story.pod_until("words", "it has ended", |pod| pod["status"]["phase"] == "Failed")?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("statuses")?;
    let words: Vec<&Value> = statuses.iter().map(|one| &one["state"]["terminated"]["message"]).collect();
    assert_eq!(words, [&"written".into(), &"logged\ntoo\n".into(), &Value::Null, &Value::from("own")]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn cve_2019_11245_a_restarted_container_is_not_root() -> Result<()> {
    let host = TestHost::new()?;
    let layout = |user: &str| -> Result<std::path::PathBuf> {
        let layout = host.path().join(format!("user-{user}.oci"));
        let config = image::ImageConfig { user: user.into(), ..image::busybox_config() };
        image::write_layout(&layout, "registry.test/user:1", vec![image::busybox_layer()?], &config)?;
        Ok(layout)
    };
    let (harmless, root) = (layout("33")?, layout("0")?);
    let text = "apiVersion: v1
kind: Pod
metadata:
  name: nobody
spec:
  securityContext:
    runAsNonRoot: true
  containers:
  - name: c
    image: registry.test/user:1
    imagePullPolicy: Never
    command: [/bin/sh, -c, 'trap \"exit 1\" TERM; id -u; while :; do sleep 0.05; done']
";
    let story = Story::start_on(host, &[], &[])?;
    let node = story.node.as_ref().context("the node")?;
    node.import(&story.host, &harmless)?;
    story.write("pod.yaml", text)?;
    let stop = |id: &str| story.crictl(&["stop", "--timeout", "5", id]);
    let pod = story.ready("nobody")?;
    stop(&container_id(&pod)?)?;
    let pod = story.pod_until("nobody", "it is restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1 && condition(pod, "Ready") == Some("True")
    })?;
    let user = story.exec(&container_id(&pod)?, "id -u")?;
    assert_eq!(user.trim(), "33");
    node.import(&story.host, &root)?;
    stop(&container_id(&pod)?)?;
    let pod = story.pod_until("nobody", "the image of root is refused", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    })?;
    let message = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert_eq!(message, "container has runAsNonRoot and image will run as root");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn logs_are_rotated_by_size_and_compressed() -> Result<()> {
    let host = TestHost::new()?;
    let config = host.path().join("kubelet.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerLogMaxSize: 4Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
";
    std::fs::write(&config, text)?;
    let talking = "i=0; trap 'exit 0' TERM; while :; do echo $i; i=$((i+1)); sleep 0.005; done";
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: talking\nspec:\n  containers:\n  - name: c\n    image: IMAGE\n    command: [/bin/sh, -c, {talking:?}]\n"
    );
    let story = Story::start_on(host, &[("pod.yaml", &pod)], &["--config", &config.display().to_string()])?;
    let pod = story.ready("talking")?;
    let log = story.log_path("talking")?;
    let directory = log.parent().context("a directory")?;
    let files = || -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    let names = eventually("a rotated log is compressed", || {
        files().ok().filter(|names| names.iter().any(|name| name.ends_with(".gz")) && names.len() == 3)
    })?;
    assert!(
        names[1].starts_with("0.log.2") && names[1].len() == "0.log.20060102-150405.gz".len(),
        "{names:?}"
    );
    assert!(names[2].starts_with("0.log.2") && names[2].len() == "0.log.20060102-150405".len(), "{names:?}");
    let script = format!("cd {} && zcat {} && cat {}", directory.display(), names[1], names[2]);
    let text = story.host.run("sh", &["-c", &script])?;
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert!(numbers.len() > 100 && numbers[0] == 0, "{names:?}");
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is lost or repeated");
    eventually("the log goes on", || {
        let text = story.logs(&pod).ok()?;
        (text.lines().next()?.parse::<u64>().ok()? > *numbers.last()?).then_some(())
    })?;
    std::fs::remove_file(&log)?;
    eventually("a removed log is made again", || log.exists().then_some(()))
}

#[test]
#[ignore = "needs root"]
fn log_collectors_find_each_container_s_log_as_long_as_it_is_there() -> Result<()> {
    let text = pod(
        "told",
        &format!(
            "  terminationGracePeriodSeconds: 1\n  containers:\n{}{}",
            container("once", "echo begun; exit 1", ""),
            container("main", &format!("echo hello; {}", ending("end")), ""),
        ),
    );
    let mut story = Story::sharing(&text)?;
    let links = story.host.path().join("root/logs/containers");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&links).into_iter().flatten();
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let id = |pod: &Value, index: usize| {
        let id = pod["status"]["containerStatuses"][index]["containerID"].as_str().unwrap_or_default();
        id.trim_start_matches("podwright://").to_owned()
    };
    let pod =
        story.pod_until("told", "one of its containers runs, the other has been restarted twice", |pod| {
            let of = &pod["status"]["containerStatuses"];
            of[1]["state"]["running"].is_object() && of[0]["restartCount"].as_i64() >= Some(2)
        })?;
    let main = format!("told_default_main-{}.log", id(&pod, 1));
    let once = format!("told_default_once-{}.log", id(&pod, 0));
    assert!(names().contains(&main) && names().contains(&once), "{main} {once} {:?}", names());
    let text = eventually("its log is read there", || {
        std::fs::read_to_string(links.join(&main)).ok().filter(|text| !text.is_empty())
    })?;
    assert!(text.ends_with(" stdout F hello\n"), "{text}");
    let of_once = names().into_iter().filter(|name| name.starts_with("told_default_once-"));
    assert_eq!(of_once.count(), 2, "the first of three attempts is removed: {:?}", names());

    // What a killed agent could not remove goes at the next start; what is somebody else's stays.
    story.node().crash();
    std::os::unix::fs::symlink(
        story.host.path().join("root/logs/pods/a_b_c/d/0.log"),
        links.join("b_a_d-1.log"),
    )?;
    std::os::unix::fs::symlink("/nowhere", links.join("foreign.log"))?;
    story.restart()?;
    eventually("a link to nothing is removed", || {
        (!names().contains(&"b_a_d-1.log".to_owned())).then_some(())
    })?;
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    gone(&story, "told")?;
    assert_eq!(names(), ["foreign.log"]);
    Ok(())
}

/// The network plugin takes its time, and the pod is gone before it is done: what comes up then has nobody who wants it.
#[test]
#[ignore = "needs root"]
fn a_pod_that_goes_while_its_sandbox_is_made_leaves_no_sandbox() -> Result<()> {
    let host = TestHost::new()?;
    let plugins = host.path().join("plugins");
    std::fs::create_dir(&plugins)?;
    let plugin = plugins.join("slow");
    // Waits for as long as it takes until somebody opens the gate.
    let script = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\ncd {}\nmkfifo gate\nread word < gate\n\
         echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.99.0.7/24\"}}]}}'\n",
        host.path().display()
    );
    std::fs::write(&plugin, script)?;
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let networks = host.path().join("net.d-empty");
    std::fs::create_dir_all(&networks)?;
    let conflist = r#"{"cniVersion":"1.0.0","name":"slow","plugins":[{"type":"slow"}]}"#;
    std::fs::write(networks.join("10-slow.conflist"), conflist)?;
    let (gate, plugins) = (host.path().join("gate"), plugins.display().to_string());
    let spec = "  containers:\n  - name: a\n    image: IMAGE\n    command: [sleep, '1000']\n";
    let manifest = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: hasty\nspec:\n{spec}");
    let mut story = Story::start_on(host, &[("pod.yaml", &manifest)], &["--cni-bin-dir", &plugins])?;
    eventually("the plugin is asked", || gate.exists().then_some(()))?;
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    gone(&story, "hasty")?;
    std::fs::write(&gate, "go\n")?;
    let sandboxes = story.node().state().join("sandboxes");
    eventually("nothing is left of its sandbox", || {
        let listed = story.crictl(&["pods", "-q"]).ok()?;
        (listed.trim().is_empty() && std::fs::read_dir(&sandboxes).ok()?.next().is_none()).then_some(())
    })
}

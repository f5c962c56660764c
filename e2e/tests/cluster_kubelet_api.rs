//! The kubelet's API as those see it who ask without kubectl: monitoring, people without rights, clients that vanish. Told on our
//! node and on the stock kubelet.

use std::io::Write as _;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::cluster::certificates::{Authority, Period, Subject};
use e2e::cluster::images::BUSYBOX;
use e2e::cluster::{ClusterStory, NodeKind};
use e2e::test_host::eventually;
use serde_json::Value;

e2e::cluster_stories![nobody_gets_what_they_may_not, the_kubelet_tells_of_itself];

/// Ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The kubelet's answer: code, and body.
fn ask(story: &ClusterStory, path: &str, with: &[&str]) -> Result<(u16, String)> {
    let url = format!("https://{}:10250{path}", story.node.machine.address);
    let mut words = vec!["-sk", "--max-time", "30", "-w", "\n%{http_code}", &url];
    words.extend(with);
    let told = story.cluster.control_plane.machine().host.run("curl", &words)?;
    let (body, code) = told.rsplit_once('\n').context("a code")?;
    Ok((code.parse()?, body.to_owned()))
}

/// What `curl` shows to be who the API server is to kubelets.
fn as_api_server(story: &ClusterStory) -> [String; 4] {
    let file = |ending| story.cluster.control_plane.pki().join(format!("apiserver-kubelet-client.{ending}"));
    let [certificate, key] = ["crt", "key"].map(|ending| file(ending).to_string_lossy().into_owned());
    ["--cert".into(), certificate, "--key".into(), key]
}

fn nobody_gets_what_they_may_not(story: &ClusterStory) -> Result<()> {
    story.run_shell("secret", "echo the secret; sleep 100000")?;
    let logs = format!("/containerLogs/{}/secret/main", story.namespace);
    let mut paths = vec!["/pods", "/metrics", "/healthz", "/configz", &logs];
    if story.node.kind == NodeKind::Podwright {
        // The stock kubelet tells everybody what is not there.
        paths.extend(["/no/such/path", "/"]);
    }
    // Nobody, or somebody whom nobody knows, or who was known once.
    let admins = Subject { common_name: "kubernetes-super-admin", organization: Some("system:masters") };
    let stranger = Authority::new("kubernetes")?.client(admins)?;
    let directory = story.cluster.control_plane.machine().host.path().join(&story.namespace);
    std::fs::create_dir_all(&directory)?;
    stranger.write(&directory, "stranger")?;
    let period = Period { from: 1_700_000_000, to: 1_740_000_000 };
    story.cluster.control_plane.authority().client_within(admins, period)?.write(&directory, "expired")?;
    let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let [stranger, strangers, expired, expireds] =
        ["stranger.crt", "stranger.key", "expired.crt", "expired.key"].map(file);
    for path in paths {
        for with in [
            &[][..],
            &["-H", "Authorization: Bearer made.up.token"],
            &["-H", "Authorization: Basic YWRtaW46YWRtaW4="],
            &["--cert", &stranger, "--key", &strangers],
            &["--cert", &expired, "--key", &expireds],
        ] {
            assert_eq!(ask(story, path, with)?, (401, "Unauthorized".to_owned()), "{path} {with:?}");
        }
    }
    // Somebody who may nothing, then a little.
    let token = story.kubectl(&["create", "token", "default"])?;
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let user = format!("system:serviceaccount:{}:default", story.namespace);
    for (path, words) in [
        ("/pods", "[pods proxy]"),
        ("/metrics/resource", "[metrics]"),
        ("/stats/summary", "[stats]"),
        ("/healthz", "[healthz proxy]"),
        ("/logs/pods/", "[log]"),
        ("/configz", "[configz proxy]"),
        (&*logs, "[proxy]"),
    ] {
        let expect = format!("Forbidden (user={user}, verb=get, resource=nodes, subresource(s)={words})\n");
        assert_eq!(ask(story, path, &["-H", &bearer])?, (403, expect), "{path}");
    }
    let verbose = ["-X", "POST", "-H", &bearer];
    assert_eq!(ask(story, &format!("/run/{}/secret/main?cmd=id", story.namespace), &verbose)?.0, 403);
    story.kubectl(&["create", "serviceaccount", "monitor"])?;
    let role = format!("monitor-{}", story.namespace);
    story.kubectl(&["create", "clusterrole", &role, "--verb=get", "--resource=nodes/metrics,nodes/pods"])?;
    let account = format!("--serviceaccount={}:monitor", story.namespace);
    story.kubectl(&["create", "clusterrolebinding", &role, &format!("--clusterrole={role}"), &account])?;
    let token = story.kubectl(&["create", "token", "monitor"])?;
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let (code, metrics) = ask(story, "/metrics/resource", &["-H", &bearer])?;
    ensure!(code == 200 && metrics.contains("node_memory_working_set_bytes"), "{code} {metrics}");
    let (code, pods) = ask(story, "/pods", &["-H", &bearer])?;
    ensure!(code == 200 && pods.contains("\"secret\""), "{code}");
    for path in ["/stats/summary", "/configz", &logs] {
        assert_eq!(ask(story, path, &["-H", &bearer])?.0, 403, "{path}");
    }
    // What is taken away while the kubelet runs is gone when its answers about it are old.
    story.kubectl(&["delete", "clusterrole,clusterrolebinding", &role])?;
    let code = || ask(story, "/metrics/resource", &["-H", &bearer]).ok().map(|(code, _)| code);
    eventually("the rights count no more", || (code()? == 403).then_some(()))?;
    story.kubectl(&["delete", "serviceaccount", "monitor"])?;
    eventually("the token counts no more", || (code()? == 401).then_some(()))
}

fn the_kubelet_tells_of_itself(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: probed}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '100000']
    readinessProbe: {{exec: {{command: ['true']}}, periodSeconds: 1}}
"
    ))?;
    story.ready("probed")?;
    let owned = as_api_server(story);
    let admin: Vec<&str> = owned.iter().map(String::as_str).collect();
    let get = |path: &str| -> Result<String> {
        let (code, body) = ask(story, path, &admin)?;
        ensure!(code == 200, "{path}: {code} {body}");
        Ok(body)
    };
    assert_eq!(get("/healthz")?, "ok");
    assert_eq!(get("/healthz/ping")?, "ok");
    assert_eq!(get("/healthz/syncloop")?, "ok");
    let alone = story.node.machine.host.run("curl", &["-s", "http://127.0.0.1:10248/healthz"])?;
    assert_eq!(alone, "ok");
    for path in ["/pods", "/runningpods/"] {
        // The stock kubelet asks its runtime every second.
        eventually(&format!("{path} has the pod"), || {
            let list: Value = serde_json::from_str(&get(path).ok()?).ok()?;
            let mut names = list["items"].as_array()?.iter().map(|pod| &pod["metadata"]["name"]);
            (list["kind"] == "PodList" && names.any(|name| name == "probed")).then_some(())
        })?;
    }
    // So that the API server sends WebSockets on.
    let declared = story.node.object(story.cluster)?["status"]["declaredFeatures"].clone();
    ensure!(
        declared.as_array().is_some_and(|all| all.contains(&"ExtendWebSocketsToKubelet".into())),
        "{declared}"
    );
    let config: Value = serde_json::from_str(&get("/configz")?)?;
    assert_eq!(config["kubeletconfig"]["authorization"]["mode"], "Webhook");
    let summary: Value = serde_json::from_str(&get("/stats/summary")?)?;
    assert_eq!(summary["node"]["nodeName"], story.node.name());
    let pods = summary["pods"].as_array().context("pods")?;
    let pod = pods.iter().find(|pod| pod["podRef"]["name"] == "probed").context("the pod's statistics")?;
    ensure!(
        pod["containers"][0]["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0),
        "{pod}"
    );
    let label = format!("namespace=\"{}\"", story.namespace);
    let has = |page: &str, name: &str, labels: &[&str]| {
        page.lines().any(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
    };
    let page = get("/metrics/cadvisor")?;
    // The stock kubelet's cadvisor looks for containerd where the lab does not have it, and knows no pods.
    let knows_pods = story.node.kind == NodeKind::Podwright;
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_start_time_seconds",
    ] {
        let of_container: &[&str] = if knows_pods { &[&label, "container=\"main\""] } else { &[] };
        ensure!(has(&page, name, of_container), "{name}: {page}");
    }
    let of_pod: &[&str] = if knows_pods { &[&label, "interface=\"eth0\""] } else { &[] };
    ensure!(has(&page, "container_network_receive_bytes_total", of_pod), "{page}");
    ensure!(has(&page, "machine_cpu_cores", &[]) && has(&page, "machine_memory_bytes", &[]), "{page}");
    // The machine's own logs, for `kubectl get --raw`.
    let node = format!("/api/v1/nodes/{}/proxy/logs/pods/", story.node.name());
    let listed = story.kubectl(&["get", "--raw", &node])?;
    ensure!(listed.contains(&format!("{}_probed_", story.namespace)), "{listed}");
    let page = get("/metrics/probes")?;
    let probe = [&label, "probe_type=\"Readiness\"", "result=\"successful\"", "container=\"main\""];
    ensure!(has(&page, "prober_probe_total", &probe), "{page}");
    let page = get("/metrics")?;
    ensure!(has(&page, "kubelet_running_pods ", &[]), "{page}");
    ensure!(has(&page, "kubelet_http_requests_total", &["path=\"configz\""]), "{page}");
    ensure!(has(&page, "kubelet_node_name", &[story.node.name()]), "{page}");
    Ok(())
}

/// The stock kubelet leaves such commands running, so this story is ours alone.
#[test]
#[ignore = "needs a cluster"]
fn two_hundred_clients_that_vanish_leave_nothing() {
    e2e::cluster::story::tell(
        NodeKind::Podwright,
        "two_hundred_clients_that_vanish_leave_nothing",
        |story| {
            story.run_shell("patient", "echo up; sleep 100000")?;
            let owned = as_api_server(story);
            let admin: Vec<&str> = owned.iter().map(String::as_str).collect();
            let open = || -> Result<u64> {
                let (_, page) = ask(story, "/metrics", &admin)?;
                let line = page.lines().find_map(|line| line.strip_prefix("process_open_fds "));
                line.context("a count of descriptors")?.parse().context("a number")
            };
            let commands = || -> Result<usize> {
                let shown = story.exec("patient", "ps -o args | grep -c '^sleep 77777$' || true")?;
                shown.trim().parse().context("a number")
            };
            let before = open()?;
            let upgrade = "-H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
                       -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H 'Sec-WebSocket-Protocol: v4.channel.k8s.io'";
            let node = format!("https://{}:10250", story.node.machine.address);
            let exec = format!(
                "{node}/exec/{}/patient/main?command=sleep&command=77777&input=1&output=1",
                story.namespace
            );
            let logs = format!("{node}/containerLogs/{}/patient/main?follow=true", story.namespace);
            // More followers than there may be inotify instances, too.
            let script = format!(
                "for n in $(seq 200); do
               curl -skN --http1.1 {0} {upgrade} '{exec}' > /dev/null 2>&1 &
               curl -skN {0} '{logs}' > /dev/null 2>&1 &
             done
             read end
             kill -9 $(jobs -p)",
                admin.join(" ")
            );
            let host = &story.cluster.control_plane.machine().host;
            let mut clients =
                Running(host.command("bash").args(["-c", &script]).stdin(Stdio::piped()).spawn()?);
            eventually("two hundred commands run", || (commands().ok()? == 200).then_some(()))?;
            ensure!(open()? > before + 400, "each has a connection");
            clients.0.stdin.take().context("piped")?.write_all(b"end\n")?;
            clients.0.wait()?;
            eventually("no command is left", || (commands().ok()? == 0).then_some(()))?;
            eventually("no descriptor is left", || (open().ok()? <= before + 20).then_some(()))
                .with_context(|| format!("{before} before, {:?} now", open()))?;
            assert_eq!(story.kubectl(&["logs", "patient"])?, "up\n");
            Ok(())
        },
    );
}

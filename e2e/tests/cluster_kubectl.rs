//! What people do with kubectl to a pod that runs: read its logs, execute and attach, copy files, forward ports, debug, look at what
//! it uses. Told on our node and on the stock kubelet.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use e2e::cluster::images::{AGNHOST, BUSYBOX};
use e2e::cluster::{ClusterStory, NodeKind};
use e2e::test_host::{eventually, output_of, program};

e2e::cluster_stories![
    logs_are_told_as_they_are_asked_for,
    logs_are_followed_to_the_end_and_told_of_the_life_before,
    logs_are_followed_over_rotations,
    a_command_has_its_streams_and_exit_code,
    a_command_has_a_terminal,
    a_container_can_be_attached_to,
    an_attached_container_gives_back_big_data,
    big_files_are_copied_both_ways,
    a_port_is_forwarded_with_big_data_both_ways,
    a_pod_runs_while_one_looks_and_is_removed,
    a_running_pod_is_debugged,
    what_nodes_and_pods_use_is_told,
];

const BIG: usize = 100 << 20;

/// A file of 100 MiB that no compression makes small, and its SHA-256 in hex.
fn big_file(story: &ClusterStory) -> Result<(PathBuf, String)> {
    let path = story.cluster.control_plane.machine().host.path().join(format!("{}.big", story.namespace));
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(BIG);
    while bytes.len() < BIG {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    std::fs::write(&path, &bytes).context("write the big file")?;
    Ok((path, hash(&bytes)))
}

fn hash(bytes: &[u8]) -> String {
    e2e::image::digest(bytes).trim_start_matches("sha256:").to_owned()
}

fn hash_of(path: &Path) -> Result<String> {
    Ok(hash(&std::fs::read(path).with_context(|| format!("read {}", path.display()))?))
}

/// The same command with a terminal of 80 columns and 24 lines.
fn in_terminal(command: &Command) -> Command {
    let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    let line = format!("stty cols 80 rows 24; exec {}", words.collect::<Vec<_>>().join(" "));
    let mut terminal = program("script");
    terminal.args(["-qefc", &line, "/dev/null"]);
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            terminal.env(name, value);
        }
    }
    terminal
}

/// Newer clients speak WebSocket to the API server, older ones SPDY; both get through to the node.
const WEB_SOCKETS: [&str; 2] = ["true", "false"];

/// kubectl over one or the other.
fn kubectl_over(story: &ClusterStory, web_sockets: &str, arguments: &[&str]) -> Command {
    let mut command = story.kubectl_command(arguments);
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", web_sockets);
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", web_sockets);
    command
}

/// Ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn logs_are_told_as_they_are_asked_for(story: &ClusterStory) -> Result<()> {
    // A line that is longer than an entry of the log, then small ones at other times: two streams have no common order.
    let script = "head -c 40000 /dev/zero | tr '\\0' y; echo; echo one; sleep 1; echo two >&2; sleep 2; echo three; \
         sleep 1000";
    story.run_shell("talks", script)?;
    let whole = format!("{}\none\ntwo\nthree\n", "y".repeat(40_000));
    eventually("everything is told", || (story.kubectl(&["logs", "talks"]).ok()? == whole).then_some(()))?;
    assert_eq!(story.kubectl(&["logs", "talks", "--tail=2"])?, "two\nthree\n");
    assert_eq!(story.kubectl(&["logs", "talks", "--tail=0"])?, "");
    assert_eq!(story.kubectl(&["logs", "talks", "--limit-bytes=40003"])?, whole[..40_003]);
    let stamped = story.kubectl(&["logs", "talks", "--timestamps", "--tail=3"])?;
    let lines: Vec<(&str, &str)> = stamped.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(lines.iter().map(|(_, text)| *text).collect::<Vec<_>>(), ["one", "two", "three"]);
    ensure!(lines.iter().all(|(time, _)| time.len() == "2026-01-01T00:00:00.000000000Z".len()), "{stamped}");
    let last = lines.last().map(|(time, _)| format!("{}Z", &time[..19])).unwrap_or_default();
    assert_eq!(story.kubectl(&["logs", "talks", &format!("--since-time={last}")])?, "three\n");
    assert_eq!(story.kubectl(&["logs", "talks", "--since=1h"])?, whole);
    let error =
        story.kubectl(&["logs", "talks", "--previous"]).expect_err("it was never restarted").to_string();
    ensure!(error.contains("previous terminated container \"main\" in pod \"talks\" not found"), "{error}");
    Ok(())
}

fn logs_are_followed_to_the_end_and_told_of_the_life_before(story: &ClusterStory) -> Result<()> {
    let script = "echo life >> /data/lives; n=$(wc -l < /data/lives); echo life $n; \
                  until [ -e /data/end$n ]; do sleep 0.1; done; echo end of $n";
    story.run_shell("lives", script)?;
    let mut follow = Running(story.kubectl_command(&["logs", "-f", "lives"]).stdout(Stdio::piped()).spawn()?);
    let mut told = BufReader::new(follow.0.stdout.take().context("piped")?);
    let mut line = String::new();
    told.read_line(&mut line)?;
    assert_eq!(line, "life 1\n");
    story.exec("lives", "touch /data/end1")?;
    let mut rest = String::new();
    told.read_to_string(&mut rest)?;
    assert_eq!(rest, "end of 1\n", "the log ends with the container");
    assert!(follow.0.wait()?.success());
    story.wait("pod/lives", "jsonpath={.status.containerStatuses[0].restartCount}=1")?;
    story.ready("lives")?;
    assert_eq!(story.kubectl(&["logs", "lives", "--previous"])?, "life 1\nend of 1\n");
    assert_eq!(story.kubectl(&["logs", "lives"])?, "life 2\n");
    Ok(())
}

fn logs_are_followed_over_rotations(story: &ClusterStory) -> Result<()> {
    // 40 MiB of log in 20 s, where 10 MiB are enough to be rotated and somebody looks every 10 s.
    let script = "until [ -e /data/go ]; do sleep 0.1; done; n=0
                  while [ $n -lt 800000 ]; do seq $((n + 1)) $((n + 20000)); n=$((n + 20000)); sleep 0.5; done";
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: writes}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes: [{{name: data, emptyDir: {{}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, {script:?}]
    volumeMounts: [{{name: data, mountPath: /data}}]
"
    ))?;
    story.ready("writes")?;
    let mut follow =
        Running(story.kubectl_command(&["logs", "-f", "writes"]).stdout(Stdio::piped()).spawn()?);
    let told = BufReader::new(follow.0.stdout.take().context("piped")?);
    story.exec("writes", "touch /data/go")?;
    let mut last = 0;
    // A stock kubelet whose machine is busy loses lines at a rotation, and tears one.
    let may_lose = story.node.kind == NodeKind::Stock;
    for line in told.lines() {
        let number: u64 = line?.parse().context("a number")?;
        ensure!(number == last + 1 || may_lose, "{number} follows {last}");
        last = number;
    }
    assert_eq!(last, 800_000);
    // What was rotated away is not told of any more: that is all, where somebody looked between the last line and the end.
    let now = story.kubectl(&["logs", "writes"])?;
    let is_rest = now.is_empty() || now.ends_with("\n800000\n");
    ensure!(now.lines().count() < 800_000 && is_rest, "{} lines", now.lines().count());
    Ok(())
}

fn a_command_has_its_streams_and_exit_code(story: &ClusterStory) -> Result<()> {
    story.run_shell("box", "sleep 100000")?;
    let (path, expect) = big_file(story)?;
    let input = || std::fs::File::open(&path).map(Stdio::from);
    for web_sockets in WEB_SOCKETS {
        let exec = |words: &[&str]| {
            kubectl_over(story, web_sockets, &[&["exec", "-i", "box", "--"], words].concat())
        };
        let output = exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).output()?;
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "err\ncommand terminated with exit code 7\n",
            "WebSocket: {web_sockets}"
        );
        // 100 MiB in, hashed there; then out again, hashed here; then both ways at once.
        let hashed = output_of(exec(&["sh", "-c", "tee /data/big | sha256sum"]).stdin(input()?))?;
        assert_eq!(hashed.split_whitespace().next(), Some(expect.as_str()));
        assert_eq!(hash(&exec(&["cat", "/data/big"]).stdin(Stdio::null()).output()?.stdout), expect);
        assert_eq!(hash(&exec(&["cat"]).stdin(input()?).output()?.stdout), expect);
        let output = exec(&["no-such-program"]).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && error.contains("no-such-program"), "{error}");
    }
    std::fs::remove_file(&path)?;
    Ok(())
}

fn a_command_has_a_terminal(story: &ClusterStory) -> Result<()> {
    story.run_shell("box", "sleep 100000")?;
    for web_sockets in WEB_SOCKETS {
        let exec = |words: &[&str]| {
            in_terminal(&kubectl_over(story, web_sockets, &[&["exec", "-it", "box", "--"], words].concat()))
        };
        let shown = output_of(&mut exec(&["sh", "-c", "test -t 0 && test -t 1 && sleep 1 && stty size"]))?;
        ensure!(shown.contains("24 80"), "the terminal's size: {shown:?}");
        // A shell, typed at.
        let mut shell = Running(exec(&["sh"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let (mut keys, mut screen) =
            (shell.0.stdin.take().context("piped")?, shell.0.stdout.take().context("piped")?);
        keys.write_all(b"echo $((6 * 7))\nexit 3\n")?;
        let mut shown = String::new();
        screen.read_to_string(&mut shown)?;
        ensure!(shown.contains("42"), "{shown:?}");
        assert_eq!(shell.0.wait()?.code(), Some(3));
    }
    Ok(())
}

fn a_container_can_be_attached_to(story: &ClusterStory) -> Result<()> {
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: listens}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: main, image: {BUSYBOX}, stdin: true, command: [sh, -c, 'while read line; do echo heard $line; done']}}
"
    ))?;
    story.ready("listens")?;
    for web_sockets in WEB_SOCKETS {
        let mut attach = kubectl_over(story, web_sockets, &["attach", "-i", "listens"]);
        let mut attach = Running(attach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let mut words = attach.0.stdin.take().context("piped")?;
        let mut told = BufReader::new(attach.0.stdout.take().context("piped")?);
        for word in ["one", "two"] {
            words.write_all(format!("{word}\n").as_bytes())?;
            let mut line = String::new();
            told.read_line(&mut line)?;
            assert_eq!(line, format!("heard {word}\n"));
        }
    }
    // Who goes away takes nothing with them.
    assert_eq!(story.kubectl(&["logs", "listens"])?, "heard one\nheard two\n".repeat(2));
    assert_eq!(story.get("pod/listens")?["status"]["containerStatuses"][0]["restartCount"], 0);
    Ok(())
}

fn an_attached_container_gives_back_big_data(story: &ClusterStory) -> Result<()> {
    let (path, expect) = big_file(story)?;
    let (back, input) = (path.with_extension("back"), path.to_string_lossy().into_owned());
    for (index, web_sockets) in WEB_SOCKETS.into_iter().enumerate() {
        let pod = format!("echoes-{index}");
        // It waits for whoever attaches: what it says before is nobody's.
        story.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {pod}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: main, image: {BUSYBOX}, stdin: true, stdinOnce: true, command: [cat]}}
"
        ))?;
        story.ready(&pod)?;
        let mut attach = kubectl_over(story, web_sockets, &["attach", "-q", "-i", &pod]);
        let (from, to) = (std::fs::File::open(&input)?, std::fs::File::create(&back)?);
        let mut attach = Running(attach.stdin(from).stdout(to).spawn()?);
        ensure!(attach.0.wait()?.success(), "kubectl attach failed; WebSocket: {web_sockets}");
        assert_eq!(hash_of(&back)?, expect, "WebSocket: {web_sockets}");
        // Its input ended with whoever was attached.
        story.wait(&format!("pod/{pod}"), "jsonpath={.status.phase}=Succeeded")?;
    }
    std::fs::remove_file(&path)?;
    std::fs::remove_file(&back)?;
    Ok(())
}

fn big_files_are_copied_both_ways(story: &ClusterStory) -> Result<()> {
    story.run_shell("box", "sleep 100000")?;
    let (path, expect) = big_file(story)?;
    let back = path.with_extension("back");
    story.kubectl(&["cp", &path.to_string_lossy(), "box:/data/big"])?;
    let hashed = story.exec("box", "sha256sum /data/big")?;
    assert_eq!(hashed.split_whitespace().next(), Some(expect.as_str()));
    story.kubectl(&["cp", "box:/data/big", &back.to_string_lossy()])?;
    assert_eq!(hash_of(&back)?, expect);
    std::fs::remove_file(&path)?;
    std::fs::remove_file(&back)?;
    Ok(())
}

fn a_port_is_forwarded_with_big_data_both_ways(story: &ClusterStory) -> Result<()> {
    // nc would say at once that it sends nothing, and kubectl ends a connection that one side ends.
    story.run_shell(
        "server",
        "mkfifo /held; sleep 100000 > /held & httpd -f -p 8080 -h /data &
         while rm -f /data/done; nc -l -p 9000 < /held > /data/up; do touch /data/done; until [ -e /data/seen ]; do sleep 0.1; done; rm /data/seen; done",
    )?;
    let (path, expect) = big_file(story)?;
    let (host, input) = (&story.cluster.control_plane.machine().host, path.to_string_lossy().into_owned());
    for web_sockets in WEB_SOCKETS {
        let mut forward = kubectl_over(story, web_sockets, &["port-forward", "pod/server", ":8080", ":9000"]);
        let mut forward = Running(forward.stdout(Stdio::piped()).spawn()?);
        let mut told = BufReader::new(forward.0.stdout.take().context("piped")?);
        let (web, upload) = (forwarded(&mut told, 8080)?, forwarded(&mut told, 9000)?);
        let listens = "grep -q ':2328 .* 0A ' /proc/net/tcp /proc/net/tcp6";
        eventually("port 9000 is listened on", || story.exec("server", listens).ok())?;
        host.run("sh", &["-c", &format!("busybox nc 127.0.0.1 {upload} < {input}")])?;
        eventually("all of it came", || story.exec("server", "test -e /data/done").ok())?;
        let hashed = story.exec("server", "sha256sum /data/up")?;
        assert_eq!(hashed.split_whitespace().next(), Some(expect.as_str()), "WebSocket: {web_sockets}");
        // Many at once over one connection to the API server.
        let script = format!(
            "for n in 1 2 3; do curl -sS --max-time 120 http://127.0.0.1:{web}/up | sha256sum & done; wait"
        );
        assert_eq!(host.run("sh", &["-c", &script])?, format!("{expect}  -\n").repeat(3));
        story.exec("server", "touch /data/seen")?;
    }
    std::fs::remove_file(&path)?;
    Ok(())
}

/// The local port that kubectl says leads to one of the pod's.
fn forwarded(told: &mut impl BufRead, to: u16) -> Result<String> {
    loop {
        let mut line = String::new();
        ensure!(told.read_line(&mut line)? > 0, "kubectl port-forward ended");
        let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(" -> "));
        if let Some((port, _)) = port.filter(|(_, known)| known.trim() == to.to_string()) {
            return Ok(port.to_owned());
        }
    }
}

fn a_pod_runs_while_one_looks_and_is_removed(story: &ClusterStory) -> Result<()> {
    let image = format!("--image={BUSYBOX}");
    let run = [
        "run",
        "visit",
        "--rm",
        "-i",
        "-q",
        "--restart=Never",
        &image,
        "--",
        "sh",
        "-c",
        "read word; echo got $word; read end",
    ];
    converse(story.kubectl_command(&run), "got go")?;
    eventually("the pod is gone", || story.get("pod/visit").is_err().then_some(()))?;
    let image = format!("--image={BUSYBOX}");
    let run = [
        "run",
        "typed",
        "--rm",
        "-it",
        "-q",
        "--restart=Never",
        &image,
        "--",
        "sh",
        "-c",
        "test -t 0 && read word && echo has one && read end",
    ];
    converse(in_terminal(&story.kubectl_command(&run)), "has one").map(drop)
}

/// Says `go` to what the command starts, and `end` once it has answered; gives all that it said. Who attaches sees only what comes then,
/// and with the stock node not always what comes right before the end.
fn converse(mut command: Command, answer: &str) -> Result<String> {
    let mut talk = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    // The end of the input would be the end of the session.
    let mut input = talk.0.stdin.take().context("piped")?;
    input.write_all(b"go\n")?;
    let mut told = String::new();
    let mut output = BufReader::new(talk.0.stdout.take().context("piped")?);
    while !told.contains(answer) && output.read_line(&mut told)? > 0 {}
    ensure!(told.contains(answer), "{told:?}");
    input.write_all(b"end\n")?;
    output.read_to_string(&mut told)?;
    ensure!(talk.0.wait()?.success(), "{told:?}");
    Ok(told)
}

fn a_running_pod_is_debugged(story: &ClusterStory) -> Result<()> {
    story.run_shell("sick", "exec sleep 100000")?;
    let image = format!("--image={AGNHOST}");
    let look =
        ["debug", "-i", "-q", "sick", &image, "--target=main", "-c", "doctor", "--profile=general", "--"];
    let script = "read go; tr '\\0' ' ' < /proc/1/cmdline; echo; ls /proc/1/root/data > /dev/null && echo sees it; read end";
    let told =
        converse(story.kubectl_command(&[look.as_slice(), &["sh", "-c", script]].concat()), "sees it")?;
    ensure!(told.contains("sleep 100000"), "{told:?}");
    assert_eq!(story.kubectl(&["logs", "sick", "-c", "doctor"])?, "sleep 100000 \nsees it\n");
    story.wait("pod/sick", "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}=0")?;
    let status = story.get("pod/sick")?["status"].clone();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    Ok(())
}

/// A Kubernetes quantity as millionths, or bytes as they are.
fn amount(text: &str, unit: &str) -> Option<u64> {
    text.strip_suffix(unit)?.parse().ok()
}

fn what_nodes_and_pods_use_is_told(story: &ClusterStory) -> Result<()> {
    static METRICS: OnceLock<Result<(), String>> = OnceLock::new();
    story.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: busy}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: burns
    image: {BUSYBOX}
    command: [sh, -c, 'while :; do :; done']
    resources: {{limits: {{cpu: 100m, memory: 32Mi}}}}
  - name: holds
    image: {BUSYBOX}
    command: [sh, -c, 'head -c 60000000 /dev/zero > /dev/shm/it; sleep 100000']
"
    ))?;
    story.ready("busy")?;
    let ready =
        METRICS.get_or_init(|| story.cluster.run_metrics_server().map_err(|error| format!("{error:?}")));
    ready.clone().map_err(anyhow::Error::msg)?;
    let of = |top: &str, name: &str| -> Option<(u64, u64)> {
        let line = top.lines().find(|line| line.split_whitespace().nth(1) == Some(name))?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((amount(fields.get(2)?, "m")?, amount(fields.get(3)?, "Mi")?))
    };
    // Its start was work, and the first figure may be of that.
    let top = eventually("kubectl top tells of the pod, of which one container rests", || {
        let top = story.kubectl(&["top", "pod", "busy", "--containers", "--no-headers"]).ok()?;
        (of(&top, "holds")?.0 <= 5).then_some(top)
    })?;
    let (cpu, _) = of(&top, "burns").context("a line of burns")?;
    // However little of it this machine had to give.
    ensure!((10..=150).contains(&cpu), "a limit of 100m: {top}");
    let (_, memory) = of(&top, "holds").context("a line of holds")?;
    ensure!((55..=80).contains(&memory), "60 MB are held: {top}");
    let top = eventually("kubectl top tells of the node", || {
        story.kubectl(&["top", "node", story.node.name(), "--no-headers"]).ok()
    })?;
    let fields: Vec<&str> = top.split_whitespace().collect();
    ensure!(fields.get(1).and_then(|cpu| amount(cpu, "m")).is_some_and(|cpu| cpu > 0), "{top}");
    ensure!(fields.get(3).and_then(|memory| amount(memory, "Mi")).is_some_and(|memory| memory > 50), "{top}");
    Ok(())
}

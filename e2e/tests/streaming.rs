//! Interactive sessions as crictl has them: exec, attach and port-forward, over SPDY and WebSocket. Each story runs on podwright and, as
//! the check that the story is right, on containerd with runc.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cri::v1::{
    AttachRequest, ContainerConfig, ExecRequest, ExecSyncRequest, PortForwardRequest, StopPodSandboxRequest,
};
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{self, container, create, exec, pod, run_pod, start, status};
use e2e::test_host::{eventually, text_of};
use e2e::{Node, parts};
use tonic::Code;

/// Declares each story once per implementation.
macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        mod on_podwright {
            $(#[test] #[ignore = "needs root"] fn $name() { super::run(super::Implementation::Podwright, super::$name); })*
        }
        mod on_containerd {
            $(#[test] #[ignore = "needs root"] fn $name() { super::run(super::Implementation::Containerd, super::$name); })*
        }
    };
}

stories! {
    exec_gives_both_streams_and_the_exit_code,
    exec_carries_a_hundred_megabytes_both_ways,
    exec_in_a_terminal_has_its_size_and_follows_it,
    an_exec_that_leaves_a_background_child_ends,
    attach_reads_and_writes_a_running_container,
    the_end_of_a_once_attached_input_ends_the_container,
    attach_to_a_terminal_types_into_it,
    what_cannot_be_attached_to_is_refused,
    a_url_is_good_once,
    port_forward_carries_a_hundred_megabytes_both_ways,
    port_forward_reaches_ipv6_and_tells_of_closed_ports,
    cve_2022_31030_an_exec_sync_is_capped_and_does_not_wait_for_background_children,
}

type Story = fn(&mut CriServer) -> Result<()>;

fn run(implementation: Implementation, story: Story) {
    let mut server = CriServer::start(implementation).expect("start the CRI server");
    if let Err(error) = story(&mut server) {
        panic!("{error:?}");
    }
}

const IDLE: [&str; 2] = ["sleep", "1000"];
/// What `yes` says of itself, 100 MiB of it.
const MUCH: &str = "yes 0123456789abcde | head -c 104857600";

/// What a server speaks: the reference refuses crictl's WebSocket with 403.
fn transports(server: &CriServer) -> &'static [&'static str] {
    match server.implementation {
        Implementation::Podwright => &["spdy", "websocket"],
        Implementation::Containerd => &["spdy"],
    }
}

fn exec_gives_both_streams_and_the_exit_code(server: &mut CriServer) -> Result<()> {
    let (_, id) = started(server, "exec", &container("c", &IDLE))?;
    for &transport in transports(server) {
        let script = "echo out; echo err >&2; exit 7";
        let done = crictl(server, &["exec", "-r", transport, &id, "sh", "-c", script])?;
        assert_eq!(String::from_utf8(done.stdout.clone())?, "out\n", "{transport}");
        let stderr = String::from_utf8(done.stderr)?;
        assert!(stderr.contains("err\n"), "{transport}: {stderr}");
        assert!(stderr.contains("exit code 7") || stderr.contains("exit status 7"), "{transport}: {stderr}");
        assert!(!done.status.success());
        let failed = crictl(server, &["exec", "-r", transport, &id, "/no/such/program"])?;
        assert!(
            !failed.status.success() && text_of(&failed).contains("no such file"),
            "{}",
            text_of(&failed)
        );
    }
    Ok(())
}

fn exec_carries_a_hundred_megabytes_both_ways(server: &mut CriServer) -> Result<()> {
    let (_, id) = started(server, "much", &unlimited("c", &IDLE))?;
    let expect = shell(server, &format!("{MUCH} | md5sum"))?;
    for &transport in transports(server) {
        let script = format!("{MUCH} | $CRICTL exec -i -r {transport} {id} cat | md5sum");
        assert_eq!(shell(server, &script)?, expect, "{transport}");
    }
    Ok(())
}

fn exec_in_a_terminal_has_its_size_and_follows_it(server: &mut CriServer) -> Result<()> {
    let (_, id) = started(server, "tty", &container("c", &IDLE))?;
    for &transport in transports(server) {
        let inside = "tty; echo TERM=$TERM; until stty size | grep -q '33 111'; do sleep 0.1; done; echo first; \
                      touch /tmp/up; until stty size | grep -q '40 123'; do sleep 0.1; done; echo second; rm /tmp/up; \
                      echo error >&2; exit 5";
        let outside = format!(
            "stty rows 33 cols 111; \
             (until $CRICTL exec -s {id} test -e /tmp/up 2>/dev/null; do sleep 0.1; done; stty rows 40 cols 123 < /dev/tty) & \
             $CRICTL exec -it -r {transport} {id} sh -c \"{}\"; echo code $?",
            inside.replace('$', "\\$")
        );
        let text = terminal(server, &outside, "")?;
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        for line in ["/dev/pts/0", "TERM=xterm", "first", "second", "error"] {
            assert!(lines.contains(&line), "{transport}: {line} is not in {text}");
        }
        assert!(text.contains("exit code 5") || text.contains("exit status 5"), "{transport}: {text}");
    }
    Ok(())
}

fn an_exec_that_leaves_a_background_child_ends(server: &mut CriServer) -> Result<()> {
    let (_, id) = started(server, "child", &container("c", &IDLE))?;
    let script = "sleep 900 & echo started";
    let done = crictl(server, &["exec", "-s", &id, "sh", "-c", "sleep 901 >/dev/null 2>&1 & echo quiet"])?;
    assert_eq!(String::from_utf8(done.stdout)?.trim_end(), "quiet");
    // The reference waits for such a child, as for any holder of the stream.
    if server.implementation == Implementation::Podwright {
        for &transport in transports(server) {
            let done = crictl(server, &["exec", "-r", transport, &id, "sh", "-c", script])?;
            assert_eq!(String::from_utf8(done.stdout)?, "started\n", "{transport}");
            assert!(done.status.success());
        }
    }
    Ok(())
}

fn attach_reads_and_writes_a_running_container(server: &mut CriServer) -> Result<()> {
    let script =
        "echo before; while read line; do echo \"out $line\"; echo \"err $line\" >&2; done; sleep 1000";
    let config = ContainerConfig { stdin: true, ..container("c", &["sh", "-c", script]) };
    let (_, id) = started(server, "attach", &config)?;
    for &transport in transports(server) {
        let watcher = spawn(server, &format!("$CRICTL attach -r {transport} {id}"))?;
        // A watcher is there when it has shown something; what is said before is not shown.
        let ping = format!(
            "for n in 1 2 3 4 5 6 7 8 9 10; do echo {transport} $n; sleep 0.1; done | $CRICTL attach -i -r {transport} {id}"
        );
        let text = eventually("both attachments have shown the answer", || {
            let shown = shell(server, &ping).ok()?;
            (shown.contains(&format!("out {transport} 10")) || shown.contains(&format!("out {transport} 5")))
                .then_some(shown)
        })?;
        assert!(!text.contains("before"), "{text}");
        let watched = watcher.kill_and_read()?;
        assert!(watched.contains(&format!("out {transport}")), "{transport}: {watched}");
        assert!(watched.contains(&format!("err {transport}")), "{transport}: {watched}");
    }
    let log = raw_log(server, "attach", &config)?;
    assert!(log.contains("stdout F out spdy 1") && log.contains("stderr F err spdy 1"), "{log}");
    Ok(())
}

fn the_end_of_a_once_attached_input_ends_the_container(server: &mut CriServer) -> Result<()> {
    for &transport in transports(server) {
        let config = ContainerConfig {
            stdin: true,
            stdin_once: true,
            ..container("c", &["sh", "-c", "cat; echo done; exit 3"])
        };
        let (_, id) = started(server, &format!("once-{transport}"), &config)?;
        let shown = shell(server, &format!("echo typed | $CRICTL attach -i -r {transport} {id}"))?;
        assert_eq!(shown, "typed\ndone\n", "{transport}");
        block_on(async {
            let (mut runtime, _) = server.clients().await?;
            assert_eq!(requests::exited(&mut runtime, &id).await?.exit_code, 3);
            Ok(())
        })?;
    }
    Ok(())
}

fn attach_to_a_terminal_types_into_it(server: &mut CriServer) -> Result<()> {
    for &transport in transports(server) {
        let script = "until stty size | grep -q '31 101'; do sleep 0.1; done; read line; echo \"got $line\"; ls -l /dev/console; exit 4";
        let config = ContainerConfig { stdin: true, tty: true, ..container("c", &["sh", "-c", script]) };
        let name = format!("tty-{transport}");
        let (_, id) = started(server, &name, &config)?;
        let outside = format!("stty rows 31 cols 101; $CRICTL attach -it -r {transport} {id}");
        let text = terminal(server, &outside, "hello\\n")?;
        assert!(text.contains("got hello"), "{transport}: {text}");
        block_on(async {
            let (mut runtime, _) = server.clients().await?;
            assert_eq!(requests::exited(&mut runtime, &id).await?.exit_code, 4);
            Ok(())
        })?;
        let log = raw_log(server, &name, &config)?;
        assert!(log.contains("stdout F got hello") && !log.contains("stderr"), "{log}");
    }
    Ok(())
}

fn what_cannot_be_attached_to_is_refused(server: &mut CriServer) -> Result<()> {
    let (pod_id, id) = started(server, "ended", &container("c", &["true"]))?;
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        requests::exited(&mut runtime, &id).await?;
        let cmd = vec!["true".to_owned()];
        let exec = |container_id: &str| ExecRequest {
            container_id: container_id.to_owned(),
            cmd: cmd.clone(),
            stdout: true,
            ..Default::default()
        };
        let attach = |container_id: &str| AttachRequest {
            container_id: container_id.to_owned(),
            stdout: true,
            ..Default::default()
        };
        let refused = runtime.exec(exec("absent")).await.expect_err("no such container");
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        let refused = runtime.attach(attach("absent")).await.expect_err("no such container");
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        let not_running = "container is in CONTAINER_EXITED state";
        let refused = runtime.exec(exec(&id)).await.expect_err("it has ended");
        assert_eq!(
            (refused.code(), refused.message().contains(not_running)),
            (Code::Unknown, true),
            "{refused}"
        );
        let refused = runtime.attach(attach(&id)).await.expect_err("it has ended");
        assert_eq!(
            (refused.code(), refused.message().contains(not_running)),
            (Code::Unknown, true),
            "{refused}"
        );
        let forward = |pod_sandbox_id: &str| PortForwardRequest {
            pod_sandbox_id: pod_sandbox_id.to_owned(),
            port: vec![80],
        };
        let refused = runtime.port_forward(forward("absent")).await.expect_err("no such pod");
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_id.clone() }).await?;
        let refused = runtime.port_forward(forward(&pod_id)).await.expect_err("it is stopped");
        let text = refused.message();
        assert_eq!((refused.code(), text.contains("is not running")), (Code::Unknown, true), "{refused}");
        Ok(())
    })?;
    let (_, id) = started(server, "running", &container("c", &IDLE))?;
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let request = ExecRequest { container_id: id, cmd: vec!["true".to_owned()], ..Default::default() };
        let refused = runtime.exec(request.clone()).await.expect_err("no stream");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let both = ExecRequest { tty: true, stderr: true, stdout: true, ..request };
        let refused = runtime.exec(both).await.expect_err("a terminal has no stderr");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        Ok(())
    })
}

fn a_url_is_good_once(server: &mut CriServer) -> Result<()> {
    let (_, id) = started(server, "url", &container("c", &IDLE))?;
    let url = block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let request =
            ExecRequest { container_id: id, cmd: vec!["true".into()], stdout: true, ..Default::default() };
        Ok(runtime.exec(request).await?.into_inner().url)
    })?;
    let rest = url.strip_prefix("http://").context("a http URL")?;
    let (address, path) = rest.split_once('/').context("a path")?;
    let (host, port) = address.rsplit_once(':').context("a port")?;
    assert!(host.starts_with("127."), "{url}");
    let get = |path: &str| {
        let request =
            format!("printf 'GET /{path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'");
        shell(server, &format!("{request} | busybox nc {host} {port} | head -n 1"))
    };
    assert!(get("exec/wrong")?.contains("404"));
    assert!(get(path)?.contains("400"), "a plain request is no session");
    assert!(get(path)?.contains("404"));
    Ok(())
}

fn port_forward_carries_a_hundred_megabytes_both_ways(server: &mut CriServer) -> Result<()> {
    // Each netcat serves one connection at a time: its queue is so short that the kernel answers the next with cookies.
    let serve = "for port in 1 2 3 4 5 6 7 8; do nc -ll -p 808$port -e cat & done; wait";
    let (pod_id, id) = started(server, "echo", &unlimited("c", &["sh", "-c", serve]))?;
    listens(server, &id, 8)?;
    for (transport, first) in transports(server).iter().zip([18080, 18090]) {
        let ports: Vec<u16> = (first + 1..=first + 8).collect();
        let pairs: Vec<String> = ports.iter().map(|port| format!("{port}:808{}", port - first)).collect();
        let pairs = pairs.join(" ");
        let forward = spawn(server, &format!("exec $CRICTL port-forward -r {transport} {pod_id} {pairs}"))?;
        for port in &ports {
            eventually("the port is forwarded", || echo(server, *port, b"ping\n").ok())?;
        }
        let much = b"0123456789abcde\n".repeat(100 << 16);
        echo(server, ports[0], &much).with_context(|| format!("100 MiB over {transport}"))?;
        std::thread::scope(|scope| {
            let server = &*server;
            let send = |port: u16| move || echo(server, port, &port.to_be_bytes().repeat(500_000));
            let connections: Vec<_> = ports.iter().map(|port| scope.spawn(send(*port))).collect();
            connections.into_iter().try_for_each(|connection| connection.join().expect("no panic"))
        })
        .with_context(|| format!("eight at once over {transport}"))?;
        forward.kill_and_read()?;
    }
    Ok(())
}

/// Sends to a forwarded port whose server sends everything back, and reads while it sends: a client that does one after the
/// other, as netcat, waits forever once all that lies between is full.
fn echo(server: &CriServer, port: u16, sent: &[u8]) -> Result<()> {
    let mut connection = server.host.connect((Ipv4Addr::LOCALHOST, port).into())?;
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        let mut sender = connection.try_clone()?;
        let sending = scope.spawn(move || {
            sender.write_all(sent)?;
            sender.shutdown(Shutdown::Write)
        });
        connection.read_to_end(&mut received)?;
        sending.join().expect("no panic")
    })?;
    ensure!(received == sent, "{} bytes were sent, {} others came back", sent.len(), received.len());
    Ok(())
}

fn port_forward_reaches_ipv6_and_tells_of_closed_ports(server: &mut CriServer) -> Result<()> {
    // The reference's pods have no IPv6 here, not even on their loopback.
    let address =
        if server.implementation == Implementation::Podwright { "[::1]:8080" } else { "127.0.0.1:8080" };
    let (pod_id, id) = started(server, "six", &container("c", &["httpd", "-f", "-p", address]))?;
    listens(server, &id, 1)?;
    let forward = spawn(server, &format!("exec $CRICTL port-forward {pod_id} 18080:8080 18081:9999"))?;
    let get = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 18080";
    eventually("the port is forwarded", || {
        shell(server, get).ok().filter(|text| text.starts_with("HTTP/1"))
    })?;
    let nothing = shell(server, "busybox nc 127.0.0.1 18081 </dev/null").unwrap_or_default();
    assert_eq!(nothing, "");
    eventually("the client says why", || {
        let text = std::fs::read_to_string(&forward.output).ok()?;
        (text.contains("error forwarding port 9999") && text.contains("refused")).then_some(())
    })
}

/// CVE-2022-23471 too: 200 clients that are killed in the middle of a session.
#[test]
#[ignore = "needs root"]
fn cve_2025_64329_sessions_whose_client_disappears_leave_nothing() -> Result<()> {
    let server = &mut CriServer::start(Implementation::Podwright)?;
    let config = ContainerConfig { stdin: true, ..unlimited("c", &IDLE) };
    let (pod_id, id) = started(server, "gone", &config)?;
    let footprint = |server: &mut CriServer| Footprint::of(server.node().context("podwright")?, &pod_id);
    let before = footprint(server)?;
    let fifo = server.host.path().join("silence");
    shell(server, &format!("mkfifo {}", fifo.display()))?;
    let fifo = fifo.display();
    for round in 0..10 {
        let transport = transports(server)[round % 2];
        // Five of each: silent, talking, with an input that nobody reads, attached.
        let script = format!(
            "for n in 1 2 3 4 5; do
               $CRICTL exec -r {transport} {id} sleep 800 &
               $CRICTL exec -i -r {transport} {id} yes talking >/dev/null &
               yes typing | $CRICTL exec -i -r {transport} {id} sleep 801 &
               $CRICTL attach -i -r {transport} {id} 0<>{fifo} &
             done
             until [ $($CRICTL exec -s {id} ps | grep -c -e 'sleep 80[01]' -e 'yes talking') -ge 15 ]; do sleep 0.1; done
             kill -9 $(busybox ps -o pid,args | grep -e 'crictl .*{id}' | grep -v grep | awk '{{print $1}}')"
        );
        shell(server, &script)?;
    }
    let rest = eventually("every process of the sessions is gone", || {
        let left = shell(server, &format!("$CRICTL exec -s {id} ps")).ok()?;
        (!left.contains("sleep 80") && !left.contains("talking")).then_some(left)
    })?;
    assert!(rest.contains("sleep 1000"), "the container lives: {rest}");
    eventually("every descriptor and thread of the sessions is gone", || {
        let now = footprint(server).ok()?;
        (now.descriptors <= before.descriptors + 4
            && now.supervisor_descriptors <= before.supervisor_descriptors)
            .then_some(())
    })
    .with_context(|| format!("before {before:?}, now {:?}", footprint(server)))
}

/// What a node holds open.
#[derive(Debug)]
struct Footprint {
    descriptors: usize,
    supervisor_descriptors: usize,
}

impl Footprint {
    fn of(node: &Node, pod: &str) -> Result<Self> {
        let open = |pid: u32| Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count());
        Ok(Self { descriptors: open(node.pid())?, supervisor_descriptors: open(node.supervisor(pod)?)? })
    }
}

/// CVE-2022-1708 and CVE-2026-53495 too.
fn cve_2022_31030_an_exec_sync_is_capped_and_does_not_wait_for_background_children(
    server: &mut CriServer,
) -> Result<()> {
    let (_, id) = started(server, "cap", &unlimited("c", &IDLE))?;
    block_on(async {
        let (runtime, _) = server.clients().await?;
        let mut runtime = runtime.max_decoding_message_size(64 << 20);
        let much = exec(&mut runtime, &id, &["head", "-c", "20000000", "/dev/zero"]).await;
        if server.implementation == Implementation::Containerd {
            // The reference keeps 16 MiB too, and finds them too large to be sent.
            assert!(format!("{:#}", much.expect_err("too large")).contains("larger than max"));
        } else {
            let much = much?;
            assert_eq!((much.stdout.len(), much.exit_code), ((16 << 20) - (4 << 10), 0));
            let script = "sleep 902 & echo started";
            let done = exec(&mut runtime, &id, &["sh", "-c", script]).await?;
            assert_eq!((done.stdout.as_slice(), done.exit_code), (&b"started\n"[..], 0));
            // A child that goes on writing does not either.
            let done = exec(&mut runtime, &id, &["sh", "-c", "yes & echo started"]).await?;
            assert!(done.stdout.starts_with(b"started\n") || done.stdout.starts_with(b"y\n"));
        }
        let request = ExecSyncRequest {
            container_id: id.clone(),
            cmd: ["sh", "-c", "yes"].map(str::to_owned).into(),
            timeout: 1,
        };
        let error = runtime.exec_sync(request).await.expect_err("it never ends");
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_killed_agent_ends_its_sessions_and_nothing_else() -> Result<()> {
    let mut server = CriServer::start(Implementation::Podwright)?;
    let config = ContainerConfig { stdin: true, ..unlimited("c", &["sh", "-c", "echo up; exec sleep 1000"]) };
    let (pod_id, id) = started(&server, "crash", &config)?;
    let sessions = ["exec -i ID sleep 803", "exec ID sh -c 'sleep 804 & yes'"]
        .map(|session| spawn(&server, &format!("sleep 900 | $CRICTL {}", session.replace("ID", &id))));
    eventually("the sessions run", || {
        let running = shell(&server, &format!("$CRICTL exec -s {id} ps")).ok()?;
        (running.contains("sleep 803") && running.contains("yes")).then_some(())
    })?;
    let supervisor = server.node().context("podwright")?.supervisor(&pod_id)?;
    server.crash_and_restart()?;
    eventually("the sessions have ended", || {
        let left = children_of(supervisor);
        (left.len() == 1).then_some(())
    })?;
    drop(sessions);
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        assert_eq!(status(&mut runtime, &id).await?.state(), cri::v1::ContainerState::ContainerRunning);
        assert_eq!(exec(&mut runtime, &id, &["echo", "alive"]).await?.stdout, b"alive\n");
        Ok(())
    })?;
    let done = crictl(&server, &["exec", &id, "echo", "interactive"])?;
    assert_eq!(String::from_utf8(done.stdout)?, "interactive\n");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_killed_supervisor_ends_its_pod_and_its_sessions() -> Result<()> {
    let mut server = CriServer::start(Implementation::Podwright)?;
    let (pod_id, id) = started(&server, "lost", &container("c", &IDLE))?;
    let session = spawn(&server, &format!("$CRICTL exec {id} sleep 805"))?;
    eventually("the session runs", || {
        shell(&server, &format!("$CRICTL exec -s {id} ps")).ok().filter(|text| text.contains("sleep 805"))
    })?;
    let supervisor = server.node().context("podwright")?.supervisor(&pod_id)?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(supervisor)?).context("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let text = session.wait_and_read()?;
    assert!(text.contains("supervisor"), "{text}");
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let status = requests::exited(&mut runtime, &id).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"), "{status:?}");
        Ok(())
    })?;
    eventually("the sandbox is not ready", || {
        let pod = server.crictl_json(&["inspectp", &pod_id]).ok()?;
        (pod["status"]["state"] == "SANDBOX_NOTREADY").then_some(())
    })?;
    server.crictl(&["rmp", "-f", &pod_id]).map(drop)
}

fn children_of(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// A pod with one started container.
fn started(server: &CriServer, name: &str, config: &ContainerConfig) -> Result<(String, String)> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), name);
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let id = create(&mut runtime, &pod_id, &pod, config).await?;
        start(&mut runtime, &id).await?;
        Ok((pod_id, id))
    })
}

/// Waits until so many ports are listened on in the container's pod: clients give a forward up when nobody listens.
fn listens(server: &CriServer, id: &str, ports: usize) -> Result<()> {
    eventually(&format!("{ports} ports are listened on"), || {
        let tables = ["cat", "/proc/net/tcp", "/proc/net/tcp6"];
        let read = block_on(async { exec(&mut server.clients().await?.0, id, &tables).await }).ok()?;
        let state = |line: &str| line.split_whitespace().nth(3) == Some("0A");
        (String::from_utf8_lossy(&read.stdout).lines().filter(|line| state(line)).count() == ports)
            .then_some(())
    })
}

/// Without the limit of half a processor.
fn unlimited(name: &str, command: &[&str]) -> ContainerConfig {
    let mut config = container(name, command);
    if let Some(linux) = &mut config.linux {
        linux.resources = None;
    }
    config
}

fn raw_log(server: &CriServer, pod_name: &str, config: &ContainerConfig) -> Result<String> {
    let path = Path::new(&pod(server.host.path(), pod_name).log_directory).join(&config.log_path);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn crictl(server: &CriServer, arguments: &[&str]) -> Result<Output> {
    server.crictl_command(arguments).stdin(Stdio::null()).output().context("run crictl")
}

/// A shell on the host that knows `$CRICTL`, for two minutes.
fn script(server: &CriServer, text: &str) -> Command {
    let mut command = server.host.command("timeout");
    let endpoint = format!("unix://{}", server.socket().display());
    let crictl = format!(
        "{} --timeout 60s --runtime-endpoint {endpoint} --image-endpoint {endpoint}",
        parts::tool("crictl").display()
    );
    command.args(["--kill-after=1", "120", "sh", "-c", text]).env("CRICTL", crictl).stdin(Stdio::null());
    command
}

/// Runs a script to its end; what it has printed.
fn shell(server: &CriServer, text: &str) -> Result<String> {
    let output = script(server, text).output().context("run a script")?;
    ensure!(output.status.success(), "{text}: {}\n{}", output.status, text_of(&output));
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a script in a terminal, in which `typed` was typed before; what the terminal has shown.
fn terminal(server: &CriServer, text: &str, typed: &str) -> Result<String> {
    let directory = tempfile::tempdir_in(server.host.path())?;
    let (file, keyboard) = (directory.path().join("script"), directory.path().join("keyboard"));
    std::fs::write(&file, text)?;
    let keyboard = keyboard.display();
    let file = file.display();
    // Opened for both directions the keyboard never ends.
    let run = format!("printf '{typed}' >&0; script -qec 'sh {file}' /dev/null");
    shell(server, &format!("mkfifo {keyboard}; ({run}) 0<>{keyboard}; true"))
}

/// A script in the background.
struct Background {
    process: std::process::Child,
    output: std::path::PathBuf,
}

fn spawn(server: &CriServer, text: &str) -> Result<Background> {
    let output = tempfile::NamedTempFile::new_in(server.host.path())?.into_temp_path().keep()?;
    let file = std::fs::File::create(&output)?;
    let process =
        script(server, text).stdout(file.try_clone()?).stderr(file).spawn().context("start a script")?;
    Ok(Background { process, output })
}

impl Background {
    fn kill_and_read(mut self) -> Result<String> {
        self.kill();
        Ok(std::fs::read_to_string(&self.output)?)
    }

    /// `timeout` passes it on to its children.
    fn kill(&mut self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }

    fn wait_and_read(mut self) -> Result<String> {
        self.process.wait()?;
        Ok(std::fs::read_to_string(&self.output)?)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            self.kill();
        }
    }
}

//! What a supervisor does for its pod, one story each.

use std::future::Future;
use std::os::fd::AsFd;
use std::time::Duration;

use host::cgroup::CgroupManager;
use host::namespace::Namespace;
use host::process::ProcessId;
use oci::plan::Capabilities;
use oci::supervisor::protocol::{ErrorCode, ExitRecord, PidMode, SignalScope};
use runtime::supervisor::{ConnectError, RequestError, SpawnError, Supervisor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::pod::{Pod, exe, setup};

type Story = fn();

/// Every story of this program.
pub(crate) const ALL: &[(&str, Story)] = &[
    ("namespaces_host_name_and_sysctls_are_the_pods_own", || run(namespaces())),
    ("a_setup_step_that_goes_wrong_is_named_and_leaves_nothing", || run(setup_failure())),
    ("a_supervisor_lives_in_its_cgroup_and_one_that_fails_leaves_it_empty", || run(own_cgroup())),
    ("output_is_logged_and_the_exit_file_written_before_anyone_is_told", || run(output_and_exit())),
    ("a_user_other_than_root_can_open_its_output_by_name", || run(other_user())),
    ("a_container_over_its_memory_limit_is_reported_as_such", || run(out_of_memory())),
    ("a_daemon_that_keeps_the_output_open_does_not_hold_back_the_exit", || run(daemon_keeps_output())),
    ("a_command_that_does_not_exist_is_an_error_and_no_container", || run(not_found())),
    ("exec_returns_both_streams_and_the_exit_code", || run(exec())),
    ("an_exec_over_its_time_limit_is_killed_with_its_group", || run(exec_timeout())),
    ("an_exec_ends_although_a_background_child_keeps_its_output_open", || run(exec_background())),
    ("exec_output_over_the_limit_is_cut_and_the_command_goes_on", || run(exec_flood())),
    ("an_exec_that_nobody_waits_for_is_killed", || run(exec_cancelled())),
    ("signals_reach_the_container_and_stop_escalates_by_itself", || run(signals())),
    ("a_rotated_log_is_reopened_and_an_ended_containers_is_not", || run(reopen())),
    ("an_agent_that_vanishes_changes_nothing_and_the_next_one_finds_everything", || run(reconnect())),
    ("the_death_of_a_supervisor_is_noticed_and_fails_what_waits", || run(death())),
    ("garbage_and_oversized_frames_cost_only_their_own_connection", || run(garbage())),
    ("two_hundred_connections_are_served", || run(connections())),
    ("unknown_requests_and_fields_are_what_the_protocol_says", || run(compatibility())),
    ("an_exit_is_told_only_once_however_late_one_listens", || run(late_listener())),
    ("shutdown_kills_what_runs_and_leaves_no_process", || run(shutdown())),
    ("a_pod_pid_namespace_has_a_pause_process_that_dies_with_the_supervisor", || run(pause())),
    ("a_container_in_a_shared_pid_namespace_ends_with_its_first_process", || run(shared_pid())),
    ("a_long_directory_name_is_no_obstacle", || run(long_path())),
];

fn run(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), story).await.expect("the story ends");
    });
}

async fn namespaces() {
    let pod = Pod::new().await;
    for namespace in ["net", "ipc", "uts"] {
        let of = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(pod.supervisor.process().pid.to_string()), of("self".into()), "{namespace}");
    }
    pod.start("c", "hostname; cat /proc/sys/net/core/somaxconn; grep -c lo: /proc/net/dev; echo hi | wc -c")
        .await;
    let mut pod = pod;
    pod.exit().await;
    assert_eq!(pod.log("c"), ["stdout F story", "stdout F 77", "stdout F 1", "stdout F 3"]);
    assert_ne!(std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim(), "77");
    pod.end().await;
}

async fn setup_failure() {
    let directory = tempfile::tempdir().unwrap();
    let mut bad_sysctl = setup(directory.path());
    bad_sysctl.sysctls.insert("kernel.core_pattern".into(), "|/bin/evil".into());
    let mut bad_cgroup = setup(directory.path());
    bad_cgroup.cgroup = Some("/../../elsewhere".into());
    let mut bad_directory = setup(&directory.path().join("missing"));
    bad_directory.namespaces.pid = PidMode::Pod;
    for (setup, phase) in [
        (bad_sysctl, "write sysctl kernel.core_pattern"),
        (bad_cgroup, "enter cgroup /../../elsewhere"),
        (bad_directory, "bind supervisor socket"),
    ] {
        match Supervisor::spawn(&exe(), &setup).await {
            Err(SpawnError::Setup { failure, .. }) => assert_eq!(failure.phase, phase),
            other => panic!("{phase}: {other:?}"),
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    assert_eq!(children(), Vec::<i32>::new());
}

async fn own_cgroup() {
    let path = format!("/podwright-supervisor-test-{}", std::process::id());
    let manager = CgroupManager::detect().unwrap();
    let pod = Pod::with(|setup| setup.cgroup = Some(path.clone())).await;
    let cgroup = manager.open(&path).unwrap();
    let mut hierarchies = 0;
    for (hierarchy, directory) in cgroup.directories() {
        let procs = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), pod.supervisor.process().pid.to_string(), "{hierarchy}");
        hierarchies += 1;
    }
    assert!(hierarchies > 0);
    pod.end().await;
    assert_eq!(cgroup.pids_below().unwrap(), Vec::<i32>::new());

    let directory = tempfile::tempdir().unwrap();
    let mut fails = setup(&directory.path().join("missing"));
    fails.cgroup = Some(path);
    assert!(matches!(Supervisor::spawn(&exe(), &fails).await, Err(SpawnError::Setup { .. })));
    // At once, not a moment later: whoever made the cgroup removes it now.
    cgroup.remove().unwrap();
    assert_eq!(children(), Vec::<i32>::new());
}

async fn output_and_exit() {
    let mut pod = Pod::new().await;
    let started = pod.start("c", "echo out; echo err >&2; printf half; exit 7").await;
    assert!(started.pid > 0 && started.started_at > 0);
    let (name, exit) = pod.exit().await;
    assert_eq!((name.as_str(), exit.code, exit.signal, exit.oom_killed), ("c", 7, None, false));
    let on_disk: ExitRecord = serde_json::from_slice(&std::fs::read(pod.exit_file("c")).unwrap()).unwrap();
    assert_eq!(on_disk, exit);
    let mut log = pod.log("c");
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out", "stdout P half"]);
    pod.supervisor.remove("c").await.unwrap();
    assert!(pod.supervisor.list().await.unwrap().is_empty());
    pod.end().await;
}

async fn other_user() {
    let mut pod = Pod::new().await;
    let script = "echo one >/proc/self/fd/1; echo two >/proc/self/fd/2; cat /proc/self/status | grep Uid";
    let mut container = pod.container("c", &["/bin/sh", "-c", script]);
    container.plan.process.uid = 1000;
    container.plan.process.capabilities = Capabilities::default();
    pod.supervisor.start(container).await.unwrap();
    assert_eq!(pod.exit().await.1.code, 0);
    let mut log = pod.log("c");
    log.sort();
    assert_eq!(log, ["stderr F two", "stdout F Uid:\t1000\t1000\t1000\t1000", "stdout F one"]);
    pod.end().await;
}

async fn out_of_memory() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("c", &["/bin/tail", "/dev/zero"]);
    container.plan.cgroup.as_mut().unwrap().limits.memory_limit = Some(16 << 20);
    pod.supervisor.start(container).await.unwrap();
    let (_, exit) = pod.exit().await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(libc::SIGKILL), true));
    pod.end().await;
}

async fn daemon_keeps_output() {
    let mut pod = Pod::with(|setup| setup.namespaces.pid = PidMode::Container).await;
    pod.start("c", "sleep 1000 & echo started; exit 3").await;
    let (_, exit) = pod.exit().await;
    assert_eq!(exit.code, 3);
    assert_eq!(pod.log("c"), ["stdout F started"]);
    pod.end().await;
}

async fn not_found() {
    let pod = Pod::new().await;
    let error = pod.supervisor.start(pod.container("c", &["/no/such/file"])).await.unwrap_err();
    assert!(matches!(&error, RequestError::Refused(reply) if reply.code == ErrorCode::Launch), "{error:?}");
    assert!(error.to_string().contains("o such file or directory"), "{error}");
    assert!(pod.supervisor.list().await.unwrap().is_empty());
    // The id is free for another attempt.
    pod.start("c", "exit 0").await;
    let mut again = pod.container("c", &["/bin/true"]);
    assert_code(pod.supervisor.start(again.clone()).await, ErrorCode::AlreadyExists);
    again.container = "t".into();
    again.tty = true;
    assert_code(pod.supervisor.start(again).await, ErrorCode::BadRequest);
    pod.end().await;
}

async fn exec() {
    let mut pod = Pod::new().await;
    pod.start("c", "sleep 1000").await;
    let output = pod
        .supervisor
        .exec_sync("c", pod.exec_plan("c", "echo out; echo err >&2; exit 5"), None)
        .await
        .unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!((output.result.code, output.result.timed_out, output.result.truncated), (5, false, false));
    assert_code(pod.supervisor.exec_sync("x", pod.exec_plan("c", "true"), None).await, ErrorCode::NotFound);
    pod.supervisor.signal("c", libc::SIGKILL, SignalScope::Init).await.unwrap();
    assert_eq!(pod.exit().await.1.signal, Some(libc::SIGKILL));
    assert_code(pod.supervisor.exec_sync("c", pod.exec_plan("c", "true"), None).await, ErrorCode::WrongState);
    pod.end().await;
}

async fn exec_timeout() {
    let pod = Pod::new().await;
    pod.start("c", "sleep 1000").await;
    let script = "sleep 1001 & echo begun; sleep 1002";
    let output = pod
        .supervisor
        .exec_sync("c", pod.exec_plan("c", script), Some(Duration::from_millis(300)))
        .await
        .unwrap();
    assert!(output.result.timed_out);
    assert_eq!((output.stdout.as_slice(), output.result.code), (&b"begun\n"[..], 137));
    pod.end().await;
}

async fn exec_background() {
    let pod = Pod::new().await;
    pod.start("c", "sleep 1000").await;
    let output = pod
        .supervisor
        .exec_sync("c", pod.exec_plan("c", "sleep 1000 & echo done; exit 4"), None)
        .await
        .unwrap();
    assert_eq!((output.stdout.as_slice(), output.result.code), (&b"done\n"[..], 4));
    pod.end().await;
}

async fn exec_flood() {
    let pod = Pod::new().await;
    pod.start("c", "sleep 1000").await;
    let script = "head -c 20000000 /dev/zero; echo end >&2; exit 6";
    let output = pod.supervisor.exec_sync("c", pod.exec_plan("c", script), None).await.unwrap();
    assert_eq!((output.stdout.len(), output.stderr.as_slice()), (16 << 20, &b"end\n"[..]));
    assert_eq!((output.result.code, output.result.truncated), (6, true));
    pod.end().await;
}

async fn exec_cancelled() {
    let pod = Pod::new().await;
    pod.start("c", "sleep 1000").await;
    let marker = pod.directory.path().join("marker");
    rustix::fs::mknodat(rustix::fs::CWD, &marker, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    // The command holds the fifo's writing end until it is killed; the reader then sees the end of it.
    let script = format!("exec sleep 1000 > {}", marker.display());
    let mut reader = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&marker).unwrap();
    let writer = tokio::net::unix::pipe::OpenOptions::new().open_sender(&marker).unwrap();
    let supervisor = pod.supervisor.clone();
    let plan = pod.exec_plan("c", &script);
    let task = tokio::spawn(async move { supervisor.exec_sync("c", plan, None).await });
    // A second exec is answered only after the first one has been started.
    pod.supervisor.exec_sync("c", pod.exec_plan("c", "true"), None).await.unwrap();
    task.abort();
    drop(writer);
    let mut nothing = [0];
    assert_eq!(reader.read(&mut nothing).await.unwrap(), 0);
    pod.end().await;
}

async fn signals() {
    let mut pod = Pod::new().await;
    pod.start("gentle", "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.05; done").await;
    wait_for_log(&pod, "gentle", 1).await;
    pod.supervisor.stop("gentle", libc::SIGTERM, Duration::from_secs(50)).await.unwrap();
    let (_, exit) = pod.exit().await;
    assert_eq!(
        (exit.code, pod.log("gentle")),
        (9, vec!["stdout F ready".to_owned(), "stdout F bye".to_owned()])
    );
    pod.start("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.05; done").await;
    wait_for_log(&pod, "stubborn", 1).await;
    pod.supervisor.stop("stubborn", libc::SIGTERM, Duration::from_millis(50)).await.unwrap();
    let (_, exit) = pod.exit().await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    // Telling the dead is no error; nonsense is.
    pod.supervisor.signal("stubborn", libc::SIGTERM, SignalScope::Init).await.unwrap();
    assert_code(pod.supervisor.signal("stubborn", 99, SignalScope::Init).await, ErrorCode::BadRequest);
    assert_code(pod.supervisor.signal("nobody", 15, SignalScope::Init).await, ErrorCode::NotFound);
    pod.end().await;
}

async fn reopen() {
    let mut pod = Pod::new().await;
    let go = pod.directory.path().join("go");
    rustix::fs::mknodat(rustix::fs::CWD, &go, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    pod.start("c", &format!("echo before; cat {} >/dev/null; echo after", go.display())).await;
    wait_for_log(&pod, "c", 1).await;
    let rotated = pod.directory.path().join("logs/c/0.log.1");
    std::fs::rename(pod.log_path("c"), &rotated).unwrap();
    pod.supervisor.reopen_log("c").await.unwrap();
    drop(tokio::task::spawn_blocking(move || std::fs::File::create(go)).await.unwrap());
    pod.exit().await;
    assert_eq!(pod.log("c"), ["stdout F after"]);
    assert!(std::fs::read_to_string(rotated).unwrap().ends_with("stdout F before\n"));
    std::fs::remove_file(pod.log_path("c")).unwrap();
    assert_code(pod.supervisor.reopen_log("c").await, ErrorCode::WrongState);
    assert!(!pod.log_path("c").exists());
    pod.end().await;
}

async fn reconnect() {
    // The first agent is a runtime of its own, so that nothing of it is left when it ends.
    let first = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut pod = Pod::new().await;
            let running =
                pod.start("running", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done").await;
            pod.start("ending", "exit 8").await;
            pod.exit().await;
            (pod, running)
        })
    });
    let (mut pod, running) = first.join().unwrap();
    let process = pod.supervisor.process().clone();
    assert!(matches!(pod.supervisor.list().await, Err(RequestError::Dead)));
    pod.supervisor = Supervisor::connect(pod.directory.path(), Some(&process)).await.unwrap();
    pod.events = pod.supervisor.events();
    let (container, exit) = pod.exit().await;
    assert_eq!((container.as_str(), exit.code), ("ending", 8));
    let list = pod.supervisor.list().await.unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!((list[1].started, &list[1].exit), (running, &None));
    let stranger = ProcessId { start_time: process.start_time + 1, ..process };
    let refused = Supervisor::connect(pod.directory.path(), Some(&stranger)).await;
    assert!(matches!(refused, Err(ConnectError::Gone { .. })), "{refused:?}");
    let seen = pod.log("running").len();
    wait_for_log(&pod, "running", seen + 1).await;
    pod.end().await;
}

async fn death() {
    let mut pod = Pod::new().await;
    let started = pod.start("c", "sleep 1000").await;
    let supervisor = pod.supervisor.clone();
    let plan = pod.exec_plan("c", "sleep 1000");
    let waiting = tokio::spawn(async move { supervisor.exec_sync("c", plan, None).await });
    pod.supervisor.list().await.unwrap();
    kill(pod.supervisor.process().pid);
    pod.supervisor.died().await;
    assert!(pod.supervisor.is_dead());
    let outcome = waiting.await.unwrap();
    assert!(matches!(outcome, Err(RequestError::Dead | RequestError::Disconnected)), "{outcome:?}");
    assert!(matches!(pod.supervisor.list().await, Err(RequestError::Dead)));
    assert!(pod.events.recv().await.is_none());
    let again = Supervisor::connect(pod.directory.path(), Some(pod.supervisor.process())).await;
    assert!(matches!(again, Err(ConnectError::Gone { .. })), "{again:?}");
    // The container lives on without it: the agent kills what is left by its cgroup.
    assert!(host::process::start_time(started.pid).is_ok_and(|time| time == started.start_time));
    let container = pod.cgroup("c");
    runtime::supervisor::kill_pod(&container).await.unwrap();
    assert!(container.pids().unwrap().is_empty());
}

async fn garbage() {
    let pod = Pod::new().await;
    pod.start("c", "sleep 1000").await;
    let socket = pod.directory.path().join("sup.sock");
    let huge = u32::MAX.to_le_bytes().to_vec();
    let no_hello = frame(br#"{"id":1,"request":{"method":"list","params":{}}}"#);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        huge,
        frame(b"{}"),
        frame(b"{\"id\":"),
        frame(b""),
        frame(b"\x01"),
    ] {
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        // Unread garbage makes the kernel say "reset" instead of ending the stream.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{bytes:?}");
    }
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(&no_hello).await.unwrap();
    assert!(receive(&mut stream).await.contains("must be hello"));
    assert_eq!(pod.supervisor.list().await.unwrap().len(), 1);
    pod.end().await;
}

async fn connections() {
    let pod = Pod::new().await;
    let socket = pod.directory.path().join("sup.sock");
    let mut streams = Vec::new();
    for _ in 0..200 {
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        stream
            .write_all(&frame(br#"{"id":1,"request":{"method":"hello","params":{"version":1}}}"#))
            .await
            .unwrap();
        streams.push(stream);
    }
    for stream in &mut streams {
        assert!(receive(stream).await.contains("sandbox_id"));
    }
    // More than it takes are turned away, and none of the others suffers.
    for _ in 0..100 {
        drop(tokio::net::UnixStream::connect(&socket).await.unwrap());
    }
    pod.start("c", "sleep 1000").await;
    drop(streams);
    assert_eq!(pod.supervisor.list().await.unwrap().len(), 1);
    pod.end().await;
}

async fn compatibility() {
    let pod = Pod::new().await;
    let mut stream = tokio::net::UnixStream::connect(pod.directory.path().join("sup.sock")).await.unwrap();
    let conversation = [
        (r#"{"id":1,"request":{"method":"hello","params":{"version":99,"colour":"red"}}}"#, r#""version":2"#),
        (r#"{"id":2,"request":{"method":"levitate","params":{"height":3}}}"#, r#""code":"unsupported""#),
        (r#"{"id":3,"request":{"method":"signal","params":{"container":7}}}"#, r#""code":"bad_request""#),
        (r#"{"id":4,"extra":[1],"request":{"method":"list","params":{"verbose":true}}}"#, r#""list":[]"#),
    ];
    for (request, answer) in conversation {
        stream.write_all(&frame(request.as_bytes())).await.unwrap();
        let reply = receive(&mut stream).await;
        assert!(reply.contains(answer), "{request}: {reply}");
    }
    pod.end().await;
}

async fn late_listener() {
    let mut pod = Pod::new().await;
    pod.start("c", "exit 1").await;
    pod.exit().await;
    let mut late = pod.supervisor.events();
    assert!(late.recv().await.is_some());
    assert!(late.try_recv().is_err());
    pod.end().await;
    assert!(late.recv().await.is_none());
}

async fn shutdown() {
    let mut pod = Pod::new().await;
    pod.start("one", "sleep 1000 & sleep 1001").await;
    pod.start("two", "trap '' TERM INT HUP; sleep 1000").await;
    pod.supervisor.shutdown().await.unwrap();
    let mut exits = [pod.exit().await, pod.exit().await].map(|(name, exit)| (name, exit.code));
    exits.sort();
    assert_eq!(exits, [("one".to_owned(), 137), ("two".to_owned(), 137)]);
    assert!(pod.exit_file("one").exists());
    pod.supervisor.shutdown().await.unwrap();
}

async fn pause() {
    let pod = Pod::with(|setup| setup.namespaces.pid = PidMode::Pod).await;
    let pause = pod.supervisor.pause_pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pause}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Name"), "pause");
    assert_eq!(field("NSpid"), format!("{pause} 1"));
    assert_eq!(field("Uid"), "65535 65535 65535 65535");
    assert_eq!(
        (field("CapEff"), field("CapPrm"), field("NoNewPrivs")),
        ("0".repeat(16), "0".repeat(16), "1".into())
    );
    assert_eq!(std::fs::read_dir(format!("/proc/{pause}/root/")).unwrap().count(), 0);
    let pidfd = host::process::pidfd_open(pause).unwrap().unwrap();
    kill(pod.supervisor.process().pid);
    pod.supervisor.died().await;
    // It came to this program, a subreaper, when its parent was killed.
    assert_eq!(host::process::wait(pidfd.as_fd()).unwrap(), host::process::Exit::Signal(libc::SIGKILL));
}

async fn shared_pid() {
    for mode in [PidMode::Pod, PidMode::Node] {
        let mut pod = Pod::with(|setup| setup.namespaces.pid = mode).await;
        let mut container = pod.container("c", &["/bin/sh", "-c", "sleep 1000 & echo $$; exit 3"]);
        container.plan.new_namespaces.retain(|namespace| *namespace != Namespace::Pid);
        let started = pod.supervisor.start(container).await.unwrap();
        assert_eq!(pod.exit().await.1.code, 3);
        // 1 is the pause process, or the node's init.
        let pid = if mode == PidMode::Pod { 2 } else { started.pid };
        assert_eq!(pod.log("c"), [format!("stdout F {pid}")]);
        // The background process was killed with it; being gone may take it a moment more.
        while !pod.cgroup("c").pids().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        pod.end().await;
    }
}

async fn long_path() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("d".repeat(90)).join("e".repeat(90));
    std::fs::create_dir_all(&long).unwrap();
    let supervisor = Supervisor::spawn(&exe(), &setup(&long)).await.unwrap();
    let again = Supervisor::connect(&long, Some(supervisor.process())).await.unwrap();
    assert!(again.list().await.unwrap().is_empty());
    again.shutdown().await.unwrap();
    supervisor.died().await;
}

fn assert_code<T: std::fmt::Debug>(outcome: Result<T, RequestError>, expect: ErrorCode) {
    match outcome {
        Err(RequestError::Refused(reply)) => assert_eq!(reply.code, expect, "{}", reply.message),
        other => panic!("{other:?}, expected {expect:?}"),
    }
}

/// Waits until a log has so many entries, by looking again whenever other tasks have run.
async fn wait_for_log(pod: &Pod, name: &str, entries: usize) {
    while std::fs::read_to_string(pod.log_path(name)).map_or(true, |text| text.lines().count() < entries) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes(), payload].concat()
}

async fn receive(stream: &mut tokio::net::UnixStream) -> String {
    let length = stream.read_u32_le().await.unwrap();
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.unwrap();
    String::from_utf8(payload).unwrap()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Processes of this program that have not ended.
fn children() -> Vec<i32> {
    let of_thread =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let text: String =
        std::fs::read_dir("/proc/self/task").unwrap().map(|task| of_thread(task.unwrap())).collect();
    let pids = text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
    pids.filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    })
    .collect()
}

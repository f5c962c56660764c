//! The CRI as crictl and a kubelet use it. Each story runs on podwright and, as the check that the story is right, on
//! containerd with runc.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use cri::v1::{
    ContainerEventType, ContainerState, GetEventsRequest, PodSandboxStatusRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, StopPodSandboxRequest,
};
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{self, container, create, exec, pod, run_pod, run_to_end, start, status, stop};
use e2e::{image, registry::Registry};
use tonic::Code;

e2e::cri_stories! {
    crictl_shows_version_and_a_ready_runtime,
    crictl_drives_the_whole_life_of_a_pod,
    crictl_pulls_from_a_registry_through_its_mirror,
    crictl_says_that_an_image_does_not_exist,
    crictl_follows_a_log_to_its_end,
    stopping_and_removing_are_idempotent,
    status_of_an_unknown_id_is_not_found,
    a_container_is_confined_as_asked,
    containers_of_a_pod_share_network_ipc_and_hostname,
    log_lines_are_in_the_cri_format,
    exit_codes_and_reasons_are_told,
    a_container_over_its_memory_limit_is_oom_killed,
    a_missing_command_fails_the_start,
    a_file_that_is_not_executable_fails_the_start,
    a_missing_image_fails_the_creation,
    a_device_is_looked_at_when_it_is_asked_for,
    a_pod_without_a_hostname_is_told_the_node_s,
    a_pod_name_is_reserved_while_it_exists,
    annotations_and_labels_come_back_unchanged,
    stop_escalates_after_the_grace_period,
    exec_gives_output_and_exit_code,
    exec_ends_at_its_timeout,
    events_tell_the_life_of_a_container,
    garbage_on_the_socket_hurts_nobody_else,
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn crictl_shows_version_and_a_ready_runtime(server: CriServer) -> Result<()> {
    let version = server.crictl(&["version"])?;
    assert!(version.contains("RuntimeApiVersion:  v1"), "{version}");
    let info = server.crictl_json(&["info"])?;
    let conditions = info["status"]["conditions"].as_array().context("conditions")?;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|c| c["type"] == wanted).context(wanted)?;
        assert_eq!(condition["status"], true, "{condition}");
    }
    Ok(())
}

fn crictl_drives_the_whole_life_of_a_pod(server: CriServer) -> Result<()> {
    let directory = server.host.path();
    let logs = directory.join("logs");
    std::fs::create_dir_all(&logs)?;
    let pod_file = directory.join("pod.json");
    let container_file = directory.join("container.json");
    let pod_text = serde_json::json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "u1", "attempt": 0 },
        "log_directory": logs, "linux": {},
    });
    let container_text = serde_json::json!({
        "metadata": { "name": "c" }, "image": { "image": image::BUSYBOX },
        "command": ["/bin/sh", "-c", "echo hello; trap 'exit 0' TERM; while :; do sleep 1 & wait; done"],
        "log_path": "c.log", "linux": {},
    });
    std::fs::write(&pod_file, pod_text.to_string())?;
    std::fs::write(&container_file, container_text.to_string())?;
    let (pod_file, container_file) = (text(&pod_file), text(&container_file));

    let pod = server.crictl(&["runp", &pod_file])?.trim().to_owned();
    assert!(server.crictl(&["pods"])?.contains("Ready"));
    assert_eq!(server.crictl_json(&["inspectp", &pod])?["status"]["state"], "SANDBOX_READY");
    let id = server.crictl(&["create", &pod, &container_file, &pod_file])?.trim().to_owned();
    assert_eq!(server.crictl_json(&["inspect", &id])?["status"]["state"], "CONTAINER_CREATED");
    server.crictl(&["start", &id])?;
    assert!(server.crictl(&["ps"])?.contains("Running"));
    let inspected = server.crictl_json(&["inspect", &id])?;
    assert!(inspected["info"]["pid"].as_i64().unwrap_or(0) > 1, "{inspected}");
    assert_eq!(inspected["info"]["runtimeSpec"]["process"]["args"][0], "/bin/sh", "{inspected}");
    e2e::test_host::eventually("the log has a line", || {
        server.crictl(&["logs", &id]).ok().filter(|text| text == "hello\n")
    })?;
    assert_eq!(server.crictl(&["exec", "-s", &id, "echo", "from exec"])?.trim_end(), "from exec");
    server.crictl(&["stop", "--timeout", "30", &id])?;
    let stopped = server.crictl_json(&["inspect", &id])?;
    assert_eq!(stopped["status"]["state"], "CONTAINER_EXITED");
    assert_eq!(stopped["status"]["exitCode"], 0, "{stopped}");
    server.crictl(&["rm", &id])?;
    server.crictl(&["stopp", &pod])?;
    assert_eq!(server.crictl_json(&["inspectp", &pod])?["status"]["state"], "SANDBOX_NOTREADY");
    server.crictl(&["rmp", &pod])?;
    assert!(!server.crictl(&["pods"])?.contains("web"));
    assert!(!server.crictl(&["ps", "-a"])?.contains(&id[..12]));
    Ok(())
}

fn crictl_pulls_from_a_registry_through_its_mirror(server: CriServer) -> Result<()> {
    let registry = Registry::start(&server.host)?;
    let layout = server.host.path().join("busybox.oci");
    registry.push(&server.host, &layout, "library/pulled:1")?;
    e2e::registry::write_mirror(&server.registry_config_dir(), "docker.io", Registry::ADDRESS)?;
    server.crictl(&["pull", "pulled:1"])?;
    let images = server.crictl(&["images"])?;
    assert!(images.contains("docker.io/library/pulled"), "{images}");
    let image = server.crictl_json(&["inspecti", "pulled:1"])?;
    assert!(image["status"]["id"].as_str().is_some_and(|id| id.starts_with("sha256:")), "{image}");
    assert!(
        image["status"]["repoDigests"][0].as_str().is_some_and(|d| d.contains("pulled@sha256:")),
        "{image}"
    );
    assert_ne!(image["status"]["size"], "0", "{image}");
    server.crictl(&["rmi", "pulled:1"])?;
    assert!(!server.crictl(&["images"])?.contains("pulled"));
    Ok(())
}

fn crictl_says_that_an_image_does_not_exist(server: CriServer) -> Result<()> {
    let _registry = Registry::start(&server.host)?;
    e2e::registry::write_mirror(&server.registry_config_dir(), "docker.io", Registry::ADDRESS)?;
    let error = server.crictl(&["pull", "nothing:here"]).expect_err("no such image").to_string();
    assert!(error.contains("not found"), "{error}");
    assert!(error.contains("docker.io/library/nothing:here"), "{error}");
    Ok(())
}

fn crictl_follows_a_log_to_its_end(server: CriServer) -> Result<()> {
    let (pod, id) = block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "follow");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let script = "i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); done; read _ < /dev/null; sleep 1; echo last";
        let id = create(&mut runtime, &pod_id, &pod, &container("c", &["/bin/sh", "-c", script])).await?;
        start(&mut runtime, &id).await?;
        Ok((pod_id, id))
    })?;
    let followed = server.crictl(&["logs", "-f", &id])?;
    assert_eq!(followed.lines().count(), 51, "{followed}");
    assert!(followed.ends_with("last\n"), "{followed}");
    server.crictl(&["rmp", "-f", &pod]).map(drop)
}

fn stopping_and_removing_are_idempotent(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "twice");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let id = create(&mut runtime, &pod_id, &pod, &container("c", &["sleep", "1000"])).await?;
        start(&mut runtime, &id).await?;
        for _ in 0..2 {
            stop(&mut runtime, &id, 0).await?;
        }
        for _ in 0..2 {
            runtime.remove_container(RemoveContainerRequest { container_id: id.clone() }).await?;
        }
        for _ in 0..2 {
            runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_id.clone() }).await?;
        }
        for _ in 0..2 {
            runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod_id.clone() }).await?;
        }
        let unknown = "0".repeat(64);
        runtime.remove_container(RemoveContainerRequest { container_id: unknown.clone() }).await?;
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: unknown.clone() }).await?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: unknown }).await?;
        Ok(())
    })
}

fn status_of_an_unknown_id_is_not_found(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let unknown = "0".repeat(64);
        let request = PodSandboxStatusRequest { pod_sandbox_id: unknown.clone(), verbose: false };
        let error = runtime.pod_sandbox_status(request).await.expect_err("no such sandbox");
        assert_eq!(error.code(), Code::NotFound, "{error}");
        let error = status(&mut runtime, &unknown).await.expect_err("no such container");
        assert_eq!(code_of(&error), Some(Code::NotFound), "{error:?}");
        let error = start(&mut runtime, &unknown).await.expect_err("no such container");
        assert_eq!(code_of(&error), Some(Code::NotFound), "{error:?}");
        Ok(())
    })
}

/// What the container itself reports; the same script serves the benchmark as the check of equal work.
const CONFINEMENT: &str = "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapInh|CapPrm|CapAmb):' /proc/self/status
echo pid $$
hostname
ulimit -n
(cat /proc/kcore | wc -c) 2>&1
(echo 1 > /proc/sys/vm/panic_on_oom) 2>&1
ls /dev | grep -v '^core$' | sort | tr '\\n' ' '; echo
mount | grep -E ' on (/|/proc|/sys|/dev|/dev/shm|/dev/mqueue|/dev/pts|/sys/fs/cgroup) ' | awk '{print $3, $5}' | sort -u
cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/memory.max
cat /etc/resolv.conf
id";

fn a_container_is_confined_as_asked(server: CriServer) -> Result<()> {
    let log = block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "confined");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        Ok(run_to_end(&mut runtime, &pod_id, &pod, &container("c", &["/bin/sh", "-c", CONFINEMENT])).await?.1)
    })?;
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "pid 1",
        "confined",
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
        "67108864",
        "50000",
        "512",
        "nameserver 192.0.2.53",
        "search default.svc.cluster.local",
        "options ndots:5",
        "/ overlay",
        "/dev tmpfs",
        "/dev/mqueue mqueue",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/proc proc",
        "/sys sysfs",
        "uid=0(root) gid=0(root) groups=0(root)",
    ] {
        assert!(log.lines().any(|found| found == line), "no line {line:?} in:\n{log}");
    }
    assert!(log.contains("panic_on_oom: Read-only file system"), "{log}");
    Ok(())
}

fn containers_of_a_pod_share_network_ipc_and_hostname(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "shared");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let mut seen = Vec::new();
        for name in ["a", "b"] {
            let script =
                "for n in net ipc uts; do readlink /proc/self/ns/$n; done; hostname; ip -4 -o address";
            let (_, log) =
                run_to_end(&mut runtime, &pod_id, &pod, &container(name, &["/bin/sh", "-c", script])).await?;
            seen.push(log);
        }
        assert_eq!(seen[0], seen[1]);
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod_id, verbose: false };
        let status = runtime.pod_sandbox_status(request).await?.into_inner().status.context("a status")?;
        let ip = status.network.context("a network")?.ip;
        assert!(ip.starts_with("10.85."), "{ip}");
        assert!(seen[0].contains(&ip), "{ip} is not in {}", seen[0]);
        Ok(())
    })
}

fn log_lines_are_in_the_cri_format(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "logs");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let script = "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; echo; printf unfinished";
        let container = container("c", &["/bin/sh", "-c", script]);
        let (_, text) = run_to_end(&mut runtime, &pod_id, &pod, &container).await?;
        assert!(text.lines().any(|line| line == "x".repeat(20000)), "the long line is whole");
        assert!(text.contains("unfinished"), "{text}");
        let raw = std::fs::read_to_string(Path::new(&pod.log_directory).join("c.log"))?;
        for line in raw.lines() {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            assert_eq!(fields.len(), 4, "{line}");
            let (time, zone) = (fields[0], &fields[0][fields[0].len() - 1..]);
            assert!(
                // RFC3339Nano as Go writes it: zeros at the end of the fraction are left out.
                time.len() >= "2016-10-06T00:17:09Z".len() && (zone == "Z" || time.contains('+')),
                "{line}"
            );
            assert!(["stdout", "stderr"].contains(&fields[1]), "{line}");
            assert!(["P", "F"].contains(&fields[2]), "{line}");
        }
        assert!(raw.contains(" stderr F err\n"), "{raw}");
        let partial = raw.lines().find(|line| line.contains(" stdout P xxx")).context("a partial line")?;
        assert_eq!(partial.split(' ').next_back().map(str::len), Some(16384), "split at 16 KiB");
        Ok(())
    })
}

fn exit_codes_and_reasons_are_told(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "exits");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        for (name, script, code, reason) in [
            ("zero", "exit 0", 0, "Completed"),
            ("three", "exit 3", 3, "Error"),
            ("killed", "kill -9 $$; sleep 9 & wait", 0, ""),
        ] {
            let command = if name == "killed" { "sh -c 'kill -9 $$'; exit $?" } else { script };
            let (status, _) =
                run_to_end(&mut runtime, &pod_id, &pod, &container(name, &["/bin/sh", "-c", command]))
                    .await?;
            let (code, reason) = if name == "killed" { (137, "Error") } else { (code, reason) };
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
            assert!(status.created_at <= status.started_at, "{status:?}");
            // The reference takes the time of the start after the start, by which a short process may have ended.
            if server.implementation == Implementation::Podwright {
                assert!(status.started_at <= status.finished_at, "{status:?}");
            }
            assert!(status.created_at > 0, "{status:?}");
        }
        Ok(())
    })
}

fn a_container_over_its_memory_limit_is_oom_killed(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "oom");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];
        let (status, _) = run_to_end(&mut runtime, &pod_id, &pod, &container("c", &command)).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
        Ok(())
    })
}

fn a_missing_command_fails_the_start(server: CriServer) -> Result<()> {
    failing_start(&server, "/no/such/program", "no such file or directory")
}

fn a_file_that_is_not_executable_fails_the_start(server: CriServer) -> Result<()> {
    failing_start(&server, "/etc/not-executable", "permission denied")
}

fn a_device_is_looked_at_when_it_is_asked_for(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "devices");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let with = |name: &str, host: &Path| {
            let mut config = container(name, &["/bin/sh", "-c", "head -c 3 /dev/mine | wc -c"]);
            config.devices = vec![cri::v1::Device {
                host_path: text(host),
                container_path: "/dev/mine".into(),
                permissions: "r".into(),
            }];
            config
        };
        // Plugged in after the server was started.
        let node = server.host.path().join("mine");
        let zero = rustix::fs::makedev(1, 5);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &node,
            rustix::fs::FileType::CharacterDevice,
            0o666.into(),
            zero,
        )?;
        let (_, log) = run_to_end(&mut runtime, &pod_id, &pod, &with("there", &node)).await?;
        assert_eq!(log, "3\n");
        let missing = server.host.path().join("none");
        let refused = create(&mut runtime, &pod_id, &pod, &with("missing", &missing)).await;
        let refused = format!("{:?}", refused.expect_err("there is no such device"));
        assert!(
            refused.contains("no such file or directory") || refused.contains("No such file or directory"),
            "{refused}"
        );
        Ok(())
    })
}

fn a_pod_without_a_hostname_is_told_the_node_s(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let mut pod = pod(server.host.path(), "nameless");
        pod.hostname.clear();
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let (_, log) =
            run_to_end(&mut runtime, &pod_id, &pod, &container("c", &["/bin/sh", "-c", "echo $HOSTNAME"]))
                .await?;
        assert_eq!(log.trim(), rustix::system::uname().nodename().to_str()?);
        Ok(())
    })
}

fn failing_start(server: &CriServer, program: &str, why: &str) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "bad");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let id = create(&mut runtime, &pod_id, &pod, &container("c", &[program])).await?;
        let error = format!("{:#}", start(&mut runtime, &id).await.expect_err("it cannot start"));
        assert!(error.contains(program) && error.contains(why), "{error}");
        let status = status(&mut runtime, &id).await?;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{status:?}");
        assert!(status.message.contains(why), "{status:?}");
        Ok(())
    })
}

fn a_missing_image_fails_the_creation(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "noimage");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let mut container = container("c", &["true"]);
        container.image.as_mut().context("an image")?.image = "registry.test/absent:1".into();
        let error = create(&mut runtime, &pod_id, &pod, &container).await.expect_err("no image");
        assert_eq!(code_of(&error), Some(Code::NotFound), "{error:?}");
        assert!(format!("{error:#}").contains("registry.test/absent:1"), "{error:#}");
        Ok(())
    })
}

fn a_pod_name_is_reserved_while_it_exists(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let config = pod(server.host.path(), "same");
        let pod_id = run_pod(&mut runtime, &config).await?;
        let error = run_pod(&mut runtime, &config).await.expect_err("the name is taken");
        assert!(format!("{error:#}").contains("reserved"), "{error:#}");
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_id.clone() }).await?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod_id }).await?;
        run_pod(&mut runtime, &config).await.map(drop)
    })
}

fn annotations_and_labels_come_back_unchanged(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let mut config = pod(server.host.path(), "noted");
        let odd = HashMap::from([
            ("a/b".to_owned(), "ünï \n\t\"quoted\"".to_owned()),
            ("empty".to_owned(), String::new()),
        ]);
        config.annotations = odd.clone();
        let pod_id = run_pod(&mut runtime, &config).await?;
        let mut wanted = container("c", &["true"]);
        wanted.annotations = odd.clone();
        wanted.labels = odd.clone();
        let id = create(&mut runtime, &pod_id, &config, &wanted).await?;
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod_id, verbose: false };
        let sandbox = runtime.pod_sandbox_status(request).await?.into_inner().status.context("a status")?;
        assert_eq!(sandbox.annotations, odd);
        assert_eq!(sandbox.labels, config.labels);
        let container = status(&mut runtime, &id).await?;
        assert_eq!((container.annotations, container.labels), (odd.clone(), odd));
        Ok(())
    })
}

fn stop_escalates_after_the_grace_period(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "deaf");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let deaf = container("deaf", &["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"]);
        let id = create(&mut runtime, &pod_id, &pod, &deaf).await?;
        start(&mut runtime, &id).await?;
        e2e::test_host::eventually("it ignores SIGTERM", || {
            requests::log_of(&pod, &deaf).ok().filter(|t| t == "up\n")
        })?;
        stop(&mut runtime, &id, 1).await?;
        let status = status(&mut runtime, &id).await?;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
        Ok(())
    })
}

fn exec_gives_output_and_exit_code(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "exec");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let mut config = container("c", &["sleep", "1000"]);
        config.envs = vec![cri::v1::KeyValue { key: "GREETING".into(), value: b"hi there".to_vec() }];
        config.working_dir = "/tmp".into();
        let id = create(&mut runtime, &pod_id, &pod, &config).await?;
        start(&mut runtime, &id).await?;
        let script = "echo $GREETING; pwd; echo err >&2; grep -E '^(Seccomp|CapEff|NoNewPrivs):' /proc/self/status; exit 7";
        let done = exec(&mut runtime, &id, &["/bin/sh", "-c", script]).await?;
        let stdout = String::from_utf8(done.stdout)?;
        assert_eq!(stdout, "hi there\n/tmp\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n");
        assert_eq!((done.stderr.as_slice(), done.exit_code), (b"err\n".as_slice(), 7));
        let inside = exec(&mut runtime, &id, &["cat", "/proc/1/cmdline"]).await?;
        assert!(inside.stdout.starts_with(b"sleep"), "exec sees the container's processes");
        exec(&mut runtime, &id, &["/no/such/program"]).await.expect_err("no such program");
        Ok(())
    })
}

fn exec_ends_at_its_timeout(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "slow");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let id = create(&mut runtime, &pod_id, &pod, &container("c", &["sleep", "1000"])).await?;
        start(&mut runtime, &id).await?;
        let request = cri::v1::ExecSyncRequest {
            container_id: id,
            cmd: ["sleep", "500"].map(str::to_owned).into(),
            timeout: 1,
        };
        let error = runtime.exec_sync(request).await.expect_err("it takes longer");
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        Ok(())
    })
}

fn events_tell_the_life_of_a_container(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let mut watcher = runtime.clone();
        // The reference sends no response headers before the first event.
        let call = tokio::spawn(async move { watcher.get_container_events(GetEventsRequest {}).await });
        let pod = pod(server.host.path(), "events");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let id = create(&mut runtime, &pod_id, &pod, &container("c", &["/bin/sh", "-c", "exit 4"])).await?;
        start(&mut runtime, &id).await?;
        requests::exited(&mut runtime, &id).await?;
        runtime.remove_container(RemoveContainerRequest { container_id: id.clone() }).await?;
        let mut events = call.await??.into_inner();
        let mut seen = Vec::new();
        while seen.last() != Some(&ContainerEventType::ContainerDeletedEvent) {
            let next = tokio::time::timeout(std::time::Duration::from_secs(30), events.message());
            let event =
                next.await.with_context(|| format!("only {seen:?} came"))??.context("the stream goes on")?;
            if event.container_id == id {
                assert!(event.created_at > 0);
                let sandbox = event.pod_sandbox_status.as_ref().context("the sandbox's status")?;
                assert_eq!(sandbox.id, pod_id);
                seen.push(event.container_event_type());
            }
        }
        use ContainerEventType as E;
        let wanted = [
            E::ContainerCreatedEvent,
            E::ContainerStartedEvent,
            E::ContainerStoppedEvent,
            E::ContainerDeletedEvent,
        ];
        assert_eq!(seen, wanted);
        Ok(())
    })
}

fn garbage_on_the_socket_hurts_nobody_else(server: CriServer) -> Result<()> {
    use std::io::Write;
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = pod(server.host.path(), "untouched");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let id = create(&mut runtime, &pod_id, &pod, &container("c", &["sleep", "1000"])).await?;
        start(&mut runtime, &id).await?;
        let process = ["cat", "/proc/1/stat"];
        let before = exec(&mut runtime, &id, &process).await?.stdout;
        for garbage in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0xff; 1 << 16],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\xff\xff".to_vec(),
        ] {
            let mut socket = std::os::unix::net::UnixStream::connect(server.socket())?;
            // The server may close before everything is written.
            let _ = socket.write_all(&garbage);
        }
        // Well-formed calls from here on; their messages are not.
        let channel = cri::connect(&server.socket().display().to_string()).await?;
        // Field 0, then a field that is longer than what there is.
        for broken in [vec![7; 9], b"\x0a\x7fshort".to_vec()] {
            for method in ["Version", "RunPodSandbox", "CreateContainer", "StopContainer", "ListContainers"] {
                let code = call(&channel, &method_path(method), broken.clone()).await;
                assert_eq!(code, Some(Code::Internal), "{method} {broken:?}");
            }
        }
        for path in [&method_path("Levitate"), &method_path(""), "/runtime.v9.RuntimeService/Version", "/x"] {
            assert_eq!(call(&channel, path, Vec::new()).await, Some(Code::Unimplemented), "{path:?}");
        }
        let code = call(&channel, &method_path("StopContainer"), vec![b'x'; 17 << 20]).await;
        // The reference's library and ours differ in the name of it.
        assert!(matches!(code, Some(Code::ResourceExhausted | Code::OutOfRange)), "{code:?}");
        let version = call(&channel, &method_path("Version"), Vec::new()).await;
        assert_eq!(version, None, "the connection is of use after all that");

        assert_eq!(
            status(&mut runtime, &id).await?.state(),
            ContainerState::ContainerRunning,
            "the container runs"
        );
        let after = exec(&mut runtime, &id, &process).await?.stdout;
        // The 22nd field is when it was started; later ones change.
        let start_of = |stat: &[u8]| String::from_utf8_lossy(stat).split(' ').nth(21).map(str::to_owned);
        assert!(start_of(&before).is_some());
        assert_eq!(start_of(&after), start_of(&before), "the same process");
        assert!(server.crictl(&["version"])?.contains("RuntimeName"));
        Ok(())
    })
}

fn method_path(method: &str) -> String {
    format!("/runtime.v1.RuntimeService/{method}")
}

/// Calls a method with these bytes for a message; gives the error's code.
async fn call(channel: &tonic::transport::Channel, path: &str, message: Vec<u8>) -> Option<Code> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    if client.ready().await.is_err() {
        return Some(Code::Unavailable);
    }
    let path = path.parse().expect("it is a path");
    client.unary(tonic::Request::new(message), path, Raw).await.err().map(|status| status.code())
}

/// Sends bytes as they are, and reads nothing of the answer.
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        prost::bytes::BufMut::put_slice(to, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, tonic::Status> {
        let length = prost::bytes::Buf::remaining(from);
        prost::bytes::Buf::advance(from, length);
        Ok(Some(()))
    }
}

fn code_of(error: &anyhow::Error) -> Option<Code> {
    error.chain().find_map(|cause| cause.downcast_ref::<tonic::Status>()).map(tonic::Status::code)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

//! The commands of runc's command line beyond a container's first life. Each story runs on `podwright oci` and, as the check
//! that the story is right, on runc 1.5.

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::test_host::{eventually, output_of, text_of};
use serde_json::{Value, json};

e2e::oci_stories! {
    exec_runs_beside_the_init_with_its_environment,
    exec_takes_a_process_from_a_file_and_detaches,
    exec_gives_exit_codes_and_255_when_it_cannot_start,
    cve_2026_30892_exec_refuses_users_that_are_no_numbers,
    list_and_ps_show_what_runs,
    paused_processes_stand_still_until_resumed,
    a_paused_container_can_be_killed,
    update_changes_limits_that_were_and_were_not_there,
    events_tell_usage,
    kill_all_reaches_every_process,
    spec_is_written_once,
    features_and_version_are_told,
    errors_go_to_the_log_as_json,
    checkpoints_of_what_does_not_run_are_refused,
}

/// A running container.
fn started(runtime: OciRuntime, script: &str, change: impl FnOnce(&mut Value)) -> Result<Bundle> {
    let mut bundle = Bundle::new(runtime, script)?;
    change(&mut bundle.spec);
    bundle.create()?;
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    Ok(bundle)
}

fn sleeper(runtime: OciRuntime) -> Result<Bundle> {
    started(runtime, "exec sleep 1000", |_| {})
}

/// Runs a command of the runtime with the id after `before`, and gives its output.
fn output(bundle: &Bundle, before: &[&str], after: &[&str]) -> Result<String> {
    let arguments = [before, &[bundle.id.as_str()], after].concat();
    output_of(&mut bundle.command(&arguments)?)
}

fn exec_runs_beside_the_init_with_its_environment(runtime: OciRuntime) -> Result<()> {
    let bundle = started(runtime, "exec sleep 1000", |spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "WHO=init"]);
        spec["hostname"] = json!("story");
    })?;
    let script = "echo $WHO $MORE; hostname; pwd; id -u; id -g; id -G | tr ' ' '\\n' | sort -u; cat /proc/1/comm; grep -E '^(CapInh|NoNewPrivs)' /proc/self/status";
    let before = ["exec", "--env", "MORE=too", "--cwd", "/tmp", "--user", "12:34", "--additional-gids", "56"];
    let text = output(&bundle, &before, &["/bin/sh", "-c", script])?;
    let wanted = "init too\nstory\n/tmp\n12\n34\n34\n56\nsleep\nCapInh:\t0000000000000000\nNoNewPrivs:\t1\n";
    assert_eq!(text, wanted);
    Ok(())
}

fn exec_takes_a_process_from_a_file_and_detaches(runtime: OciRuntime) -> Result<()> {
    let bundle = sleeper(runtime)?;
    let process = json!({
        "args": ["/bin/sh", "-c", "exec sleep 2000"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
    });
    let file = bundle.path().join("process.json");
    std::fs::write(&file, process.to_string())?;
    let pid_file = bundle.path().join("exec.pid");
    let (file, pid_path) = (file.display().to_string(), pid_file.display().to_string());
    let before = ["exec", "--process", &file, "--detach", "--pid-file", &pid_path];
    let mut command = bundle.command(&[&before[..], &[&bundle.id]].concat())?;
    // What is detached keeps the streams.
    let status = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status()?;
    assert!(status.success(), "{status}");
    let pid = std::fs::read_to_string(&pid_file)?;
    eventually("the program runs", || {
        let line = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).ok()?;
        (line == "sleep\x002000\0").then_some(())
    })?;
    let pids: Vec<i64> = serde_json::from_str(&output(&bundle, &["ps", "--format", "json"], &[])?)?;
    assert!(pids.contains(&pid.trim().parse()?), "{pids:?}");
    Ok(())
}

fn exec_gives_exit_codes_and_255_when_it_cannot_start(runtime: OciRuntime) -> Result<()> {
    let bundle = sleeper(runtime)?;
    let exec = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let output = bundle.command(&[&["exec", bundle.id.as_str()], words].concat())?.output()?;
        Ok((output.status.code(), text_of(&output)))
    };
    assert_eq!(exec(&["/bin/sh", "-c", "exit 7"])?.0, Some(7));
    assert_eq!(exec(&["/bin/sh", "-c", "kill -9 $$"])?.0, Some(137));
    let (code, text) = exec(&["no-such-program"])?;
    assert_eq!(code, Some(255), "{text}");
    let wanted = "exec failed: unable to start container process: exec: \"no-such-program\": executable file not found in $PATH";
    assert!(text.replace('\\', "").contains(wanted), "{text}");
    output(&bundle, &["kill"], &["KILL"])?;
    eventually("it is stopped", || (bundle.state().ok()?["status"] == "stopped").then_some(()))?;
    let (code, text) = exec(&["true"])?;
    assert_eq!(code, Some(255), "{text}");
    assert!(text.contains("cannot exec in a stopped container"), "{text}");
    Ok(())
}

fn cve_2026_30892_exec_refuses_users_that_are_no_numbers(runtime: OciRuntime) -> Result<()> {
    let bundle = sleeper(runtime)?;
    for user in ["root", "", "0x0", "1:", "-1", ":1", "1000x", " 1000", "4294967296", "1000:0x"] {
        let output = bundle.command(&["exec", "--user", user, &bundle.id, "id"])?.output()?;
        // runc takes an empty user for none given, and 2^32 for root.
        let mistaken = runtime == OciRuntime::Runc && matches!(user, "" | "4294967296");
        if !mistaken {
            assert!(!output.status.success() && output.stdout.is_empty(), "{user:?}: {}", text_of(&output));
        }
    }
    Ok(())
}

fn list_and_ps_show_what_runs(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "sleep 2000 & wait")?;
    bundle.create()?;
    output(&bundle, &["start"], &[])?;
    assert_eq!(output_of(&mut bundle.command(&["list", "-q"])?)?.trim(), bundle.id);
    let list: Value = serde_json::from_str(&output_of(&mut bundle.command(&["list", "-f", "json"])?)?)?;
    let state = bundle.state()?;
    for field in ["id", "pid", "status", "bundle", "rootfs", "created", "ociVersion"] {
        assert_eq!(list[0][field], state[field], "{field}");
    }
    assert_eq!(list[0]["owner"], "root");
    let table = output_of(&mut bundle.command(&["list"])?)?;
    let titles: Vec<&str> = table.lines().next().context("a title")?.split_whitespace().collect();
    assert_eq!(titles, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let processes = eventually("both processes are there", || {
        let pids: Vec<i64> = serde_json::from_str(&output(&bundle, &["ps", "-f", "json"], &[]).ok()?).ok()?;
        (pids.len() == 2).then_some(pids)
    })?;
    assert_eq!(json!(processes[0]), state["pid"]);
    let table = output(&bundle, &["ps"], &[])?;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("PID") && table.contains("sleep 2000"), "{table}");
    let table = output(&bundle, &["ps"], &["-o", "pid,comm"])?;
    assert!(table.lines().any(|line| line.contains("sleep")), "{table}");
    Ok(())
}

fn paused_processes_stand_still_until_resumed(runtime: OciRuntime) -> Result<()> {
    let bundle = sleeper(runtime)?;
    let unpaused = bundle.command(&["resume", &bundle.id])?.output()?;
    assert!(!unpaused.status.success(), "{}", text_of(&unpaused));
    output(&bundle, &["pause"], &[])?;
    assert_eq!(bundle.state()?["status"], "paused");
    let refused = bundle.command(&["exec", &bundle.id, "true"])?.output()?;
    assert_eq!(refused.status.code(), Some(255));
    assert!(text_of(&refused).contains("cannot exec in a paused container"), "{}", text_of(&refused));
    let refused = bundle.command(&["delete", &bundle.id])?.output()?;
    assert!(text_of(&refused).contains("that is not stopped: paused"), "{}", text_of(&refused));
    output(&bundle, &["resume"], &[])?;
    assert_eq!(bundle.state()?["status"], "running");
    assert_eq!(output(&bundle, &["exec"], &["echo", "alive"])?, "alive\n");
    Ok(())
}

fn a_paused_container_can_be_killed(runtime: OciRuntime) -> Result<()> {
    for end in [&["kill"][..], &["delete", "--force"]] {
        let bundle = sleeper(runtime)?;
        output(&bundle, &["pause"], &[])?;
        output(&bundle, end, if end[0] == "kill" { &["KILL"] } else { &[] })?;
        eventually("it has ended", || match bundle.state() {
            Ok(state) => (state["status"] == "stopped").then_some(()),
            Err(_) => Some(()),
        })?;
    }
    Ok(())
}

fn update_changes_limits_that_were_and_were_not_there(runtime: OciRuntime) -> Result<()> {
    let bundle = started(runtime, "exec sleep 1000", |spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    })?;
    let before = [
        "update",
        "--memory",
        "33554432",
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "50000",
        "--pids-limit",
        "9",
    ];
    output(&bundle, &before, &[])?;
    // From outside: the container's own mounts were made before the new limits.
    let path = format!("/podwright-oci-{}", bundle.id);
    let read = |controller: &str, v1: &str, v2: &str| {
        let old = format!("/sys/fs/cgroup/{controller}{path}/{v1}");
        std::fs::read_to_string(old)
            .or_else(|_| std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{v2}")))
    };
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max")?, "33554432\n");
    assert_eq!(read("pids", "pids.max", "pids.max")?, "9\n");
    let pid = bundle.state()?["pid"].to_string();
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    assert!(own.lines().filter(|line| line.ends_with(&path)).count() >= 1, "{own}");
    let file = bundle.path().join("resources.json");
    std::fs::write(&file, json!({ "cpu": { "shares": 512 }, "memory": { "limit": 48 << 20 } }).to_string())?;
    output(&bundle, &["update", "--resources", &file.display().to_string()], &[])?;
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max")?, "50331648\n");
    let forks = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & done 2>&1; wait";
    let output = bundle.command(&["exec", &bundle.id, "/bin/sh", "-c", forks])?.output()?;
    assert!(text_of(&output).contains("temporarily unavailable"), "{}", text_of(&output));
    Ok(())
}

fn events_tell_usage(runtime: OciRuntime) -> Result<()> {
    let bundle = started(runtime, "x=$(head -c 1000000 /dev/zero | tr '\\0' x); exec sleep 1000", |spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
        spec["linux"]["resources"]["pids"] = json!({ "limit": 100 });
    })?;
    eventually("it sleeps", || {
        let pid = bundle.state().ok()?["pid"].to_string();
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        line.starts_with("sleep").then_some(())
    })?;
    let event: Value = serde_json::from_str(&output(&bundle, &["events", "--stats"], &[])?)?;
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(bundle.id)));
    let data = &event["data"];
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(data["pids"], json!({ "current": 1, "limit": 100 }));
    for number in [&data["memory"]["usage"]["usage"], &data["cpu"]["usage"]["total"]] {
        assert!(number.as_u64().context("a number")? > 0, "{event}");
    }
    let mut command = bundle.command(&["events", "--interval", "50ms", &bundle.id])?;
    let mut child = command.stdout(std::process::Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().context("an event")??)?;
        assert_eq!(line["type"], "stats");
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn kill_all_reaches_every_process(runtime: OciRuntime) -> Result<()> {
    let bundle = started(
        runtime,
        "trap '' TERM; sleep 2000 & sleep 2000 & echo up; wait; wait; exec sleep 3000",
        |_| {},
    )?;
    eventually("it is up", || (bundle.output() == "up\n").then_some(()))?;
    let pids: Vec<i64> = eventually("all are there", || {
        let text = output(&bundle, &["ps", "-f", "json"], &[]).ok()?;
        serde_json::from_str(&text).ok().filter(|pids: &Vec<i64>| pids.len() == 3)
    })?;
    // Signal 0 asks whether it runs.
    output(&bundle, &["kill"], &["0"])?;
    output(&bundle, &["kill", "--all"], &["KILL"])?;
    // An orphan may wait as a zombie for its parent.
    let is_gone = |pid: &i64| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    eventually("all are gone", || pids.iter().all(is_gone).then_some(()))
}

fn spec_is_written_once(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "echo made by spec")?;
    let directory = bundle.path().join("new");
    std::fs::create_dir(&directory)?;
    let path = directory.display().to_string();
    output_of(&mut bundle.command(&["spec", "--bundle", &path])?)?;
    let text = std::fs::read_to_string(directory.join("config.json"))?;
    let again = bundle.command(&["spec", "--bundle", &path])?.output()?;
    assert!(!again.status.success(), "{}", text_of(&again));
    let (args, cgroup) =
        (bundle.spec["process"]["args"].clone(), bundle.spec["linux"]["cgroupsPath"].clone());
    bundle.spec = serde_json::from_str(&text)?;
    assert_eq!(bundle.spec["process"]["args"], json!(["sh"]));
    assert_eq!(bundle.spec["process"]["terminal"], true);
    bundle.spec["process"]["terminal"] = json!(false);
    bundle.spec["process"]["args"] = args;
    bundle.spec["linux"]["cgroupsPath"] = cgroup;
    let output = bundle.run()?;
    assert_eq!(text_of(&output).trim(), "made by spec");
    Ok(())
}

fn features_and_version_are_told(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "true")?;
    let features: Value = serde_json::from_str(&output_of(&mut bundle.command(&["features"])?)?)?;
    for namespace in ["cgroup", "ipc", "mount", "network", "pid", "uts"] {
        let known = features["linux"]["namespaces"].as_array().context("namespaces")?;
        assert!(known.contains(&json!(namespace)), "{features}");
    }
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    let version = output_of(&mut bundle.command(&["--version"])?)?;
    assert!(version.contains(" version ") && version.contains("\nspec: 1."), "{version}");
    Ok(())
}

fn errors_go_to_the_log_as_json(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "true")?;
    let log = bundle.path().join("log.json");
    let path = log.display().to_string();
    let output = bundle.command(&["--log", &path, "--log-format", "json", "state", "nobody"])?.output()?;
    assert_eq!(output.status.code(), Some(1));
    let text = std::fs::read_to_string(&log)?;
    let line: Value = serde_json::from_str(text.lines().last().context("a line")?)?;
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().context("a message")?.contains("container does not exist"), "{line}");
    Ok(())
}

fn checkpoints_of_what_does_not_run_are_refused(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "true")?;
    for command in ["checkpoint", "restore"] {
        // runc makes a directory for the images where it is, before it looks.
        let output = bundle.command(&[command, &bundle.id])?.current_dir(bundle.path()).output()?;
        assert!(!output.status.success(), "{command}: {}", text_of(&output));
        if runtime == OciRuntime::Podwright {
            assert!(text_of(&output).contains(command), "{}", text_of(&output));
        }
    }
    Ok(())
}

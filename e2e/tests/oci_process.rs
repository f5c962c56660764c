//! What a container's process sees of clock, scheduler and kernel, and a tmpfs that begins as a copy. Each story runs on `podwright oci`
//! and, as the check that the story is right, on runc 1.5.

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::test_host::{output_of, text_of};
use serde_json::{Value, json};

e2e::oci_stories! {
    clocks_of_a_time_namespace_are_ahead,
    a_time_namespace_comes_with_a_user_namespace,
    a_process_has_the_asked_scheduler_io_priority_and_domain,
    what_no_kernel_could_do_is_refused,
    a_tmpfs_begins_as_a_copy,
    a_right_that_the_runtime_lacks_is_an_error_and_never_left_out,
    a_capability_that_nobody_knows_is_left_out_and_told_of,
}

fn run(bundle: &Bundle) -> Result<String> {
    let output = bundle.run()?;
    anyhow::ensure!(output.status.success(), "{}: {}", output.status, text_of(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn add(list: &mut Value, entry: Value) -> Result<()> {
    list.as_array_mut().context("a list")?.push(entry);
    Ok(())
}

const AHEAD: &str = "cat /proc/self/timens_offsets; awk '{ print ($1 > 5000000) }' /proc/uptime";

/// A container whose clocks are ahead.
fn ahead(runtime: OciRuntime, script: &str) -> Result<Bundle> {
    let mut bundle = Bundle::new(runtime, script)?;
    add(&mut bundle.spec["linux"]["namespaces"], json!({ "type": "time" }))?;
    bundle.spec["linux"]["timeOffsets"] =
        json!({ "boottime": { "secs": 5_000_000, "nanosecs": 7 }, "monotonic": { "secs": -2 } });
    Ok(bundle)
}

/// The offsets, and whether the boot clock is ahead: without the kernel's padding.
fn clocks(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

const SEEN: [&str; 3] = ["monotonic -2 0", "boottime 5000000 7", "1"];

fn clocks_of_a_time_namespace_are_ahead(runtime: OciRuntime) -> Result<()> {
    let own = std::fs::read_link("/proc/self/ns/time").context("this machine's time namespace")?;
    let bundle = ahead(runtime, "exec sleep 1000")?;
    bundle.create()?;
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    let seen = output_of(&mut bundle.command(&["exec", &bundle.id, "/bin/sh", "-c", AHEAD])?)?;
    assert_eq!(clocks(&seen), SEEN);
    let pid = bundle.state()?["pid"].as_u64().context("a pid")?;
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/time")).context("the container's namespace")?;
    assert_ne!(theirs, own);
    // By path another container is in the same.
    let mut other = Bundle::new(runtime, AHEAD)?;
    add(
        &mut other.spec["linux"]["namespaces"],
        json!({ "type": "time", "path": format!("/proc/{pid}/ns/time") }),
    )?;
    assert_eq!(clocks(&run(&other)?), SEEN);
    Ok(())
}

fn a_time_namespace_comes_with_a_user_namespace(runtime: OciRuntime) -> Result<()> {
    let mut bundle = ahead(runtime, AHEAD)?;
    add(&mut bundle.spec["linux"]["namespaces"], json!({ "type": "user" }))?;
    let ids = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
    bundle.spec["linux"]["uidMappings"] = ids.clone();
    bundle.spec["linux"]["gidMappings"] = ids;
    for directory in [bundle.path().to_owned(), bundle.rootfs()] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
    }
    assert_eq!(clocks(&run(&bundle)?), SEEN);
    Ok(())
}

fn a_process_has_the_asked_scheduler_io_priority_and_domain(runtime: OciRuntime) -> Result<()> {
    // Nice and policy of stat: proc_pid_stat(5).
    let script = "cut -d' ' -f19,41 /proc/self/stat; ionice -p $$; uname -m";
    let mut bundle = Bundle::new(runtime, script)?;
    bundle.spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    bundle.spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
    bundle.spec["linux"]["personality"] = json!({ "domain": "LINUX32" });
    assert_eq!(run(&bundle)?, "5 3\nbest-effort: prio 6\ni686\n");
    let flags = ["SCHED_FLAG_RESET_ON_FORK"];
    bundle.spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": -5, "flags": flags });
    let script = "read -r line < /proc/self/stat; set -- $line; echo ${19} ${41}; cut -d' ' -f19 /proc/self/stat; exit 0";
    bundle.spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
    assert_eq!(run(&bundle)?, "-5 3\n0\n", "a child begins anew");
    Ok(())
}

fn what_no_kernel_could_do_is_refused(runtime: OciRuntime) -> Result<()> {
    let process = [
        ("scheduler", json!({ "policy": "SCHED_OTHER", "nice": 20 })),
        ("scheduler", json!({ "policy": "SCHED_BATCH", "priority": 1 })),
        ("scheduler", json!({ "policy": "SCHED_FIFO", "priority": 1, "runtime": 1000 })),
        ("ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 })),
    ];
    for (field, value) in process {
        let mut bundle = Bundle::new(runtime, "echo ran")?;
        bundle.spec["process"][field] = value.clone();
        let output = bundle.run()?;
        assert!(!output.status.success(), "{field} {value}: {}", text_of(&output));
    }
    let mut bundle = Bundle::new(runtime, "echo ran")?;
    bundle.spec["linux"]["timeOffsets"] = json!({ "monotonic": { "secs": 1 } });
    let output = bundle.run()?;
    assert!(!output.status.success(), "offsets without a namespace: {}", text_of(&output));
    Ok(())
}

fn a_tmpfs_begins_as_a_copy(runtime: OciRuntime) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let script =
        "stat -c '%a %u:%g %n' /data /data/sub /data/sub/file; readlink /data/link; cat /data/sub/file
        stat -f -c %T /data; echo changed > /data/sub/file";
    let mut bundle = Bundle::new(runtime, script)?;
    let data = bundle.rootfs().join("data");
    std::fs::create_dir_all(data.join("sub"))?;
    std::fs::write(data.join("sub/file"), "copied\n")?;
    symlink("/nowhere", data.join("link"))?;
    for (path, mode, id) in [("sub/file", 0o4757, 7), ("sub", 0o2755, 8), ("", 0o750, 0)] {
        chown(data.join(path), Some(id), Some(id))?;
        std::fs::set_permissions(data.join(path), std::fs::Permissions::from_mode(mode))?;
    }
    add(
        &mut bundle.spec["mounts"],
        json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "tmpcopyup"] }),
    )?;
    let seen = "750 0:0 /data\n2755 8:8 /data/sub\n4757 7:7 /data/sub/file\n/nowhere\ncopied\ntmpfs\n";
    assert_eq!(run(&bundle)?, seen);
    assert_eq!(std::fs::read_to_string(data.join("sub/file"))?, "copied\n", "only the copy was changed");
    Ok(())
}

/// Root on this machine may have every right, or be root in a container.
fn a_right_that_the_runtime_lacks_is_an_error_and_never_left_out(runtime: OciRuntime) -> Result<()> {
    let able = json!(["CAP_SYS_RESOURCE"]);
    for (field, value, script, wanted, named) in [
        ("oomScoreAdj", json!(-900), "cat /proc/self/oom_score_adj", "-900", "oom_score_adj"),
        (
            "rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "soft": 400_000, "hard": 400_000 }]),
            "ulimit -Hn",
            "400000",
            "rlimit",
        ),
        (
            "capabilities",
            json!({ "bounding": able, "effective": able, "permitted": able }),
            "grep ^CapEff /proc/self/status",
            "CapEff:\t0000000001000000",
            "capabilities",
        ),
    ] {
        let mut bundle = Bundle::new(runtime, script)?;
        bundle.spec["process"][field] = value.clone();
        let output = bundle.run()?;
        let text = text_of(&output);
        let given = String::from_utf8_lossy(&output.stdout).trim() == wanted;
        let refused = !output.status.success() && output.stdout.is_empty() && text.contains(named);
        assert!(given || refused, "{field}: {}: {text}", output.status);

        // A session is asked the same.
        let mut bundle = Bundle::new(runtime, "exec sleep 1000")?;
        bundle.spec["root"]["readonly"] = json!(false);
        bundle.create()?;
        output_of(&mut bundle.command(&["start", &bundle.id])?)?;
        let mut process = bundle.spec["process"].clone();
        process["args"] = json!(["/bin/sh", "-c", script]);
        process[field] = value;
        let file = bundle.path().join("process.json");
        std::fs::write(&file, process.to_string())?;
        let file = file.display().to_string();
        let output = bundle.command(&["exec", "--process", &file, &bundle.id])?.output()?;
        let given = String::from_utf8_lossy(&output.stdout).trim() == wanted;
        let refused = !output.status.success() && output.stdout.is_empty();
        // The reference takes the container's score for every session.
        assert!(
            given || refused || field == "oomScoreAdj" && runtime == OciRuntime::Runc,
            "session, {field}: {}",
            text_of(&output)
        );
    }
    Ok(())
}

fn a_capability_that_nobody_knows_is_left_out_and_told_of(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "grep ^CapEff /proc/self/status")?;
    let sets = json!(["CAP_KILL", "CAP_FLY"]);
    bundle.spec["process"]["capabilities"] =
        json!({ "bounding": sets, "effective": sets, "permitted": sets });
    let log = bundle.path().join("runtime.log");
    let named = [log.display().to_string(), bundle.path().display().to_string()];
    let arguments = ["--log", &named[0], "run", "--bundle", &named[1], &bundle.id];
    let output = bundle.command(&arguments)?.output()?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "CapEff:\t0000000000000020\n",
        "{}",
        text_of(&output)
    );
    let logged = std::fs::read_to_string(&log)?;
    assert!(logged.contains("level=warning") && logged.contains("CAP_FLY"), "{logged}");
    Ok(())
}

//! Lifecycle hooks, by runc's command line. Each story runs on `podwright oci` and, as the check that the story is right, on
//! runc 1.5.

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::test_host::{output_of, text_of};
use serde_json::{Value, json};

e2e::oci_stories! {
    hooks_run_in_their_order_and_read_the_state,
    a_hook_sees_the_namespaces_of_its_point,
    a_failing_hook_stops_the_start_and_nothing_is_left,
    a_hook_that_takes_too_long_is_killed,
    a_failing_poststop_hook_does_not_stop_the_delete,
}

/// A hook that runs a shell script.
fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin", "FROM=spec"] })
}

fn hooks_run_in_their_order_and_read_the_state(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "exec sleep 1000")?;
    let log = bundle.path().join("log").display().to_string();
    let tell = |point: &str| hook(&format!("(echo {point} $FROM; cat; echo) >> {log}"));
    let host = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    for point in host {
        bundle.spec["hooks"][point] = json!([tell(point)]);
    }
    bundle.spec["annotations"] = json!({ "note": "kept" });
    bundle.create()?;
    let pid = bundle.state()?["pid"].clone();
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    output_of(&mut bundle.command(&["delete", "--force", &bundle.id])?)?;
    let text = std::fs::read_to_string(&log)?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let statuses = ["creating", "creating", "creating", "running", "stopped"];
    assert_eq!(lines.len(), 10, "{text}");
    for (index, (point, status)) in host.iter().zip(statuses).enumerate() {
        assert_eq!(lines[2 * index], format!("{point} spec"), "{text}");
        let state: Value = serde_json::from_str(lines[2 * index + 1]).context(text.clone())?;
        assert_eq!(state["id"], bundle.id.as_str(), "{point}: {state}");
        // runc 1.5 tells poststart hooks of a container that is created.
        if !(*point == "poststart" && runtime == OciRuntime::Runc) {
            assert_eq!(state["status"], status, "{point}: {state}");
        }
        assert_eq!(state["bundle"], bundle.path().display().to_string());
        assert_eq!(state["annotations"]["note"], "kept");
        if matches!(*point, "prestart" | "createRuntime" | "poststart") {
            assert_eq!(state["pid"], pid, "{point}");
        }
    }
    Ok(())
}

fn a_hook_sees_the_namespaces_of_its_point(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "cat /told; hostname")?;
    let log = bundle.path().join("log").display().to_string();
    let rootfs = bundle.rootfs().display().to_string();
    bundle.spec["hostname"] = json!("inside");
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.spec["hooks"] = json!({
        "createRuntime": [hook(&format!("readlink /proc/self/ns/mnt >> {log}"))],
        // What it mounts below the root's path is there in the container.
        "createContainer": [hook(&format!("readlink /proc/self/ns/mnt >> {log}; mkdir -p {rootfs}/made; mount -t tmpfs tmpfs {rootfs}/made; echo x > {rootfs}/made/file"))],
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "echo $(hostname) $(ls /made) > /told"], "env": ["PATH=/bin"] }],
    });
    let output = bundle.run()?;
    assert!(output.status.success(), "{}", text_of(&output));
    let own = std::fs::read_link("/proc/self/ns/mnt")?.display().to_string();
    let log = std::fs::read_to_string(&log)?;
    let namespaces: Vec<&str> = log.lines().collect();
    assert!(namespaces.len() == 2 && namespaces[0] == own && namespaces[1] != own, "{own}: {log}");
    assert_eq!(text_of(&output), "inside file\ninside\n");
    assert_eq!(std::fs::read_dir(bundle.rootfs().join("made"))?.count(), 0, "the mount shows on the host");
    Ok(())
}

fn a_failing_hook_stops_the_start_and_nothing_is_left(runtime: OciRuntime) -> Result<()> {
    for point in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"] {
        let mut bundle = Bundle::new(runtime, "sleep 1; echo ran on")?;
        bundle.spec["hooks"][point] = json!([hook("exit 0"), hook("echo the reason >&2; exit 3")]);
        let output = bundle.run()?;
        let text = text_of(&output);
        assert!(!output.status.success() && !text.contains("ran on"), "{point}: {text}");
        assert!(text.contains("hook #1"), "{point}: {text}");
        assert!(text.contains("exit status 3") && text.contains("the reason"), "{point}: {text}");
        bundle.state().expect_err("no container is left");
    }
    Ok(())
}

fn a_hook_that_takes_too_long_is_killed(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "true")?;
    let mut slow = hook("exec sleep 1000");
    slow["timeout"] = json!(1);
    bundle.spec["hooks"]["createRuntime"] = json!([slow]);
    let output = bundle.run()?;
    assert!(!output.status.success(), "{}", text_of(&output));
    assert!(text_of(&output).contains("hook #0"), "{}", text_of(&output));
    Ok(())
}

fn a_failing_poststop_hook_does_not_stop_the_delete(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "true")?;
    let log = bundle.path().join("log").display().to_string();
    bundle.spec["hooks"]["poststop"] = json!([hook(&format!("echo ran >> {log}; exit 1"))]);
    bundle.create()?;
    // runc removes it too, and ends with 1.
    bundle.command(&["delete", "--force", &bundle.id])?.output()?;
    assert_eq!(std::fs::read_to_string(&log)?, "ran\n");
    bundle.state().expect_err("it is gone");
    Ok(())
}

//! containerd with `podwright oci` in runc's place: what its shim asks of the command line.

use std::path::PathBuf;

use anyhow::{Context, Result};
use e2e::containerd::Containerd;
use e2e::test_host::{TestHost, eventually};
use e2e::{image, parts};
use serde_json::{Value, json};

/// A containerd whose BinaryName is a script that calls `podwright oci`.
struct Machine {
    containerd: Option<Containerd>,
    host: TestHost,
}

impl Machine {
    fn start() -> Result<Self> {
        let host = TestHost::new()?;
        let runc = host.path().join("runc");
        let script = format!("#!/bin/sh\nexec {} oci \"$@\"\n", parts::podwright().display());
        std::fs::write(&runc, script).context("write the script")?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&runc, std::fs::Permissions::from_mode(0o755))?;
        let containerd = Containerd::start_with(&host, &runc)?;
        let layout = image::busybox(host.path())?;
        containerd.import(&host, &layout, image::BUSYBOX)?;
        Ok(Self { containerd: Some(containerd), host })
    }

    fn socket(&self) -> PathBuf {
        self.host.path().join("c.sock")
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let socket = self.socket().display().to_string();
        let before = ["--address", socket.as_str(), "-n", "k8s.io"];
        self.host.run(parts::tool("ctr"), &[&before[..], arguments].concat())
    }

    fn crictl(&self, arguments: &[&str]) -> Result<String> {
        let endpoint = format!("unix://{}", self.socket().display());
        let before = ["--timeout", "60s", "--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint];
        self.host.run(parts::tool("crictl"), &[&before[..], arguments].concat())
    }

    /// A running pod with one container.
    fn pod(&self, container: &Value) -> Result<(String, String)> {
        let logs = self.host.path().join("logs");
        std::fs::create_dir_all(&logs)?;
        let pod = json!({
            "metadata": { "name": "p", "namespace": "default", "uid": "u", "attempt": 0 },
            "log_directory": logs, "linux": {},
        });
        let write = |name: &str, value: &Value| -> Result<String> {
            let path = self.host.path().join(name);
            std::fs::write(&path, value.to_string())?;
            Ok(path.display().to_string())
        };
        let (pod, container) = (write("pod.json", &pod)?, write("container.json", container)?);
        let sandbox = self.crictl(&["runp", &pod])?.trim().to_owned();
        let id = self.crictl(&["create", &sandbox, &container, &pod])?.trim().to_owned();
        self.crictl(&["start", &id])?;
        Ok((sandbox, id))
    }

    fn status(&self, id: &str) -> Result<Value> {
        let inspected: Value = serde_json::from_str(&self.crictl(&["inspect", id])?)?;
        Ok(inspected["status"].clone())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(containerd) = self.containerd.take() {
            containerd.stop(&self.host);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn ctr_runs_to_the_end_with_output_and_exit_code() -> Result<()> {
    let machine = Machine::start()?;
    let run = ["run", "--rm", "--memory-limit", "67108864", image::BUSYBOX, "c1"];
    assert_eq!(machine.ctr(&[&run[..], &["/bin/echo", "hello"]].concat())?, "hello\n");
    let error = machine.ctr(&[&run[..], &["/bin/sh", "-c", "exit 3"]].concat()).expect_err("it exits with 3");
    assert!(format!("{error:#}").contains("exit status: 3"), "{error:#}");
    let error =
        machine.ctr(&[&run[..], &["no-such-program"]].concat()).expect_err("there is no such program");
    assert!(format!("{error:#}").contains("executable file not found in $PATH"), "{error:#}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn ctr_execs_pauses_updates_and_kills_a_task() -> Result<()> {
    let machine = Machine::start()?;
    machine.ctr(&["run", "--detach", image::BUSYBOX, "c2", "/bin/sleep", "1000"])?;
    let echo = ["tasks", "exec", "--exec-id", "e1", "c2", "/bin/sh", "-c", "echo in; exit 0"];
    assert_eq!(machine.ctr(&echo)?, "in\n");
    machine.ctr(&["tasks", "pause", "c2"])?;
    assert!(machine.ctr(&["tasks", "list"])?.contains("PAUSED"));
    machine.ctr(&["tasks", "resume", "c2"])?;
    assert!(machine.ctr(&["tasks", "ps", "c2"])?.lines().count() >= 2);
    machine.ctr(&["tasks", "kill", "--signal", "KILL", "c2"])?;
    eventually("the task has stopped", || {
        machine.ctr(&["tasks", "list"]).ok().filter(|list| list.contains("STOPPED")).map(drop)
    })?;
    machine.ctr(&["tasks", "delete", "c2"]).ok();
    machine.ctr(&["containers", "delete", "c2"])?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_cri_pod_starts_execs_and_stops() -> Result<()> {
    let machine = Machine::start()?;
    let (sandbox, id) = machine.pod(&json!({
        "metadata": { "name": "main" }, "image": { "image": image::BUSYBOX }, "log_path": "main.log",
        "command": ["/bin/sh", "-c", "echo up; trap 'exit 5' TERM; while :; do sleep 1; done"],
        "linux": { "resources": { "memory_limit_in_bytes": 64 << 20 } },
    }))?;
    let log = machine.host.path().join("logs/main.log");
    eventually("it is up", || std::fs::read_to_string(&log).ok().filter(|text| text.contains("up")))?;
    assert_eq!(machine.crictl(&["exec", "-s", &id, "echo", "in"])?.trim(), "in");
    let address = machine.crictl(&["exec", "-s", &id, "ip", "-4", "-o", "address", "show", "dev", "eth0"])?;
    assert!(address.contains("10.85."), "{address}");
    machine.crictl(&["update", "--memory", "33554432", &id])?;
    machine.crictl(&["stop", "--timeout", "20", &id])?;
    assert_eq!(machine.status(&id)?["exitCode"], 5);
    machine.crictl(&["stopp", &sandbox])?;
    machine.crictl(&["rmp", &sandbox])?;
    assert_eq!(machine.ctr(&["tasks", "list", "-q"])?, "");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_oom_kill_is_told_by_its_reason() -> Result<()> {
    let machine = Machine::start()?;
    let (_, id) = machine.pod(&json!({
        "metadata": { "name": "hog" }, "image": { "image": image::BUSYBOX }, "log_path": "hog.log",
        "command": ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"],
        "linux": { "resources": { "memory_limit_in_bytes": 16 << 20 } },
    }))?;
    let status = eventually("it has ended", || {
        machine.status(&id).ok().filter(|status| status["state"] == "CONTAINER_EXITED")
    })?;
    assert_eq!((&status["reason"], &status["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{status}");
    Ok(())
}

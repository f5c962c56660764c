//! `podwright demo`: it shows what it promises, and whatever ends it, the machine is as it was.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use e2e::test_host::{output_of, text_of};
use e2e::{TestHost, parts};
use rustix::process::{Pid, Signal, kill_process};

/// One demo at a time: each looks whether a demo's cgroups are left.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a demo must not change: the host's links, rules and mounts, its cgroups, and the directory for temporary files.
fn surroundings(host: &TestHost) -> Result<Vec<String>> {
    let lines_of = |text: String| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    // Names only: the state of a link may change by itself.
    let links = lines_of(host.run("ip", &["-brief", "link"])?);
    let mut found: Vec<String> =
        links.iter().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    found.extend(lines_of(host.run("iptables-save", &[])?).into_iter().filter(|line| line.starts_with("-A")));
    found.extend(lines_of(std::fs::read_to_string(format!("/proc/{}/mountinfo", host.pid()))?));
    let mut directories = vec![host.path().to_owned()];
    directories.extend(std::fs::read_dir("/sys/fs/cgroup")?.flatten().map(|hierarchy| hierarchy.path()));
    for directory in directories {
        for entry in std::fs::read_dir(directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.extend(name.starts_with("podwright-demo-").then(|| entry.path().display().to_string()));
        }
    }
    Ok(found)
}

/// Runs a demo that gets the signal after `lines` lines of output, and gives how it ended.
fn interrupted(host: &TestHost, lines: usize, signal: Signal) -> Result<std::process::ExitStatus> {
    let before = surroundings(host)?;
    let mut command = host.command(parts::podwright());
    let mut demo = command
        .arg("demo")
        .env("TMPDIR", host.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = demo.id();
    let mut output = BufReader::new(demo.stdout.take().context("its output")?).lines();
    for _ in 0..lines {
        output.next().context("the demo ended early")??;
    }
    let target = Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
    kill_process(target, signal)?;
    output.for_each(drop);
    let status = demo.wait()?;
    assert_eq!(surroundings(host)?, before, "after {lines} lines");
    Ok(status)
}

#[test]
#[ignore = "needs root"]
fn once_shows_the_node_at_work_and_leaves_nothing() -> Result<()> {
    let _alone = alone();
    let host = TestHost::new()?;
    let before = surroundings(&host)?;
    let text =
        output_of(host.command(parts::podwright()).args(["demo", "--once"]).env("TMPDIR", host.path()))?;
    for kind in ["ClusterIP 10.96.", "NodePort 192.0.2."] {
        let chart = text.split("\n\n").find(|part| part.starts_with(&format!("30 requests to {kind}")));
        let chart = chart.with_context(|| format!("no chart of {kind} in\n{text}"))?;
        let counts: Vec<u32> = chart
            .lines()
            .skip(1)
            .map(|line| {
                line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).context("a count")
            })
            .collect::<Result<_>>()?;
        assert_eq!(counts.iter().sum::<u32>(), 30, "{text}");
    }
    for wanted in ["web-1", "web-2", "web-3", "SANDBOX", "READY", "TOTAL", "-A KUBE-SERVICES", "-j KUBE-SVC-"]
    {
        assert!(text.contains(wanted), "no {wanted} in\n{text}");
    }
    assert_eq!(surroundings(&host)?, before);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_interrupt_leaves_nothing_at_any_moment() -> Result<()> {
    let _alone = alone();
    let host = TestHost::new()?;
    for lines in [1, 2, 3, 4, 5, 6, 8] {
        interrupted(&host, lines, Signal::INT)?;
    }
    // Its terminal was closed.
    interrupted(&host, 8, Signal::HUP)?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn it_stays_up_until_ctrl_c_and_ends_well() -> Result<()> {
    let _alone = alone();
    let host = TestHost::new()?;
    let mut command = host.command(parts::podwright());
    let mut demo = command.arg("demo").env("TMPDIR", host.path()).stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(demo.stdout.take().context("its output")?).lines();
    let line = output.find(|line| line.as_ref().is_ok_and(|line| line.contains("crictl")));
    let line = line.context("the demo ended without a line to try")??;
    let tool = parts::tool("crictl");
    let line = line.replace(" crictl ", &format!(" {} ", tool.display()));
    let listed = host.command("sh").args(["-c", &line]).output()?;
    let pid = Pid::from_raw(i32::try_from(demo.id())?).context("a pid")?;
    kill_process(pid, Signal::INT)?;
    output.for_each(drop);
    assert!(demo.wait()?.success());
    assert_eq!(text_of(&listed).matches("Running").count(), 3, "{line}\n{}", text_of(&listed));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_manifest_that_is_wrong_ends_it_with_the_reason() -> Result<()> {
    let _alone = alone();
    let host = TestHost::new()?;
    let manifest = host.path().join("bad.yaml");
    std::fs::write(&manifest, "apiVersion: v1\nkind: Gadget\nmetadata: {name: x}\n")?;
    let mut command = host.command(parts::podwright());
    let output = command.args(["demo", "--once", "-f"]).arg(&manifest).env("TMPDIR", host.path()).output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output).contains("Gadget"), "{}", text_of(&output));
    Ok(())
}

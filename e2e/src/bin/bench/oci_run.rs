//! `oci run` of `true`: the whole command, from fork to exit, in one bundle after the other.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::parts;
use e2e::test_host::{output_of, program};
use serde_json::{Value, json};

use crate::measure::{Row, network_namespaces, settle, timed};

/// What the container tells of itself: equal on both sides, or the benchmark is void. Two things are left out: hierarchies of cgroup
/// v1 in which no limit was asked for (the peers join them all), and whose /dev/null a masked file shows (devtmpfs: the host's).
const REPORT: &str = "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapInh|CapPrm|CapAmb):' /proc/self/status; ulimit -n; ulimit -c; \
 cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/pids/pids.max; \
 mount | awk '{print $3, $5}' | sed -E 's/ devtmpfs$/ tmpfs/; /cgroup\\/(blkio|cpuacct|cpuset|freezer|hugetlb|net_cls|net_prio|perf_event|rdma|misc|systemd|unified) /d' | sort; \
 hostname";

/// A runtime with runc's command line.
struct Runtime {
    program: PathBuf,
    leading: Vec<String>,
    root: PathBuf,
}

impl Runtime {
    fn command(&self, bundle: &Path, id: &str) -> Command {
        let mut command = program(&self.program);
        command
            .args(&self.leading)
            .arg("--root")
            .arg(&self.root)
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(id);
        command
    }
}

/// Against runc 1.5, in the hybrid layout as it is.
pub(crate) fn against_runc(n: usize) -> Result<Row> {
    compare("oci-run", "runc 1.5", parts::tool("runc"), n)
}

/// Against Debian's crun, which wants a v1-only view of the cgroups: `hack/bench.sh` gives it, in a mount namespace.
pub(crate) fn against_crun(n: usize) -> Result<Row> {
    compare("oci-run-crun", "crun 1.8", "crun".into(), n)
}

fn compare(bench: &'static str, peer: &'static str, peer_program: PathBuf, n: usize) -> Result<Row> {
    let directory = tempfile::Builder::new().prefix("pw-bench-").tempdir_in("/tmp")?;
    let runtime = |program: PathBuf, leading: &[&str], root: &str| Runtime {
        program,
        leading: leading.iter().map(|&word| word.to_owned()).collect(),
        root: directory.path().join(root),
    };
    let ours = runtime(parts::podwright(), &["oci"], "ours");
    let theirs = runtime(peer_program, &[], "theirs");
    let rootfs = rootfs(directory.path())?;
    let report = bundle(directory.path(), "report", &rootfs, &["/bin/sh", "-c", REPORT])?;
    let measured = bundle(directory.path(), "true", &rootfs, &["/bin/true"])?;

    let (our_report, their_report) = (
        output_of(&mut ours.command(&report, "bench-report"))?,
        output_of(&mut theirs.command(&report, "bench-report"))?,
    );
    ensure!(
        our_report == their_report,
        "not the same work:\n--- ours\n{our_report}\n--- {peer}\n{their_report}"
    );

    let baseline = network_namespaces();
    let (mut our_samples, mut their_samples) = (Vec::new(), Vec::new());
    for sample in 0..n + 3 {
        for (runtime, samples) in [(&ours, &mut our_samples), (&theirs, &mut their_samples)] {
            settle(baseline);
            let mut command = runtime.command(&measured, &format!("bench-{sample}"));
            let (elapsed, ()) = timed(|| output_of(&mut command).map(drop))?;
            // The first ones warm the caches.
            if sample >= 3 {
                samples.push(elapsed);
            }
        }
    }
    settle(baseline);
    Ok(Row::of_medians(bench, peer, &our_samples, &their_samples))
}

/// A root directory with busybox and its links.
fn rootfs(directory: &Path) -> Result<PathBuf> {
    let rootfs = directory.join("rootfs");
    let bin = rootfs.join("bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::copy("/bin/busybox", bin.join("busybox")).context("copy /bin/busybox")?;
    output_of(program("/bin/busybox").args(["--install", "-s"]).arg(&bin)).ok();
    for applet in ["true", "sh", "grep", "cat", "mount", "awk", "sort", "hostname"] {
        let link = bin.join(applet);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("busybox", &link)?;
    }
    Ok(rootfs)
}

/// A bundle as `runc spec` writes it, with limits. crun 1.8 wants an ociVersion of at most 1.0.2.
fn bundle(directory: &Path, name: &str, rootfs: &Path, args: &[&str]) -> Result<PathBuf> {
    let bundle = directory.join(name);
    std::fs::create_dir_all(&bundle)?;
    output_of(program(parts::tool("runc")).args(["spec", "--bundle"]).arg(&bundle))?;
    let file = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    spec["ociVersion"] = json!("1.0.2");
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(args);
    spec["root"] = json!({ "path": rootfs, "readonly": true });
    spec["linux"]["cgroupsPath"] = json!(format!("/bench-{name}"));
    spec["linux"]["resources"] = json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "memory": { "limit": 64 << 20 },
        "cpu": { "shares": 512, "quota": 50_000, "period": 100_000 },
        "pids": { "limit": 64 },
    });
    std::fs::write(&file, spec.to_string())?;
    Ok(bundle)
}

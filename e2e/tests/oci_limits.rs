//! Limits of linux.resources, by runc's command line. Each story runs on `podwright oci` and, as the check that the story is
//! right, on runc 1.5. What only v2 has is in `uml_v2.rs`.

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::test_host::text_of;
use serde_json::{Value, json};

e2e::oci_stories! {
    rates_of_a_device_reach_the_cgroup,
    memory_cpu_and_cpuset_limits_reach_the_cgroup,
    no_processes_at_all_are_one_and_not_as_many_as_there_may_be,
    a_limit_that_this_machine_cannot_hold_is_an_error,
}

/// What a container with these resources reads in its own cgroups.
fn read_inside(runtime: OciRuntime, script: &str, resources: Value) -> Result<String> {
    let mut bundle = Bundle::new(runtime, &format!("cd /sys/fs/cgroup; {script}"))?;
    bundle.spec["linux"]["resources"] = resources;
    let output = bundle.run()?;
    anyhow::ensure!(output.status.success(), "{}: {}", output.status, text_of(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Major and minor number of a disk of this machine.
fn disk() -> Result<(u32, u32)> {
    let partitions = std::fs::read_to_string("/proc/partitions")?;
    let line = partitions.lines().nth(2).context("a disk in /proc/partitions")?;
    let mut numbers = line.split_whitespace().map(str::parse);
    Ok((numbers.next().context("a major number")??, numbers.next().context("a minor number")??))
}

fn rates_of_a_device_reach_the_cgroup(runtime: OciRuntime) -> Result<()> {
    let (major, minor) = disk()?;
    let rate = |rate: u64| json!([{ "major": major, "minor": minor, "rate": rate }]);
    let block = json!({
        "throttleReadBpsDevice": rate(1 << 20), "throttleWriteBpsDevice": rate(2 << 20),
        "throttleReadIOPSDevice": rate(300), "throttleWriteIOPSDevice": rate(400),
    });
    let script = "cd blkio 2>/dev/null && cat blkio.throttle.read_bps_device blkio.throttle.write_bps_device \
        blkio.throttle.read_iops_device blkio.throttle.write_iops_device || cat io.max";
    let text = read_inside(runtime, script, json!({ "blockIO": block }))?;
    let device = format!("{major}:{minor}");
    let v1 = format!("{device} 1048576\n{device} 2097152\n{device} 300\n{device} 400\n");
    let v2 = format!("{device} rbps=1048576 wbps=2097152 riops=300 wiops=400\n");
    assert!(text == v1 || text == v2, "{text}");
    Ok(())
}

fn memory_cpu_and_cpuset_limits_reach_the_cgroup(runtime: OciRuntime) -> Result<()> {
    let resources = json!({
        "memory": { "limit": 64 << 20, "reservation": 32 << 20 },
        "cpu": { "shares": 512, "quota": 30_000, "period": 60_000, "burst": 10_000, "cpus": "0", "mems": "0" },
        "pids": { "limit": 33 },
    });
    let script = "cat memory/memory.soft_limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_burst_us cpuset/cpuset.cpus cpuset/cpuset.mems pids/pids.max 2>/dev/null \
        || cat memory.low cpu.max.burst cpuset.cpus cpuset.mems pids.max";
    let text = read_inside(runtime, script, resources)?;
    assert!(text == "33554432\n512\n10000\n0\n0\n33\n" || text == "33554432\n10000\n0\n0\n33\n", "{text}");
    Ok(())
}

fn no_processes_at_all_are_one_and_not_as_many_as_there_may_be(runtime: OciRuntime) -> Result<()> {
    for (limit, wanted) in [(0, "1"), (-1, "max")] {
        // Only builtins of the shell: with a limit it cannot fork.
        let script = "[ -d pids ] && cd pids; read limit <pids.max; echo $limit";
        let text = read_inside(runtime, script, json!({ "pids": { "limit": limit } }))?;
        assert_eq!(text.trim(), wanted, "{limit}");
    }
    Ok(())
}

fn a_limit_that_this_machine_cannot_hold_is_an_error(runtime: OciRuntime) -> Result<()> {
    let resources = [
        json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 << 20 }] }),
        json!({ "cpu": { "cpus": "4000" } }),
        json!({ "memory": { "limit": 64 << 20, "swap": 32 << 20 } }),
    ];
    for resources in resources {
        let mut bundle = Bundle::new(runtime, "echo ran")?;
        bundle.spec["linux"]["resources"] = resources.clone();
        let output = bundle.run()?;
        assert!(!output.status.success(), "{resources}: {}", text_of(&output));
        bundle.state().expect_err("nothing is left");
    }
    Ok(())
}

//! `events`: usage of a container, in runc's JSON, once or again and again, and its OOM kills.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use host::cgroup::usage::CpuUsage;
use host::cgroup::{Cgroup, Version};
use host::process;
use serde_json::{Value, json};

use super::CliError;
use super::args::Global;
use super::log;
use super::record::{Record, Status};

/// Prints what the container uses; unless only once, every interval until its end.
pub(super) fn events(global: &Global, id: &str, once: bool, interval: Duration) -> Result<(), CliError> {
    let record = Record::load(global, id)?;
    if record.status(global) == Status::Stopped {
        return Err(CliError::new(format!("container with id {id} is not running")));
    }
    let cgroup = record.cgroup()?;
    if once {
        return print(id, "stats", Some(&stats(&cgroup)));
    }
    let failed = |error: std::io::Error| CliError::because("watch the container", &error);
    let pidfd = record.init.as_ref().map(process::ProcessId::pidfd).transpose().map_err(failed)?.flatten();
    let Some(pidfd) = pidfd else { return Ok(()) };
    let mut kills = cgroup.oom_kills();
    while !process::wait_ended(&pidfd, interval).map_err(failed)? {
        print_kills(id, &cgroup, &mut kills)?;
        print(id, "stats", Some(&stats(&cgroup)))?;
    }
    print_kills(id, &cgroup, &mut kills)
}

fn print_kills(id: &str, cgroup: &Cgroup, seen: &mut u64) -> Result<(), CliError> {
    let kills = cgroup.oom_kills();
    if kills > *seen {
        *seen = kills;
        print(id, "oom", None)?;
    }
    Ok(())
}

fn print(id: &str, kind: &str, data: Option<&Value>) -> Result<(), CliError> {
    let mut event = json!({ "type": kind, "id": id });
    if let Some(data) = data {
        event["data"] = data.clone();
    }
    log::print(&format!("{event}\n"))
}

/// Control files of one controller, by name.
struct Files<'a>(Option<&'a Path>);

impl Files<'_> {
    fn text(&self, name: &str) -> String {
        self.0.and_then(|directory| std::fs::read_to_string(directory.join(name)).ok()).unwrap_or_default()
    }

    /// A number; `max` is 0, as runc has it where no limit is.
    fn number(&self, name: &str) -> u64 {
        self.text(name).trim().parse().unwrap_or(0)
    }

    /// Lines of a name and a number.
    fn numbers(&self, name: &str) -> BTreeMap<String, u64> {
        parse_numbers(&self.text(name))
    }
}

fn parse_numbers(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.trim().parse().ok()?))
        })
        .collect()
}

fn stats(cgroup: &Cgroup) -> Value {
    let files = |controller: &str| Files(cgroup.directory_of(controller));
    let (memory, pids) = (files("memory"), files("pids"));
    let (cpu, memory) = match cgroup.version() {
        Version::V1 => (cpu_v1(&files("cpu"), &cgroup.cpu_usage().unwrap_or_default()), memory_v1(&memory)),
        Version::V2 => (cpu_v2(&files("cpu")), memory_v2(&memory)),
    };
    json!({
        "cpu": cpu,
        "memory": memory,
        "pids": { "current": pids.number("pids.current"), "limit": pids.number("pids.max") },
    })
}

/// Counted where the layout counts it: by cpuacct, or by the v2 tree beside it.
fn cpu_v1(cpu: &Files<'_>, usage: &CpuUsage) -> Value {
    let throttling = cpu.numbers("cpu.stat");
    let get = |name: &str| throttling.get(name).copied().unwrap_or(0);
    json!({
        "usage": {
            "total": usage.total, "user": usage.user, "kernel": usage.system,
        },
        "throttling": {
            "periods": get("nr_periods"), "throttledPeriods": get("nr_throttled"), "throttledTime": get("throttled_time"),
        },
    })
}

/// Microseconds here, nanoseconds there.
fn cpu_v2(cpu: &Files<'_>) -> Value {
    let stat = cpu.numbers("cpu.stat");
    let get = |name: &str| stat.get(name).copied().unwrap_or(0);
    json!({
        "usage": {
            "total": get("usage_usec") * 1000, "user": get("user_usec") * 1000, "kernel": get("system_usec") * 1000,
        },
        "throttling": {
            "periods": get("nr_periods"), "throttledPeriods": get("nr_throttled"),
            "throttledTime": get("throttled_usec") * 1000,
        },
    })
}

fn memory_v1(memory: &Files<'_>) -> Value {
    let raw = memory.numbers("memory.stat");
    json!({
        "cache": raw.get("cache").copied().unwrap_or(0),
        "usage": {
            "limit": memory.number("memory.limit_in_bytes"), "usage": memory.number("memory.usage_in_bytes"),
            "max": memory.number("memory.max_usage_in_bytes"), "failcnt": memory.number("memory.failcnt"),
        },
        "raw": raw,
    })
}

fn memory_v2(memory: &Files<'_>) -> Value {
    let raw = memory.numbers("memory.stat");
    let failures = memory.numbers("memory.events").get("max").copied().unwrap_or(0);
    json!({
        "cache": raw.get("file").copied().unwrap_or(0),
        "usage": {
            "limit": memory.number("memory.max"), "usage": memory.number("memory.current"),
            "max": memory.number("memory.peak"), "failcnt": failures,
        },
        "swap": { "limit": memory.number("memory.swap.max"), "usage": memory.number("memory.swap.current") },
        "raw": raw,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_files_of_both_versions() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 7\nuser_usec 3\nnr_throttled 2\n");
        write("memory.max", "max\n");
        write("memory.current", "4096\n");
        write("memory.stat", "file 5\nanon 6\n");
        let files = Files(Some(directory.path()));
        assert_eq!(cpu_v2(&files)["usage"], json!({ "total": 7000, "user": 3000, "kernel": 0 }));
        let memory = memory_v2(&files);
        assert_eq!((&memory["usage"]["limit"], &memory["usage"]["usage"]), (&json!(0), &json!(4096)));
        assert_eq!(memory["raw"], json!({ "file": 5, "anon": 6 }));
        assert_eq!(memory_v1(&Files(None))["usage"]["usage"], 0);
    }
}

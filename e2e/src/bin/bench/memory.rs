//! Memory of everything that a runtime keeps running, with no pod and with fifty: the proportional share of each process, without
//! the workloads themselves, and every memfd whole.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests;

use crate::measure::Row;

const PEER: &str = "containerd 2.4 + runc 1.5";
pub(crate) const MIB: f64 = 1_048_576.0;

/// Rows `memory-0`, `memory-50` and, in kilobytes, `memory-pod`: what one more pod costs.
pub(crate) fn with_pods(pods: u32) -> Result<Vec<Row>> {
    let ours = measure(Implementation::Podwright, pods)?;
    let theirs = measure(Implementation::Containerd, pods)?;
    let row = |bench, unit, ours, peer_value| Row { bench, unit, ours, peer: PEER, peer_value, n: 1 };
    let per_pod = |(none, all): (u64, u64)| all.saturating_sub(none) as f64 / f64::from(pods) / 1024.0;
    Ok(vec![
        row("memory-0", "MiB", ours.0 as f64 / MIB, theirs.0 as f64 / MIB),
        row("memory-50", "MiB", ours.1 as f64 / MIB, theirs.1 as f64 / MIB),
        row("memory-pod", "KiB", per_pod(ours), per_pod(theirs)),
    ])
}

/// Bytes without a pod and with all.
fn measure(implementation: Implementation, pods: u32) -> Result<(u64, u64)> {
    let mut server = CriServer::start(implementation)?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    settle();
    let none = memory_of(&processes(&mut server)?)?;
    tokio.block_on(async {
        let mut client = server.clients().await?.0;
        for number in 0..pods {
            let pod = requests::pod(server.host.path(), &format!("memory-{number}"));
            let sandbox = requests::run_pod(&mut client, &pod).await?;
            let container = requests::container("main", &["sleep", "100000"]);
            let id = requests::create(&mut client, &sandbox, &pod, &container).await?;
            requests::start(&mut client, &id).await?;
        }
        anyhow::Ok(())
    })?;
    settle();
    let found = processes(&mut server)?;
    ensure!(found.len() > pods as usize, "only {} processes hold {pods} pods", found.len());
    Ok((none, memory_of(&found)?))
}

/// Lets background work of the last requests end, and both sides give back what it has left behind.
pub(crate) fn settle() {
    std::thread::sleep(std::time::Duration::from_secs(15));
}

/// The daemon, and what it keeps running for its pods.
fn processes(server: &mut CriServer) -> Result<Vec<u32>> {
    let mut found = vec![server.pid()];
    if let Some(node) = server.node() {
        let supervisors = format!("{}/supervisors", node.cgroup_root());
        for process in all_processes() {
            let cgroups = std::fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
            if cgroups.contains(&supervisors) {
                found.push(process);
            }
        }
        return Ok(found);
    }
    let socket = server.socket().display().to_string();
    let shims: Vec<u32> = all_processes()
        .filter(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            words.contains("containerd-shim") && words.contains(&socket)
        })
        .collect();
    // The sandboxes' own processes are the runtime's, not the workload.
    let pauses: Vec<u32> = all_processes()
        .filter(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            let parent = parent.and_then(|parent| parent.trim().parse().ok());
            status.starts_with("Name:\tpause\n") && parent.is_some_and(|parent| shims.contains(&parent))
        })
        .collect();
    found.extend(shims);
    found.extend(pauses);
    Ok(found)
}

/// Every process of this machine.
pub(crate) fn all_processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Bytes of these processes together.
pub(crate) fn memory_of(processes: &[u32]) -> Result<u64> {
    let mut memfds = BTreeMap::new();
    let mut bytes = 0;
    for pid in processes {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))
            .with_context(|| format!("read the maps of process {pid}"))?;
        bytes += share(&maps);
        memfds.extend(memfds_of(*pid));
    }
    Ok(bytes + memfds.values().sum::<u64>())
}

/// The proportional share of every mapping but those of memfds.
fn share(smaps: &str) -> u64 {
    let mut counts = true;
    let mut kilobytes = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "Pss:" && counts {
            kilobytes += words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        } else if !first.ends_with(':') {
            counts = !line.contains(" /memfd:");
        }
    }
    kilobytes * 1024
}

/// What a process's memfds occupy, by inode: pages that nobody has mapped are memory too.
fn memfds_of(pid: u32) -> Vec<(u64, u64)> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let links = descriptors.map(|entry| entry.path()).chain([process.join("exe")]);
    links.filter_map(|link| memfd(&link)).collect()
}

fn memfd(link: &Path) -> Option<(u64, u64)> {
    let target = std::fs::read_link(link).ok()?;
    let metadata = target.to_str()?.starts_with("/memfd:").then(|| std::fs::metadata(link).ok())??;
    Some((metadata.ino(), metadata.blocks() * 512))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memfds_are_not_counted_by_their_mappings() {
        let smaps = "00400000-00500000 r-xp 00000000 00:01 7 /memfd:podwright (deleted)\nSize: 10 kB\nPss: 10 kB\n\
             Pss_Dirty: 3 kB\n7f00-7f01 rw-p 00000000 00:00 0\nPss: 4 kB\n7f02-7f03 rw-p 00000000 00:00 0 [heap]\nPss: 8 kB\n";
        assert_eq!(share(smaps), 12 * 1024);
    }
}

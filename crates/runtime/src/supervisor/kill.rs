//! Ends what a dead supervisor left running: its containers do not die with it, except where they share a PID namespace.

use std::path::PathBuf;
use std::time::Duration;

use host::cgroup::{Cgroup, CgroupError};

/// How long processes get to be gone once they are killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills everything in a pod's or container's cgroup and below it, and returns once it has ended.
///
/// # Errors
/// When there still are processes after 10 s: the kernel cannot kill what waits for a dead disk.
#[expect(clippy::disallowed_methods, reason = "how long it has been tried is measured")]
pub async fn kill_pod(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let begun = std::time::Instant::now();
    let mut pause = Duration::from_millis(1);
    while is_populated(cgroup) {
        cgroup.kill()?;
        if begun.elapsed() > PATIENCE {
            let path = cgroup.directories().next().map(|(_, path)| path.to_owned()).unwrap_or_default();
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "they are killed and do not end");
            return Err(CgroupError::File { action: "wait for the processes in", path, source });
        }
        // The end of a whole tree has no descriptor to wait for on v1.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    Ok(())
}

/// Whether a process is in the cgroup or below it, in any hierarchy.
fn is_populated(cgroup: &Cgroup) -> bool {
    let mut pending: Vec<PathBuf> = cgroup.directories().map(|(_, path)| path.to_owned()).collect();
    while let Some(directory) = pending.pop() {
        if std::fs::read(directory.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty()) {
            return true;
        }
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        pending.extend(below.map(|entry| entry.path()));
    }
    false
}

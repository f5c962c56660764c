//! Killing a whole cgroup where the kernel has no `cgroup.kill` for it: v1 without the v2 tree beside it, and v2 before Linux 5.14.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::{Cgroup, CgroupError, Frozen, file};

/// How long its processes get to stand still. They do at once, unless one waits for a device.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often a cgroup that does not stand still is gone over.
const ROUNDS: usize = 50;

/// Kills every process in the cgroup and below it. What stands still forks nothing, so that one pass gets all of them. What does not, or
/// has no freezer, is gone over until nobody new is found: who has been sent SIGKILL forks no more either.
pub(super) fn each(cgroup: &Cgroup) -> Result<(), CgroupError> {
    everybody(cgroup).map(drop)
}

/// Gives the pids, of which many may not have ended yet.
fn everybody(cgroup: &Cgroup) -> Result<BTreeSet<i32>, CgroupError> {
    let mut killed = BTreeSet::new();
    for _ in 0..ROUNDS {
        let still = cgroup.freeze_within(PATIENCE)?;
        let before = killed.len();
        let outcome = signal_all(cgroup, &mut killed);
        cgroup.freeze(Frozen::No)?;
        outcome?;
        if still || killed.len() == before {
            return Ok(killed);
        }
        // Whoever was forking while it was killed has done so by then.
        std::thread::sleep(Duration::from_millis(1));
    }
    let text = "its processes cannot be frozen and make new ones faster than they are killed";
    Err(CgroupError::Unsupported(text.to_owned()))
}

/// Adds the pids to `killed`.
fn signal_all(cgroup: &Cgroup, killed: &mut BTreeSet<i32>) -> Result<(), CgroupError> {
    let mut pending: Vec<PathBuf> =
        cgroup.directories.iter().map(|directory| directory.path.clone()).collect();
    while let Some(directory) = pending.pop() {
        let text = file::read_if_there(&directory.join("cgroup.procs"))?.unwrap_or_default();
        for number in text.lines().filter_map(|line| line.parse().ok()) {
            // 0 stands for a process of another pid namespace.
            let Some(pid) = rustix::process::Pid::from_raw(number) else { continue };
            // What is frozen cannot have ended, so the pid is not another's; else it was its own a moment ago.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            killed.insert(number);
        }
        pending.extend(file::subdirectories(&directory));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Directory, Version};
    use super::*;

    /// A cgroup of v1 in these hierarchies, with nothing of v2.
    struct Alone(Cgroup);

    impl Alone {
        fn new(name: &str, hierarchies: &[&str]) -> Self {
            let directory = |hierarchy: &&str| Directory {
                hierarchy: (*hierarchy).to_owned(),
                path: format!("/sys/fs/cgroup/{hierarchy}/pw-kill-{name}-{}", std::process::id()).into(),
            };
            let cgroup =
                Cgroup { version: Version::V1, directories: hierarchies.iter().map(directory).collect() };
            for directory in &cgroup.directories {
                std::fs::create_dir(&directory.path).unwrap();
            }
            Self(cgroup)
        }

        /// A shell in it, once it is there. Its first process is of a pid namespace that ends with what is returned, so that nobody is left
        /// of a kill that does not work.
        fn run(&self, script: &str) -> Ending {
            let join: String = self
                .0
                .directories
                .iter()
                .map(|directory| format!("echo 0 > {}/cgroup.procs; ", directory.path.display()))
                .collect();
            #[expect(clippy::disallowed_methods, reason = "a test starts a shell inside the cgroup")]
            let child = std::process::Command::new("unshare")
                .args(["--pid", "--fork", "--kill-child", "/bin/sh", "-c"])
                .arg(format!("sh -c '{join} {script}' & exec sleep 1000"))
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            while self.0.pids().unwrap().is_empty() {
                std::thread::yield_now();
            }
            Ending(child)
        }
    }

    struct Ending(std::process::Child);

    impl Drop for Ending {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Drop for Alone {
        fn drop(&mut self) {
            let _ = self.0.destroy(Duration::from_secs(10));
        }
    }

    /// Whoever runs is a child of somebody who has ended: forty such chains.
    fn chains() -> String {
        format!("f() {{ f & }}; {} wait", "f & ".repeat(40))
    }

    #[test]
    #[ignore = "needs root"]
    fn nobody_escapes_by_forking_while_being_killed() {
        for hierarchies in [&["freezer"][..], &["freezer", "pids"], &["pids"]] {
            for round in 0..20 {
                let cgroup = Alone::new(&format!("{}-{round}", hierarchies.len()), hierarchies);
                let _running = cgroup.run(&chains());
                let killed = everybody(&cgroup.0).unwrap();
                while cgroup.0.remove().is_err() {
                    let escaped = cgroup.0.pids().unwrap().into_iter().find(|pid| !killed.contains(pid));
                    assert_eq!(escaped, None, "{hierarchies:?}, round {round}");
                    std::thread::yield_now();
                }
            }
        }
    }

    #[test]
    fn what_is_gone_already_is_killed() {
        let directories = ["freezer", "pids"]
            .map(|hierarchy| Directory { hierarchy: hierarchy.to_owned(), path: "/nonexistent".into() });
        each(&Cgroup { version: Version::V1, directories: directories.to_vec() }).unwrap();
        each(&Cgroup { version: Version::V1, directories: Vec::new() }).unwrap();
    }
}

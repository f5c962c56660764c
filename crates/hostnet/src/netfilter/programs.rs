//! The iptables programs of this machine: which backend they use, and how they are called.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use super::ruleset::Family;

/// Which kernel interface the machine's iptables programs speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `iptables-nft`: the rules live in nf_tables.
    Nft,
    /// `iptables-legacy`: the rules live in ip_tables.
    Legacy,
}

/// Why a program could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program is not there.
    #[error("{program} is not installed; install the package iptables")]
    Missing {
        /// Its name.
        program: String,
    },
    /// It could not be started or fed.
    #[error("run {program}")]
    Run {
        /// Its name.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{program}: {message}")]
    Failed {
        /// Its name.
        program: String,
        /// Its error output.
        message: String,
    },
    /// It does not take a line of what it was fed.
    #[error("{program}: {message}")]
    Refused {
        /// Its name.
        program: String,
        /// Its error output, with the line that it names.
        message: String,
    },
}

/// The programs of one family and backend.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Which backend they speak.
    pub backend: Backend,
    save: PathBuf,
    restore: PathBuf,
}

/// Pids of the programs that we started last: a change by one of them is no stranger's.
#[derive(Debug, Default)]
pub struct OwnPrograms(Mutex<VecDeque<u32>>);

impl OwnPrograms {
    fn note(&self, pid: u32) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pids.len() == 64 {
            pids.pop_front();
        }
        pids.push_back(pid);
    }

    /// Whether that was one of ours.
    pub fn contains(&self, pid: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
    }
}

impl Programs {
    /// Finds the programs: the backend that already holds `KUBE-` or `CNI-` chains, or more rules than the other, else
    /// whatever `iptables` is (the way of kube-proxy's iptables-wrappers). Blocking.
    ///
    /// # Errors
    /// When no iptables is installed.
    pub fn find(family: Family) -> Result<Self, ProgramError> {
        let prefix = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let variant = |backend, name: &str| Self {
            backend,
            save: format!("{name}-save").into(),
            restore: format!("{name}-restore").into(),
        };
        let version = call(program(prefix).arg("--version"), prefix)?;
        let default = match String::from_utf8_lossy(&version.stdout).contains("nf_tables") {
            true => Backend::Nft,
            false => Backend::Legacy,
        };
        let other = match default {
            Backend::Nft => (Backend::Legacy, format!("{prefix}-legacy")),
            Backend::Legacy => (Backend::Nft, format!("{prefix}-nft")),
        };
        let default = variant(default, prefix);
        let other = variant(other.0, &other.1);
        let weight = |programs: &Self| programs.save().map_or(0, |saved| weigh(&saved));
        Ok(if weight(&other) > weight(&default) { other } else { default })
    }

    /// What `iptables-save` prints. Blocking.
    ///
    /// # Errors
    /// When it fails.
    pub fn save(&self) -> Result<String, ProgramError> {
        let name = self.save.display().to_string();
        let output = call(&mut program(&self.save), &name)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Feeds `input` to `iptables-restore --noflush`, waiting for the xtables lock for 10 s at most. Blocking.
    ///
    /// # Errors
    /// When it refuses: with its message and the line of the input that it names.
    pub fn restore(&self, input: &str) -> Result<(), ProgramError> {
        self.restore_noted(input, &OwnPrograms::default())
    }

    /// As [`restore`](Self::restore); the program's pid is in `own` before it changes anything.
    ///
    /// # Errors
    /// When it refuses: with its message and the line of the input that it names.
    pub fn restore_noted(&self, input: &str, own: &OwnPrograms) -> Result<(), ProgramError> {
        let name = self.restore.display().to_string();
        let fail = |source| ProgramError::Run { program: name.clone(), source };
        let mut child = program(&self.restore)
            .args(["--noflush", "-w", "10"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| missing_or(&name, source))?;
        own.note(child.id());
        // Who refuses a line reads no further: what it says of it counts, and not that the pipe broke.
        let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().map_err(fail)?;
        if output.status.success() {
            return fed.map_err(fail);
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(match named_line(&message, input) {
            Some(rule) => ProgramError::Refused { message: format!("{message} ({rule})"), program: name },
            None => ProgramError::Failed { program: name, message },
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that starts iptables")]
fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(name)
}

fn call(command: &mut Command, name: &str) -> Result<Output, ProgramError> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| missing_or(name, source))?;
    if output.status.success() {
        return Ok(output);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ProgramError::Failed { program: name.to_owned(), message })
}

fn missing_or(name: &str, source: std::io::Error) -> ProgramError {
    match source.kind() {
        std::io::ErrorKind::NotFound => ProgramError::Missing { program: name.to_owned() },
        _ => ProgramError::Run { program: name.to_owned(), source },
    }
}

/// Kubernetes' chains weigh more than any number of other rules.
fn weigh(saved: &str) -> usize {
    saved
        .lines()
        .map(|line| {
            if [":KUBE-", ":CNI-", ":PODWRIGHT-", ":PODNET-"].iter().any(|ours| line.starts_with(ours)) {
                10_000
            } else {
                usize::from(line.starts_with("-A "))
            }
        })
        .sum()
}

/// iptables-restore names the line by number ("line 12 failed"): the line itself is what a reader needs.
fn named_line<'a>(message: &str, input: &'a str) -> Option<&'a str> {
    let mut words = message.split(|c: char| !c.is_ascii_alphanumeric()).skip_while(|word| *word != "line");
    // "at line: 12"
    let number: usize = words.by_ref().skip(1).find(|word| !word.is_empty())?.parse().ok()?;
    input.lines().nth(number.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// The programs of a machine whose iptables-restore is that script.
    fn restoring_by(script: &str) -> (tempfile::TempDir, Programs) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("restore");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("executable");
        let programs = Programs { backend: Backend::Nft, save: "true".into(), restore: path };
        (dir, programs)
    }

    #[test]
    fn the_line_that_is_refused_is_shown() {
        let input = "*nat\n-A KUBE-A -j NOWHERE\nCOMMIT\n";
        for (message, expect) in [
            ("iptables-restore v1.8.9 (nf_tables): line 2 failed", Some("-A KUBE-A -j NOWHERE")),
            (
                "v1.8.9 (legacy): Couldn't load match `x'\n\nError occurred at line: 2\nTry",
                Some("-A KUBE-A -j NOWHERE"),
            ),
            ("iptables-restore: line 3 failed", Some("COMMIT")),
            ("line 9: RULE_APPEND failed", None),
            ("Another app is currently holding the xtables lock.", None),
        ] {
            assert_eq!(named_line(message, input), expect, "{message}");
        }
    }

    /// It has ended before it has read what does not fit into a pipe.
    #[test]
    fn what_a_program_says_counts_also_when_it_does_not_read_all() {
        let input = format!("*nat\n-A KUBE-A -j NOWHERE\n{}COMMIT\n", "-A KUBE-B -j RETURN\n".repeat(50_000));
        let (_dir, programs) = restoring_by("echo 'line 2 failed' >&2; exit 1");
        let refused = programs.restore(&input).expect_err("refused");
        let told = refused.to_string();
        assert!(told.ends_with("restore: line 2 failed (-A KUBE-A -j NOWHERE)"), "{told}");
        assert!(matches!(refused, ProgramError::Refused { .. }), "{refused:?}");
        let (_dir, programs) = restoring_by("echo 'Another app holds the lock' >&2; exit 4");
        assert!(matches!(programs.restore(&input), Err(ProgramError::Failed { .. })));
        let (_dir, programs) = restoring_by("exit 0");
        assert!(matches!(programs.restore(&input), Err(ProgramError::Run { .. })), "it cannot have read all");
    }

    #[test]
    fn the_backend_with_kubernetes_chains_weighs_more() {
        assert!(weigh(":KUBE-SERVICES - [0:0]\n") > weigh("-A INPUT -j ACCEPT\n-A INPUT -j DROP\n"));
    }
}

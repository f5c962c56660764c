//! `--systemd`: the unit of `deploy/podwright.service` is installed, and runs the agent from now on and after each boot.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};

const UNIT: &str = include_str!("../../../../deploy/podwright.service");
const UNIT_FILE: &str = "/etc/systemd/system/podwright.service";
/// The agent's flags; the unit has a default for machines where nobody wrote it.
const FLAGS_FILE: &str = "/etc/podwright/agent.env";
/// The program in the unit as it is in the tree.
const PROGRAM: &str = "/usr/local/bin/podwright";

/// Whether there is a systemd to install for.
pub(super) fn is_running() -> bool {
    host::process::is_booted_by_systemd()
}

/// Installs the unit with the agent's flags, and starts it.
pub(super) fn install(flags: &[OsString]) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    write(FLAGS_FILE, &flags_file(flags)?)?;
    write(UNIT_FILE, &unit(&program)?)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", "podwright.service"])
}

fn write(path: &str, text: &str) -> anyhow::Result<()> {
    let path = Path::new(path);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    host::state_file::write_durable(path, text.as_bytes(), 0o644)
        .with_context(|| format!("write {}", path.display()))
}

/// The unit for a program at that path.
fn unit(program: &Path) -> anyhow::Result<String> {
    Ok(UNIT.replace(PROGRAM, plain(program.as_os_str().to_str())?))
}

/// As systemd.exec(5) reads it: one variable, split at blanks where the unit uses it.
fn flags_file(flags: &[OsString]) -> anyhow::Result<String> {
    let flags: Result<Vec<&str>, _> = flags.iter().map(|flag| plain(flag.to_str())).collect();
    Ok(format!("# Written by podwright join.\nPODWRIGHT_AGENT_FLAGS=\"{}\"\n", flags?.join(" ")))
}

/// Text that means itself to systemd.
fn plain(text: Option<&str>) -> anyhow::Result<&str> {
    match text {
        Some(text)
            if !text.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'\\$%".contains(c)) =>
        {
            Ok(text)
        }
        Some(text) => {
            bail!("{text:?} cannot be written into a unit of systemd: it has blanks, quotes, $ or %")
        }
        None => bail!("a path that is no UTF-8 cannot be written into a unit of systemd"),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "systemd is told by its own program, once, and not by the agent"
)]
fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let line = || format!("systemctl {}", arguments.join(" "));
    let output = std::process::Command::new("systemctl").args(arguments).output().with_context(line)?;
    if !output.status.success() {
        bail!("{}: {}", line(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings of a section, in order.
    fn settings(unit: &str, section: &str) -> Vec<(String, String)> {
        let of_section = unit.split("\n[").find_map(|text| text.strip_prefix(&format!("{section}]")));
        let lines =
            of_section.unwrap_or_default().lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let pairs = lines.map(|line| line.split_once('=').unwrap_or_else(|| panic!("{line} is no setting")));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn value(unit: &str, section: &str, key: &str) -> Vec<String> {
        settings(unit, section).into_iter().filter(|(name, _)| name == key).map(|(_, value)| value).collect()
    }

    #[test]
    fn pods_outlive_the_agent_and_the_agent_comes_back() {
        for (key, expect) in [
            ("KillMode", "process"),
            ("Delegate", "yes"),
            ("Restart", "always"),
            ("Type", "exec"),
            ("TasksMax", "infinity"),
            ("EnvironmentFile", "-/etc/podwright/agent.env"),
            ("ExecStart", "/usr/local/bin/podwright agent $PODWRIGHT_AGENT_FLAGS"),
        ] {
            assert_eq!(value(UNIT, "Service", key), [expect], "{key}");
        }
        assert_eq!(value(UNIT, "Install", "WantedBy"), ["multi-user.target"]);
        // An agent that fails for long is started again for ever.
        assert_eq!(value(UNIT, "Unit", "StartLimitIntervalSec"), ["0"]);
        // systemd removes it at each stop, and with it the records of what runs.
        assert_eq!(value(UNIT, "Service", "RuntimeDirectory"), Vec::<String>::new());
    }

    #[test]
    fn the_unit_s_own_flags_are_what_the_agent_takes() {
        use clap::Parser as _;
        let default = value(UNIT, "Service", "Environment");
        let flags =
            default[0].trim_matches('"').strip_prefix("PODWRIGHT_AGENT_FLAGS=").expect("the variable");
        let line = ["podwright", "agent"].into_iter().chain(flags.split_whitespace());
        crate::cli::Cli::try_parse_from(line).expect("flags of the agent");
    }

    #[test]
    fn the_program_and_the_flags_are_written_where_systemd_reads_them() {
        let unit = unit(Path::new("/opt/podwright")).expect("a unit");
        assert_eq!(value(&unit, "Service", "ExecStart"), ["/opt/podwright agent $PODWRIGHT_AGENT_FLAGS"]);
        let flags = ["--node-name=a", "--node-labels=x=y"].map(OsString::from);
        let file = flags_file(&flags).expect("a file");
        assert!(file.ends_with("PODWRIGHT_AGENT_FLAGS=\"--node-name=a --node-labels=x=y\"\n"), "{file}");
        for flag in ["--root=/a b", "--root=/$x", "--root=\"", "--root=/%i"] {
            assert!(flags_file(&[OsString::from(flag)]).is_err(), "{flag}");
        }
    }
}

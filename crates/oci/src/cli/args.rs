//! The command line, parsed by hand. What runc has and we do not is refused by its name.

use crate::signal;
use std::ffi::OsString;
use std::path::PathBuf;

use super::CliError;

pub(super) const USAGE: &str = "\
usage: podwright oci [--root DIR] [--log FILE] [--log-format text|json] COMMAND

  create [-b DIR] [--pid-file FILE] [--preserve-fds N] ID
  start ID
  run [-b DIR] [-d] [--keep] [--pid-file FILE] [--preserve-fds N] ID
  state ID
  kill [-a] ID [SIGNAL]
  delete [-f] ID
";

/// How to write the log file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Options before the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Global {
    pub(super) root: PathBuf,
    pub(super) log: Option<PathBuf>,
    pub(super) log_format: LogFormat,
}

impl Default for Global {
    fn default() -> Self {
        Self { root: PathBuf::from("/run/podwright/oci"), log: None, log_format: LogFormat::Text }
    }
}

/// Options of `create` and `run`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) id: String,
    /// `None` = the current directory.
    pub(super) bundle: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) preserve_fds: u32,
    /// `run` only: return when it runs.
    pub(super) detach: bool,
    /// `run` only: do not delete it at the end.
    pub(super) keep: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Create(Create),
    Run(Create),
    Start { id: String },
    State { id: String },
    Kill { id: String, signal: i32, all: bool },
    Delete { id: String, force: bool },
}

/// Parses what comes after `podwright oci`.
pub(super) fn parse(args: Vec<OsString>) -> Result<(Global, Command), CliError> {
    let text = |arg: OsString| {
        arg.into_string().map_err(|arg| CliError::new(format!("argument {arg:?} is not valid UTF-8")))
    };
    let args: Vec<String> = args.into_iter().map(text).collect::<Result<_, _>>()?;
    let mut words = Words { rest: args.into_iter().collect(), only_positional: false };
    let mut global = Global::default();
    let command = loop {
        match words.next() {
            None => return Ok((global, Command::Help)),
            Some(Word::Positional(command)) => break command,
            Some(Word::Option(name, value)) => match name.as_str() {
                "root" => global.root = PathBuf::from(words.value(&name, value)?),
                "log" => global.log = Some(PathBuf::from(words.value(&name, value)?)),
                "log-format" => global.log_format = log_format(&words.value(&name, value)?)?,
                "debug" => {}
                "help" | "h" => return Ok((global, Command::Help)),
                "systemd-cgroup" => return Err(refused("--systemd-cgroup", "cgroups are made by cgroupfs")),
                "rootless" => {
                    let value = words.value(&name, value)?;
                    if !matches!(value.as_str(), "false" | "auto") {
                        return Err(refused("--rootless", "containers are started by root"));
                    }
                }
                "criu" => return Err(refused("--criu", "checkpoints")),
                _ => return Err(unknown(&name)),
            },
        }
    };
    Ok((global, parse_command(&command, &mut words)?))
}

fn parse_command(command: &str, words: &mut Words) -> Result<Command, CliError> {
    match command {
        "create" | "run" => parse_create(command, words),
        "start" => Ok(Command::Start { id: words.only_id(command)? }),
        "state" => Ok(Command::State { id: words.only_id(command)? }),
        "kill" => parse_kill(words),
        "delete" => {
            let (flags, positional) = words.flags(&["force", "f"])?;
            Ok(Command::Delete { id: one_id(command, positional)?, force: !flags.is_empty() })
        }
        "help" => Ok(Command::Help),
        "exec" | "list" | "ps" | "pause" | "resume" | "update" | "events" | "spec" | "checkpoint"
        | "restore" | "features" => {
            Err(CliError::new(format!("podwright oci {command} is not supported yet")))
        }
        other => Err(CliError::new(format!("no such command: {other}\n{USAGE}"))),
    }
}

fn parse_create(command: &str, words: &mut Words) -> Result<Command, CliError> {
    let mut create = Create::default();
    let mut positional = Vec::new();
    while let Some(word) = words.next() {
        let (name, value) = match word {
            Word::Positional(id) => {
                positional.push(id);
                continue;
            }
            Word::Option(name, value) => (name, value),
        };
        match name.as_str() {
            "bundle" | "b" => create.bundle = Some(PathBuf::from(words.value(&name, value)?)),
            "pid-file" => create.pid_file = Some(PathBuf::from(words.value(&name, value)?)),
            "preserve-fds" => {
                let value = words.value(&name, value)?;
                create.preserve_fds = value
                    .parse()
                    .map_err(|_| CliError::new(format!("--preserve-fds {value:?} is no number")))?;
            }
            "detach" | "d" if command == "run" => create.detach = true,
            "keep" if command == "run" => create.keep = true,
            // Sessions have keyrings of their own only where keyctl is used, which is nowhere here.
            "no-new-keyring" => {}
            "console-socket" => return Err(refused("--console-socket", "terminals")),
            "pidfd-socket" => return Err(refused("--pidfd-socket", "passing on the pidfd")),
            "no-pivot" => return Err(refused("--no-pivot", "a root that is not pivoted into can be left")),
            "no-subreaper" if command == "run" => {}
            _ => return Err(unknown(&name)),
        }
    }
    create.id = one_id(command, positional)?;
    Ok(if command == "run" { Command::Run(create) } else { Command::Create(create) })
}

fn parse_kill(words: &mut Words) -> Result<Command, CliError> {
    let (flags, positional) = words.flags(&["all", "a"])?;
    let mut positional = positional.into_iter();
    let id = one_id("kill", positional.next().into_iter().collect())?;
    let signal = match positional.next() {
        Some(name) => {
            signal::parse(&name).ok_or_else(|| CliError::new(format!("unknown signal {name:?}")))?
        }
        None => libc::SIGTERM,
    };
    match positional.next() {
        Some(extra) => Err(CliError::new(format!("kill takes an id and a signal, not also {extra:?}"))),
        None => Ok(Command::Kill { id, signal, all: !flags.is_empty() }),
    }
}

fn log_format(text: &str) -> Result<LogFormat, CliError> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(CliError::new(format!("invalid log-format: {other}"))),
    }
}

fn refused(option: &str, reason: &str) -> CliError {
    CliError::new(format!("{option} is not supported: {reason}"))
}

fn unknown(name: &str) -> CliError {
    let dashes = if name.len() == 1 { "-" } else { "--" };
    CliError::new(format!("unknown option {dashes}{name}\n{USAGE}"))
}

/// Ids become directory names, so they hold nothing that a path could.
fn one_id(command: &str, positional: Vec<String>) -> Result<String, CliError> {
    let [id] = <[String; 1]>::try_from(positional)
        .map_err(|words| CliError::new(format!("{command} takes one container id, not {}", words.len())))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if id.is_empty() || id == "." || id == ".." || id.len() > 1024 || !id.chars().all(allowed) {
        return Err(CliError::new(format!("invalid container id: {id:?}")));
    }
    Ok(id)
}

/// Words of a command line one by one: `--name=value`, `--name value`, `-n value`, `--`.
struct Words {
    rest: std::collections::VecDeque<String>,
    only_positional: bool,
}

enum Word {
    Positional(String),
    Option(String, Option<String>),
}

impl Words {
    fn next(&mut self) -> Option<Word> {
        let word = self.rest.pop_front()?;
        if !self.only_positional && word == "--" {
            self.only_positional = true;
            return self.next();
        }
        if self.only_positional || !word.starts_with('-') || word.len() == 1 {
            return Some(Word::Positional(word));
        }
        let name = word.trim_start_matches('-');
        Some(match name.split_once('=') {
            Some((name, value)) => Word::Option(name.to_owned(), Some(value.to_owned())),
            None => Word::Option(name.to_owned(), None),
        })
    }

    fn value(&mut self, name: &str, given: Option<String>) -> Result<String, CliError> {
        given
            .or_else(|| self.rest.pop_front())
            .ok_or_else(|| CliError::new(format!("option {name} needs a value")))
    }

    fn flags(&mut self, known: &[&str]) -> Result<(Vec<String>, Vec<String>), CliError> {
        let (mut flags, mut positional) = (Vec::new(), Vec::new());
        while let Some(word) = self.next() {
            match word {
                Word::Positional(text) => positional.push(text),
                Word::Option(name, value) if known.contains(&name.as_str()) => {
                    if value.as_deref() != Some("false") {
                        flags.push(name);
                    }
                }
                Word::Option(name, _) => return Err(unknown(&name)),
            }
        }
        Ok((flags, positional))
    }

    fn only_id(&mut self, command: &str) -> Result<String, CliError> {
        let (_, positional) = self.flags(&[])?;
        one_id(command, positional)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Result<(Global, Command), String> {
        parse(line.split_whitespace().map(OsString::from).collect()).map_err(|error| error.0)
    }

    #[test]
    fn options_may_stand_before_or_after_the_id_and_with_or_without_equals_sign() {
        let wanted = Create { id: "c1".into(), bundle: Some("/b".into()), detach: true, ..Create::default() };
        for line in [
            "run -b /b -d c1",
            "run c1 --bundle=/b --detach",
            "--root /run/podwright/oci run --detach --bundle /b c1",
        ] {
            assert_eq!(check(line).unwrap(), (Global::default(), Command::Run(wanted.clone())), "{line}");
        }
    }

    #[test]
    fn signals_go_by_name_and_number() {
        for (text, number) in [("KILL", 9), ("sigterm", 15), ("9", 9), ("RTMIN+1", 35), ("SIGRTMAX-1", 63)] {
            assert_eq!(
                check(&format!("kill c {text}")).unwrap().1,
                Command::Kill { id: "c".into(), signal: number, all: false }
            );
        }
        for text in ["0", "65", "NONE", "RTMIN+40"] {
            assert!(check(&format!("kill c {text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for line in [
            "--systemd-cgroup run c",
            "run --console-socket /s c",
            "create --no-pivot c",
            "exec c true",
            "run --typo c",
        ] {
            let error = check(line).unwrap_err();
            assert!(
                line.split_whitespace().any(|word| error.contains(word.trim_start_matches('-'))),
                "{error}"
            );
        }
    }

    #[test]
    fn an_id_cannot_be_a_path() {
        for id in ["..", "a/b", ".", "a b", ""] {
            assert!(parse(vec!["state".into(), id.into()]).is_err(), "{id:?}");
        }
    }
}

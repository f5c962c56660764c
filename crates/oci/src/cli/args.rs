//! The command line, parsed by hand. What runc has and we do not is refused by its name.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::CliError;
use super::words::{Given, Known, Placement, Word, Words, flag, unknown, value};
use crate::signal;

pub(super) const USAGE: &str = "\
usage: podwright oci [--root DIR] [--log FILE] [--log-format text|json] COMMAND

  create [-b DIR] [--console-socket SOCKET] [--pid-file FILE] [--preserve-fds N] ID
  start ID
  run [-b DIR] [-d] [--keep] [--console-socket SOCKET] [--pid-file FILE] [--preserve-fds N] ID
  exec [-d] [-t] [-u UID[:GID]] [-g GID]... [-e NAME=VALUE]... [-c CAP]... [--cwd DIR] [--pid-file FILE]
       [--console-socket SOCKET] [--preserve-fds N] [--no-new-privs] [--cgroup PATH] [--ignore-paused]
       { -p FILE ID | ID COMMAND [ARG]... }
  state ID
  list [-q] [-f table|json]
  ps [-f table|json] ID [PS-OPTION]...
  kill [-a] ID [SIGNAL]
  pause ID
  resume ID
  update [-r FILE] [--memory BYTES] [--cpu-quota USEC] ... ID
  events [--stats] [--interval DURATION] ID
  delete [-f] ID
  spec [-b DIR]
  features
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
    /// Where the terminal's controlling side is sent.
    pub(super) console_socket: Option<PathBuf>,
    pub(super) preserve_fds: u32,
    /// `run` only: return when it runs.
    pub(super) detach: bool,
    /// `run` only: do not delete it at the end.
    pub(super) keep: bool,
}

/// Options of `exec`. What a process file does not say, or there is none, the container's own process gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Exec {
    pub(super) id: String,
    pub(super) args: Vec<String>,
    pub(super) process_file: Option<PathBuf>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) env: Vec<String>,
    pub(super) user: Option<User>,
    pub(super) additional_gids: Vec<u32>,
    pub(super) capabilities: Vec<String>,
    pub(super) no_new_privileges: bool,
    pub(super) tty: bool,
    pub(super) detach: bool,
    pub(super) pid_file: Option<PathBuf>,
    /// Where the terminal's controlling side is sent.
    pub(super) console_socket: Option<PathBuf>,
    pub(super) preserve_fds: u32,
    /// A cgroup below the container's.
    pub(super) cgroup: Option<String>,
    pub(super) ignore_paused: bool,
}

/// `--user UID[:GID]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    /// `None` = group 0, as runc has it.
    pub(super) gid: Option<u32>,
}

/// How `list` and `ps` print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Help,
    Version,
    Create(Create),
    Run(Create),
    Exec(Exec),
    Start { id: String },
    State { id: String },
    List { quiet: bool, format: Format },
    Ps { id: String, format: Format, arguments: Vec<String> },
    Kill { id: String, signal: i32, all: bool },
    Pause { id: String },
    Resume { id: String },
    Update { id: String, change: Change },
    Events { id: String, once: bool, interval: Duration },
    Delete { id: String, force: bool },
    Spec { bundle: Option<PathBuf> },
    Features,
}

/// What `update` writes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// `linux.resources` in a file; `-` is standard input.
    File(PathBuf),
    /// From the options.
    Resources(Box<LinuxResources>),
}

/// Parses what comes after `podwright oci`.
pub(super) fn parse(args: Vec<OsString>) -> Result<(Global, Command), CliError> {
    let text = |arg: OsString| {
        arg.into_string().map_err(|arg| CliError::new(format!("argument {arg:?} is not valid UTF-8")))
    };
    let args: Vec<String> = args.into_iter().map(text).collect::<Result<_, _>>()?;
    let mut words = Words::new(args);
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
                "version" | "v" => return Ok((global, Command::Version)),
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
        _ if words.asks_for_help() => Ok(Command::Help),
        "create" | "run" => parse_create(command, words),
        "exec" => parse_exec(words),
        "start" => Ok(Command::Start { id: only_id(command, words)? }),
        "state" => Ok(Command::State { id: only_id(command, words)? }),
        "pause" => Ok(Command::Pause { id: only_id(command, words)? }),
        "resume" => Ok(Command::Resume { id: only_id(command, words)? }),
        "list" => parse_list(words),
        "ps" => parse_ps(words),
        "kill" => parse_kill(words),
        "update" => parse_update(words),
        "events" => parse_events(words),
        "delete" => {
            let given = words.given(&[flag("force", "f")], Placement::Anywhere)?;
            let force = given.flag("force");
            Ok(Command::Delete { id: one_id(command, given.positional)?, force })
        }
        "spec" => parse_spec(words),
        "features" => no_more(words.given(&[], Placement::Anywhere)?, Command::Features),
        "help" => Ok(Command::Help),
        "checkpoint" | "restore" => {
            Err(CliError::new(format!("podwright oci {command} is not supported: there are no checkpoints")))
        }
        other => Err(CliError::new(format!("no such command: {other}\n{USAGE}"))),
    }
}

/// Where terminals and passed descriptors come from, for `create`, `run` and `exec`.
const PROCESS_OPTIONS: [Known; 4] = [
    value("console-socket", ""),
    value("pidfd-socket", ""),
    value("pid-file", ""),
    value("preserve-fds", ""),
];

fn parse_create(command: &str, words: &mut Words) -> Result<Command, CliError> {
    let mut known = PROCESS_OPTIONS.to_vec();
    known.extend([value("bundle", "b"), flag("no-pivot", ""), flag("no-new-keyring", "")]);
    if command == "run" {
        known.extend([flag("detach", "d"), flag("keep", ""), flag("no-subreaper", "")]);
    }
    let given = words.given(&known, Placement::Anywhere)?;
    refuse_pidfd_socket(&given)?;
    if given.flag("no-pivot") {
        return Err(refused("--no-pivot", "a root that is not pivoted into can be left"));
    }
    // --no-new-keyring: sessions have keyrings of their own only where keyctl is used, which is nowhere here.
    let path = |name: &str| given.value(name).map(PathBuf::from);
    let create = Create {
        bundle: path("bundle"),
        pid_file: path("pid-file"),
        console_socket: console_socket(&given),
        preserve_fds: given.number("preserve-fds")?.unwrap_or(0),
        detach: given.flag("detach"),
        keep: given.flag("keep"),
        id: one_id(command, given.positional)?,
    };
    Ok(if command == "run" { Command::Run(create) } else { Command::Create(create) })
}

fn refuse_pidfd_socket(given: &Given) -> Result<(), CliError> {
    match given.value("pidfd-socket").filter(|socket| !socket.is_empty()) {
        Some(_) => Err(refused("--pidfd-socket", "passing on the pidfd")),
        None => Ok(()),
    }
}

/// An empty path is none given, as runc has it.
fn console_socket(given: &Given) -> Option<PathBuf> {
    given.value("console-socket").filter(|socket| !socket.is_empty()).map(PathBuf::from)
}

fn parse_exec(words: &mut Words) -> Result<Command, CliError> {
    let mut known = PROCESS_OPTIONS.to_vec();
    known.extend([
        value("cwd", ""),
        value("env", "e"),
        flag("tty", "t"),
        value("user", "u"),
        value("additional-gids", "g"),
        value("process", "p"),
        flag("detach", "d"),
        value("process-label", ""),
        value("apparmor", ""),
        flag("no-new-privs", ""),
        value("cap", "c"),
        value("cgroup", ""),
        flag("ignore-paused", ""),
    ]);
    let given = words.given(&known, Placement::First)?;
    refuse_pidfd_socket(&given)?;
    for (option, reason) in [("process-label", "SELinux"), ("apparmor", "AppArmor")] {
        if given.value(option).is_some_and(|label| !label.is_empty()) {
            return Err(refused(&format!("--{option}"), reason));
        }
    }
    let path = |name: &str| given.value(name).map(PathBuf::from);
    let gid = |text: &str| {
        parse_number(text).ok_or_else(|| CliError::new(format!("parsing {text:?} as a group id failed")))
    };
    let mut exec = Exec {
        process_file: path("process"),
        cwd: path("cwd"),
        env: given.all("env").map(str::to_owned).collect(),
        user: given.value("user").map(parse_user).transpose()?,
        additional_gids: given.all("additional-gids").map(gid).collect::<Result<_, _>>()?,
        capabilities: given.all("cap").map(str::to_owned).collect(),
        no_new_privileges: given.flag("no-new-privs"),
        tty: given.flag("tty"),
        detach: given.flag("detach"),
        pid_file: path("pid-file"),
        console_socket: console_socket(&given),
        preserve_fds: given.number("preserve-fds")?.unwrap_or(0),
        cgroup: given.value("cgroup").map(str::to_owned),
        ignore_paused: given.flag("ignore-paused"),
        ..Exec::default()
    };
    let mut positional = given.positional.into_iter();
    exec.id = one_id("exec", positional.next().into_iter().collect())?;
    exec.args = positional.collect();
    if exec.args.is_empty() && exec.process_file.is_none() {
        return Err(CliError::new("exec needs a command, or a process file by --process"));
    }
    Ok(Command::Exec(exec))
}

/// Numbers and nothing else: what cannot be read is an error, never root (crun CVE-2026-30892).
fn parse_user(text: &str) -> Result<User, CliError> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let number = |text: &str, what: &str| {
        parse_number(text).ok_or_else(|| CliError::new(format!("parsing {text:?} as a {what} id failed")))
    };
    Ok(User { uid: number(uid, "user")?, gid: gid.map(|gid| number(gid, "group")).transpose()? })
}

/// Digits only (Rust's own parser also takes a plus sign), and not the number that means "leave it" to the kernel.
fn parse_number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number != u32::MAX)
}

fn parse_list(words: &mut Words) -> Result<Command, CliError> {
    let given = words.given(&[value("format", "f"), flag("quiet", "q")], Placement::Anywhere)?;
    let command = Command::List { quiet: given.flag("quiet"), format: format(&given)? };
    no_more(given, command)
}

fn parse_ps(words: &mut Words) -> Result<Command, CliError> {
    let given = words.given(&[value("format", "f")], Placement::First)?;
    let format = format(&given)?;
    let mut positional = given.positional.into_iter();
    let id = one_id("ps", positional.next().into_iter().collect())?;
    // ID [--] PS-OPTIONS
    let arguments = positional.filter(|word| word != "--").collect();
    Ok(Command::Ps { id, format, arguments })
}

fn format(given: &Given) -> Result<Format, CliError> {
    match given.value("format") {
        None | Some("table") => Ok(Format::Table),
        Some("json") => Ok(Format::Json),
        Some(_) => Err(CliError::new("invalid format option")),
    }
}

fn parse_kill(words: &mut Words) -> Result<Command, CliError> {
    let given = words.given(&[flag("all", "a")], Placement::Anywhere)?;
    let all = given.flag("all");
    let mut positional = given.positional.into_iter();
    let id = one_id("kill", positional.next().into_iter().collect())?;
    let signal = match positional.next() {
        // Whether it runs.
        Some(name) if name == "0" => 0,
        Some(name) => {
            signal::parse(&name).ok_or_else(|| CliError::new(format!("unknown signal {name:?}")))?
        }
        None => libc::SIGTERM,
    };
    match positional.next() {
        Some(extra) => Err(CliError::new(format!("kill takes an id and a signal, not also {extra:?}"))),
        None => Ok(Command::Kill { id, signal, all }),
    }
}

fn parse_update(words: &mut Words) -> Result<Command, CliError> {
    const KNOWN: [Known; 17] = [
        value("resources", "r"),
        value("blkio-weight", ""),
        value("cpu-period", ""),
        value("cpu-quota", ""),
        value("cpu-burst", ""),
        value("cpu-share", ""),
        value("cpu-rt-period", ""),
        value("cpu-rt-runtime", ""),
        value("cpuset-cpus", ""),
        value("cpuset-mems", ""),
        value("cpu-idle", ""),
        value("memory", ""),
        value("memory-reservation", ""),
        value("memory-swap", ""),
        value("pids-limit", ""),
        value("l3-cache-schema", ""),
        value("mem-bw-schema", ""),
    ];
    let given = words.given(&KNOWN, Placement::Anywhere)?;
    for option in ["l3-cache-schema", "mem-bw-schema"] {
        if given.value(option).is_some() {
            return Err(refused(&format!("--{option}"), "resource director technology"));
        }
    }
    let change = match given.value("resources") {
        Some(file) => Change::File(PathBuf::from(file)),
        None => Change::Resources(Box::new(resources(&given)?)),
    };
    Ok(Command::Update { id: one_id("update", given.positional)?, change })
}

fn resources(given: &Given) -> Result<LinuxResources, CliError> {
    let text = |name: &str| given.value(name).map(str::to_owned);
    let mut cpu = LinuxCpu::default();
    cpu.set_period(given.number("cpu-period")?);
    cpu.set_quota(given.number("cpu-quota")?);
    cpu.set_burst(given.number("cpu-burst")?);
    cpu.set_shares(given.number("cpu-share")?);
    cpu.set_realtime_period(given.number("cpu-rt-period")?);
    cpu.set_realtime_runtime(given.number("cpu-rt-runtime")?);
    cpu.set_idle(given.number("cpu-idle")?);
    cpu.set_cpus(text("cpuset-cpus"));
    cpu.set_mems(text("cpuset-mems"));
    let mut memory = LinuxMemory::default();
    memory.set_limit(given.number("memory")?);
    memory.set_reservation(given.number("memory-reservation")?);
    memory.set_swap(given.number("memory-swap")?);
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu));
    resources.set_memory(Some(memory));
    if let Some(limit) = given.number("pids-limit")? {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if let Some(weight) = given.number("blkio-weight")? {
        let mut block = LinuxBlockIo::default();
        block.set_weight(Some(weight));
        resources.set_block_io(Some(block));
    }
    // Given or not, the rules for devices stay.
    resources.set_devices(None);
    Ok(resources)
}

fn parse_events(words: &mut Words) -> Result<Command, CliError> {
    let given = words.given(&[flag("stats", ""), value("interval", "")], Placement::Anywhere)?;
    let interval = given.value("interval").unwrap_or("5s");
    let interval = parse_duration(interval)
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| CliError::new(format!("--interval {interval:?} is no duration (5s, 500ms, 1m)")))?;
    let once = given.flag("stats");
    Ok(Command::Events { id: one_id("events", given.positional)?, once, interval })
}

/// One number and one unit, as far as people write Go durations.
fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

fn parse_spec(words: &mut Words) -> Result<Command, CliError> {
    let given = words.given(&[value("bundle", "b"), flag("rootless", "")], Placement::Anywhere)?;
    if given.flag("rootless") {
        return Err(refused("--rootless", "containers are started by root"));
    }
    let bundle = given.value("bundle").map(PathBuf::from);
    no_more(given, Command::Spec { bundle })
}

fn no_more(given: Given, command: Command) -> Result<Command, CliError> {
    match given.positional.first() {
        Some(word) => Err(CliError::new(format!("{word:?} is one word too many"))),
        None => Ok(command),
    }
}

fn only_id(command: &str, words: &mut Words) -> Result<String, CliError> {
    one_id(command, words.given(&[], Placement::Anywhere)?.positional)
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
        for (text, number) in
            [("KILL", 9), ("sigterm", 15), ("9", 9), ("0", 0), ("RTMIN+1", 35), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(
                check(&format!("kill c {text}")).unwrap().1,
                Command::Kill { id: "c".into(), signal: number, all: false }
            );
        }
        for text in ["65", "NONE", "RTMIN+40"] {
            assert!(check(&format!("kill c {text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn help_is_for_whoever_asks_before_anything_else() {
        for line in ["--help", "help", "run --help", "state -h"] {
            assert_eq!(check(line).unwrap().1, Command::Help, "{line}");
        }
        assert!(matches!(check("exec c ls --help").unwrap().1, Command::Exec(_)));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for line in [
            "--systemd-cgroup run c",
            "run --pidfd-socket /s c",
            "create --no-pivot c",
            "exec --apparmor profile c true",
            "checkpoint c",
            "restore c",
            "spec --rootless",
            "update --l3-cache-schema x c",
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

    #[test]
    fn what_follows_the_id_of_exec_belongs_to_the_command() {
        let command =
            check("exec -u 1000:100 -e A=b -e C=d --cwd /x -d --pid-file=/p c1 ls -l --detach").unwrap().1;
        let wanted = Exec {
            id: "c1".into(),
            args: vec!["ls".into(), "-l".into(), "--detach".into()],
            cwd: Some("/x".into()),
            env: vec!["A=b".into(), "C=d".into()],
            user: Some(User { uid: 1000, gid: Some(100) }),
            detach: true,
            pid_file: Some("/p".into()),
            ..Exec::default()
        };
        assert_eq!(command, Command::Exec(wanted));
        check("exec c1").expect_err("there is nothing to run");
    }

    #[test]
    fn limits_of_an_update_come_from_its_options_or_from_a_file() {
        let Command::Update { change: Change::Resources(resources), .. } =
            check("update --memory 1048576 --cpu-quota=-1 --pids-limit 7 c").unwrap().1
        else {
            panic!("it is an update by options");
        };
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(-1));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 7);
        let wanted = Command::Update { id: "c".into(), change: Change::File("-".into()) };
        assert_eq!(check("update -r - c").unwrap().1, wanted);
    }

    #[test]
    fn intervals_are_go_durations() {
        for (text, milliseconds) in [("5s", 5000), ("500ms", 500), ("1.5s", 1500), ("2m", 120_000)] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["5", "s", "-1s", "1d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    proptest::proptest! {
        /// A user that cannot be read must not become root.
        #[test]
        fn cve_2026_30892_a_user_is_two_plain_numbers_or_an_error(text in "[-+0-9a-z: ]{0,14}") {
            match parse_user(&text) {
                Ok(user) => {
                    let written = match user.gid {
                        Some(gid) => format!("{}:{gid}", user.uid),
                        None => user.uid.to_string(),
                    };
                    let plain = |text: &str| {
                        text.split(':').map(|id| match id.trim_start_matches('0') { "" => "0", id => id }.to_owned())
                            .collect::<Vec<_>>()
                    };
                    proptest::prop_assert_eq!(plain(&text), plain(&written));
                    proptest::prop_assert!(text.split(':').all(|id| !id.is_empty()));
                }
                Err(error) => proptest::prop_assert!(error.0.contains("parsing")),
            }
        }
    }
}

//! runc's command line, with runc's exit codes, JSON and texts. Checkpoints are refused.
//!
//! Arguments are read by hand: on the way of a container start every millisecond counts. Call it before anything starts a thread.

mod args;
mod commands;
mod events;
mod exec;
mod features;
mod list;
mod log;
mod pause;
mod record;
mod run;
mod spec;
mod terminal;
mod update;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Command, Global};

/// Why a command did not do what it was asked. The text is the whole chain, as runc prints it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CliError(String);

impl CliError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What was being done, then why it did not work, down to the last cause.
    fn because(doing: &str, error: &dyn std::error::Error) -> Self {
        Self(format!("{doing}: {}", host::error::chain(error)))
    }
}

/// Runs `podwright oci ARGS…`; `args` are those after `oci`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let (global, command) = match args::parse(args) {
        Ok(parsed) => parsed,
        Err(error) => {
            log::report(&Global::default(), &error.0);
            return ExitCode::FAILURE;
        }
    };
    match dispatch(&global, command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::report(&global, &error.0);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(global: &Global, command: Command) -> Result<u8, CliError> {
    match command {
        Command::Help => log::print(args::USAGE).map(|()| 0),
        Command::Version => log::print(&features::version()).map(|()| 0),
        Command::Features => features::print().map(|()| 0),
        Command::Spec { bundle } => spec::write(bundle.as_deref()).map(|()| 0),
        Command::List { quiet, format } => list::list(global, quiet, format).map(|()| 0),
        Command::Ps { id, format, arguments } => list::ps(global, &id, format, &arguments).map(|()| 0),
        Command::Pause { id } => pause::pause(global, &id).map(|()| 0),
        Command::Resume { id } => pause::resume(global, &id).map(|()| 0),
        Command::Update { id, change } => update::update(global, &id, &change).map(|()| 0),
        Command::Events { id, once, interval } => events::events(global, &id, once, interval).map(|()| 0),
        Command::Create(create) => in_sealed_copy().and_then(|()| run::create(global, &create)).map(|()| 0),
        Command::Run(create) => in_sealed_copy().and_then(|()| run::run(global, &create)),
        Command::Exec(exec) => Ok(run_exec(global, &exec)),
        Command::Start { id } => commands::start(global, &id).map(|()| 0),
        Command::State { id } => commands::state(global, &id).map(|()| 0),
        Command::Kill { id, signal, all } => commands::kill(global, &id, signal, all).map(|()| 0),
        Command::Delete { id, force } => commands::delete(global, &id, force).map(|()| 0),
    }
}

/// A session that cannot be started is told from one that ended with 1.
fn run_exec(global: &Global, exec: &args::Exec) -> u8 {
    let outcome = in_sealed_copy().and_then(|()| exec::exec(global, exec));
    outcome.unwrap_or_else(|error| {
        log::report(global, &format!("exec failed: {error}"));
        u8::MAX
    })
}

/// The container's processes begin as this program: it must be one that they cannot write to (CVE-2019-5736).
fn in_sealed_copy() -> Result<(), CliError> {
    host::self_exe::reexec_sealed()
        .map_err(|error| CliError::because("make a read-only copy of this program", &error))
}

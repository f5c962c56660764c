//! The binary: which program this is, by `argv[0]` and the first argument, then the command line. No logic.
//!
//! The pod supervisor, the CNI plugins and `podwright oci` are answered before the command line is parsed and
//! before any thread or async runtime exists: they are started once per pod, and they fork.
//!
//! Exit codes: 0 done; 1 the command failed, with the reason on stderr; 2 the command line or a configuration
//! file is wrong. `podwright oci` has runc's, the plugins have CNI's.

mod cli;
mod config;
mod lock;
mod logging;
mod node;
mod output;
mod signals;
mod status;
mod web;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let argv0 = std::env::args_os().next().unwrap_or_default();
    tracing::debug!(program = program(&argv0), "starting");
    command(Cli::parse())
}

/// The last path component of `argv[0]`; empty when it is not text.
fn program(argv0: &OsStr) -> &str {
    Path::new(argv0).file_name().and_then(OsStr::to_str).unwrap_or_default()
}

fn command(cli: Cli) -> ExitCode {
    logging::init(&cli.log, &cli.command);
    let done = match cli.command {
        Command::Run(args) => {
            let _ = args;
            Err(anyhow::anyhow!("not wired yet"))
        }
        Command::Runtime(args) => {
            let _ = args;
            Err(anyhow::anyhow!("not wired yet"))
        }
        Command::Demo(args) => {
            let _ = args;
            Err(anyhow::anyhow!("not wired yet"))
        }
        Command::Status(args) => {
            let _ = args;
            Err(anyhow::anyhow!("not wired yet"))
        }
        Command::Reset(args) => {
            let _ = args;
            Err(anyhow::anyhow!("not wired yet"))
        }
        Command::Image(args) => {
            let _ = args;
            Err(anyhow::anyhow!("not wired yet"))
        }
        Command::Version => {
            output::line(&format!("podwright {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Command::Web(args) => web::main(&args),
        Command::Oci { .. } => Err(anyhow::anyhow!("not wired yet")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            if error.is::<config::ConfigError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

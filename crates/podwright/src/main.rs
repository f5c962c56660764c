//! The binary: which program this is, by `argv[0]` and the first argument, then the command line. No logic.
//!
//! The pod supervisor, the CNI plugins, the probe of what a kernel can do and `podwright oci` are answered before any thread or async
//! runtime exists: they are started once per pod, and they fork.
//!
//! Exit codes: 0 done; 1 the command failed, with the reason on stderr; 2 the command line or a configuration
//! file is wrong; 10 and more as `join` says. `podwright oci` has runc's, the plugins have CNI's.

mod admin;
mod agent;
mod cli;
mod config;
mod demo;
mod image;
mod join;
mod lock;
mod logging;
mod node;
mod output;
mod reset;
mod signals;
mod status;
mod web;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let argv0 = args.next().unwrap_or_default();
    match program(&argv0) {
        "podwright-supervisor" => {
            abort_on_panic();
            oci::supervisor::main()
        }
        oci::probe::ARGV0 => return oci::probe::main(&args.collect::<Vec<_>>()),
        name => {
            if let Some(code) = cni::plugin_main(name) {
                return code;
            }
        }
    }
    let args: Vec<OsString> = args.collect();
    if args.first().is_some_and(|first| first == "oci") {
        return oci(args.into_iter().skip(1).collect());
    }
    command(Cli::parse())
}

fn oci(args: Vec<OsString>) -> ExitCode {
    abort_on_panic();
    oci::cli::main(args)
}

/// In a program that clones itself nothing may unwind: a child would go on as its parent. In the agent a mistake ends the task that
/// made it, and the node goes on.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        output::note(&format!("podwright: {panic}"));
        std::process::abort()
    }));
}

/// The last path component of `argv[0]`; empty when it is not text.
fn program(argv0: &OsStr) -> &str {
    Path::new(argv0).file_name().and_then(OsStr::to_str).unwrap_or_default()
}

fn command(cli: Cli) -> ExitCode {
    logging::init(&cli.log, &cli.command);
    let done = match cli.command {
        Command::Run(args) => agent::run(&args),
        Command::Join(args) => join::main(&args, &std::env::args_os().collect::<Vec<_>>()),
        Command::Agent(args) => agent::agent(&args),
        Command::Runtime(args) => agent::runtime(&args),
        Command::Demo(args) => demo::main(&args),
        Command::Status(args) => status::main(&args),
        Command::Reset(args) => reset::main(&args),
        Command::Image(args) => image::main(&args),
        Command::Version => {
            output::line(&format!("podwright {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Command::Web(args) => web::main(&args),
        // With flags before it; else it was answered before the command line was parsed.
        Command::Oci { args } => return oci(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            match error.downcast_ref::<join::fault::Fault>() {
                Some(fault) => ExitCode::from(fault.exit_code()),
                None if error.is::<config::ConfigError>() => ExitCode::from(2),
                None => ExitCode::FAILURE,
            }
        }
    }
}

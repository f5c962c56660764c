//! Where logs go (stderr) and which of them: flags first, then `RUST_LOG`, then what suits the command.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::{Command, LogArgs};

/// Installs the process's subscriber. Logs never share stdout with results.
pub(crate) fn init(args: &LogArgs, command: &Command) {
    let filter = match directive(args, command, std::env::var("RUST_LOG").ok()) {
        Ok(text) => EnvFilter::new(text),
        Err(level) => EnvFilter::new(level),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// The filter: what the user asked for, or else the command's own level.
fn directive(args: &LogArgs, command: &Command, env: Option<String>) -> Result<String, &'static str> {
    match (args.log_level.as_ref(), args.verbose, env) {
        (Some(level), _, _) => Ok(level.to_string()),
        (None, 0, Some(env)) if !env.is_empty() => Ok(env),
        (None, 0, _) => Err(quiet_level(command)),
        (None, 1, _) => {
            Ok("debug,kube_runtime=info,h2=info,hyper=info,hyper_util=info,tower=info,tonic=info".to_owned())
        }
        (None, _, _) => Ok("trace,h2=info,hyper=info,hyper_util=info,tower=info,tonic=info".to_owned()),
    }
}

/// Long-running agents tell what changes on the node; commands for people only what is wrong.
fn quiet_level(command: &Command) -> &'static str {
    match command {
        // A watch that broke is told of by whoever follows it, and not before it matters; what a request met, by who made it.
        Command::Run(_) | Command::Join(_) | Command::Agent(_) | Command::Runtime(_) => {
            "info,kube_runtime=off,kube_client=off"
        }
        Command::Demo(_) => "error",
        Command::Status(_)
        | Command::Reset(_)
        | Command::Image(_)
        | Command::Version
        | Command::Web(_)
        | Command::Oci { .. } => "warn",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::LogLevel;

    #[test]
    fn flags_win_over_the_environment_and_the_environment_over_the_command() {
        let quiet = LogArgs { log_level: None, verbose: 0 };
        let loud = LogArgs { log_level: Some(LogLevel::Trace), verbose: 0 };
        let env = || Some("kubelet=debug".to_owned());
        assert_eq!(directive(&quiet, &Command::Version, None), Err("warn"));
        assert_eq!(directive(&quiet, &Command::Version, env()), Ok("kubelet=debug".to_owned()));
        assert_eq!(directive(&loud, &Command::Version, env()), Ok("trace".to_owned()));
    }
}

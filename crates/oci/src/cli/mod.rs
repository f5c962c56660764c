//! runc's command line: `create`, `start`, `run`, `state`, `kill`, `delete`.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `podwright oci ARGS…`; `args` are those after `oci`. Call it before anything starts a thread.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let _ = args;
    ExitCode::FAILURE
}

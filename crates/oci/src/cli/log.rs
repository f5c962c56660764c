//! Where errors and warnings go: standard error, and the log file that the caller named, in the form that callers of runc read.

use std::io::Write;

use super::CliError;
use super::args::{Global, LogFormat};

/// Reports an error.
pub(super) fn report(global: &Global, message: &str) {
    tell(global, "error", message);
}

/// Reports what a person should look at, though it goes on.
pub(super) fn warn(global: &Global, message: &str) {
    tell(global, "warning", message);
}

fn tell(global: &Global, level: &str, message: &str) {
    let _ = writeln!(std::io::stderr(), "podwright oci: {message}");
    let Some(path) = &global.log else { return };
    let now = now();
    let line = match global.log_format {
        LogFormat::Json => serde_json::json!({ "level": level, "msg": message, "time": now }).to_string(),
        LogFormat::Text => format!("time={now:?} level={level} msg={message:?}"),
    };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    if let Ok(mut file) = file {
        let _ = writeln!(file, "{line}");
    }
}

/// Writes to standard output.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| CliError::because("write the output", &error))
}

/// Writes a value to standard output, for people to read too.
pub(super) fn print_json(value: &serde_json::Value) -> Result<(), CliError> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| CliError::because("write the output", &error))?;
    print(&format!("{text}\n"))
}

/// The time of day as RFC 3339.
#[expect(clippy::disallowed_methods, reason = "the command line is a shell: its records carry the time")]
pub(super) fn now() -> String {
    let now = time::OffsetDateTime::from(std::time::SystemTime::now());
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

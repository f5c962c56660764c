//! A real supervisor, spoken to by the real client. Needs root. The test program re-executes itself as the supervisor, so it
//! has a main function of its own; it understands the flags of the usual harness that matter here.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program; the lints know only those of the usual harness"
)]

mod pod;
mod stories;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args();
    if args.next().as_deref() == Some(oci::supervisor::protocol::ARGV0) {
        oci::supervisor::main();
    }
    let args: Vec<String> = args.collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = stories::ALL
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter)));
    if has("--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let run = has("--ignored") || has("--include-ignored");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
    let mut failed = 0;
    for (name, story) in chosen {
        if run {
            let result = std::panic::catch_unwind(story);
            println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
            failed += usize::from(result.is_err());
        } else {
            println!("test {name} ... ignored, needs root");
        }
    }
    ExitCode::from(u8::from(failed > 0))
}

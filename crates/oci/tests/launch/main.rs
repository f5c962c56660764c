//! Real containers and exec sessions, started by the library. Needs root and Debian's busybox-static.
//!
//! Only a single-threaded process may start containers, so this program has a main function of its own; it understands the flags of the
//! usual harness that matter here. Its mounts are in a namespace of its own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program; the lints know only those of the usual harness"
)]

mod bundle;
mod stories;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
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
    if run {
        host::namespace::unshare(&[host::namespace::Namespace::Mnt]).expect("root");
    }
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

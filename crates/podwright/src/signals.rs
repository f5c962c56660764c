//! SIGTERM, SIGINT and SIGHUP (a terminal that is closed) as one token that any number of tasks can wait for.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a second signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Ends the process at once: whoever insists does not want to wait, and the records are made for that.
    EndAtOnce,
    /// Nothing: what is under way must be cleaned up first.
    KeepCleaning,
}

/// A token that is cancelled at the first of them. SIGHUP stays ignored where it is, as below nohup.
pub(crate) fn stop_token(again: Again) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = if ignores_hang_up() { None } else { Some(signal(SignalKind::hangup())?) };
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        loop {
            let hung_up = async {
                match &mut hang_up {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hung_up => "SIGHUP",
            };
            if stop.is_cancelled() && again == Again::EndAtOnce {
                std::process::exit(130);
            }
            tracing::info!(signal = name, "stopping");
            stop.cancel();
        }
    });
    Ok(token)
}

/// Whether whoever started this process had it ignore SIGHUP: the lowest bit of SigIgn.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

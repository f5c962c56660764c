//! SIGTERM and SIGINT as one token that any number of tasks can wait for.

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

/// A token that is cancelled at the first SIGTERM or SIGINT.
pub(crate) fn stop_token(again: Again) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
            if stop.is_cancelled() && again == Again::EndAtOnce {
                std::process::exit(130);
            }
            tracing::info!(signal = name, "stopping");
            stop.cancel();
        }
    });
    Ok(token)
}

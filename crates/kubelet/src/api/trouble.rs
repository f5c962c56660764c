//! How loudly a failure that goes on is told: nothing where it passes at once, then one warning, then nothing until it is over.

use std::time::Duration;

use super::source::chain;
use crate::time::BootTime;

/// A node's rights follow a pod by milliseconds, and a server that restarts is away for a moment.
const PASSES: Duration = Duration::from_secs(5);

/// One thing that is tried again and again.
#[derive(Debug)]
pub(super) struct Trouble {
    what: &'static str,
    since: Option<BootTime>,
    told: bool,
}

impl Trouble {
    /// `what` is the warning.
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, since: None, told: false }
    }

    /// It failed once more.
    pub(super) fn meet(&mut self, error: &(dyn std::error::Error + 'static)) {
        self.meet_text(&chain(error));
    }

    /// The same with the causes as text.
    pub(super) fn meet_text(&mut self, error: &str) {
        let what = self.what;
        match self.is_due(BootTime::now()) {
            true => tracing::warn!(error, "{what}"),
            false => tracing::debug!(error, "{what}"),
        }
    }

    /// It works.
    pub(super) fn is_over(&mut self) {
        self.since = None;
        if std::mem::take(&mut self.told) {
            tracing::info!("over: {}", self.what);
        }
    }

    /// Whether it is to be told now.
    fn is_due(&mut self, now: BootTime) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_due = !self.told && now >= since.after(PASSES);
        self.told |= is_due;
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_told_once() {
        let mut trouble = Trouble::new("it does not work");
        let start = BootTime(1_000);
        assert!(!trouble.is_due(start), "it may pass");
        let late = start.after(PASSES);
        assert!(trouble.is_due(late));
        assert!(!trouble.is_due(late.after(PASSES)), "once is enough");
        trouble.is_over();
        assert!(
            !trouble.is_due(late) && trouble.is_due(late.after(PASSES)),
            "the next time it is told again"
        );
    }
}

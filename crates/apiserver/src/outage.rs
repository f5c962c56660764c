//! When the API server counts as away, and when as back: one that starts answers, breaks off, and answers again. Pure.
//!
//! ```text
//!  Over ──silent──► Lasts ◄──silent── Settles
//!    ▲                └─────answers─────►│
//!    └────────────── long enough ────────┘
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// So long it has to go on answering.
const SETTLED: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outage {
    /// The API server answers.
    #[default]
    Over,
    /// It does not.
    Lasts,
    /// It answers, but not for long yet.
    Settles {
        /// When that is long enough.
        until: Instant,
    },
}

/// What is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    Nothing,
    /// It begins.
    Began,
    /// It is over.
    Ended,
}

impl Outage {
    /// Takes in whether the API server is silent now.
    pub fn note(&mut self, silent: bool, now: Instant) -> News {
        let (next, news) = match (*self, silent) {
            (Self::Over, true) => (Self::Lasts, News::Began),
            (Self::Lasts | Self::Settles { .. }, true) => (Self::Lasts, News::Nothing),
            (Self::Over, false) => (Self::Over, News::Nothing),
            (Self::Lasts, false) => (Self::Settles { until: now + SETTLED }, News::Nothing),
            (Self::Settles { until }, false) if until > now => (Self::Settles { until }, News::Nothing),
            (Self::Settles { .. }, false) => (Self::Over, News::Ended),
        };
        *self = next;
        news
    }

    /// Comes when it may be over by the clock alone; never in other states.
    pub async fn settled(self) {
        match self {
            Self::Settles { until } => tokio::time::sleep_until(until).await,
            Self::Over | Self::Lasts => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_comes_and_goes_is_one_outage() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let mut at = |seconds, silent| outage.note(silent, start + Duration::from_secs(seconds));
        assert_eq!(at(0, false), News::Nothing, "it was never away");
        assert_eq!(at(1, true), News::Began);
        for (seconds, silent) in [(2, false), (5, true), (6, true), (7, false), (16, false)] {
            assert_eq!(at(seconds, silent), News::Nothing, "{seconds}");
        }
        assert_eq!(at(17, false), News::Ended);
        assert_eq!((at(18, false), at(19, true)), (News::Nothing, News::Began));
        assert_eq!((at(20, false), at(30, false)), (News::Nothing, News::Ended));
    }
}

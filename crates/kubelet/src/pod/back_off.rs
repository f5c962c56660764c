//! Crash-loop back-off: 10 s, doubling to 5 min, forgotten after twice the longest without a crash (upstream: 10 min).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::BootTime;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// How often something failed lately. Upstream: client-go util/flowcontrol Backoff.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOff {
    /// The wait after the last failure; none before the first.
    delay: Option<(Duration, BootTime)>,
}

impl BackOff {
    /// When the next try may be made, if the last one ended at `ended`; nothing when it may be made now.
    #[must_use]
    pub fn until(&self, ended: BootTime, now: BootTime) -> Option<BootTime> {
        let (delay, last) = self.delay?;
        if ended.since(last) > 2 * LONGEST {
            return None;
        }
        let until = ended.after(delay);
        (until > now).then_some(until)
    }

    /// Notes a try that is made now after one that ended at `ended`: the next one waits longer.
    #[must_use]
    pub fn next(self, ended: BootTime, now: BootTime) -> Self {
        let delay = match self.delay {
            Some((delay, last)) if ended.since(last) <= 2 * LONGEST => (2 * delay).min(LONGEST),
            _ => FIRST,
        };
        Self { delay: Some((delay, now)) }
    }

    /// The wait after the next failure.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay.map_or(Duration::ZERO, |(delay, _)| delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_the_waits_double_to_five_minutes() {
        let (mut back_off, mut now) = (BackOff::default(), BootTime(1_000));
        assert_eq!(back_off.until(now, now), None);
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            back_off = back_off.next(now, now);
            let until = back_off.until(now, now).expect("it waits");
            assert_eq!(until.since(now), Duration::from_secs(seconds));
            assert_eq!(back_off.until(now, until), None);
            now = until;
        }
    }

    #[test]
    fn ten_quiet_minutes_forget_it() {
        let back_off = BackOff::default().next(BootTime(0), BootTime(0)).next(BootTime(0), BootTime(0));
        let ended = BootTime(0).after(Duration::from_secs(601));
        assert_eq!(back_off.until(ended, ended), None);
        assert_eq!(back_off.next(ended, ended).delay(), FIRST);
    }
}

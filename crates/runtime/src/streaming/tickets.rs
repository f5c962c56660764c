//! One-shot URLs: who holds one may use it once, within a minute. No I/O, no clock of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How long a URL is good for.
const LIFETIME: Duration = Duration::from_secs(60);
/// URLs that are neither used nor expired at most.
const MAX_OPEN: usize = 1000;

/// What has been promised under which token.
#[derive(Debug)]
pub(super) struct Tickets<T>(BTreeMap<String, (Instant, T)>);

impl<T> Default for Tickets<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Too many URLs are open.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl<T> Tickets<T> {
    /// Promises something for a token.
    pub(super) fn issue(&mut self, token: String, promise: T, now: Instant) -> Result<(), Full> {
        self.0.retain(|_, (until, _)| *until > now);
        if self.0.len() >= MAX_OPEN {
            return Err(Full);
        }
        self.0.insert(token, (now + LIFETIME, promise));
        Ok(())
    }

    /// Takes what was promised, if `wanted` holds of it; the token is worth nothing afterwards, nor when it has expired.
    pub(super) fn redeem(&mut self, token: &str, now: Instant, wanted: impl Fn(&T) -> bool) -> Option<T> {
        let (until, promise) = self.0.get(token)?;
        if *until <= now {
            self.0.remove(token);
            return None;
        }
        if !wanted(promise) {
            return None;
        }
        self.0.remove(token).map(|(_, promise)| promise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_for_a_minute_and_for_what_it_was_given() {
        let (now, mut tickets) = (Instant::now(), Tickets::default());
        let second = Duration::from_secs(1);
        tickets.issue("a".into(), 1, now).expect("room");
        tickets.issue("b".into(), 2, now).expect("room");
        assert_eq!(tickets.redeem("a", now, |number| *number == 2), None);
        assert_eq!(tickets.redeem("a", now + LIFETIME - second, |_| true), Some(1));
        assert_eq!(tickets.redeem("a", now, |_| true), None);
        assert_eq!(tickets.redeem("b", now + LIFETIME, |_| true), None);
        assert_eq!(tickets.redeem("", now, |_| true), None);
    }

    #[test]
    fn tokens_that_nobody_uses_do_not_pile_up() {
        let (now, mut tickets) = (Instant::now(), Tickets::default());
        for number in 0..MAX_OPEN {
            tickets.issue(number.to_string(), (), now).expect("room");
        }
        assert_eq!(tickets.issue("one more".into(), (), now), Err(Full));
        assert_eq!(tickets.issue("one more".into(), (), now + LIFETIME), Ok(()));
    }
}

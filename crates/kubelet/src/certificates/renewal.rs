//! When certificates are renewed: pure. Upstream: k8s.io/client-go/util/certificate, nextRotationDeadline.

use std::time::Duration;

use super::Validity;

/// The share of its lifetime after which a certificate is renewed: the first, and how much more chance may add.
const SHARE: (f64, f64) = (0.7, 0.2);

/// The longest sleep: the wall clock may jump meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The moment at which a certificate is to be renewed, for a chance from 0 to 1: nodes that joined together do not come
/// together.
#[must_use]
pub(super) fn due(validity: Validity, chance: f64) -> i64 {
    let total = validity.not_after.saturating_sub(validity.not_before).max(0);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "seconds of years fit")]
    let used = (total as f64 * SHARE.1.mul_add(chance.clamp(0.0, 1.0), SHARE.0)) as i64;
    validity.not_before.saturating_add(used)
}

/// How long to sleep before looking whether it is due; nothing when it is.
#[must_use]
pub(super) fn sleep(due: i64, now: i64) -> Option<Duration> {
    let left = u64::try_from(due.saturating_sub(now)).ok().filter(|left| *left > 0)?;
    Some(Duration::from_secs(left).min(LOOK_AGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_after_seventy_to_ninety_percent_of_its_life() {
        let year = Validity { not_before: 1_000, not_after: 1_000 + 31_536_000 };
        for (chance, expect) in [(0.0, 22_075_200), (0.5, 25_228_800), (1.0, 28_382_400), (7.0, 28_382_400)] {
            // Within a second: the shares have no exact binary form.
            assert!((due(year, chance) - 1_000 - expect).abs() <= 1, "{chance}: {}", due(year, chance));
        }
    }

    #[test]
    fn a_certificate_without_a_life_is_due_at_once() {
        let never = Validity { not_before: 500, not_after: 400 };
        assert_eq!(due(never, 0.5), 500);
        assert_eq!(sleep(500, 500), None);
        assert_eq!(sleep(500, 501), None);
        assert_eq!(sleep(i64::MIN, i64::MAX), None);
    }

    #[test]
    fn nobody_sleeps_through_a_jump_of_the_clock() {
        assert_eq!(sleep(510, 500), Some(Duration::from_secs(10)));
        assert_eq!(sleep(1_000_000, 500), Some(LOOK_AGAIN));
    }
}

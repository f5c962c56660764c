//! Clocks of the supervisor, and the timestamp of a CRI log line. The only file here that asks what time it is.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds on a clock that never jumps; deadlines are values of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Millis(pub(super) u64);

impl Millis {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000)
    }

    pub(super) fn after(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Time left until `self`, rounded up so that a wait of this length does not end early.
    pub(super) fn since(self, now: Self) -> u64 {
        self.0.saturating_sub(now.0).saturating_add(1)
    }
}

/// Wall clock in nanoseconds since 1970.
pub(super) fn wall_nanos() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Length of every timestamp: `2016-10-06T00:17:09.669794202Z`.
pub(super) const TIMESTAMP_LENGTH: usize = 30;

/// The wall clock as RFC 3339 in UTC, always with nine digits of fraction so that lines sort and parse alike.
pub(super) fn timestamp(nanos: i64) -> [u8; TIMESTAMP_LENGTH] {
    let seconds = nanos.div_euclid(1_000_000_000);
    let (year, month, day) = civil_date(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let mut out = *b"0000-00-00T00:00:00.000000000Z";
    let fields = [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, of_day / 3600),
        (14, 2, of_day / 60 % 60),
        (17, 2, of_day % 60),
        (20, 9, nanos.rem_euclid(1_000_000_000)),
    ];
    for (start, width, mut value) in fields {
        for digit in out[start..start + width].iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar. Years are counted from
/// March here, so that the leap day is the last of its year.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    use super::*;

    #[test]
    fn a_timestamp_always_has_nine_digits_of_fraction() {
        assert_eq!(&timestamp(1_475_713_029_669_794_202), b"2016-10-06T00:17:09.669794202Z");
        assert_eq!(&timestamp(1_709_164_800_000_000_000), b"2024-02-29T00:00:00.000000000Z");
    }

    proptest! {
        #[test]
        fn timestamps_read_back_as_the_same_moment(nanos in 0..i64::MAX) {
            let text = timestamp(nanos);
            let parsed = OffsetDateTime::parse(std::str::from_utf8(&text).unwrap(), &Rfc3339).unwrap();
            prop_assert_eq!(parsed.unix_timestamp_nanos(), i128::from(nanos));
        }
    }
}

//! CPU use per second of wall time, from samples of a counter: pure.

/// A counter of CPU nanoseconds at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Nanoseconds since 1970.
    pub(crate) at: i64,
    /// CPU nanoseconds so far.
    pub(crate) cpu: u64,
}

/// The rate over the last window of at least a second; before the first has passed, over what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rate {
    base: Option<Sample>,
    nano_cores: Option<u64>,
}

/// Windows are not shorter: the kernel's counters move in steps.
const WINDOW: i64 = 1_000_000_000;
/// What the first answers may rest on.
const FIRST_WINDOW: i64 = 50_000_000;

impl Rate {
    /// With one more sample. A clock or a counter that went back starts a new window.
    pub(crate) fn with(self, sample: Sample) -> Self {
        let Some(base) = self.base else { return Self { base: Some(sample), nano_cores: None } };
        let elapsed = sample.at - base.at;
        if elapsed < 0 || sample.cpu < base.cpu {
            return Self { base: Some(sample), ..self };
        }
        let over = |elapsed: i64| {
            let used = u128::from(sample.cpu - base.cpu) * 1_000_000_000;
            u64::try_from(used / u128::from(elapsed.unsigned_abs())).ok()
        };
        if elapsed >= WINDOW {
            Self { base: Some(sample), nano_cores: over(elapsed) }
        } else if elapsed >= FIRST_WINDOW && self.nano_cores.is_none() {
            Self { nano_cores: over(elapsed), ..self }
        } else {
            self
        }
    }

    /// Billionths of a CPU; none after one sample.
    pub(crate) fn nano_cores(self) -> Option<u64> {
        self.nano_cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(samples: &[(i64, u64)], expected: Option<u64>) {
        let rate = samples.iter().fold(Rate::default(), |rate, &(ms, cpu)| {
            rate.with(Sample { at: ms * 1_000_000, cpu: cpu * 1_000_000 })
        });
        assert_eq!(rate.nano_cores(), expected, "{samples:?}");
    }

    #[test]
    fn a_rate_needs_two_samples_some_time_apart() {
        check(&[], None);
        check(&[(0, 100)], None);
        check(&[(0, 100), (10, 110)], None);
        check(&[(0, 100), (100, 150)], Some(500_000_000));
        check(&[(0, 0), (2000, 4000)], Some(2_000_000_000));
    }

    #[test]
    fn a_short_window_does_not_replace_a_long_one() {
        check(&[(0, 0), (1000, 500), (1100, 600)], Some(500_000_000));
        check(&[(0, 0), (1000, 500), (2000, 600)], Some(100_000_000));
    }

    #[test]
    fn a_counter_or_clock_that_goes_back_starts_again() {
        check(&[(0, 500), (1000, 0), (2000, 100)], Some(100_000_000));
        check(&[(5000, 0), (0, 100), (1000, 200)], Some(100_000_000));
    }
}

//! The planner's time: milliseconds since boot, so that it can be written down, survives a restart and is made up in tests.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A moment, in milliseconds of CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (seconds, nanos) =
            (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
        Self(seconds * 1000 + nanos / 1_000_000)
    }

    /// Later by that much.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long from `earlier` to this; nothing when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Wall clock, in nanoseconds since 1970: what CRI and the API use.
#[expect(clippy::disallowed_methods, reason = "the kubelet's one wall clock")]
pub(crate) fn wall_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A moment of the wall clock on the planner's clock; one in the future counts as now.
pub(crate) fn boot_of_wall(ns: i64) -> BootTime {
    let age = Duration::from_nanos(u64::try_from(wall_ns().saturating_sub(ns)).unwrap_or(0));
    BootTime(BootTime::now().0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
}

/// The API's time, in whole seconds; nothing for 0.
pub(crate) fn api_time(ns: i64) -> Option<Time> {
    (ns != 0).then(|| Timestamp::from_second(ns / 1_000_000_000).ok().map(Time)).flatten()
}

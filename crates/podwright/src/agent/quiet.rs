//! A quiet agent lets go of the memory that its last work has left behind: half of what an agent that has started a pod and imported an
//! image shows as its own are pages of code that it may not run again for hours.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(5);

/// An agent that has used less processor time than this since the last look is quiet.
const QUIET: Duration = Duration::from_millis(25);

/// Work that leaves behind enough for a release to be worth its price, which is about a millisecond.
const WORK: Duration = Duration::from_millis(5);

/// Looks for as long as it is polled.
pub(super) async fn watch() -> ! {
    let mut looks = tokio::time::interval_at(Instant::now() + EVERY, EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut used = Used::default();
    loop {
        looks.tick().await;
        if used.is_time_to_release(host::memory::processor_time())
            && let Err(error) = host::memory::release()
        {
            tracing::debug!(%error, "memory that is not needed stays mapped");
        }
    }
}

/// Processor time used until certain moments.
#[derive(Debug, Default)]
struct Used {
    last_look: Duration,
    last_release: Duration,
}

impl Used {
    /// Decides by what has been used until now.
    fn is_time_to_release(&mut self, now: Duration) -> bool {
        let lately = now.saturating_sub(self.last_look);
        let worth_it = now.saturating_sub(self.last_release) >= WORK;
        self.last_look = now;
        let yes = lately < QUIET && worth_it;
        if yes {
            self.last_release = now;
        }
        yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_released_once_after_work() {
        let mut used = Used::default();
        let decided =
            [100, 180, 181, 182, 185, 189].map(|ms| used.is_time_to_release(Duration::from_millis(ms)));
        // Started, at work, quiet: released; next to nothing done since, twice; again enough.
        assert_eq!(decided, [false, false, true, false, false, true]);
    }
}

//! What a benchmark gives, and how samples are taken.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One line of the result. Smaller values are better; the ratio is the peer's value over ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    pub(crate) peer: &'static str,
    pub(crate) peer_value: f64,
    pub(crate) n: usize,
}

impl Row {
    /// Medians of both sides' samples, in milliseconds.
    pub(crate) fn of_medians(
        bench: &'static str,
        peer: &'static str,
        ours: &[Duration],
        theirs: &[Duration],
    ) -> Self {
        Self { bench, unit: "ms", ours: median_ms(ours), peer, peer_value: median_ms(theirs), n: ours.len() }
    }

    pub(crate) fn ratio(self) -> f64 {
        self.peer_value / self.ours
    }

    pub(crate) fn to_json(self) -> Value {
        json!({
            "bench": self.bench, "unit": self.unit, "ours": self.ours, "peer": self.peer,
            "peer_value": self.peer_value, "ratio": self.ratio(), "n": self.n,
        })
    }
}

fn median_ms(samples: &[Duration]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    let median =
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2 };
    median.as_secs_f64() * 1e3
}

/// The clock of every benchmark.
#[expect(clippy::disallowed_methods, reason = "measuring time is what a benchmark does")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// How long `work` takes, and what it gives.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = now();
    let value = work()?;
    Ok((start.elapsed(), value))
}

/// Waits, untimed and 2 s at most, until the kernel has destroyed the network namespaces of the last sample.
pub(crate) fn settle(baseline: usize) {
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(10));
        if network_namespaces() <= baseline {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(20));
}

/// How many network namespaces the kernel holds, dying ones included; 0 where the slab allocator does not tell.
pub(crate) fn network_namespaces() -> usize {
    let slabs = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let line = slabs.lines().find(|line| line.starts_with("net_namespace "));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Hundredths of a second that the machine's CPUs were not idle.
pub(crate) fn machine_ticks() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/stat").context("read the machine's CPU time")?;
    let line = text.lines().next().context("a line of all CPUs")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    Ok([0, 1, 2, 5, 6, 7].iter().filter_map(|&index| ticks.get(index)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_middle() {
        let row =
            Row::of_medians("b", "p", &[1, 3].map(Duration::from_millis), &[4, 4].map(Duration::from_millis));
        assert!((row.ratio() - 2.0).abs() < 1e-9, "{row:?}");
    }
}

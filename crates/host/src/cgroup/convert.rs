//! Values of the OCI runtime spec (cgroup v1 units) as the control files want them. Pure.

/// cpu.shares (2…262144) as cpu.weight (1…10000), by the quadratic formula of 2026: both defaults meet (1024 ↔ 100), and so do both ends.
///
/// weight = ⌈10^((log₂² shares + 125·log₂ shares)/612 − 7/34)⌉
pub fn cpu_weight(shares: u64) -> u64 {
    if shares == 0 {
        return 0;
    }
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// `cpu.max`: quota (negative or absent = no limit) and period in microseconds.
pub fn cpu_max(quota: Option<i64>, period: Option<u64>) -> Option<String> {
    let quota_text = match quota {
        Some(quota) if quota > 0 => quota.to_string(),
        _ => "max".to_owned(),
    };
    match (quota, period) {
        (None, None) => None,
        (_, Some(period)) => Some(format!("{quota_text} {period}")),
        (_, None) => Some(quota_text),
    }
}

/// A limit where a negative number means none.
pub fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// pids.max: a negative number means no limit. 0 is written as 1, as runc has it: either is one process and no more.
pub fn pids_max(limit: i64) -> String {
    or_max(if limit == 0 { 1 } else { limit })
}

/// memory.swap.max from the spec's sum of memory and swap; `None` where nothing is to be written.
pub fn swap_max(memory_and_swap: Option<i64>, memory: Option<i64>) -> Result<Option<String>, String> {
    match (memory_and_swap, memory) {
        (None | Some(0), _) => Ok(None),
        (Some(sum), _) if sum < 0 => Ok(Some("max".to_owned())),
        (Some(sum), Some(memory)) if memory > 0 && sum >= memory => Ok(Some((sum - memory).to_string())),
        (Some(sum), Some(memory)) if memory > 0 => {
            Err(format!("memory and swap together ({sum}) are less than memory alone ({memory})"))
        }
        (Some(sum), _) => Err(format!("a limit of memory and swap together ({sum}) needs a memory limit")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_convert_by_the_quadratic_formula() {
        let table = [(0, 0), (1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1_000_000, 10_000)];
        for (shares, weight) in table {
            assert_eq!(cpu_weight(shares), weight, "{shares} shares");
        }
        assert!((2..262_144).step_by(97).all(|shares| cpu_weight(shares) <= cpu_weight(shares + 97)));
    }

    #[test]
    fn quota_and_period_become_one_line() {
        assert_eq!(cpu_max(None, None), None);
        assert_eq!(cpu_max(Some(50_000), Some(100_000)).as_deref(), Some("50000 100000"));
        assert_eq!(cpu_max(Some(-1), Some(100_000)).as_deref(), Some("max 100000"));
        assert_eq!(cpu_max(Some(20_000), None).as_deref(), Some("20000"));
    }

    #[test]
    fn only_a_negative_number_of_processes_is_no_limit() {
        assert_eq!([-1, 0, 1, 12].map(pids_max), ["max", "1", "1", "12"]);
    }

    #[test]
    fn swap_is_the_sum_minus_memory() {
        assert_eq!(swap_max(Some(300), Some(100)), Ok(Some("200".into())));
        assert_eq!(swap_max(Some(-1), Some(100)), Ok(Some("max".into())));
        assert_eq!(swap_max(None, Some(100)), Ok(None));
        assert!(swap_max(Some(50), Some(100)).is_err());
        assert!(swap_max(Some(50), None).is_err());
    }
}

//! Thresholds of eviction: `memory.available: 100Mi` or `5%`. Upstream: pkg/kubelet/eviction/helpers.go.

use std::collections::BTreeMap;

use manifest::quantity::Amount;

/// The signal that is acted upon.
pub(super) const MEMORY: &str = "memory.available";

/// What else may be named.
const SIGNALS: [&str; 10] = [
    MEMORY,
    "allocatableMemory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "containerfs.available",
    "containerfs.inodesFree",
    "pid.available",
    "allocatableNodeFs.available",
];

/// Where nothing is said.
const DEFAULTS: [(&str, &str); 5] = [
    (MEMORY, "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// When there is too little of something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Threshold {
    /// Less than this.
    Amount(Amount),
    /// Less than this part of the whole, between 0 and 1.
    Share(f64),
}

/// `evictionHard`: a file that names one signal has no defaults for the others, unless it asks for them.
pub(super) fn hard(
    given: &BTreeMap<String, String>,
    merge: bool,
    faults: &mut Vec<String>,
) -> BTreeMap<String, Threshold> {
    let defaults = DEFAULTS.iter().filter(|_| given.is_empty() || merge);
    let mut texts: BTreeMap<&str, &str> = defaults.copied().collect();
    texts.extend(given.iter().map(|(signal, value)| (signal.as_str(), value.as_str())));
    let mut thresholds = BTreeMap::new();
    for (signal, value) in texts {
        match parse(signal, value) {
            Ok(Some(threshold)) => drop(thresholds.insert(signal.to_owned(), threshold)),
            Ok(None) => {}
            Err(fault) => faults.push(format!("evictionHard: {signal} {value:?} {fault}")),
        }
    }
    thresholds
}

/// 0% and 100% switch a signal off.
fn parse(signal: &str, value: &str) -> Result<Option<Threshold>, String> {
    if !SIGNALS.contains(&signal) {
        return Err("is not a signal".to_owned());
    }
    if matches!(value, "0%" | "100%") {
        return Ok(None);
    }
    if let Some(percent) = value.strip_suffix('%') {
        let percent = percent.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent));
        return percent
            .map(|percent| Some(Threshold::Share(percent / 100.0)))
            .ok_or_else(|| "is not a percentage".to_owned());
    }
    let amount = manifest::quantity::parse(value).map_err(|error| error.to_string())?;
    if amount.is_negative() || amount.is_zero() {
        return Err("must be positive".to_owned());
    }
    Ok(Some(Threshold::Amount(amount)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[(&str, &str)], merge: bool) -> (Vec<String>, Vec<String>) {
        let given = given.iter().map(|(signal, value)| ((*signal).to_owned(), (*value).to_owned())).collect();
        let mut faults = Vec::new();
        let thresholds = hard(&given, merge, &mut faults);
        (thresholds.into_keys().collect(), faults)
    }

    #[test]
    fn a_file_that_names_one_signal_has_no_defaults_for_the_others() {
        assert_eq!(read(&[], false).0.len(), 5);
        assert_eq!(read(&[(MEMORY, "5%")], false).0, [MEMORY]);
        assert_eq!(read(&[(MEMORY, "5%")], true).0.len(), 5);
        assert_eq!(read(&[("nodefs.available", "0%"), ("imagefs.available", "0%")], false).0, [""; 0]);
    }

    #[test]
    fn thresholds_are_amounts_or_shares() {
        assert_eq!(parse(MEMORY, "5%"), Ok(Some(Threshold::Share(0.05))));
        let amount = manifest::quantity::parse("200Mi").unwrap();
        assert_eq!(parse(MEMORY, "200Mi"), Ok(Some(Threshold::Amount(amount))));
        for (signal, value) in
            [("memory", "1Gi"), (MEMORY, "-1"), (MEMORY, "101%"), (MEMORY, "much"), (MEMORY, "0")]
        {
            assert!(parse(signal, value).is_err(), "{signal} {value}");
        }
    }
}

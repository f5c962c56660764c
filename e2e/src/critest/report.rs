//! What a run of critest says, and two runs side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

/// How one spec ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As the suite wants it.
    Passed,
    /// Otherwise: with the suite's words.
    Failed(String),
    /// The suite found that it does not apply here.
    Skipped,
}

/// The outcome of each spec, by its group and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Specs by group (the outermost text) and full name.
    pub specs: BTreeMap<(String, String), Outcome>,
}

impl Report {
    /// Reads ginkgo's JSON report. What the suite was told to leave out is not in it.
    ///
    /// # Errors
    /// When it is not such a report.
    pub fn of(report: &Value) -> Result<Self> {
        let suites = report.as_array().context("a report is a list of suites")?;
        let mut specs = BTreeMap::new();
        for spec in suites.iter().filter_map(|suite| suite["SpecReports"].as_array()).flatten() {
            if let Some((name, outcome)) = spec_of(spec) {
                specs.insert(name, outcome);
            }
        }
        Ok(Self { specs })
    }

    /// How many specs passed.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.specs.values().filter(|outcome| **outcome == Outcome::Passed).count()
    }

    fn groups(&self) -> BTreeSet<&str> {
        self.specs.keys().map(|(group, _)| group.as_str()).collect()
    }

    /// Passed, failed, skipped: of one group, or of all.
    fn counts(&self, group: Option<&str>) -> String {
        let mut counts = [0; 3];
        for ((of, _), outcome) in &self.specs {
            if group.is_none_or(|group| group == of) {
                match outcome {
                    Outcome::Passed => counts[0] += 1,
                    Outcome::Failed(_) => counts[1] += 1,
                    Outcome::Skipped => counts[2] += 1,
                }
            }
        }
        counts.map(|count| format!("{count:>4}")).join(" /")
    }
}

fn spec_of(spec: &Value) -> Option<((String, String), Outcome)> {
    let outcome = match (spec["LeafNodeType"].as_str()?, spec["State"].as_str()?) {
        ("It", "passed") => Outcome::Passed,
        // Left out by a filter: without a failure that says why.
        ("It", "skipped") if spec["Failure"]["Message"].as_str().unwrap_or_default().is_empty() => {
            return None;
        }
        ("It", "skipped") => Outcome::Skipped,
        ("It", "pending") => return None,
        ("It", _) => Outcome::Failed(spec["Failure"]["Message"].as_str().unwrap_or_default().to_owned()),
        _ => return None,
    };
    let texts: Vec<&str> =
        spec["ContainerHierarchyTexts"].as_array()?.iter().filter_map(Value::as_str).collect();
    let group = texts.first().copied().unwrap_or_default().trim_start_matches("[k8s.io] ").to_owned();
    let inner = texts.into_iter().skip(1).chain(spec["LeafNodeText"].as_str());
    Some(((group, inner.collect::<Vec<_>>().join(" ")), outcome))
}

/// A table of both runs by group, then the names of what failed, and on whom.
#[must_use]
pub fn table(ours: &Report, reference: &Report) -> String {
    let mut text =
        format!("{:<28} {:<20} {}\n", "passed / failed / skipped", "podwright", "containerd + runc");
    let groups: BTreeSet<&str> = ours.groups().into_iter().chain(reference.groups()).collect();
    for (name, group) in groups.into_iter().map(|group| (group, Some(group))).chain([("all", None)]) {
        let _ = writeln!(text, "{name:<28} {:<20} {}", ours.counts(group), reference.counts(group));
    }
    for (title, failures) in [
        ("failed on podwright, passed on containerd", failures(ours, |name| passed(reference, name))),
        (
            "failed on podwright, and not passed on containerd",
            failures(ours, |name| !passed(reference, name)),
        ),
        ("failed on containerd, passed on podwright", failures(reference, |name| passed(ours, name))),
    ] {
        if !failures.is_empty() {
            let _ = write!(text, "\n{title}:\n{failures}");
        }
    }
    text
}

fn passed(report: &Report, name: &(String, String)) -> bool {
    report.specs.get(name) == Some(&Outcome::Passed)
}

/// A line for each failure that `wanted` holds for, and the first lines of what the suite said.
fn failures(report: &Report, wanted: impl Fn(&(String, String)) -> bool) -> String {
    let mut text = String::new();
    for (name, outcome) in &report.specs {
        if let Outcome::Failed(message) = outcome
            && wanted(name)
        {
            let _ = writeln!(text, "  {}: {}", name.0, name.1);
            for line in message.lines().map(str::trim_end).filter(|line| !line.is_empty()).take(3) {
                let _ = writeln!(text, "      {}", line.chars().take(160).collect::<String>());
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(states: [&str; 3]) -> Report {
        let spec = |name: &str, state: &str| {
            let message = if state == "passed" { "" } else { "because" };
            json!({ "LeafNodeType": "It", "LeafNodeText": name, "State": state, "Failure": { "Message": message },
                    "ContainerHierarchyTexts": ["[k8s.io] Streaming", "runtime"] })
        };
        let left_out = json!({ "LeafNodeType": "It", "LeafNodeText": "benchmark", "State": "skipped",
                               "ContainerHierarchyTexts": ["[k8s.io] Container"] });
        let around = json!({ "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed" });
        let mut specs = vec![left_out, around];
        specs.extend(
            ["exec", "attach", "forward"].into_iter().zip(states).map(|(name, state)| spec(name, state)),
        );
        Report::of(&json!([{ "SpecReports": specs }])).expect("a report")
    }

    #[test]
    fn counts_what_ran() {
        let report = report(["passed", "failed", "skipped"]);
        assert_eq!(report.passed(), 1);
        assert_eq!(report.counts(None), "   1 /   1 /   1");
        assert_eq!(report.groups(), BTreeSet::from(["Streaming"]));
    }

    #[test]
    fn tells_whose_failure_it_is() {
        let text = table(&report(["failed", "panicked", "passed"]), &report(["passed", "failed", "failed"]));
        let sections: Vec<&str> = text.split("\n\n").collect();
        assert!(sections[0].contains("Streaming                       1 /   2 /   0"), "{text}");
        assert!(
            sections[1].starts_with("failed on podwright, passed on containerd:\n  Streaming: runtime exec")
        );
        assert!(
            sections[2].contains("not passed on containerd:\n  Streaming: runtime attach\n      because")
        );
        assert!(
            sections[3]
                .starts_with("failed on containerd, passed on podwright:\n  Streaming: runtime forward")
        );
    }
}

//! The table of pods with their start times broken down by step. Pure.

use crate::status::table::align;

/// How one pod came up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodTimes {
    /// Its name.
    pub(crate) name: String,
    /// Its address.
    pub(crate) ip: String,
    /// What took how many milliseconds, in order.
    pub(crate) steps: Vec<(String, f64)>,
    /// From the manifest to Ready, in milliseconds.
    pub(crate) total: f64,
}

/// One row per pod, one column per step in the order in which the steps were first seen.
pub(crate) fn render(pods: &[PodTimes]) -> String {
    let mut steps: Vec<&str> = Vec::new();
    for (step, _) in pods.iter().flat_map(|pod| &pod.steps) {
        if !steps.contains(&step.as_str()) {
            steps.push(step);
        }
    }
    let mut header = vec!["POD".to_owned(), "IP".to_owned()];
    header.extend(steps.iter().map(|step| step.to_uppercase()));
    header.push("TOTAL".to_owned());
    let mut rows = vec![header];
    for pod in pods {
        let mut row = vec![pod.name.clone(), pod.ip.clone()];
        row.extend(steps.iter().map(|step| {
            let spent: Vec<f64> =
                pod.steps.iter().filter(|(name, _)| name == step).map(|(_, ms)| *ms).collect();
            if spent.is_empty() { "-".to_owned() } else { milliseconds(spent.iter().sum()) }
        }));
        row.push(milliseconds(pod.total));
        rows.push(row);
    }
    align(&rows)
}

fn milliseconds(ms: f64) -> String {
    format!("{ms:.1} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_a_column_even_when_only_one_pod_took_it() {
        let step = |name: &str, ms: f64| (name.to_owned(), ms);
        let pods = [
            PodTimes {
                name: "web-1".into(),
                ip: "10.85.0.2".into(),
                steps: vec![step("sandbox", 5.25), step("ready", 10.0)],
                total: 15.3,
            },
            PodTimes {
                name: "web-2".into(),
                ip: "10.85.0.3".into(),
                steps: vec![step("sandbox", 4.0), step("start", 1.0), step("ready", 9.0)],
                total: 14.0,
            },
        ];
        let expect = "\
POD    IP         SANDBOX  READY    START   TOTAL
web-1  10.85.0.2  5.2 ms   10.0 ms  -       15.3 ms
web-2  10.85.0.3  4.0 ms   9.0 ms   1.0 ms  14.0 ms
";
        assert_eq!(render(&pods), expect);
    }
}

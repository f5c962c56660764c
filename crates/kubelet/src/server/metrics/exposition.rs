//! The text format of Prometheus, version 0.0.4: pure. Upstream: prometheus.io/docs/instrumenting/exposition_formats.

use std::fmt::{Display, Write};

/// What a family counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page of metrics.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Begins a family: its samples follow.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value; `at` in nanoseconds since 1970.
    pub(super) fn sample(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        value: impl Display,
        at: Option<i64>,
    ) {
        self.0.push_str(name);
        for (at, (name, value)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.0, "{name}=\"{value}\"");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = write!(self.0, " {value}");
        if let Some(at) = at {
            let _ = write!(self.0, " {}", at / 1_000_000);
        }
        self.0.push('\n');
    }

    /// A family of one value without labels.
    pub(super) fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value, None);
    }

    /// One histogram of a family.
    pub(super) fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let (bucket, mut below) = (format!("{name}_bucket"), 0);
        let bounds = histogram.bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            below += count;
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&bucket, &labels, below, None);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum, None);
        self.sample(&format!("{name}_count"), labels, below, None);
    }

    /// The page.
    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// How many values were at most how large.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    pub(super) fn observe(&mut self, value: f64) {
        let at = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.counts[at] += 1;
        self.sum += value;
    }

    /// How many values there were.
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page::default();
        page.family("a_total", Kind::Counter, "Back\\slash\nand line");
        page.sample("a_total", &[("x", "q\"u\\o\nte"), ("y", "")], 1.5, Some(1_700_000_000_123_456_789));
        page.single("b", Kind::Gauge, "Plain", 7);
        let expect = "# HELP a_total Back\\\\slash\\nand line\n# TYPE a_total counter\n\
                      a_total{x=\"q\\\"u\\\\o\\nte\",y=\"\"} 1.5 1700000000123\n\
                      # HELP b Plain\n# TYPE b gauge\nb 7\n";
        assert_eq!(page.into_text(), expect);
    }

    #[test]
    fn a_histogram_counts_what_is_at_most_as_large() {
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        [0.1, 1.0, 5.0].into_iter().for_each(|value| histogram.observe(value));
        let mut page = Page::default();
        page.histogram("h", &[("a", "b")], &histogram);
        let expect = "h_bucket{a=\"b\",le=\"0.5\"} 1\nh_bucket{a=\"b\",le=\"1\"} 2\nh_bucket{a=\"b\",le=\"+Inf\"} 3\n\
                      h_sum{a=\"b\"} 6.1\nh_count{a=\"b\"} 3\n";
        assert_eq!(page.into_text(), expect);
    }
}

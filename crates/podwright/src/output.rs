//! What a person or a script reads: results on stdout, errors and progress on stderr. Logs go through `tracing`.

use std::io::{IsTerminal, Write};

/// Prints one result line on stdout. A reader that went away (`| head`) is no error.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints text that ends its own lines.
pub(crate) fn text(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints an error with its whole chain of causes, once.
pub(crate) fn error(error: &anyhow::Error) {
    note(&format!("podwright: {error:#}"));
}

/// Prints a remark on stderr: it belongs to no result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A line on stderr that is rewritten while work goes on; on anything but a terminal nothing is shown.
#[derive(Debug)]
pub(crate) struct ProgressLine {
    live: bool,
    width: usize,
}

impl ProgressLine {
    /// Starts with an empty line.
    pub(crate) fn new() -> Self {
        Self { live: std::io::stderr().is_terminal(), width: 0 }
    }

    /// Shows `text` in place of what was there.
    pub(crate) fn show(&mut self, text: &str) {
        if self.live {
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\r{text:<width$}", width = self.width).and_then(|()| err.flush());
            self.width = text.chars().count();
        }
    }

    /// Takes the line away, for instance before an error is printed.
    pub(crate) fn clear(&mut self) {
        if self.live {
            self.show("");
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\r").and_then(|()| err.flush());
        }
    }
}

/// A number of bytes for people: `512 B`, `4.2 MB`, decimal units as registries use them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut tenths = count / 100;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_short_and_decimal() {
        for (count, expect) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (5_000_000_000, "5.0 GB")]
        {
            assert_eq!(bytes(count), expect);
        }
    }
}

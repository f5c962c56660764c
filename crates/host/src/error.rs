//! How an error is told where its sources do not travel: in logs, replies and reports.

use std::error::Error;

/// The error with its sources in one line. One that says its source itself does not say it twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Told {
        text: &'static str,
        source: Option<Box<Told>>,
    }

    #[test]
    fn every_source_is_told_once() {
        for (texts, expect) in [
            (&["mount /a"][..], "mount /a"),
            (&["mount /a", "open b", "no such file"][..], "mount /a: open b: no such file"),
            (&["send: refused", "refused"][..], "send: refused"),
            (&["a refused b", "refused"][..], "a refused b: refused"),
        ] {
            let of = |source, text: &&'static str| Some(Box::new(Told { text, source }));
            let error = texts.iter().rev().fold(None, of).expect("an error");
            assert_eq!(chain(&error), expect);
        }
    }
}

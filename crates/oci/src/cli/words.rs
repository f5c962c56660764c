//! Words of a command line one by one: `--name=value`, `--name value`, `-n value`, `--`.

use super::CliError;
use super::args::USAGE;

/// An option that a command knows.
#[derive(Clone, Copy)]
pub(super) struct Known {
    name: &'static str,
    short: &'static str,
    takes_value: bool,
}

/// An option with a value; `short` is its one-letter name, or empty.
pub(super) const fn value(name: &'static str, short: &'static str) -> Known {
    Known { name, short, takes_value: true }
}

/// An option without a value.
pub(super) const fn flag(name: &'static str, short: &'static str) -> Known {
    Known { name, short, takes_value: false }
}

/// Where options may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// Before and after other words.
    Anywhere,
    /// Only before the first other word: what follows belongs to a command in the container.
    First,
}

pub(super) struct Words {
    rest: std::collections::VecDeque<String>,
    only_positional: bool,
}

pub(super) enum Word {
    Positional(String),
    Option(String, Option<String>),
}

/// What was given: options in order, by their long names, and the other words.
#[derive(Debug, Default)]
pub(super) struct Given {
    options: Vec<(&'static str, String)>,
    pub(super) positional: Vec<String>,
}

impl Words {
    pub(super) fn new(words: Vec<String>) -> Self {
        Self { rest: words.into(), only_positional: false }
    }

    pub(super) fn next(&mut self) -> Option<Word> {
        let word = self.rest.pop_front()?;
        if !self.only_positional && word == "--" {
            self.only_positional = true;
            return self.next();
        }
        if self.only_positional || !word.starts_with('-') || word.len() == 1 {
            return Some(Word::Positional(word));
        }
        let name = word.trim_start_matches('-');
        Some(match name.split_once('=') {
            Some((name, value)) => Word::Option(name.to_owned(), Some(value.to_owned())),
            None => Word::Option(name.to_owned(), None),
        })
    }

    pub(super) fn value(&mut self, name: &str, given: Option<String>) -> Result<String, CliError> {
        given
            .or_else(|| self.rest.pop_front())
            .ok_or_else(|| CliError::new(format!("option {name} needs a value")))
    }

    /// Whether the next word asks for help; further on it may be a container's command's.
    pub(super) fn asks_for_help(&self) -> bool {
        self.rest.front().is_some_and(|word| word == "--help" || word == "-h")
    }

    /// Takes all that is left.
    pub(super) fn given(&mut self, known: &[Known], placement: Placement) -> Result<Given, CliError> {
        let mut given = Given::default();
        while let Some(word) = self.next() {
            let (name, text) = match word {
                Word::Positional(text) => {
                    given.positional.push(text);
                    if placement == Placement::First {
                        given.positional.extend(self.rest.drain(..));
                    }
                    continue;
                }
                Word::Option(name, text) => (name, text),
            };
            let option = known.iter().find(|known| known.name == name || known.short == name);
            let Some(option) = option.filter(|_| !name.is_empty()) else { return Err(unknown(&name)) };
            let text = match text {
                text if option.takes_value => self.value(&name, text)?,
                Some(text) => text,
                None => "true".to_owned(),
            };
            given.options.push((option.name, text));
        }
        Ok(given)
    }
}

impl Given {
    /// The last value of an option.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// Every value of an option, in order.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.options.iter().filter(move |(known, _)| *known == name).map(|(_, text)| text.as_str())
    }

    /// Whether a flag was given, and not as `--flag=false`.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.value(name).is_some_and(|text| text != "false")
    }

    /// The value of an option as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, CliError> {
        self.value(name)
            .map(|text| text.parse().map_err(|_| CliError::new(format!("--{name} {text:?} is no number"))))
            .transpose()
    }
}

/// The error for an option that a command does not know.
pub(super) fn unknown(name: &str) -> CliError {
    let dashes = if name.len() == 1 { "-" } else { "--" };
    CliError::new(format!("unknown option {dashes}{name}\n{USAGE}"))
}

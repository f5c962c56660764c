//! What is said in the log of the API server: each thing once when it begins and once when it is over. Pure.

use apiserver::{News, Outage, Trouble};
use tokio::time::Instant;

const AWAY: &str = "the ways to other nodes' pods stay as they are until the API server answers";
const BACK: &str = "the API server tells of nodes again";
const FORBIDDEN: &str = "other nodes' pods are not reached: this node may not list and watch nodes; an administrator grants it with: kubectl apply -f deploy/rbac.yaml";
const GRANTED: &str = "this node may list and watch nodes now";

/// What has been said.
#[derive(Debug, Default)]
pub(crate) struct Told {
    outage: Outage,
    forbidden: bool,
}

/// What is to be said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Something is the matter.
    Bad {
        /// What it means.
        what: &'static str,
        /// What was met, where that says more.
        error: Option<String>,
    },
    /// It is over.
    Good(&'static str),
}

impl Told {
    /// Takes in what the matter is now.
    pub(crate) fn next(&mut self, trouble: Option<&Trouble>, now: Instant) -> Option<Word> {
        let (error, forbidden) = match trouble {
            None => (None, false),
            Some(Trouble::Forbidden) => (None, true),
            Some(Trouble::Silent { error }) => (Some(error.clone()), false),
        };
        match self.outage.note(error.is_some(), now) {
            News::Began => return Some(Word::Bad { what: AWAY, error }),
            News::Ended if !forbidden => {
                self.forbidden = false;
                return Some(Word::Good(BACK));
            }
            News::Nothing | News::Ended => {}
        }
        // An API server that starts refuses everything before it has read who may do what.
        if self.outage != Outage::Over || forbidden == self.forbidden {
            return None;
        }
        self.forbidden = forbidden;
        Some(if forbidden { Word::Bad { what: FORBIDDEN, error: None } } else { Word::Good(GRANTED) })
    }

    /// Comes when there may be a word by the clock alone.
    pub(crate) async fn settled(&self) {
        self.outage.settled().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What is said at each second, of what is the matter then.
    fn check(seen: &[(u64, Option<&Trouble>)], expect: &[(u64, &'static str)]) {
        let (mut told, start) = (Told::default(), Instant::now());
        let said = seen.iter().filter_map(|(second, trouble)| {
            Some((
                *second,
                match told.next(*trouble, start + Duration::from_secs(*second))? {
                    Word::Bad { what, .. } | Word::Good(what) => what,
                },
            ))
        });
        assert_eq!(said.collect::<Vec<_>>(), expect);
    }

    #[test]
    fn each_outage_and_each_refusal_is_told_of_twice() {
        let silent = &Trouble::Silent { error: "refused".to_owned() };
        let (away, refused) = (Some(silent), Some(&Trouble::Forbidden));
        check(&[(0, None), (1, None)], &[]);
        check(
            &[(0, away), (1, None), (2, away), (3, refused), (4, None), (13, None)],
            &[(0, AWAY), (13, BACK)],
        );
        check(&[(0, refused), (1, refused), (2, None), (3, None)], &[(0, FORBIDDEN), (2, GRANTED)]);
        // It is back, and refuses for good.
        check(
            &[(0, away), (1, refused), (11, refused), (12, None)],
            &[(0, AWAY), (11, FORBIDDEN), (12, GRANTED)],
        );
        // An outage hides a refusal, and says that it is over when both are.
        check(&[(0, refused), (1, away), (2, refused), (12, refused)], &[(0, FORBIDDEN), (1, AWAY)]);
        check(&[(0, refused), (1, away), (2, None), (12, None)], &[(0, FORBIDDEN), (1, AWAY), (12, BACK)]);
    }
}

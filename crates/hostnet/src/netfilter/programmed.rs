//! What is programmed in one family, and how it is brought to what owners want. Blocking.
//!
//! What all owners want is written by one restore. Where that is refused they are tried apart: an owner whose rules the
//! kernel does not take does not keep the others from theirs. What a failed restore may have left is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::programs::{OwnPrograms, ProgramError, Programs};
use super::render::{in_words_of, parse_saved, render_restore};
use super::ruleset::{Family, PerFamily, Ruleset};
use super::writer::Owner;

/// Where rules are read and written.
pub(super) trait Tables {
    /// What `iptables-save` prints.
    fn save(&self) -> Result<String, ProgramError>;

    /// Takes what `iptables-restore --noflush` takes: each table as a whole, or not at all.
    fn restore(&self, input: &str) -> Result<(), ProgramError>;
}

/// The programs of this machine, and which of their processes were ours.
#[derive(Debug)]
pub(super) struct OwnTables {
    /// The programs.
    pub(super) programs: Programs,
    /// The pids.
    pub(super) own: Arc<OwnPrograms>,
}

impl Tables for OwnTables {
    fn save(&self) -> Result<String, ProgramError> {
        self.programs.save()
    }

    fn restore(&self, input: &str) -> Result<(), ProgramError> {
        self.programs.restore_noted(input, &self.own)
    }
}

/// Why what is programmed is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// Owners want something else.
    Wish,
    /// Somebody else may have changed it.
    Suspicion,
}

/// What is wanted of one family.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Of which.
    pub(super) family: Family,
    /// What each owner wants.
    pub(super) rules: BTreeMap<Owner, Arc<PerFamily<Ruleset>>>,
    /// Whoever submitted or was cleared: its chains that nobody wants go.
    pub(super) owners: BTreeSet<Owner>,
    /// Who waits for an answer.
    pub(super) asked: BTreeSet<Owner>,
    /// Why it is looked at now.
    pub(super) occasion: Occasion,
}

impl Wanted {
    /// Who wants anything.
    pub(super) fn claimants(&self) -> impl Iterator<Item = Owner> {
        let claims = |(_, rules): &(&Owner, &Arc<PerFamily<Ruleset>>)| !rules.of(self.family).is_empty();
        self.rules.iter().filter(claims).map(|(owner, _)| *owner)
    }

    /// What is to be there: of those owners that are in `kept` that, of the others what they want.
    fn goal(&self, kept: &BTreeMap<Owner, Ruleset>) -> Ruleset {
        let mut goal = Ruleset::default();
        for owner in &self.owners {
            let wish = || self.rules.get(owner).map(|rules| rules.of(self.family));
            if let Some(rules) = kept.get(owner).or_else(wish) {
                goal.merge(rules);
            }
        }
        goal
    }
}

/// Whose rules are not programmed, and why.
pub(super) type Failures = BTreeMap<Owner, Arc<ProgramError>>;

/// What is programmed in one family, as far as we know.
#[derive(Debug)]
pub(super) struct Programmed<T> {
    /// Where.
    pub(super) tables: T,
    /// In our words where we wrote it, else in those of iptables-save.
    rules: Ruleset,
    /// Whose chains were looked for when it was read.
    owners: BTreeSet<Owner>,
    /// Who was told that its rules are refused, and has not asked again: what it had stays.
    refused: BTreeSet<Owner>,
}

/// How a restore ended.
enum Restored {
    Done,
    Failed(ProgramError),
}

impl<T: Tables> Programmed<T> {
    /// Reads what former processes and others left. None of it is taken for what is wanted now.
    pub(super) fn read(tables: T, owners: &BTreeSet<Owner>) -> Result<Self, ProgramError> {
        let rules = look(&tables, &Ruleset::default(), owners)?;
        Ok(Self { tables, rules, owners: owners.clone(), refused: BTreeSet::new() })
    }

    /// Writes what is missing of what is wanted; gives whose rules are not there then.
    ///
    /// # Errors
    /// When it cannot be read what is there.
    pub(super) fn bring(&mut self, wanted: &Wanted) -> Result<Failures, ProgramError> {
        self.refused.retain(|owner| wanted.owners.contains(owner) && !wanted.asked.contains(owner));
        // Also where somebody flushes it.
        let kept = parts(&self.rules, self.refused.iter());
        if self.owners != wanted.owners || wanted.occasion == Occasion::Suspicion {
            self.owners.clone_from(&wanted.owners);
            self.rules = look(&self.tables, &self.rules, &self.owners)?;
        }
        let failed = match self.restore(wanted.goal(&kept), wanted)? {
            Restored::Done => Failures::new(),
            Restored::Failed(error) => self.apart(wanted, error)?,
        };
        let is_refused = |error: &ProgramError| matches!(error, ProgramError::Refused { .. });
        let refused = failed.iter().filter(|(_, error)| is_refused(error)).map(|(owner, _)| *owner);
        self.refused.extend(refused.filter(|owner| wanted.asked.contains(owner)));
        Ok(failed)
    }

    /// Tries those owners one by one whose rules are not there after all were refused together.
    fn apart(&mut self, wanted: &Wanted, error: ProgramError) -> Result<Failures, ProgramError> {
        let alone = |rules: &Ruleset, owner: Owner| {
            wanted.goal(&parts(rules, wanted.owners.iter().filter(|one| **one != owner)))
        };
        let open = |owner: &Owner| {
            !self.refused.contains(owner)
                && render_restore(&self.rules, &alone(&self.rules, *owner)).is_some()
        };
        let owners: Vec<Owner> = wanted.owners.iter().copied().filter(open).collect();
        let is_somebody_s = matches!(error, ProgramError::Refused { .. });
        if owners.len() < 2 || !is_somebody_s {
            let error = Arc::new(error);
            return Ok(owners.into_iter().map(|owner| (owner, Arc::clone(&error))).collect());
        }
        let mut failed = Failures::new();
        for owner in owners {
            if let Restored::Failed(error) = self.restore(alone(&self.rules, owner), wanted)? {
                failed.insert(owner, Arc::new(error));
            }
        }
        Ok(failed)
    }

    fn restore(&mut self, mut goal: Ruleset, wanted: &Wanted) -> Result<Restored, ProgramError> {
        if let Some(input) = render_restore(&self.rules, &goal) {
            match wanted.occasion {
                Occasion::Wish => tracing::debug!(bytes = input.len(), "restoring netfilter rules"),
                Occasion::Suspicion => tracing::warn!(
                    family = ?wanted.family,
                    bytes = input.len(),
                    "somebody changed our netfilter rules; putting them back"
                ),
            }
            if let Err(error) = self.tables.restore(&input) {
                // Some tables may be as they were, others as they are wanted: in our words is only what both say alike.
                let sure = self.rules.in_common_with(&goal);
                self.rules = look(&self.tables, &sure, &self.owners)?;
                return Ok(Restored::Failed(error));
            }
        }
        // Which chains of others are there stays as it was read.
        goal.know_chains_of(&self.rules);
        self.rules = goal;
        Ok(Restored::Done)
    }
}

/// What is there of these owners, in the words of `written` where it may be that.
fn look(tables: &impl Tables, written: &Ruleset, owners: &BTreeSet<Owner>) -> Result<Ruleset, ProgramError> {
    let prefixes: Vec<&str> = owners.iter().map(|owner| owner.prefix()).collect();
    Ok(in_words_of(written, &parse_saved(&tables.save()?, &prefixes)))
}

/// Each of these owners' part of `rules`.
fn parts<'a>(rules: &Ruleset, owners: impl Iterator<Item = &'a Owner>) -> BTreeMap<Owner, Ruleset> {
    owners.map(|owner| (*owner, rules.of_prefix(owner.prefix()))).collect()
}

#[cfg(test)]
mod tests;

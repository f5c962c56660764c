//! Chains that we own, and the jumps into them from the built-in chains.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// IPv4 or IPv6: which of `iptables` and `ip6tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// One of something for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    /// IPv4's.
    pub v4: T,
    /// IPv6's.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// Makes each family's.
    pub fn from_fn(mut make: impl FnMut(Family) -> T) -> Self {
        Self { v4: make(Family::V4), v6: make(Family::V6) }
    }

    /// That of a family.
    pub fn of(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// That of a family, to be changed.
    pub fn of_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// A netfilter table of the iptables family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Where packets are accepted and rejected.
    Filter,
    /// Where addresses are translated.
    Nat,
}

impl Table {
    /// Every table that we use.
    pub const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    /// Its name, as `-t` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where in a built-in chain a jump stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Position {
    /// Before every rule that is there; of several, the one submitted first comes first (CVE-2019-9946: Services before
    /// host ports).
    First,
    /// After every rule that is there.
    Last,
}

/// A jump from a built-in chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// The built-in chain: `PREROUTING`, `OUTPUT`, `FORWARD`…
    pub builtin: String,
    /// The rule without `-A CHAIN`: matches and `-j`.
    pub rule: String,
    /// Where it stands.
    pub position: Position,
}

impl Hook {
    /// The chain that it leads to.
    pub(super) fn target(&self) -> Option<&str> {
        jump_target(&self.rule)
    }
}

/// The chain that a rule leads to.
pub(super) fn jump_target(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ');
    words.find(|word| *word == "-j" || *word == "-g")?;
    words.next()
}

/// What one owner wants, or what all want together: chains with their rules in order, and jumps into them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    chains: BTreeMap<(Table, String), Vec<String>>,
    hooks: BTreeMap<Table, Vec<Hook>>,
    /// Chains that are made when they are missing, and otherwise left as they are.
    shared: BTreeSet<(Table, String)>,
}

impl Ruleset {
    /// Declares a chain with its rules, each without `-A CHAIN`. A chain declared twice has the rules of the second.
    pub fn chain(&mut self, table: Table, name: &str, rules: Vec<String>) {
        self.chains.insert((table, name.to_owned()), rules);
    }

    /// Declares a chain that others fill, `CNI-ADMIN`: it is made when it is missing, and never emptied or deleted.
    pub fn shared_chain(&mut self, table: Table, name: &str) {
        self.shared.insert((table, name.to_owned()));
    }

    /// The shared chains of a table.
    pub fn shared_chains(&self, table: Table) -> impl Iterator<Item = &str> {
        self.shared.iter().filter(move |(of, _)| *of == table).map(|(_, name)| name.as_str())
    }

    /// Takes over which chains of others `read` found.
    pub(super) fn know_chains_of(&mut self, read: &Self) {
        self.shared.extend(read.shared.iter().cloned());
    }

    /// Adds a jump from a built-in chain. `rule` is everything after `-A CHAIN`.
    pub fn hook(&mut self, table: Table, builtin: &str, rule: &str, position: Position) {
        let hook = Hook { builtin: builtin.to_owned(), rule: rule.to_owned(), position };
        let hooks = self.hooks.entry(table).or_default();
        if !hooks.contains(&hook) {
            hooks.push(hook);
        }
    }

    /// Takes over all that `other` has.
    pub fn merge(&mut self, other: &Self) {
        for (key, rules) in &other.chains {
            self.chains.insert(key.clone(), rules.clone());
        }
        self.shared.extend(other.shared.iter().cloned());
        for (table, hooks) in &other.hooks {
            for hook in hooks {
                self.hook(*table, &hook.builtin, &hook.rule, hook.position);
            }
        }
    }

    /// The chains of a table, by name.
    pub fn chains(&self, table: Table) -> impl Iterator<Item = (&str, &[String])> {
        let of_table = self.chains.iter().filter(move |((of, _), _)| *of == table);
        of_table.map(|((_, name), rules)| (name.as_str(), rules.as_slice()))
    }

    /// The rules of a chain, when it is declared.
    #[must_use]
    pub fn rules(&self, table: Table, name: &str) -> Option<&[String]> {
        self.chains.get(&(table, name.to_owned())).map(Vec::as_slice)
    }

    /// The jumps of a table, in the order of their declaration.
    #[must_use]
    pub fn hooks(&self, table: Table) -> &[Hook] {
        self.hooks.get(&table).map_or(&[], Vec::as_slice)
    }

    /// The jumps of one built-in chain, in the order in which they stand.
    pub(super) fn hooks_of(&self, table: Table, builtin: &str) -> Vec<&Hook> {
        let of_chain = || self.hooks(table).iter().filter(|hook| hook.builtin == builtin);
        let first = of_chain().filter(|hook| hook.position == Position::First);
        first.chain(of_chain().filter(|hook| hook.position == Position::Last)).collect()
    }

    /// The chains whose names begin with `prefix`, and the jumps into them.
    pub(super) fn of_prefix(&self, prefix: &str) -> Self {
        let mut part = Self::default();
        for ((table, name), rules) in self.chains.iter().filter(|((_, name), _)| name.starts_with(prefix)) {
            part.chain(*table, name, rules.clone());
        }
        for (table, hooks) in &self.hooks {
            let leads_there = |hook: &&Hook| hook.target().is_some_and(|target| target.starts_with(prefix));
            for hook in hooks.iter().filter(leads_there) {
                part.hook(*table, &hook.builtin, &hook.rule, hook.position);
            }
        }
        part
    }

    /// What both say alike: chains with the same rules, and jumps of those built-in chains of which both say the same.
    pub(super) fn in_common_with(&self, other: &Self) -> Self {
        let mut common = Self::default();
        for ((table, name), rules) in &self.chains {
            if other.rules(*table, name) == Some(rules.as_slice()) {
                common.chain(*table, name, rules.clone());
            }
        }
        for (table, hooks) in &self.hooks {
            let is_alike =
                |hook: &&Hook| self.hooks_of(*table, &hook.builtin) == other.hooks_of(*table, &hook.builtin);
            for hook in hooks.iter().filter(is_alike) {
                common.hook(*table, &hook.builtin, &hook.rule, hook.position);
            }
        }
        common
    }

    /// Whether it says nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.shared.is_empty() && self.hooks.values().all(Vec::is_empty)
    }
}

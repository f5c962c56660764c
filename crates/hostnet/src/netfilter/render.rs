//! From two rulesets to the text of one `iptables-restore --noflush`: only what changed.
//!
//! `iptables-restore` applies each table at once, so that no packet meets half of a change.

use std::fmt::Write as _;

use super::ruleset::{Hook, Position, Ruleset, Table, jump_target};

/// The input that brings `programmed` to `wanted`, or nothing when they are equal.
///
/// A chain that changed is declared (which empties it) and filled; one that vanished is emptied, and deleted when nothing
/// refers to it any more. Jumps are deleted and inserted one by one: the built-in chains are not ours.
#[must_use]
pub fn render_restore(programmed: &Ruleset, wanted: &Ruleset) -> Option<String> {
    let tables: Vec<String> =
        Table::ALL.into_iter().filter_map(|table| render_table(table, programmed, wanted)).collect();
    (!tables.is_empty()).then(|| tables.concat())
}

fn render_table(table: Table, programmed: &Ruleset, wanted: &Ruleset) -> Option<String> {
    let changed: Vec<(&str, &[String])> =
        wanted.chains(table).filter(|(name, rules)| programmed.rules(table, name) != Some(*rules)).collect();
    let vanished: Vec<&str> = programmed
        .chains(table)
        .map(|(name, _)| name)
        .filter(|name| {
            wanted.rules(table, name).is_none() && !wanted.shared_chains(table).any(|one| one == *name)
        })
        .collect();
    let hooks = render_hooks(programmed.hooks(table), wanted.hooks(table));
    let known: Vec<&str> = programmed.shared_chains(table).collect();
    // One that another owner fills is there already, or made with what it has.
    let is_filled = |name: &str| [programmed, wanted].iter().any(|rules| rules.rules(table, name).is_some());
    let shared: Vec<&str> =
        wanted.shared_chains(table).filter(|name| !known.contains(name) && !is_filled(name)).collect();
    if changed.is_empty() && vanished.is_empty() && hooks.is_empty() && shared.is_empty() {
        return None;
    }
    let mut text = format!("*{table}\n");
    // `:CHAIN` makes the chain or empties it.
    let names = changed.iter().map(|(name, _)| *name).chain(vanished.iter().copied());
    for name in shared.into_iter().chain(names) {
        let _ = writeln!(text, ":{name} - [0:0]");
    }
    for (name, rules) in &changed {
        for rule in *rules {
            let _ = writeln!(text, "-A {name} {rule}");
        }
    }
    text.push_str(&hooks);
    for name in &vanished {
        let _ = writeln!(text, "-X {name}");
    }
    text.push_str("COMMIT\n");
    Some(text)
}

fn render_hooks(programmed: &[Hook], wanted: &[Hook]) -> String {
    let mut text = String::new();
    let inserted = to_insert(programmed, wanted);
    // What is inserted before another one that is there already is moved there.
    let moved = |hook: &&Hook| !wanted.contains(hook) || inserted.contains(hook);
    for hook in programmed.iter().filter(moved) {
        let _ = writeln!(text, "-D {} {}", hook.builtin, hook.rule);
    }
    // Each is inserted before the others: the last one first.
    for hook in inserted.iter().rev() {
        let _ = writeln!(text, "-I {} 1 {}", hook.builtin, hook.rule);
    }
    let last = wanted.iter().filter(|hook| hook.position == Position::Last && !programmed.contains(hook));
    for hook in last {
        let _ = writeln!(text, "-A {} {}", hook.builtin, hook.rule);
    }
    text
}

/// The jumps to insert at the top of their chains, in order: those that are missing, and those that come before them
/// (CVE-2019-9946: whoever submits first, Services stand before host ports).
fn to_insert<'a>(programmed: &[Hook], wanted: &'a [Hook]) -> Vec<&'a Hook> {
    let mut inserted: Vec<&Hook> = Vec::new();
    let mut behind: Vec<&str> = Vec::new();
    for hook in wanted.iter().rev().filter(|hook| hook.position == Position::First) {
        if !programmed.contains(hook) {
            behind.push(&hook.builtin);
        }
        if behind.contains(&hook.builtin.as_str()) {
            inserted.push(hook);
        }
    }
    inserted.reverse();
    inserted
}

/// What `iptables-save` printed, reduced to what is ours: chains with one of `prefixes`, and jumps into them. Of other
/// chains only that they are there.
///
/// A jump's position cannot be seen there: it is `First`.
#[must_use]
pub fn parse_saved(saved: &str, prefixes: &[&str]) -> Ruleset {
    let is_owned = |chain: &str| prefixes.iter().any(|prefix| chain.starts_with(prefix));
    let mut ruleset = Ruleset::default();
    let mut table = None;
    let mut chains: std::collections::BTreeMap<(Table, String), Vec<String>> =
        std::collections::BTreeMap::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name);
        }
        let Some(table) = table else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap_or_default();
            match is_owned(name) {
                true => drop(chains.entry((table, name.to_owned())).or_default()),
                false => ruleset.shared_chain(table, name),
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            if is_owned(chain) {
                chains.entry((table, chain.to_owned())).or_default().push(rule.to_owned());
            } else if jump_target(rule).is_some_and(is_owned) {
                ruleset.hook(table, chain, rule, Position::First);
            }
        }
    }
    for ((table, name), rules) in chains {
        ruleset.chain(table, &name, rules);
    }
    ruleset
}

/// What is programmed, in the words of `written`: iptables prints a rule in other words than it was given. A chain is
/// taken to be as it was written when it has as many rules, the jumps of a built-in chain when they lead to the same
/// chains in the same order. What somebody flushed, deleted or moved is seen; a rule replaced by another one is not.
#[must_use]
pub fn in_words_of(written: &Ruleset, saved: &Ruleset) -> Ruleset {
    let mut seen = Ruleset::default();
    for table in Table::ALL {
        for name in saved.shared_chains(table) {
            seen.shared_chain(table, name);
        }
        for (name, rules) in saved.chains(table) {
            let same = written.rules(table, name).filter(|written| written.len() == rules.len());
            seen.chain(table, name, same.unwrap_or(rules).to_vec());
        }
        let mut builtins: Vec<&str> = saved.hooks(table).iter().map(|hook| hook.builtin.as_str()).collect();
        builtins.sort_unstable();
        builtins.dedup();
        for builtin in builtins {
            let (found, wanted) = (saved.hooks_of(table, builtin), written.hooks_of(table, builtin));
            let same = targets(&found) == targets(&wanted);
            for hook in if same { wanted } else { found } {
                seen.hook(table, builtin, &hook.rule, hook.position);
            }
        }
    }
    seen
}

fn targets<'a>(hooks: &[&'a Hook]) -> Vec<Option<&'a str>> {
    hooks.iter().map(|hook| hook.target()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(chains: &[(&str, &[&str])]) -> Ruleset {
        let mut ruleset = Ruleset::default();
        for (name, rules) in chains {
            ruleset.chain(Table::Nat, name, rules.iter().map(|&rule| rule.to_owned()).collect());
        }
        ruleset
    }

    #[test]
    fn equal_rulesets_need_no_restore() {
        let mut rules = ruleset(&[("KUBE-A", &["-j RETURN"])]);
        rules.hook(Table::Nat, "OUTPUT", "-j KUBE-A", Position::First);
        assert_eq!(render_restore(&rules, &rules.clone()), None);
    }

    #[test]
    fn only_what_changed_is_written() {
        let before = ruleset(&[("KUBE-A", &["-j RETURN"]), ("KUBE-B", &["-j KUBE-A"]), ("KUBE-C", &[])]);
        let after =
            ruleset(&[("KUBE-A", &["-j RETURN"]), ("KUBE-B", &["-j DROP"]), ("KUBE-D", &["-j KUBE-A"])]);
        let text = render_restore(&before, &after).expect("they differ");
        let wanted = "*nat\n:KUBE-B - [0:0]\n:KUBE-D - [0:0]\n:KUBE-C - [0:0]\n-A KUBE-B -j DROP\n-A KUBE-D -j KUBE-A\n-X KUBE-C\nCOMMIT\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_chain_that_one_owner_fills_and_another_jumps_to_is_neither_emptied_nor_deleted() {
        let mut port = ruleset(&[("PODWRIGHT-A", &["-j KUBE-MARK-MASQ"])]);
        port.shared_chain(Table::Nat, "KUBE-MARK-MASQ");
        let services = ruleset(&[("KUBE-MARK-MASQ", &["-j MARK --or-mark 0x4000"])]);
        let mut both = services.clone();
        both.merge(&port);
        let text = render_restore(&services, &both).expect("a jump");
        assert_eq!(text, "*nat\n:PODWRIGHT-A - [0:0]\n-A PODWRIGHT-A -j KUBE-MARK-MASQ\nCOMMIT\n");
        assert_eq!(
            render_restore(&both, &port),
            None,
            "its owner has gone: it stays, as long as it is jumped to"
        );
        let text = render_restore(&Ruleset::default(), &port).expect("both chains");
        assert!(text.starts_with("*nat\n:KUBE-MARK-MASQ - [0:0]\n:PODWRIGHT-A"), "{text}");
    }

    #[test]
    fn hooks_keep_their_order_and_go_when_unwanted() {
        let mut before = Ruleset::default();
        before.hook(Table::Nat, "OUTPUT", "-j KUBE-OLD", Position::First);
        let mut after = Ruleset::default();
        after.hook(Table::Nat, "OUTPUT", "-j KUBE-SERVICES", Position::First);
        after.hook(Table::Nat, "OUTPUT", "-j CNI-HOSTPORT-DNAT", Position::First);
        after.hook(Table::Nat, "POSTROUTING", "-j KUBE-POSTROUTING", Position::Last);
        let text = render_restore(&before, &after).expect("they differ");
        let wanted = "*nat\n-D OUTPUT -j KUBE-OLD\n-I OUTPUT 1 -j CNI-HOSTPORT-DNAT\n-I OUTPUT 1 -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\nCOMMIT\n";
        assert_eq!(text, wanted);
    }

    /// CVE-2019-9946: the order does not depend on who comes first.
    #[test]
    fn a_jump_that_comes_later_does_not_stand_before_those_of_services() {
        let mut services = Ruleset::default();
        services.hook(Table::Nat, "OUTPUT", "-j KUBE-SERVICES", Position::First);
        let mut both = services.clone();
        both.hook(Table::Nat, "OUTPUT", "-j PODWRIGHT-HOSTPORTS", Position::First);
        let mut ports = Ruleset::default();
        ports.hook(Table::Nat, "OUTPUT", "-j PODWRIGHT-HOSTPORTS", Position::First);
        let later = "*nat\n-D OUTPUT -j KUBE-SERVICES\n-I OUTPUT 1 -j PODWRIGHT-HOSTPORTS\n-I OUTPUT 1 -j KUBE-SERVICES\nCOMMIT\n";
        assert_eq!(render_restore(&services, &both).as_deref(), Some(later));
        let earlier = "*nat\n-I OUTPUT 1 -j KUBE-SERVICES\nCOMMIT\n";
        assert_eq!(render_restore(&ports, &both).as_deref(), Some(earlier));
    }

    #[test]
    fn what_was_saved_is_read_back_without_the_rules_of_others() {
        let prefixes = ["KUBE-"];
        let saved = "# Generated\n*nat\n:PREROUTING ACCEPT [1:2]\n:KUBE-A - [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -j KUBE-A\n-A PREROUTING -j DOCKER\n-A KUBE-A -j RETURN\nCOMMIT\n*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
        let mut wanted = ruleset(&[("KUBE-A", &["-j RETURN"])]);
        wanted.hook(Table::Nat, "PREROUTING", "-j KUBE-A", Position::First);
        for name in ["PREROUTING", "DOCKER"] {
            wanted.shared_chain(Table::Nat, name);
        }
        assert_eq!(parse_saved(saved, &prefixes), wanted);
    }

    #[test]
    fn chains_of_others_are_nobody_s_to_delete() {
        let saved = "*nat\n:KUBE-SERVICES - [0:0]\n:CNI-0123 - [0:0]\n-A POSTROUTING -j CNI-0123\n-A CNI-0123 -j MASQUERADE\nCOMMIT\n";
        let programmed = parse_saved(saved, &["PODWRIGHT-"]);
        assert_eq!(render_restore(&programmed, &Ruleset::default()), None);
    }

    #[test]
    fn a_shared_chain_is_made_once_and_never_emptied() {
        let mut wanted = Ruleset::default();
        wanted.shared_chain(Table::Filter, "CNI-ADMIN");
        let text = render_restore(&Ruleset::default(), &wanted).expect("it is missing");
        assert_eq!(text, "*filter\n:CNI-ADMIN - [0:0]\nCOMMIT\n");
        let there =
            parse_saved("*filter\n:CNI-ADMIN - [0:0]\n-A CNI-ADMIN -j DROP\nCOMMIT\n", &["PODWRIGHT-"]);
        assert_eq!(render_restore(&there, &wanted), None);
        assert_eq!(render_restore(&there, &Ruleset::default()), None);
    }

    #[test]
    fn what_somebody_flushed_is_seen_and_only_that_is_put_back() {
        let mut written = ruleset(&[("KUBE-A", &["-j MARK --or-mark 0x4000"]), ("KUBE-B", &["-j RETURN"])]);
        written.hook(Table::Nat, "OUTPUT", "-m comment --comment a -j KUBE-A", Position::First);
        written.hook(Table::Nat, "OUTPUT", "-j KUBE-B", Position::Last);
        let whole = "*nat\n:KUBE-A - [0:0]\n:KUBE-B - [0:0]\n-A OUTPUT -j KUBE-A -m comment --comment \"a\"\n-A OUTPUT -j KUBE-B\n-A KUBE-A -j MARK --set-xmark 0x4000/0x4000\n-A KUBE-B -j RETURN\nCOMMIT\n";
        let check = |saved: &str, expect: Option<&str>| {
            let seen = in_words_of(&written, &parse_saved(saved, &["KUBE-"]));
            assert_eq!(render_restore(&seen, &written).as_deref(), expect);
        };
        check(whole, None);
        check(
            &whole.replace("-A KUBE-B -j RETURN\n", ""),
            Some("*nat\n:KUBE-B - [0:0]\n-A KUBE-B -j RETURN\nCOMMIT\n"),
        );
        check(
            &whole.replace("-A OUTPUT -j KUBE-B\n", ""),
            Some(
                "*nat\n-D OUTPUT -j KUBE-A -m comment --comment \"a\"\n-I OUTPUT 1 -m comment --comment a -j KUBE-A\n-A OUTPUT -j KUBE-B\nCOMMIT\n",
            ),
        );
    }
}

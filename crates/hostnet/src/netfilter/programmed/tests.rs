use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;
use crate::netfilter::{Position, Table};

/// Chains by name, in each table.
type Kernel = BTreeMap<(Table, String), Vec<String>>;

/// A kernel that takes restores as iptables-restore does, and tells rules in other words than they were given.
#[derive(Debug, Default)]
struct Fake {
    kernel: RefCell<Kernel>,
    /// So many restores fail because somebody holds the lock.
    locked: Cell<u32>,
    /// So many restores are killed after their first table.
    killed: Cell<u32>,
    /// Rules with this word are refused.
    unknown: Option<&'static str>,
    /// How many rules were written.
    written: Cell<usize>,
}

/// Each rule as the kernel tells it.
fn told(rule: &str) -> String {
    match rule.strip_prefix("--told ") {
        Some(_) => rule.to_owned(),
        None => format!("--told {rule}"),
    }
}

fn takes_one(left: &Cell<u32>) -> bool {
    let is_left = left.get() > 0;
    left.set(left.get().saturating_sub(1));
    is_left
}

fn failed(message: &str) -> ProgramError {
    ProgramError::Failed { program: "restore".into(), message: message.into() }
}

impl Fake {
    fn with(chains: &[(&str, &[&str])]) -> Self {
        let fake = Self::default();
        for builtin in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
            fake.kernel.borrow_mut().insert((Table::Nat, builtin.into()), Vec::new());
        }
        fake.kernel.borrow_mut().insert((Table::Filter, "FORWARD".into()), Vec::new());
        for (name, rules) in chains {
            let rules = rules.iter().map(|rule| told(rule)).collect();
            fake.kernel.borrow_mut().insert((Table::Nat, (*name).into()), rules);
        }
        fake
    }

    /// The rules of a chain of the table nat, as they were given.
    fn rules(&self, name: &str) -> Option<Vec<String>> {
        let kernel = self.kernel.borrow();
        let rules = kernel.get(&(Table::Nat, name.to_owned()))?;
        Some(rules.iter().map(|rule| rule.trim_start_matches("--told ").to_owned()).collect())
    }

    /// One line of a restore.
    fn take(&self, kernel: &mut Kernel, table: Table, line: &str) -> Result<(), ProgramError> {
        let refuse = || ProgramError::Refused { program: "restore".into(), message: line.to_owned() };
        if self.unknown.is_some_and(|word| line.contains(word)) {
            return Err(refuse());
        }
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let of = |name: &str| (table, name.to_owned());
        if let Some(name) = words[0].strip_prefix(':') {
            kernel.insert(of(name), Vec::new());
            return Ok(());
        }
        let rest = words.get(2).copied().unwrap_or_default();
        let leads_to = |kernel: &Kernel, chain: &str| {
            let mut all = kernel.iter().filter(|((one, _), _)| *one == table).flat_map(|(_, rules)| rules);
            all.any(|rule| rule.ends_with(&format!("-j {chain}")))
        };
        match words[0] {
            "-X" if leads_to(kernel, words[1]) => return Err(refuse()),
            "-X" => {
                let gone = kernel.remove(&of(words[1])).ok_or_else(refuse)?;
                return if gone.is_empty() { Ok(()) } else { Err(refuse()) };
            }
            _ => {}
        }
        if let Some((_, target)) = rest.split_once("-j ")
            && target.starts_with(char::is_uppercase)
            && target != "RETURN"
            && !kernel.contains_key(&of(target))
        {
            return Err(refuse());
        }
        let rules = kernel.get_mut(&of(words[1])).ok_or_else(refuse)?;
        match words[0] {
            "-A" => rules.push(told(rest)),
            "-I" => rules.insert(0, told(rest.strip_prefix("1 ").ok_or_else(refuse)?)),
            _ => {
                let at = rules.iter().position(|rule| *rule == told(rest)).ok_or_else(refuse)?;
                rules.remove(at);
            }
        }
        self.written.set(self.written.get() + 1);
        Ok(())
    }
}

impl Tables for Fake {
    fn save(&self) -> Result<String, ProgramError> {
        let mut text = String::new();
        for table in Table::ALL {
            let kernel = self.kernel.borrow();
            let chains: Vec<_> = kernel.iter().filter(|((of, _), _)| *of == table).collect();
            text.push_str(&format!("*{table}\n"));
            for ((_, name), _) in &chains {
                text.push_str(&format!(":{name} - [0:0]\n"));
            }
            for ((_, name), rules) in &chains {
                rules.iter().for_each(|rule| text.push_str(&format!("-A {name} {rule}\n")));
            }
            text.push_str("COMMIT\n");
        }
        Ok(text)
    }

    fn restore(&self, input: &str) -> Result<(), ProgramError> {
        if takes_one(&self.locked) {
            return Err(failed("Another app is currently holding the xtables lock."));
        }
        let is_killed = takes_one(&self.killed);
        let mut new = self.kernel.borrow().clone();
        let mut table = Table::Filter;
        for line in input.lines() {
            match line.strip_prefix('*') {
                Some(name) => {
                    table = Table::ALL.into_iter().find(|one| one.name() == name).expect("a table");
                }
                None if line == "COMMIT" => {
                    self.kernel.borrow_mut().clone_from(&new);
                    if is_killed {
                        return Err(failed("killed"));
                    }
                }
                None => self.take(&mut new, table, line)?,
            }
        }
        Ok(())
    }
}

fn chains(chains: &[(&str, &[&str])]) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for (name, rules) in chains {
        ruleset.chain(Table::Nat, name, rules.iter().map(|&rule| rule.to_owned()).collect());
    }
    ruleset
}

/// A Service at an address, as the proxy has it: an endpoint's chain has its port in its name.
fn service(address: &str, port: &str) -> Ruleset {
    let (endpoint, jump, to) =
        (format!("KUBE-SEP-{port}"), format!("-j KUBE-SEP-{port}"), format!("-j dnat {port}"));
    let mut rules = chains(&[
        ("KUBE-SERVICES", &[&format!("-d {address} -j KUBE-SVC")]),
        ("KUBE-SVC", &[&jump]),
        (&endpoint, &[&to]),
    ]);
    rules.hook(Table::Nat, "OUTPUT", "-j KUBE-SERVICES", Position::First);
    rules
}

/// A port of the node, as the CNI client has it.
fn host_port(number: u16) -> Ruleset {
    let mut rules = chains(&[("PODWRIGHT-HOSTPORTS", &[&format!("--dport {number} -j dnat")])]);
    rules.hook(Table::Nat, "OUTPUT", "-j PODWRIGHT-HOSTPORTS", Position::First);
    rules
}

fn wanted(rules: &[(Owner, Ruleset)], asked: &[Owner]) -> Wanted {
    Wanted {
        family: Family::V4,
        rules: rules.iter().map(|(owner, v4)| (*owner, Arc::new(of_v4(v4)))).collect(),
        owners: rules.iter().map(|(owner, _)| *owner).collect(),
        asked: asked.iter().copied().collect(),
        occasion: Occasion::Wish,
    }
}

fn of_v4(rules: &Ruleset) -> PerFamily<Ruleset> {
    PerFamily { v4: rules.clone(), v6: Ruleset::default() }
}

fn proxy_wants(rules: Ruleset) -> Wanted {
    wanted(&[(Owner::Proxy, rules)], &[Owner::Proxy])
}

fn started(fake: Fake) -> Programmed<Fake> {
    Programmed::read(fake, &BTreeSet::new()).expect("read")
}

/// Who failed, and with what words.
fn bring(state: &mut Programmed<Fake>, wanted: &Wanted) -> Vec<(Owner, String)> {
    let failed = state.bring(wanted).expect("what is there can be read");
    failed.into_iter().map(|(owner, error)| (owner, error.to_string())).collect()
}

fn assert_serves(fake: &Fake, address: &str, port: &str) {
    assert_eq!(fake.rules("KUBE-SERVICES"), Some(vec![format!("-d {address} -j KUBE-SVC")]));
    assert_eq!(fake.rules("KUBE-SVC"), Some(vec![format!("-j KUBE-SEP-{port}")]));
    let kernel = fake.kernel.borrow();
    let endpoints = kernel.keys().filter(|(_, name)| name.starts_with("KUBE-SEP"));
    assert_eq!(endpoints.count(), 1, "no endpoint's chain is left over: {kernel:?}");
}

/// As many rules as before, but others: what a failed restore did not write is not taken for written.
#[test]
fn a_failed_restore_is_made_up_for_also_where_the_number_of_rules_is_the_same() {
    let failures: [fn(&Fake); 2] = [|fake| fake.locked.set(1), |fake| fake.killed.set(1)];
    for fail in failures {
        for (address, port) in [("10.96.0.60", "8080"), ("10.96.0.50", "9999"), ("10.96.0.60", "9999")] {
            let mut state = started(Fake::with(&[]));
            assert_eq!(bring(&mut state, &proxy_wants(service("10.96.0.50", "8080"))), []);
            fail(&state.tables);
            let now = proxy_wants(service(address, port));
            assert_eq!(bring(&mut state, &now).len(), 1);
            assert_eq!(bring(&mut state, &now), []);
            assert_serves(&state.tables, address, port);
        }
    }
}

#[test]
fn what_a_former_process_left_is_not_taken_for_what_is_wanted_now() {
    let left: &[(&str, &[&str])] = &[
        ("KUBE-SERVICES", &["-d 10.96.0.50 -j KUBE-SVC"]),
        ("KUBE-SVC", &["-j KUBE-SEP-9999"]),
        ("KUBE-SEP-9999", &["-j dnat 9999"]),
        ("OUTPUT", &["-j KUBE-SERVICES"]),
    ];
    let mut state = Programmed::read(Fake::with(left), &BTreeSet::from([Owner::Proxy])).expect("read");
    assert_eq!(bring(&mut state, &proxy_wants(service("10.96.0.60", "8080"))), []);
    assert_serves(&state.tables, "10.96.0.60", "8080");
    assert_eq!(state.tables.rules("OUTPUT"), Some(vec!["-j KUBE-SERVICES".to_owned()]));
}

/// One rule that the kernel does not know keeps its owner from its rules, and nobody else.
#[test]
fn an_owner_whose_rules_are_refused_does_not_keep_the_others_from_theirs() {
    let mut state = started(Fake { unknown: Some("recent"), ..Fake::with(&[]) });
    assert_eq!(bring(&mut state, &proxy_wants(service("10.96.0.50", "8080"))), []);
    let sticky = service("10.96.0.50 -m recent", "8080");
    let both = |asked: &[Owner], port| {
        wanted(&[(Owner::Proxy, sticky.clone()), (Owner::Cni, host_port(port))], asked)
    };
    let failed = bring(&mut state, &both(&[Owner::Proxy, Owner::Cni], 81));
    assert_eq!(failed.iter().map(|(owner, _)| *owner).collect::<Vec<_>>(), [Owner::Proxy]);
    assert!(failed[0].1.contains("-A KUBE-SERVICES -d 10.96.0.50 -m recent"), "{failed:?}");
    assert_serves(&state.tables, "10.96.0.50", "8080");
    assert_eq!(state.tables.rules("PODWRIGHT-HOSTPORTS"), Some(vec!["--dport 81 -j dnat".to_owned()]));
    // Services stand before ports all the same (CVE-2019-9946).
    let order = ["-j KUBE-SERVICES", "-j PODWRIGHT-HOSTPORTS"].map(str::to_owned);
    assert_eq!(state.tables.rules("OUTPUT"), Some(order.to_vec()));

    // What is refused is not tried again for others, and not lost when somebody flushes it.
    state.tables.written.set(0);
    assert_eq!(bring(&mut state, &both(&[Owner::Cni], 82)), []);
    assert_eq!(state.tables.written.get(), 1);
    state.tables.kernel.borrow_mut().insert((Table::Nat, "KUBE-SVC".into()), Vec::new());
    let suspicion = Wanted { occasion: Occasion::Suspicion, ..both(&[], 82) };
    assert_eq!(bring(&mut state, &suspicion), []);
    assert_serves(&state.tables, "10.96.0.50", "8080");

    // But it is when its owner asks again.
    assert_eq!(bring(&mut state, &both(&[Owner::Proxy], 82)).len(), 1);
    state.tables.unknown = None;
    assert_eq!(bring(&mut state, &both(&[Owner::Proxy], 82)), []);
    assert_eq!(
        state.tables.rules("KUBE-SERVICES"),
        Some(vec!["-d 10.96.0.50 -m recent -j KUBE-SVC".to_owned()])
    );
}

#[test]
fn while_the_lock_is_held_owners_are_not_tried_one_by_one() {
    let mut state = started(Fake::with(&[]));
    state.tables.locked.set(1);
    let all = wanted(
        &[(Owner::Proxy, service("10.96.0.50", "8080")), (Owner::Cni, host_port(80))],
        &[Owner::Proxy, Owner::Cni],
    );
    assert_eq!(bring(&mut state, &all).len(), 2);
    assert_eq!(state.tables.rules("KUBE-SVC"), None);
    assert_eq!(bring(&mut state, &Wanted { asked: BTreeSet::new(), ..all }), [], "nobody need ask again");
}

/// An owner that has what it wants is not told of another one's trouble.
#[test]
fn a_failure_is_told_only_to_whom_it_keeps_from_something() {
    let mut state = started(Fake::with(&[]));
    let before = [(Owner::Proxy, service("10.96.0.50", "8080")), (Owner::Cni, host_port(80))];
    assert_eq!(bring(&mut state, &wanted(&before, &[])), []);
    state.tables.locked.set(1);
    let after = [(Owner::Proxy, service("10.96.0.60", "8080")), (Owner::Cni, host_port(80))];
    let failed = bring(&mut state, &wanted(&after, &[Owner::Proxy, Owner::Cni]));
    assert_eq!(failed.iter().map(|(owner, _)| *owner).collect::<Vec<_>>(), [Owner::Proxy]);
}

#[test]
fn chains_of_an_owner_that_wants_nothing_any_more_go() {
    let mut state = started(Fake::with(&[("KUBE-OLD", &["-j RETURN"]), ("OUTPUT", &["-j KUBE-OLD"])]));
    let nothing = Wanted { rules: BTreeMap::new(), ..proxy_wants(Ruleset::default()) };
    assert_eq!(bring(&mut state, &nothing), []);
    assert_eq!((state.tables.rules("KUBE-OLD"), state.tables.rules("OUTPUT")), (None, Some(vec![])));
}

/// Rulesets that differ in few things, so that chains with as many rules as before are common.
fn any_rules(prefix: &'static str) -> impl Strategy<Value = Ruleset> {
    let table = prop_oneof![Just(Table::Nat), Just(Table::Filter)];
    let rule = (0..3_u8).prop_map(|number| format!("-s 10.0.0.{number} -j RETURN"));
    let chain = ("[AB]", table, prop::collection::vec(rule, 1..3));
    (prop::collection::vec(chain, 0..4), any::<bool>()).prop_map(move |(chains, hooked)| {
        let mut rules = Ruleset::default();
        for (name, table, lines) in chains {
            rules.chain(table, &format!("{prefix}{name}"), lines);
        }
        let top = format!("{prefix}TOP");
        if hooked {
            rules.chain(Table::Nat, &top, Vec::new());
            rules.hook(Table::Nat, "OUTPUT", &format!("-j {top}"), Position::First);
        }
        rules
    })
}

proptest! {
    /// However restores failed before: what is answered for as programmed is there, and nothing else of ours.
    #[test]
    fn the_kernel_has_what_was_answered_for(
        steps in prop::collection::vec((any_rules("KUBE-"), any_rules("PODWRIGHT-"), 0..3_u8), 1..8),
    ) {
        let mut state = started(Fake::with(&[("KUBE-LEFT", &["-j RETURN"])]));
        for (services, ports, trouble) in steps {
            state.tables.locked.set(u32::from(trouble == 1));
            state.tables.killed.set(u32::from(trouble == 2));
            let rules = [(Owner::Proxy, services), (Owner::Cni, ports)];
            let failed = bring(&mut state, &wanted(&rules, &[Owner::Proxy, Owner::Cni]));
            let everybody: BTreeSet<Owner> = BTreeSet::from([Owner::Proxy, Owner::Cni]);
            let seen = look(&state.tables, &Ruleset::default(), &everybody).expect("read");
            for (owner, rules) in rules.iter().filter(|(owner, _)| failed.iter().all(|(one, _)| one != owner)) {
                let part = seen.of_prefix(owner.prefix());
                for table in Table::ALL {
                    let there: Vec<(&str, Vec<String>)> =
                        part.chains(table).map(|(name, rules)| (name, rules.to_vec())).collect();
                    let expect: Vec<(&str, Vec<String>)> = rules
                        .chains(table)
                        .map(|(name, rules)| (name, rules.iter().map(|rule| told(rule)).collect()))
                        .collect();
                    prop_assert_eq!(there, expect);
                    prop_assert_eq!(part.hooks(table).len(), rules.hooks(table).len());
                }
            }
        }
    }
}

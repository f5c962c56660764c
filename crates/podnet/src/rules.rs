//! Netfilter rules of the network of nodes: pods speak with other nodes' pods as themselves. Pure.

use hostnet::netfilter::{Family, PerFamily, Position, Ruleset, Table};
use ipnet::IpNet;

const CHAIN: &str = "PODNET-POSTROUTING";

/// The rules by which what goes from `own` ranges to `others` is not translated, whatever comes later. What Services marked
/// for it (0x4000) is: its way back leads through this node.
#[must_use]
pub fn render_rules(own: &[IpNet], others: &[IpNet]) -> PerFamily<Ruleset> {
    PerFamily::from_fn(|family| {
        let of_family = |nets: &[IpNet]| -> Vec<IpNet> {
            nets.iter().copied().filter(|net| Family::of(net.addr()) == family).collect()
        };
        let (own, others) = (of_family(own), of_family(others));
        let mut rules = Ruleset::default();
        if own.is_empty() || others.is_empty() {
            return rules;
        }
        let stay = |range: &IpNet| {
            format!("-d {range} -m comment --comment \"pods of other nodes see the pod\" -j ACCEPT")
        };
        rules.chain(Table::Nat, CHAIN, others.iter().map(stay).collect());
        for range in own {
            let from = format!("-s {range} -m mark ! --mark 0x4000/0x4000 -j {CHAIN}");
            rules.hook(Table::Nat, "POSTROUTING", &from, Position::First);
        }
        rules
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_and_nothing_without_other_nodes() {
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let own = nets(&["10.244.1.0/24", "fd00:1::/64"]);
        let rules = render_rules(&own, &nets(&["10.244.2.0/23"]));
        assert!(rules.v6.is_empty());
        assert_eq!(
            rules.v4.rules(Table::Nat, CHAIN).unwrap(),
            ["-d 10.244.2.0/23 -m comment --comment \"pods of other nodes see the pod\" -j ACCEPT"]
        );
        let hooks: Vec<_> = rules
            .v4
            .hooks(Table::Nat)
            .iter()
            .map(|hook| (hook.builtin.as_str(), hook.rule.as_str()))
            .collect();
        assert_eq!(
            hooks,
            [("POSTROUTING", "-s 10.244.1.0/24 -m mark ! --mark 0x4000/0x4000 -j PODNET-POSTROUTING")]
        );
        assert!(render_rules(&own, &[]).v4.is_empty());
        assert!(!render_rules(&own, &nets(&["fd00:2::/64"])).v6.is_empty());
    }
}

//! Netfilter rules of the network of nodes: pods speak with other nodes' pods as themselves. Pure.

use hostnet::netfilter::{Family, PerFamily, Position, Ruleset, Table};
use ipnet::IpNet;

const CHAIN: &str = "PODNET-POSTROUTING";
const FORWARD: &str = "PODNET-FORWARD";

/// The rules by which what goes from `own` ranges to `others` is not translated, whatever comes later, and by which pods are
/// reached from other nodes also where a machine forwards nothing by itself (as Docker leaves it). What Services marked
/// (0x4000) is translated: its way back leads through this node.
#[must_use]
pub fn render_rules(own: &[IpNet], others: &[IpNet]) -> PerFamily<Ruleset> {
    PerFamily::from_fn(|family| {
        let of_family = |nets: &[IpNet]| -> Vec<IpNet> {
            nets.iter().copied().filter(|net| Family::of(net.addr()) == family).collect()
        };
        let (own, others) = (of_family(own), of_family(others));
        let mut rules = Ruleset::default();
        if own.is_empty() {
            return rules;
        }
        let forward = own.iter().flat_map(|range| ["-s", "-d"].map(|end| format!("{end} {range} -j ACCEPT")));
        rules.chain(Table::Filter, FORWARD, forward.collect());
        let hook = format!("-m comment --comment \"pods of this and other nodes\" -j {FORWARD}");
        rules.hook(Table::Filter, "FORWARD", &hook, Position::First);
        if others.is_empty() {
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
    fn each_family_has_its_own_and_nothing_is_kept_from_nat_without_other_nodes() {
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let own = nets(&["10.244.1.0/24", "fd00:1::/64"]);
        let rules = render_rules(&own, &nets(&["10.244.2.0/23"]));
        assert_eq!(rules.v6.chains(Table::Nat).count(), 0);
        assert_eq!(
            rules.v6.rules(Table::Filter, FORWARD).unwrap(),
            ["-s fd00:1::/64 -j ACCEPT", "-d fd00:1::/64 -j ACCEPT"]
        );
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
        assert_eq!(render_rules(&own, &[]).v4.chains(Table::Nat).count(), 0);
        assert_eq!(render_rules(&own, &nets(&["fd00:2::/64"])).v6.chains(Table::Nat).count(), 1);
        assert!(render_rules(&own[..1], &[]).v6.is_empty());
    }
}

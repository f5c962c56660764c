//! Netfilter rules of networks: masquerade, host ports, forwarding. Pure.
//!
//! In process all of it is one ruleset in chains of our own, after those of Services (CVE-2019-9946: a host port must not
//! take what belongs to a Service). A stand-alone plugin renders one container's part into chains of its own.

use std::collections::{BTreeMap, BTreeSet};

use hostnet::netfilter::{Family, PerFamily, Position, Ruleset, Table};
use ipnet::IpNet;

use crate::portmap::{HostPort, Marking, Masquerade};

/// What one attachment needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The subnets that leave as the node, when they leave themselves.
    pub(crate) masquerade: Vec<IpNet>,
    /// Ports of the node that lead to it.
    pub(crate) ports: Vec<HostPort>,
    /// The subnets whose traffic is forwarded.
    pub(crate) forward: Vec<IpNet>,
    /// The chains that the administrator fills.
    pub(crate) admin_chains: BTreeSet<String>,
}

impl Needs {
    /// What stays when the attachment ends: the next one of its network needs the same, and most pods need no more.
    pub(crate) fn of_the_network(self) -> Self {
        let subnets = self.forward.into_iter().filter(|net| net.prefix_len() < net.max_prefix_len());
        Self { ports: Vec::new(), forward: subnets.collect(), ..self }
    }

    /// Takes over what another needs too.
    pub(crate) fn join(&mut self, other: Self) {
        self.masquerade.extend(other.masquerade);
        self.forward.extend(other.forward);
        for nets in [&mut self.masquerade, &mut self.forward] {
            nets.sort_unstable();
            nets.dedup();
        }
        self.ports.extend(other.ports);
        self.admin_chains.extend(other.admin_chains);
    }
}

/// Whose chains are rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The runtime's: `PODWRIGHT-*`.
    Runtime,
    /// One container's, by a stand-alone plugin: `CNI-*` with this in the name.
    Container(String),
}

impl Place {
    pub(crate) fn chain(&self, short: &str, long: &str) -> String {
        match self {
            Self::Runtime => format!("PODWRIGHT-{long}"),
            Self::Container(hash) => format!("CNI-{short}-{hash}"),
        }
    }

    /// In the runtime the writer puts Services' jumps before ours; alone we go behind what is there.
    fn position(&self) -> Position {
        match self {
            Self::Runtime => Position::First,
            Self::Container(_) => Position::Last,
        }
    }
}

/// The rules for everything that attachments need.
pub(crate) fn render<'a>(
    needs: impl Iterator<Item = &'a Needs> + Clone,
    place: &Place,
) -> PerFamily<Ruleset> {
    PerFamily::from_fn(|family| {
        let mut rules = Ruleset::default();
        render_masquerade(
            &mut rules,
            family,
            nets(needs.clone().flat_map(|needs| &needs.masquerade), family),
            place,
        );
        let ports = needs.clone().flat_map(|needs| &needs.ports);
        let ports: Vec<&HostPort> =
            ports.filter(|port| Family::of(port.container.addr()) == family).collect();
        render_ports(&mut rules, family, &ports, place);
        let forward = nets(needs.clone().flat_map(|needs| &needs.forward), family);
        let admin = needs.clone().flat_map(|needs| needs.admin_chains.clone()).collect();
        render_forward(&mut rules, &forward, &ports, &admin, place);
        rules
    })
}

fn nets<'a>(all: impl Iterator<Item = &'a IpNet>, family: Family) -> BTreeSet<IpNet> {
    all.map(IpNet::trunc).filter(|net| Family::of(net.addr()) == family).collect()
}

/// Pods reach everything outside their subnets as the node.
fn render_masquerade(rules: &mut Ruleset, family: Family, subnets: BTreeSet<IpNet>, place: &Place) {
    if subnets.is_empty() {
        return;
    }
    let chain = place.chain("MQ", "MASQUERADE");
    let multicast = match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    let stay = subnets.iter().map(|subnet| format!("-d {subnet} -j RETURN"));
    let leave = format!("! -d {multicast} -m comment --comment \"pods leave as the node\" -j MASQUERADE");
    rules.chain(Table::Nat, &chain, stay.chain([leave]).collect());
    for subnet in &subnets {
        rules.hook(Table::Nat, "POSTROUTING", &format!("-s {subnet} -j {chain}"), Position::Last);
    }
}

fn render_ports(rules: &mut Ruleset, family: Family, ports: &[&HostPort], place: &Place) {
    if ports.is_empty() {
        return;
    }
    let (dnat, snat) = (place.chain("DN", "HOSTPORTS"), place.chain("SN", "HOSTPORTS-MASQ"));
    rules.chain(Table::Nat, &dnat, ports.iter().flat_map(|port| translate(port)).collect());
    for port in ports {
        if let Marking::Chain(name) = &port.marking {
            rules.shared_chain(Table::Nat, name);
        }
    }
    // Nothing leads from the loopback of IPv6 to another link.
    let local = match family {
        Family::V4 => "-m addrtype --dst-type LOCAL",
        Family::V6 => "-m addrtype --dst-type LOCAL ! -d ::1/128",
    };
    for builtin in ["PREROUTING", "OUTPUT"] {
        let rule = format!("{local} -m comment --comment \"ports of pods\" -j {dnat}");
        rules.hook(Table::Nat, builtin, &rule, place.position());
    }
    let mut masquerade: Vec<String> = Vec::new();
    for rule in ports.iter().flat_map(|port| come_as_the_node(port)) {
        // Many ports have one mark.
        if !masquerade.contains(&rule) {
            masquerade.push(rule);
        }
    }
    if !masquerade.is_empty() {
        rules.chain(Table::Nat, &snat, masquerade);
        let rule = format!("-m conntrack --ctstate DNAT -m comment --comment \"ports of pods\" -j {snat}");
        rules.hook(Table::Nat, "POSTROUTING", &rule, place.position());
    }
    let guarded: BTreeSet<&str> = ports.iter().filter_map(|port| loopback_interface(port)).collect();
    if !guarded.is_empty() {
        let guard = place.chain("GD", "LOCALNET");
        // CVE-2020-8558: route_localnet lets a neighbour reach the node's loopback; nothing but answers may.
        let drop = |interface| format!("-i {interface} -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP");
        rules.chain(Table::Filter, &guard, guarded.into_iter().map(drop).collect());
        let rule =
            format!("-d 127.0.0.0/8 -m comment --comment \"the loopback is the node's own\" -j {guard}");
        rules.hook(Table::Filter, "INPUT", &rule, Position::First);
    }
}

/// The interface that must route packets from the node's loopback, so that `127.0.0.1:PORT` answers; guarded by a rule.
pub(crate) fn loopback_interface(port: &HostPort) -> Option<&str> {
    let wanted = port.container.addr().is_ipv4() && port.masquerade != Masquerade::None;
    port.interface.as_deref().filter(|_| wanted)
}

/// The mark comes first: translation is a packet's last rule.
fn translate(port: &HostPort) -> Vec<String> {
    let protocol = port.protocol.name();
    let to = std::net::SocketAddr::new(port.container.addr(), port.container_port);
    let address = port.host_ip.map(|ip| format!("-d {ip}")).unwrap_or_default();
    let (dport, comment) =
        (format!("-p {protocol} -m {protocol} --dport {}", port.host_port), plain(&port.comment));
    let rule = |source: &str, target: &str| {
        let target = format!("-m comment --comment \"{comment}\" -j {target}");
        words(&[source, &address, &port.conditions, &dport, &target])
    };
    let mark = match &port.marking {
        Marking::None => None,
        Marking::Mark(mark) => Some(format!("MARK --set-xmark {mark:#x}/{mark:#x}")),
        Marking::Chain(chain) => Some(chain.clone()),
    };
    let marks = mark.iter().flat_map(|mark| sources(port).into_iter().map(|source| rule(&source, mark)));
    marks.chain([rule("", &format!("DNAT --to-destination {to}"))]).collect()
}

/// Whose connections come as the node: matches of where they come from.
fn sources(port: &HostPort) -> Vec<String> {
    match port.masquerade {
        Masquerade::None => Vec::new(),
        Masquerade::All => vec![String::new()],
        Masquerade::Near => {
            let mut near = vec![format!("-s {}", port.container.trunc())];
            if port.container.addr().is_ipv4() {
                near.push("-s 127.0.0.0/8".to_owned());
            }
            near
        }
    }
}

/// Where the answer would not come back through the node.
fn come_as_the_node(port: &HostPort) -> Vec<String> {
    let protocol = port.protocol.name();
    let to = || {
        format!(
            "-d {} -p {protocol} -m {protocol} --dport {} -m conntrack --ctorigdstport {} -j MASQUERADE",
            port.container.addr(),
            port.container_port,
            port.host_port
        )
    };
    match &port.marking {
        Marking::None => sources(port).iter().map(|source| words(&[source, &to()])).collect(),
        Marking::Mark(_) if port.masquerade == Masquerade::None => Vec::new(),
        Marking::Mark(mark) => vec![format!("-m mark --mark {mark:#x}/{mark:#x} -j MASQUERADE")],
        Marking::Chain(_) => Vec::new(),
    }
}

fn render_forward(
    rules: &mut Ruleset,
    subnets: &BTreeSet<IpNet>,
    ports: &[&HostPort],
    admin: &BTreeSet<String>,
    place: &Place,
) {
    if subnets.is_empty() {
        return;
    }
    let chain = place.chain("FW", "FORWARD");
    let mut lines = Vec::new();
    for name in admin {
        rules.shared_chain(Table::Filter, name);
        lines.push(format!("-m comment --comment \"the administrator's rules come first\" -j {name}"));
    }
    for subnet in subnets {
        lines.push(format!("-d {subnet} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"));
        lines.push(format!("-s {subnet} -j ACCEPT"));
    }
    for port in ports {
        let protocol = port.protocol.name();
        lines.push(format!(
            "-d {} -p {protocol} -m {protocol} --dport {} -m conntrack --ctstate DNAT -j ACCEPT",
            port.container.addr(),
            port.container_port
        ));
    }
    rules.chain(Table::Filter, &chain, lines);
    let rule = format!("-m comment --comment \"traffic of pods\" -j {chain}");
    rules.hook(Table::Filter, "FORWARD", &rule, place.position());
}

fn words(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// A comment that cannot end its quotes, and that iptables takes (255 bytes).
fn plain(text: &str) -> String {
    let ok = |c: char| c.is_ascii_alphanumeric() || "-_./: ".contains(c);
    text.chars().map(|c| if ok(c) { c } else { '_' }).take(200).collect()
}

/// Who else has one of `wanted`'s ports.
pub(crate) fn holder<'a, K: Ord>(
    wanted: &[HostPort],
    by: &K,
    held: &'a BTreeMap<K, Needs>,
) -> Option<(&'a HostPort, u16)> {
    let others = held.iter().filter(|(key, _)| *key != by).flat_map(|(_, needs)| &needs.ports);
    let mut all = wanted.iter().flat_map(|port| others.clone().map(move |other| (port, other)));
    all.find(|(port, other)| port.collides_with(other)).map(|(port, other)| (other, port.host_port))
}

#[cfg(test)]
mod tests {
    use hostnet::netfilter::{Owner, render_restore};

    use super::*;
    use crate::portmap::Protocol;

    fn port(protocol: Protocol, host_port: u16, container: &str) -> HostPort {
        HostPort {
            protocol,
            host_port,
            host_ip: None,
            container: container.parse().expect("an address"),
            container_port: 80,
            masquerade: Masquerade::Near,
            marking: Marking::None,
            conditions: String::new(),
            interface: Some("podwright0".into()),
            comment: "default/web \"\n-A".into(),
        }
    }

    fn needs() -> Vec<Needs> {
        let nets: Vec<IpNet> =
            ["10.85.0.2/16", "fd00:85::2/64"].map(|net| net.parse().expect("a net")).into();
        vec![Needs {
            masquerade: nets.clone(),
            ports: vec![
                port(Protocol::Tcp, 8080, "10.85.0.2/16"),
                port(Protocol::Udp, 53, "10.85.0.2/16"),
                port(Protocol::Tcp, 8080, "fd00:85::2/64"),
            ],
            forward: nets,
            admin_chains: BTreeSet::from(["CNI-ADMIN".to_owned()]),
        }]
    }

    fn golden(name: &str, rules: &Ruleset) {
        let path = format!("{}/tests/golden/{name}.rules", env!("CARGO_MANIFEST_DIR"));
        let found = render_restore(&Ruleset::default(), rules).expect("there are rules");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &found).expect("written");
        }
        let expect = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(found, expect, "{path} differs; UPDATE_GOLDEN=1 rewrites it");
    }

    #[test]
    fn the_runtime_s_rules() {
        let rules = render(needs().iter(), &Place::Runtime);
        golden("runtime_v4", &rules.v4);
        golden("runtime_v6", &rules.v6);
    }

    fn marked(marking: &Marking, masquerade: Masquerade) -> PerFamily<Ruleset> {
        let mut needs = needs();
        for port in &mut needs[0].ports {
            (port.marking, port.masquerade) = (marking.clone(), masquerade);
        }
        render(needs.iter(), &Place::Runtime)
    }

    #[test]
    fn what_is_to_be_masqueraded_is_marked_where_that_is_asked_for() {
        let near = marked(&Marking::Mark(1 << 12), Masquerade::Near);
        golden("marked_v4", &near.v4);
        assert_eq!(
            near.v6.rules(Table::Nat, "PODWRIGHT-HOSTPORTS").map(<[String]>::len),
            Some(2),
            "an IPv6 loopback leads nowhere"
        );
        let all = marked(&Marking::Mark(1 << 12), Masquerade::All).v4;
        let first = &all.rules(Table::Nat, "PODWRIGHT-HOSTPORTS").expect("rules")[0];
        assert!(
            first.starts_with("-p tcp -m tcp --dport 8080") && first.ends_with("0x1000/0x1000"),
            "{first}"
        );
        // Somebody else's chain is jumped to, and made where it is missing; its mark is theirs to masquerade.
        let chain = marked(&Marking::Chain("KUBE-MARK-MASQ".into()), Masquerade::Near).v4;
        assert_eq!(chain.shared_chains(Table::Nat).collect::<Vec<_>>(), ["KUBE-MARK-MASQ"]);
        assert_eq!(chain.rules(Table::Nat, "PODWRIGHT-HOSTPORTS-MASQ"), None);
        let nobody = marked(&Marking::Mark(1 << 12), Masquerade::None).v4;
        assert_eq!(nobody.rules(Table::Nat, "PODWRIGHT-HOSTPORTS").map(<[String]>::len), Some(2));
        assert_eq!(nobody.rules(Table::Nat, "PODWRIGHT-HOSTPORTS-MASQ"), None);
    }

    #[test]
    fn one_container_s_rules() {
        golden("container_v4", &render(needs().iter(), &Place::Container("0123456789abcdef".into())).v4);
    }

    /// CVE-2019-9946: portmap's rules stood before those of Services, and took their traffic.
    #[test]
    fn cve_2019_9946_services_come_before_host_ports() {
        let mut both = Ruleset::default();
        let mut services = Ruleset::default();
        services.hook(Table::Nat, "PREROUTING", "-j KUBE-SERVICES", Position::First);
        // As the writer merges them: by owner.
        assert!(Owner::Proxy < Owner::Cni);
        both.merge(&services);
        both.merge(&render(needs().iter(), &Place::Runtime).v4);
        let text = render_restore(&Ruleset::default(), &both).expect("rules");
        // Each is inserted at the top: the one that is written later stands first.
        let at = |what: &str| text.find(what).expect(what);
        assert!(at("-I PREROUTING 1 -j KUBE-SERVICES") > at("-j PODWRIGHT-HOSTPORTS\n"), "{text}");
        // A stand-alone plugin goes behind what is there.
        let alone = render(needs().iter(), &Place::Container("x".into())).v4;
        let text = render_restore(&Ruleset::default(), &alone).expect("rules");
        assert!(text.contains("-A PREROUTING -m addrtype") && !text.contains("-I PREROUTING"), "{text}");
    }

    /// CVE-2020-8558, and plugins#729: the loopback is opened only behind a rule that guards it.
    #[test]
    fn cve_2020_8558_the_loopback_is_guarded_where_it_is_routed() {
        let rules = render(needs().iter(), &Place::Runtime).v4;
        let guard = rules.rules(Table::Filter, "PODWRIGHT-LOCALNET").expect("a guard");
        assert_eq!(guard, ["-i podwright0 -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"]);
        let mut quiet = needs();
        for port in &mut quiet[0].ports {
            port.masquerade = Masquerade::None;
            assert_eq!(loopback_interface(port), None);
        }
        assert_eq!(render(quiet.iter(), &Place::Runtime).v4.rules(Table::Filter, "PODWRIGHT-LOCALNET"), None);
    }

    #[test]
    fn nothing_needed_is_no_rules() {
        assert_eq!(render([Needs::default()].iter(), &Place::Runtime), PerFamily::default());
    }

    #[test]
    fn a_port_that_another_has_is_found() {
        let held = BTreeMap::from([("a", needs().remove(0)), ("b", Needs::default())]);
        let wanted = [port(Protocol::Udp, 53, "10.85.0.9/16")];
        assert_eq!(holder(&wanted, &"b", &held).map(|(_, number)| number), Some(53));
        assert_eq!(holder(&wanted, &"a", &held), None, "its own");
    }
}

use super::*;
use proptest::prelude::*;

fn member(name: &str, ranges: &[&str], addresses: &[&str]) -> Member {
    Member {
        since: None,
        name: name.to_owned(),
        pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

fn here(link: u32, address: &str) -> OnLink {
    OnLink { link, mtu: 1500, address: address.parse().unwrap() }
}

fn own() -> Member {
    member("own", &["10.244.0.0/24"], &["192.0.2.10"])
}

fn of(others: &[Member]) -> Plan {
    by(Backend::Auto, others)
}

fn by(backend: Backend, others: &[Member]) -> Plan {
    plan(&own(), others, &[here(2, "192.0.2.10/24"), here(3, "10.244.0.1/24")], backend)
}

/// A plan in words: ways, peers, refusals.
fn words(plan: &Plan) -> Vec<String> {
    let routes = plan.routes.iter().map(|route| format!("{} via {}", route.destination, route.gateway));
    let overlay = plan.overlay.iter().flat_map(|overlay| {
        let ways = overlay.ways.iter().map(|(range, inner)| format!("{range} through {inner}"));
        let peers = overlay.peers.iter().filter_map(|peer| match peer {
            Peer::Behind(hardware, host) => Some(format!("{:02x?} at {host}", &hardware[2..])),
            Peer::Neighbour(..) => None,
        });
        ways.chain(peers).collect::<Vec<_>>()
    });
    let refused = plan.refused.iter().map(|refusal| format!("{}: {}", refusal.node, refusal.why));
    routes.chain(overlay).chain(refused).collect()
}

#[test]
fn neighbours_are_routed_to_and_others_are_wrapped() {
    let (two, three, four) = (
        member("two", &["10.244.2.0/24"], &["192.0.2.12"]),
        member("three", &["10.244.3.0/24"], &["198.51.100.13"]),
        member("four", &["10.244.4.0/24"], &["198.51.100.14"]),
    );
    assert_eq!(words(&of(&[])), [""; 0]);
    assert_eq!(words(&of(std::slice::from_ref(&two))), ["10.244.2.0/24 via 192.0.2.12"]);
    let both = of(&[two, three, four]);
    assert_eq!(
        words(&both),
        [
            "10.244.2.0/24 via 192.0.2.12",
            "10.244.3.0/24 through 10.244.3.0",
            "10.244.4.0/24 through 10.244.4.0",
            "[0a, f4, 03, 00] at 198.51.100.13",
            "[0a, f4, 04, 00] at 198.51.100.14",
        ]
    );
    let overlay = both.overlay.unwrap();
    assert_eq!((overlay.link, overlay.mtu, overlay.local), (2, 1450, "192.0.2.10".parse().unwrap()));
    assert_eq!(overlay.hardware, [2, 0x50, 10, 244, 0, 0]);
    assert_eq!(overlay.addresses, ["10.244.0.0/32".parse::<IpNet>().unwrap()]);
}

#[test]
fn a_backend_that_is_asked_for_is_the_only_one() {
    let others = [
        member("two", &["10.244.2.0/24"], &["192.0.2.12"]),
        member("three", &["10.244.3.0/24"], &["198.51.100.13"]),
    ];
    let wrapped = by(Backend::Vxlan, &others);
    assert_eq!((wrapped.routes.len(), wrapped.overlay.map(|overlay| overlay.ways.len())), (0, Some(2)));
    let routed = by(Backend::Routes, &others);
    assert_eq!((routed.routes.len(), routed.overlay), (1, None));
    assert!(routed.refused[0].to_string().contains("node three"), "{:?}", routed.refused);
    assert!(!routed.ranges.contains(&"10.244.3.0/24".parse().unwrap()));
}

/// What one end writes down of the other is what that one is.
#[test]
fn both_ends_compute_the_same_hardware_addresses() {
    let far = member("far", &["10.244.9.0/24", "fd00:9::/64"], &["198.51.100.9"]);
    let from_here = of(std::slice::from_ref(&far)).overlay.unwrap();
    let from_there = plan(&far, &[own()], &[here(7, "198.51.100.9/24")], Backend::Auto).overlay.unwrap();
    assert!(from_here.peers.contains(&Peer::Behind(from_there.hardware, far.addresses[0])));
    assert!(from_there.peers.contains(&Peer::Behind(from_here.hardware, own().addresses[0])));
    for (range, inner) in &from_here.ways {
        assert!(from_there.addresses.contains(&IpNet::from(*inner)), "{range} has an end there");
        assert!(from_here.peers.contains(&Peer::Neighbour(*inner, from_there.hardware)));
    }
}

#[test]
fn each_family_goes_the_way_that_it_can() {
    let own = member("own", &["10.244.0.0/24", "fd00::/64"], &["192.0.2.10", "fd01::10"]);
    let machine = [here(2, "192.0.2.10/24"), here(2, "fd01::10/64")];
    let both = member("both", &["10.244.1.0/24", "fd00:0:0:1::/64"], &["192.0.2.11", "fd01::11"]);
    assert_eq!(
        words(&plan(&own, &[both], &machine, Backend::Auto)),
        ["10.244.1.0/24 via 192.0.2.11", "fd00:0:0:1::/64 via fd01::11"]
    );
    // It has no address of that family: IPv6 goes inside IPv4.
    let one = member("one", &["10.244.1.0/24", "fd00:0:0:1::/64"], &["192.0.2.11"]);
    assert_eq!(
        words(&plan(&own, &[one], &machine, Backend::Auto)),
        [
            "10.244.1.0/24 via 192.0.2.11",
            "fd00:0:0:1::/64 through fd00:0:0:1::",
            "[0a, f4, 01, 00] at 192.0.2.11"
        ]
    );
}

#[test]
fn the_narrowest_network_leads_to_a_neighbour_and_single_addresses_to_nobody() {
    let near = member("near", &["10.244.1.0/24"], &["192.0.2.130"]);
    let machine = [here(2, "192.0.2.10/24"), here(3, "192.0.2.129/25"), here(4, "192.0.2.130/32")];
    let plan = plan(&own(), &[near], &machine, Backend::Auto);
    assert_eq!(plan.routes.iter().map(|route| route.link).collect::<Vec<_>>(), [3]);
}

/// A Node object is written by whoever has that node's credentials: it must not turn other traffic round.
#[test]
fn ranges_that_belong_to_others_are_refused_by_name() {
    for (range, addresses, why) in [
        ("0.0.0.0/0", "192.0.2.12", "so many or such addresses"),
        ("0.0.0.0/1", "192.0.2.12", "so many or such addresses"),
        ("127.0.0.0/24", "192.0.2.12", "so many or such addresses"),
        ("169.254.169.0/24", "192.0.2.12", "so many or such addresses"),
        ("::/1", "192.0.2.12", "so many or such addresses"),
        ("10.244.0.128/25", "192.0.2.12", "this node has 10.244.0.0/24 itself"),
        ("10.0.0.0/8", "192.0.2.12", "this node has 10.244.0.0/24 itself"),
        ("192.0.2.1/32", "192.0.2.12", "this machine is in the network 192.0.2.0/24 itself"),
        ("198.51.100.0/24", "192.0.2.12", "the address of node far is in it"),
        ("10.244.7.0/24", "192.0.2.10", "which is this node's"),
        ("10.244.6.0/25", "192.0.2.12", "an older node has 10.244.6.0/24"),
    ] {
        let far = member("far", &["10.244.6.0/24"], &["198.51.100.13"]);
        let plan = of(&[member("odd", &[range], &[addresses]), far]);
        let refused: Vec<_> = plan.refused.iter().filter(|refusal| refusal.node == "odd").collect();
        assert!(refused.len() == 1 && refused[0].why.contains(why), "{range}: {:?} / {why}", plan.refused);
        assert!(!plan.ranges.contains(&range.parse().unwrap()), "{range}");
    }
}

#[test]
fn a_range_that_two_nodes_claim_stays_with_the_older_one() {
    let at = |second| k8s_openapi::jiff::Timestamp::from_second(second).ok();
    let old = Member { since: at(1), ..member("old", &["10.244.1.0/24"], &["192.0.2.11"]) };
    let new = Member { since: at(2), ..member("a-new", &["10.244.1.0/24"], &["192.0.2.12"]) };
    let plan = of(&[new, old]);
    assert_eq!(words(&plan), ["10.244.1.0/24 via 192.0.2.11", "a-new: an older node has 10.244.1.0/24"]);
}

#[test]
fn ranges_side_by_side_are_one_for_the_rules() {
    let nodes: Vec<Member> = (2..4)
        .map(|number| {
            member(
                &format!("n{number}"),
                &[&format!("10.244.{number}.0/24")],
                &[&format!("192.0.2.{number}")],
            )
        })
        .collect();
    assert_eq!(of(&nodes).ranges, ["10.244.2.0/23".parse::<IpNet>().unwrap()]);
}

#[test]
fn a_node_without_range_or_address_is_waited_for() {
    assert_eq!(words(&of(&[member("young", &[], &["192.0.2.12"])])), [""; 0]);
    assert_eq!(
        words(&of(&[member("young", &["10.244.1.0/24"], &[])])),
        ["young: it has no InternalIP that is reached from here"]
    );
}

fn any_member() -> impl Strategy<Value = Member> {
    let address = prop_oneof![
        (1u8..255).prop_map(|n| format!("192.0.2.{n}")),
        (1u8..255).prop_map(|n| format!("198.51.100.{n}"))
    ];
    let range = (0u8..8, 20u8..28).prop_map(|(third, prefix)| format!("10.244.{third}.0/{prefix}"));
    ("[a-f]{1,2}", proptest::collection::vec(range, 0..3), address).prop_map(|(name, ranges, address)| {
        let mut member = member(&name, &[], &[&address]);
        member.pod_cidrs = ranges.iter().map(|range| range.parse::<IpNet>().unwrap().trunc()).collect();
        member
    })
}

proptest! {
    /// Whatever nodes claim: the order in which they are told of does not matter, no two ways lead to one address, and this
    /// node's own pods stay here.
    #[test]
    fn ways_never_overlap(mut members in proptest::collection::vec(any_member(), 0..8)) {
        members.sort_by(|one, other| one.name.cmp(&other.name));
        members.dedup_by(|one, other| one.name == other.name);
        let forward = of(&members);
        members.reverse();
        prop_assert_eq!(&forward, &of(&members));
        let wrapped = forward.overlay.iter().flat_map(|overlay| overlay.ways.keys().copied());
        let mut ways: Vec<IpNet> = forward.routes.iter().map(|route| route.destination).chain(wrapped).collect();
        ways.extend(&forward.own);
        for (index, one) in ways.iter().enumerate() {
            for other in &ways[index + 1..] {
                prop_assert!(!one.contains(other) && !other.contains(one), "{} and {}", one, other);
            }
        }
    }
}

//! Who gets what, and who keeps it.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn ranges() -> Ranges {
    Ranges { service_cidrs: vec!["10.96.0.0/29".parse().unwrap()], node_ports: 30000..=30003 }
}

fn claim(ip: Option<&str>, ports: &[(&str, Option<u16>)]) -> Claim {
    let node_ports = ports.iter().enumerate().map(|(index, (name, wish))| PortClaim {
        name: (*name).to_owned(),
        protocol: Protocol::Tcp,
        field: format!("spec.ports[{index}].nodePort"),
        wish: *wish,
    });
    let address = AddressClaim { family: Family::V4, wish: ip.map(|ip| ip.parse().unwrap()) };
    Claim { addresses: vec![address], node_ports: node_ports.collect() }
}

fn claims(claims: &[(&str, Claim)]) -> BTreeMap<ObjectKey, Claim> {
    claims.iter().map(|(name, claim)| (ObjectKey::new("ns", *name), claim.clone())).collect()
}

fn ips(allocations: &Allocations) -> Vec<String> {
    let ips = allocations.services.iter();
    ips.map(|(name, had)| {
        format!("{name} {}", had.address(Family::V4).map_or("-".to_owned(), |ip| ip.to_string()))
    })
    .collect()
}

#[test]
fn asked_for_comes_first_then_the_lowest_free() {
    let wanted = claims(&[
        ("a", claim(None, &[("http", None), ("https", None)])),
        ("b", claim(Some("10.96.0.1"), &[("", Some(30000))])),
        ("c", claim(None, &[])),
    ]);
    let (now, problems) = allocate(&wanted, &Allocations::default(), &ranges());
    assert_eq!(problems, []);
    assert_eq!(ips(&now), ["ns/a 10.96.0.2", "ns/b 10.96.0.1", "ns/c 10.96.0.3"]);
    let ports = &now.services["ns/a"].node_ports;
    assert_eq!((ports["http"], ports["https"]), (30001, 30002));
    assert_eq!(now.services["ns/b"].node_ports[""], 30000);
}

#[test]
fn what_a_service_has_it_keeps_and_what_is_gone_is_free() {
    let (first, _) = allocate(
        &claims(&[("b", claim(None, &[])), ("c", claim(None, &[("", None)]))]),
        &Allocations::default(),
        &ranges(),
    );
    assert_eq!(ips(&first), ["ns/b 10.96.0.1", "ns/c 10.96.0.2"]);
    let (second, _) = allocate(
        &claims(&[("a", claim(None, &[("", None)])), ("c", claim(None, &[("", None)]))]),
        &first,
        &ranges(),
    );
    assert_eq!(ips(&second), ["ns/a 10.96.0.1", "ns/c 10.96.0.2"]);
    assert_eq!(second.services["ns/c"].node_ports[""], 30000);
    assert_eq!(second.services["ns/a"].node_ports[""], 30001);
}

#[test]
fn conflicts_are_told_with_the_holder_and_nothing_is_taken_from_it() {
    let before =
        allocate(&claims(&[("z", claim(None, &[("", None)]))]), &Allocations::default(), &ranges()).0;
    let wanted = claims(&[
        ("a", claim(Some("10.96.0.1"), &[("x", Some(30000))])),
        ("b", claim(Some("10.97.0.1"), &[("x", Some(80))])),
        ("c", claim(Some("10.96.0.7"), &[])),
        ("z", claim(None, &[("", None)])),
    ]);
    let (now, problems) = allocate(&wanted, &before, &ranges());
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "Service ns/a: field spec.clusterIP: 10.96.0.1 belongs to Service ns/z",
            "Service ns/b: field spec.clusterIP: 10.97.0.1 is not in the Service range 10.96.0.0/29",
            "Service ns/c: field spec.clusterIP: 10.96.0.7 is not in the Service range 10.96.0.0/29",
            "Service ns/a: field spec.ports[0].nodePort: 30000 belongs to Service ns/z",
            "Service ns/b: field spec.ports[0].nodePort: 80 is not in the NodePort range 30000-30003",
        ]
    );
    assert_eq!(now.of(&ObjectKey::new("ns", "z")), before.of(&ObjectKey::new("ns", "z")));
}

#[test]
fn each_family_has_a_range_and_each_protocol_its_ports() {
    let both = |wish: Option<&str>| {
        let mut claim = claim(None, &[("tcp", Some(30000)), ("udp", Some(30000))]);
        claim.node_ports[1].protocol = Protocol::Udp;
        let v6 = AddressClaim { family: Family::V6, wish: wish.map(|ip| ip.parse().unwrap()) };
        claim.addresses.insert(0, v6);
        claim
    };
    let mut ranges = ranges();
    ranges.service_cidrs.push("fd00:96::/112".parse().unwrap());
    let (now, problems) =
        allocate(&claims(&[("a", both(None)), ("b", claim(None, &[]))]), &Allocations::default(), &ranges);
    assert_eq!(problems, []);
    let texts: Vec<String> = now.services["ns/a"].cluster_ips.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["fd00:96::1", "10.96.0.1"], "the primary family comes first");
    assert_eq!(now.services["ns/a"].node_ports.values().collect::<Vec<_>>(), [&30000, &30000]);
    let (later, problems) = allocate(&claims(&[("a", both(Some("fd00:97::1")))]), &now, &ranges);
    assert!(
        problems[0].message.contains("fd00:97::1 is not in the Service range fd00:96::/112"),
        "{problems:?}"
    );
    assert_eq!(later.services["ns/a"].cluster_ips.len(), 1);
}

#[test]
fn an_exhausted_range_is_told() {
    let many: Vec<String> = (0..8).map(|index| format!("s{index}")).collect();
    let wanted = claims(&many.iter().map(|name| (name.as_str(), claim(None, &[]))).collect::<Vec<_>>());
    let (now, problems) = allocate(&wanted, &Allocations::default(), &ranges());
    assert_eq!((now.services.len(), problems.len()), (6, 2));
    assert!(problems[0].message.contains("exhausted"));
}

proptest! {
    #[test]
    fn allocations_are_unique_in_range_and_stable(
        before in proptest::collection::btree_map("[a-e]", (proptest::option::of(0u8..10), proptest::option::of(29999u16..30006)), 0..6),
        after in proptest::collection::btree_map("[a-e]", (proptest::option::of(0u8..10), proptest::option::of(29999u16..30006)), 0..6),
    ) {
        let all = |services: &BTreeMap<String, (Option<u8>, Option<u16>)>| -> BTreeMap<ObjectKey, Claim> {
            services.iter().map(|(name, (ip, port))| {
                let ip = ip.map(|last| format!("10.96.0.{last}"));
                (ObjectKey::new("ns", name.clone()), claim(ip.as_deref(), &[("", *port)]))
            }).collect()
        };
        let (first, _) = allocate(&all(&before), &Allocations::default(), &ranges());
        let (again, _) = allocate(&all(&before), &first, &ranges());
        prop_assert_eq!(&first, &again);
        let (second, _) = allocate(&all(&after), &first, &ranges());
        let given: Vec<_> = second.services.values().filter_map(|had| had.address(Family::V4)).collect();
        prop_assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len());
        for (name, had) in &second.services {
            let key = name.trim_start_matches("ns/");
            if let (Some(wish), Some(ip)) = (after[key].0, had.address(Family::V4)) {
                prop_assert_eq!(ip, IpAddr::from([10, 96, 0, wish]));
            }
            // Who asks for nothing keeps what it had.
            if let (None, Some(kept)) = (after[key].0, first.services.get(name).and_then(|had| had.address(Family::V4))) {
                prop_assert_eq!(had.address(Family::V4), Some(kept));
            }
            prop_assert!(had.node_ports.values().all(|port| (30000..=30003).contains(port)));
        }
    }
}

//! Services and slices as the API server has them, and what is served for them on the node `here`.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::*;
use crate::model::{Affinity, Protocol, TrafficPolicy};

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
        .unwrap()
}

/// An endpoint: `10.1.0.2@here`, `10.1.0.2@there/ending`, `…/unready`, `…/gone`.
fn endpoint(text: &str) -> Value {
    let (ip, rest) = text.split_once('@').unwrap();
    let (node, state) = rest.split_once('/').unwrap_or((rest, "ready"));
    let conditions = match state {
        "ready" => json!({}),
        "unready" => json!({"ready": false, "serving": false, "terminating": false}),
        "ending" => json!({"ready": false, "serving": true, "terminating": true}),
        "gone" => json!({"ready": false, "serving": false, "terminating": true}),
        other => panic!("{other}"),
    };
    json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
}

fn endpoints_of(family: &str, ports: Value, endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints.iter().map(|text| endpoint(text)).collect();
    let labels = json!({"kubernetes.io/service-name": "web"});
    let value = json!({"metadata": {"name": "web-x", "namespace": "default", "labels": labels},
        "addressType": family, "ports": ports, "endpoints": endpoints});
    serde_json::from_value(value).unwrap()
}

fn joined(web: &Service, slices: &[EndpointSlice]) -> PerFamily<ServiceMap> {
    joined_with(web, slices, ExternalIps::Served)
}

fn joined_with(web: &Service, slices: &[EndpointSlice], external_ips: ExternalIps) -> PerFamily<ServiceMap> {
    let services = served(web).map(|served| (ObjectKey::new("default", "web"), served));
    let slices = slices.iter().enumerate().filter_map(|(index, given)| {
        Some((ObjectKey::new("default", format!("web-{index}")), slice(given, "here")?))
    });
    join(&services.into_iter().collect(), &slices.collect(), external_ips)
}

/// `name address [everywhere] [here]`, as the rules will be.
fn check(web: &Service, slices: &[EndpointSlice], expect: &[&str]) {
    let maps = joined(web, slices);
    let list = |ends: &BTreeSet<Endpoint>| ends.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let found: Vec<String> = maps
        .v4
        .iter()
        .chain(&maps.v6)
        .map(|(name, port)| {
            let protocol = name.protocol.name();
            let address = std::net::SocketAddr::new(port.cluster_ip, port.port);
            format!("{name}/{protocol} {address} [{}] [{}]", list(&port.endpoints), list(&port.local))
        })
        .collect();
    assert_eq!(found, expect);
}

fn http() -> Value {
    json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
}

fn plain() -> Service {
    service(json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}))
}

#[test]
fn endpoints_come_from_every_slice_each_with_its_own_number_for_a_port() {
    let other = json!([{"name": "http", "port": 9090, "protocol": "TCP"}, {"name": "x", "port": 1}]);
    let slices = [
        endpoints_of("IPv4", http(), &["10.1.0.2@here", "10.1.1.2@there", "10.1.1.3@there/unready"]),
        endpoints_of("IPv4", other, &["10.1.0.3@here"]),
        // The same endpoint twice, while it moves from one slice to another.
        endpoints_of("IPv4", http(), &["10.1.1.2@there"]),
        endpoints_of("FQDN", http(), &["a.example@there"]),
        endpoints_of("IPv4", json!([{"name": "http"}]), &["10.1.0.9@here"]),
    ];
    let expect = "default/web:http/tcp 10.96.0.1:80 [10.1.0.2:8080 10.1.0.3:9090 10.1.1.2:8080] [10.1.0.2:8080 10.1.0.3:9090]";
    check(&plain(), &slices, &[expect]);
    check(&plain(), &[], &["default/web:http/tcp 10.96.0.1:80 [] []"]);
}

#[test]
fn protocols_and_families_are_kept_apart() {
    let web = service(json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}, {"port": 7, "protocol": "SCTP"}]}));
    let ports = json!([{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5354, "protocol": "TCP"},
        {"name": "", "port": 7007, "protocol": "SCTP"}]);
    let slices = [
        endpoints_of("IPv4", ports.clone(), &["10.1.0.2@there"]),
        endpoints_of("IPv6", ports, &["fd00:1::2@here"]),
    ];
    let expect = [
        "default/web/sctp 10.96.0.1:7 [10.1.0.2:7007] []",
        "default/web:dns/udp 10.96.0.1:53 [10.1.0.2:5353] []",
        "default/web:dns-tcp/tcp 10.96.0.1:53 [10.1.0.2:5354] []",
        "default/web/sctp [fd00::1]:7 [[fd00:1::2]:7007] [[fd00:1::2]:7007]",
        "default/web:dns/udp [fd00::1]:53 [[fd00:1::2]:5353] [[fd00:1::2]:5353]",
        "default/web:dns-tcp/tcp [fd00::1]:53 [[fd00:1::2]:5354] [[fd00:1::2]:5354]",
    ];
    check(&web, &slices, &expect);
}

#[test]
fn pods_that_are_ending_serve_as_long_as_nobody_else_does() {
    let with = |endpoints: &[&str], expect: &str| {
        let expect = format!("default/web:http/tcp 10.96.0.1:80 {expect}");
        check(&plain(), &[endpoints_of("IPv4", http(), endpoints)], &[&expect]);
    };
    with(&["10.1.0.2@here/ending", "10.1.0.3@there"], "[10.1.0.3:8080] [10.1.0.2:8080]");
    with(&["10.1.0.2@here/ending", "10.1.0.3@here"], "[10.1.0.3:8080] [10.1.0.3:8080]");
    with(&["10.1.0.2@here/ending", "10.1.0.3@there/ending"], "[10.1.0.2:8080 10.1.0.3:8080] [10.1.0.2:8080]");
    with(&["10.1.0.2@here/gone", "10.1.0.3@there/unready"], "[] []");
}

#[test]
fn what_a_load_balancer_and_policies_need_is_kept() {
    let mut web = service(
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
        "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
        "externalIPs": ["198.51.100.7"], "loadBalancerSourceRanges": [" 192.0.2.0/24", "2001:db8::/32"],
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    web.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1", "ipMode": "VIP"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"ip": "203.0.113.3"},
        {"hostname": "lb.example"}, {"ip": "2001:db8:1::1"}]}}))
    .unwrap();
    let maps = joined(&web, &[]);
    let name = ServicePortName {
        service: ObjectKey::new("default", "web"),
        port: String::new(),
        protocol: Protocol::Tcp,
    };
    let expect = ServicePort {
        node_port: Some(30080),
        external_ips: ["198.51.100.7".parse().unwrap()].into(),
        load_balancer_ips: ["203.0.113.1", "203.0.113.3"].map(|ip| ip.parse().unwrap()).into(),
        source_ranges: ["192.0.2.0/24".parse().unwrap()].into(),
        health_check_node_port: Some(31000),
        affinity: Affinity::ClientIp(60),
        external: TrafficPolicy::Local,
        internal: TrafficPolicy::Local,
        ..ServicePort::new([10, 96, 0, 1].into(), 80)
    };
    assert_eq!(maps.v4[&name], expect);
    let v6 = &maps.v6[&name];
    assert_eq!(v6.load_balancer_ips, ["2001:db8:1::1".parse().unwrap()].into());
    assert_eq!(v6.source_ranges, ["2001:db8::/32".parse().unwrap()].into());
    assert_eq!(v6.external_ips, BTreeSet::new());
}

#[test]
fn cve_2020_8554_a_service_gets_no_address_that_it_names_itself() {
    let web = service(json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
        "externalIPs": ["198.51.100.7", "2001:db8::7"], "ports": [{"port": 80}]}));
    let known = BTreeMap::from([
        (ObjectKey::new("default", "web"), served(&web).unwrap()),
        (ObjectKey::new("default", "plain"), served(&plain()).unwrap()),
    ]);
    let check = |external_ips: ExternalIps, served: &[&str], problems: &[&str]| {
        let maps = joined_with(&web, &[], external_ips);
        let ports = maps.v4.values().chain(maps.v6.values());
        let found: Vec<_> =
            ports.flat_map(|port| port.external_ips.iter().map(ToString::to_string)).collect();
        assert_eq!(found, served);
        let told: Vec<_> = external_ips.problems(&known).iter().map(ToString::to_string).collect();
        assert_eq!(told, problems);
    };
    assert_eq!(ExternalIps::default(), ExternalIps::LeftOut);
    check(ExternalIps::Served, &["198.51.100.7", "2001:db8::7"], &[]);
    let told = "Service default/web: field spec.externalIPs: left out: whoever may write a Service could take any \
                address with it (CVE-2020-8554); --proxy-external-ips serves them";
    check(ExternalIps::LeftOut, &[], &[told]);
}

#[test]
fn headless_services_aliases_and_services_that_wait_for_an_address_are_not_served() {
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "x.example", "ports": [{"port": 80}]}),
        json!({"ports": [{"port": 80}]}),
    ] {
        assert_eq!(served(&service(spec.clone())), None, "{spec}");
    }
}

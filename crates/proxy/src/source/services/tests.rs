//! What is served, told and refused.

use serde_json::{Value, json};

use super::*;

fn pod(name: &str, last: u8, ready: bool) -> LocalPod {
    LocalPod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        ips: vec!["fd00::1".parse().unwrap(), IpAddr::from([10, 85, 0, last])],
        ready,
        ports: BTreeMap::from([((Protocol::Tcp, "http".to_owned()), 8000 + u16::from(last))]),
    }
}

fn services(specs: &[(&str, Value)]) -> BTreeMap<ObjectKey, Arc<Service>> {
    let made = specs.iter().map(|(name, spec)| {
        let value = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        let mut service: Service = serde_json::from_value(value).unwrap();
        manifest::default_service(&mut service);
        (ObjectKey::new("default", *name), Arc::new(service))
    });
    made.collect()
}

fn planned(specs: &[(&str, Value)], pods: &[LocalPod]) -> Plan {
    let ranges = Ranges { service_cidrs: vec!["10.96.0.0/16".parse().unwrap()], node_ports: 30000..=32767 };
    plan(&services(specs), pods, &Allocations::default(), &ranges, "node")
}

fn served(plan: &Plan) -> Vec<String> {
    let ports = plan.services.v4.iter().chain(&plan.services.v6).map(|(name, port)| {
        let endpoints: Vec<String> = port.endpoints.iter().map(ToString::to_string).collect();
        let node_port = port.node_port.map_or(String::new(), |port| format!(" node:{port}"));
        let address = std::net::SocketAddr::new(port.cluster_ip, port.port);
        format!("{name} {address}{node_port} [{}]", endpoints.join(" "))
    });
    ports.collect()
}

fn problems(plan: &Plan) -> Vec<String> {
    plan.report.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn ready_pods_that_the_selector_matches_are_endpoints_and_ports_go_by_name() {
    let mut elsewhere = pod("web-9", 9, true);
    elsewhere.namespace = "other".to_owned();
    let mut unlike = pod("db", 8, true);
    unlike.labels.clear();
    let mut without_port = pod("web-4", 4, true);
    without_port.ports.clear();
    let pods = [pod("web-2", 2, true), pod("web-3", 3, false), without_port, elsewhere, unlike];
    let spec = json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [
        {"name": "http", "port": 80, "targetPort": "http"}, {"name": "raw", "port": 81}]});
    let plan = planned(&[("web", spec)], &pods);
    assert_eq!(
        served(&plan),
        [
            "default/web:http 10.96.0.1:80 node:30000 [10.85.0.2:8002]",
            "default/web:raw 10.96.0.1:81 node:30001 [10.85.0.2:81 10.85.0.4:81]",
        ]
    );
    assert_eq!(problems(&plan), Vec::<String>::new());
}

#[test]
fn a_service_may_publish_pods_that_are_not_ready() {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}], "publishNotReadyAddresses": true});
    let plan = planned(&[("web", spec)], &[pod("web-3", 3, false)]);
    assert_eq!(served(&plan), ["default/web 10.96.0.1:80 [10.85.0.3:80]"]);
}

#[test]
fn the_report_has_what_was_given_and_slices_as_a_cluster_has_them() {
    let spec = json!({"type": "NodePort", "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}]});
    let plan = planned(&[("web", spec)], &[pod("a", 2, true), pod("b", 3, false)]);
    let service = serde_json::to_value(&plan.report.services[0]).unwrap();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(service["spec"]["clusterIPs"], json!(["10.96.0.1"]));
    assert_eq!(service["spec"]["ports"][0]["nodePort"], 30080);
    assert_eq!(plan.report.endpoints.len(), 2, "their ports of that name differ");
    let slice = serde_json::to_value(&plan.report.endpoints[0]).unwrap();
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(slice["ports"], json!([{"name": "http", "port": 8002, "protocol": "TCP"}]));
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.85.0.2"]));
    assert_eq!(
        slice["endpoints"][0]["conditions"],
        json!({"ready": true, "serving": true, "terminating": false})
    );
    let other = serde_json::to_value(&plan.report.endpoints[1]).unwrap();
    assert_eq!(other["endpoints"][0]["conditions"]["ready"], false);
}

#[test]
fn headless_services_and_aliases_have_no_address_and_no_rules() {
    let plan = planned(
        &[
            ("headless", json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]})),
            ("alias", json!({"type": "ExternalName", "externalName": "x.example"})),
        ],
        &[pod("a", 2, true)],
    );
    assert_eq!(served(&plan), Vec::<String>::new());
    assert_eq!(problems(&plan), Vec::<String>::new());
    assert_eq!(plan.allocations, Allocations::default());
    assert_eq!((plan.report.services.len(), plan.report.endpoints.len()), (2, 1));
}

#[test]
fn what_is_not_supported_is_told_by_name() {
    let with = |extra: Value| {
        let mut spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let plan = planned(&[("s", spec)], &[pod("a", 2, true)]);
        (problems(&plan), plan.services.v4.len())
    };
    for (extra, field, ports) in [
        (json!({"type": "LoadBalancer"}), "spec.type", 1),
        (json!({"externalIPs": ["192.0.2.1"]}), "spec.externalIPs", 1),
        (json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}), "spec.loadBalancerSourceRanges", 1),
        (json!({"ipFamilies": ["IPv6"]}), "spec.ipFamilies", 0),
        (json!({"ipFamilyPolicy": "RequireDualStack"}), "spec.ipFamilyPolicy", 0),
        (json!({"clusterIP": "fd00::7"}), "spec.clusterIP", 0),
        (json!({"clusterIP": "10.1.2.3"}), "spec.clusterIP", 0),
        (json!({"selector": {}}), "spec.selector", 1),
        (
            json!({"ports": [{"name": "a", "port": 53, "protocol": "DCCP"}, {"name": "b", "port": 53}]}),
            "spec.ports[0].protocol",
            1,
        ),
    ] {
        let (told, served) = with(extra.clone());
        assert_eq!((told.len(), served), (1, ports), "{extra}: {told:?}");
        assert!(told[0].starts_with(&format!("Service default/s: field {field}: ")), "{told:?}");
    }
    assert_eq!(
        with(json!({"ipFamilyPolicy": "PreferDualStack", "internalTrafficPolicy": "Local"})).0.len(),
        0
    );
}

#[test]
fn a_service_for_another_proxy_is_left_to_it() {
    let mut services = services(&[("s", json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}))]);
    for service in services.values_mut() {
        Arc::make_mut(service).metadata.labels = Some(BTreeMap::from([(
            "service.kubernetes.io/service-proxy-name".to_owned(),
            "other".to_owned(),
        )]));
    }
    let ranges = Ranges { service_cidrs: vec!["10.96.0.0/16".parse().unwrap()], node_ports: 30000..=32767 };
    let plan = plan(&services, &[], &Allocations::default(), &ranges, "node");
    assert!(plan.services.v4.is_empty());
    assert!(problems(&plan)[0].ends_with("left to the proxy that it names"));
}

fn dual(specs: &[(&str, Value)], first: &str) -> Plan {
    let mut cidrs: Vec<ipnet::IpNet> =
        ["10.96.0.0/16", "fd00:96::/112"].map(|net| net.parse().unwrap()).into();
    if first == "IPv6" {
        cidrs.reverse();
    }
    let ranges = Ranges { service_cidrs: cidrs, node_ports: 30000..=32767 };
    plan(&services(specs), &[pod("web-2", 2, true)], &Allocations::default(), &ranges, "node")
}

#[test]
fn a_service_has_the_families_that_it_asks_for() {
    let with = |extra: Value, first: &str| {
        let mut spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let plan = dual(&[("s", spec)], first);
        assert_eq!(problems(&plan), Vec::<String>::new(), "{extra}");
        let types: Vec<&str> =
            plan.report.endpoints.iter().map(|slice| slice.address_type.as_str()).collect();
        let given = plan.report.services[0].spec.clone().unwrap_or_default();
        assert_eq!(given.ip_families.unwrap_or_default(), types, "a slice for each family");
        given.cluster_ips.unwrap_or_default()
    };
    assert_eq!(with(json!({}), "IPv4"), ["10.96.0.1"]);
    assert_eq!(with(json!({}), "IPv6"), ["fd00:96::1"]);
    assert_eq!(with(json!({"ipFamilies": ["IPv6"]}), "IPv4"), ["fd00:96::1"]);
    assert_eq!(with(json!({"ipFamilyPolicy": "PreferDualStack"}), "IPv4"), ["10.96.0.1", "fd00:96::1"]);
    let both = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]});
    assert_eq!(with(both, "IPv4"), ["fd00:96::1", "10.96.0.1"]);
    assert_eq!(with(json!({"clusterIP": "fd00:96::7"}), "IPv4"), ["fd00:96::7"]);
    let given = json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": "10.96.0.9",
        "clusterIPs": ["10.96.0.9", "fd00:96::9"]});
    assert_eq!(with(given, "IPv4"), ["10.96.0.9", "fd00:96::9"]);
}

#[test]
fn each_family_has_its_own_endpoints() {
    let spec = json!({"selector": {"app": "web"}, "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"port": 80, "targetPort": "http"}, {"name": "u", "protocol": "UDP", "port": 53}]});
    assert_eq!(
        served(&dual(&[("s", spec)], "IPv4")),
        [
            "default/s 10.96.0.1:80 [10.85.0.2:8002]",
            "default/s:u 10.96.0.1:53 [10.85.0.2:53]",
            "default/s [fd00:96::1]:80 [[fd00::1]:8002]",
            "default/s:u [fd00:96::1]:53 [[fd00::1]:53]",
        ]
    );
}

#[test]
fn a_named_port_is_one_of_the_same_protocol() {
    let spec =
        json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http", "protocol": "UDP"}]});
    assert_eq!(served(&planned(&[("s", spec)], &[pod("a", 2, true)])), ["default/s 10.96.0.1:80 []"]);
}

#[test]
fn affinity_and_local_traffic_are_kept() {
    let spec = json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80}],
        "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local"});
    let plan = planned(&[("s", spec)], &[pod("a", 2, true)]);
    let port = plan.services.v4.values().next().expect("a port");
    assert_eq!((port.affinity, port.external), (Affinity::ClientIp(10_800), TrafficPolicy::Local));
}

//! Goldens of the tables.

use serde_json::json;

use super::*;
use crate::status::report::{Agent, Report};

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn pod(name: &str, status: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}")},
        "spec": {"containers": [{"name": "web"}]},
        "status": status,
    }))
    .unwrap()
}

fn report() -> Report {
    let running = json!({"phase": "Running", "podIP": "10.85.0.2", "startTime": "2026-11-24T11:56:48Z",
        "containerStatuses": [{"name": "web", "ready": true, "restartCount": 2, "image": "i", "imageID": "",
                               "state": {"running": {}}}]});
    let looping = json!({"phase": "Running", "podIP": "10.85.0.3", "startTime": "2026-11-24T09:00:00Z",
        "containerStatuses": [{"name": "web", "ready": false, "restartCount": 5, "image": "i", "imageID": "",
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 2m40s restarting failed container=web pod=loop_default(uid-of-loop)"}}}]});
    let pulling = json!({"phase": "Pending", "startTime": "2026-11-24T11:59:59Z",
        "containerStatuses": [{"name": "web", "ready": false, "restartCount": 0, "image": "i", "imageID": "",
            "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "no image x:1"}}}]});
    let unready = json!({"phase": "Running", "podIP": "10.85.0.4", "startTime": "2026-11-24T11:59:00Z",
        "conditions": [{"type": "Ready", "status": "False", "message": "containers with unready status: [web]"}],
        "containerStatuses": [{"name": "web", "ready": false, "restartCount": 0, "image": "i", "imageID": "",
            "state": {"running": {}}}]});
    Report {
        agent: Some(Agent { pid: 42, version: "0.1.0".into() }),
        node: serde_json::from_value(json!({
            "metadata": {"name": "box"},
            "spec": {"podCIDR": "10.85.0.0/16"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}],
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap(),
        pods: vec![pod("web-1", running), pod("loop", looping), pod("new", pulling), pod("slow", unready)],
        services: vec![
            serde_json::from_value(json!({
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]},
            }))
            .unwrap(),
            serde_json::from_value(json!({
                "metadata": {"name": "empty", "namespace": "default"},
                "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 53, "protocol": "TCP"}]},
            }))
            .unwrap(),
        ],
        endpoint_slices: vec![
            serde_json::from_value(json!({
                "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.85.0.2"], "conditions": {"ready": true}},
                              {"addresses": ["10.85.0.4"], "conditions": {"ready": false}},
                              {"addresses": ["10.85.0.9"]}, {"addresses": ["10.85.0.7"]}, {"addresses": ["10.85.0.8"]}],
                "ports": [{"port": 8080}],
            }))
            .unwrap(),
        ],
        problems: vec!["a.yaml document 2: field spec.foo: unknown field".into()],
        ..Report::default()
    }
}

#[test]
fn the_table_shows_node_pods_services_endpoints_and_problems() {
    let expect = "\
agent      running, pid 42, podwright 0.1.0
node       box  Ready
address    192.0.2.7  pods 10.85.0.0/16

NAMESPACE  NAME   READY  STATUS             RESTARTS  AGE    IP         WHY
default    web-1  1/1    Running            2         3m12s  10.85.0.2
default    loop   0/1    CrashLoopBackOff   5         3h     10.85.0.3  web: back-off 2m40s restarting failed container=web pod=loop_default(...
default    new    0/1    ErrImageNeverPull  0         1s     -          web: no image x:1
default    slow   0/1    Running            0         60s    10.85.0.4  containers with unready status: [web]

NAMESPACE  NAME   TYPE       CLUSTER-IP  PORT(S)       ENDPOINTS
default    web    NodePort   10.96.0.1   80:30080/TCP  10.85.0.2:8080,10.85.0.7:8080,10.85.0.8:8080 + 1 more...
default    empty  ClusterIP  10.96.0.2   53/TCP        <none>

problems
  a.yaml document 2: field spec.foo: unknown field
";
    assert_eq!(render(&report(), Width::Normal, now()), expect);
}

#[test]
fn endpoints_that_nobody_knows_are_not_told_of() {
    let text = render(&Report { endpoint_slices: Vec::new(), ..report() }, Width::Normal, now());
    assert!(text.contains("CLUSTER-IP  PORT(S)\n") && !text.contains("<none>"), "{text}");
}

#[test]
fn the_wide_table_cuts_nothing() {
    let text = render(&report(), Width::Wide, now());
    for part in ["pod=loop_default(uid-of-loop)\n", "10.85.0.9:8080\n", "uid-of-web-1", " UID "] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn a_node_without_agent_and_pods_says_so() {
    let expect = "\
agent      not running; this is what its records say
node       -  Unknown
address    -  pods -

no pods

no services
";
    assert_eq!(render(&Report::default(), Width::Normal, now()), expect);
}

#[test]
fn ages_have_at_most_two_units() {
    let at = |seconds: i64| Timestamp::from_second(now().as_second() - seconds).unwrap();
    for (seconds, expect) in
        [(-5, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (600, "10m"), (10_800, "3h"), (172_800, "2d")]
    {
        assert_eq!(age(now(), at(seconds)), expect);
    }
}

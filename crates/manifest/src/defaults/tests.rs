//! What short manifests become.

use super::*;
use serde_json::{Value, json};

fn pod(spec: Value) -> Value {
    let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
    default_pod(&mut pod);
    let once = pod.clone();
    default_pod(&mut pod);
    assert_eq!(once, pod, "twice is once");
    serde_json::to_value(pod).unwrap()
}

fn service(spec: Value) -> Value {
    let mut service: Service =
        serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap();
    default_service(&mut service);
    let once = service.clone();
    default_service(&mut service);
    assert_eq!(once, service, "twice is once");
    serde_json::to_value(service).unwrap()["spec"].take()
}

#[test]
fn a_short_pod_becomes_what_the_api_server_stores() {
    let found = pod(json!({"containers": [{"name": "a", "image": "nginx"}], "volumes": [{"name": "v"}]}));
    assert_eq!(found["metadata"]["namespace"], "default");
    let expect = json!({
        "containers": [{
            "name": "a", "image": "nginx", "imagePullPolicy": "Always",
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        }],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
        "terminationGracePeriodSeconds": 30, "enableServiceLinks": true, "securityContext": {},
    });
    assert_eq!(found["spec"], expect);
}

#[test]
fn the_pull_policy_follows_the_tag() {
    for (image, expect) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("localhost:5000/nginx", "Always"),
        ("localhost:5000/a/nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:abc", "IfNotPresent"),
        ("nginx:latest@sha256:abc", "IfNotPresent"),
    ] {
        assert_eq!(pull_policy(image), expect, "{image}");
    }
}

#[test]
fn probes_ports_env_and_limits_are_completed() {
    let found = pod(json!({"hostNetwork": true, "containers": [{
        "name": "a", "image": "a:1",
        "ports": [{"containerPort": 80}],
        "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
        "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 0},
        "lifecycle": {"preStop": {"httpGet": {"port": 80}}},
    }]}));
    let container = &found["spec"]["containers"][0];
    assert_eq!(container["ports"][0], json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}));
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(container["resources"]["requests"], json!({"cpu": "100m", "memory": "1Gi"}));
    let probe = json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3});
    assert_eq!(container["readinessProbe"], probe);
    assert_eq!(container["lifecycle"]["preStop"]["httpGet"]["path"], "/");
}

#[test]
fn a_pod_asks_as_a_whole_for_what_its_containers_do_or_what_it_may_have() {
    let asks = |name: &str, cpu: &str| json!({"name": name, "image": "a:1", "resources": {"requests": {"cpu": cpu}}});
    let requests = |own: Value, init: Value| {
        let containers = json!([asks("a", "200m"), asks("b", "100m")]);
        let found = pod(json!({"resources": own, "initContainers": init, "containers": containers}));
        found["spec"]["resources"]["requests"].clone()
    };
    let limits = json!({"limits": {"cpu": "2", "memory": "1Gi"}});
    assert_eq!(requests(limits.clone(), json!([])), json!({"cpu": "300m", "memory": "1Gi"}));
    let mut sidecar = asks("s", "1");
    sidecar["restartPolicy"] = json!("Always");
    assert_eq!(requests(limits.clone(), json!([sidecar])), json!({"cpu": "1300m", "memory": "1Gi"}));
    assert_eq!(requests(limits, json!([asks("i", "1500m")])), json!({"cpu": "1500m", "memory": "1Gi"}));
    assert_eq!(requests(json!({"requests": {"cpu": "1"}}), json!([])), json!({"cpu": "1"}));
    assert_eq!(requests(json!({}), json!([])), Value::Null);
}

#[test]
fn volumes_get_their_modes() {
    let found = pod(json!({"containers": [], "volumes": [
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "c", "configMap": {"name": "c", "defaultMode": 256}},
        {"name": "h", "hostPath": {"path": "/x"}},
        {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
    ]}));
    let volumes = &found["spec"]["volumes"];
    assert_eq!(volumes[0]["secret"]["defaultMode"], 420);
    assert_eq!(volumes[1]["configMap"]["defaultMode"], 256);
    assert_eq!(volumes[2]["hostPath"]["type"], "");
    assert_eq!(volumes[3]["projected"]["defaultMode"], 420);
    let token = json!({"path": "t", "expirationSeconds": 3600});
    assert_eq!(volumes[3]["projected"]["sources"][0]["serviceAccountToken"], token);
}

#[test]
fn a_service_gets_type_affinity_families_and_target_ports() {
    let found =
        service(json!({"ports": [{"port": 80}, {"port": 81, "targetPort": "http", "protocol": "UDP"}]}));
    let expect = json!({
        "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "ipFamilyPolicy": "SingleStack",
        "ports": [
            {"port": 80, "targetPort": 80, "protocol": "TCP"},
            {"port": 81, "targetPort": "http", "protocol": "UDP"},
        ],
    });
    assert_eq!(found, expect);
    assert_eq!(service(json!({"type": "NodePort"}))["externalTrafficPolicy"], "Cluster");
    let affine = service(json!({"sessionAffinity": "ClientIP"}));
    assert_eq!(affine["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    let external = service(json!({"type": "ExternalName", "externalName": "x.example"}));
    assert_eq!(
        external,
        json!({"type": "ExternalName", "externalName": "x.example", "sessionAffinity": "None"})
    );
}

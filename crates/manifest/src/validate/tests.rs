//! One bad value at a time, and what is said of it; several at once are all told.

use serde_json::{Value, json};

use crate::document::read;

fn faults(value: Value) -> Vec<String> {
    read(value).faults.into_iter().map(|(path, message)| format!("{path}: {message}")).collect()
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a", "image": "a:1"}]}})
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}})
}

/// Sets each pointer to its value and expects exactly the faults that begin so.
fn check(base: fn() -> Value, changes: &[(&str, Value)], expect: &[&str]) {
    let mut value = base();
    for (pointer, change) in changes {
        put(&mut value, pointer, change.clone());
    }
    let found = faults(value);
    let fits = found.len() == expect.len()
        && expect.iter().all(|expect| found.iter().any(|fault| fault.starts_with(expect)));
    assert!(fits, "{changes:?}\nfound  {found:#?}\nexpect {expect:#?}");
}

fn put(value: &mut Value, pointer: &str, change: Value) {
    let mut place = value;
    for key in pointer.split('.') {
        place = match key.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[key],
        };
    }
    *place = change;
}

#[test]
fn a_good_pod_and_a_good_service_have_no_faults() {
    check(pod, &[], &[]);
    check(service, &[], &[]);
}

#[test]
fn names_labels_and_annotations() {
    check(pod, &[("metadata", json!({}))], &["metadata.name: required"]);
    check(pod, &[("metadata", json!({"generateName": "p-"}))], &["metadata.generateName: not supported"]);
    check(pod, &[("metadata.name", json!("A_b"))], &["metadata.name: \"A_b\" is not a DNS subdomain"]);
    check(pod, &[("metadata.namespace", json!("a.b"))], &["metadata.namespace: \"a.b\" is not a DNS label"]);
    check(
        pod,
        &[("metadata.labels", json!({"a/b/c": "x", "ok": "not ok"}))],
        &[
            "metadata.labels[a/b/c]: \"a/b/c\" is not a key",
            "metadata.labels[ok]: \"not ok\" is not a label's value",
        ],
    );
    check(pod, &[("metadata.annotations", json!({"X.example/A": "any thing"}))], &[]);
    check(service, &[("metadata.name", json!("1s"))], &["metadata.name: \"1s\" is not a DNS label"]);
}

#[test]
fn a_pod_needs_containers_and_they_need_names_and_images() {
    check(pod, &[("spec", json!({}))], &["spec.containers: required"]);
    check(
        pod,
        &[("spec.containers", json!([{"name": "a"}, {"image": "x"}, {"name": "a", "image": " x"}]))],
        &[
            "spec.containers[0].image: required",
            "spec.containers[1].name: required",
            "spec.containers[2].name: \"a\" is there twice",
            "spec.containers[2].image: \" x\" has white space",
        ],
    );
    check(
        pod,
        &[("spec.initContainers", json!([{"name": "a", "image": "x"}]))],
        &["spec.containers[0].name: \"a\" is there twice"],
    );
    check(
        pod,
        &[("spec.ephemeralContainers", json!([{"name": "e", "image": "x"}]))],
        &["spec.ephemeralContainers: cannot be part of a new pod"],
    );
}

#[test]
fn words_that_do_not_exist() {
    for (field, path) in [
        ("spec.restartPolicy", "spec.restartPolicy"),
        ("spec.dnsPolicy", "spec.dnsPolicy"),
        ("spec.containers.0.imagePullPolicy", "spec.containers[0].imagePullPolicy"),
        ("spec.containers.0.terminationMessagePolicy", "spec.containers[0].terminationMessagePolicy"),
    ] {
        check(
            pod,
            &[(field, json!("Sometimes"))],
            &[&format!("{path}: \"Sometimes\" is not supported: it is one of ")],
        );
    }
}

#[test]
fn numbers_out_of_range() {
    check(
        pod,
        &[
            ("spec.terminationGracePeriodSeconds", json!(-1)),
            ("spec.activeDeadlineSeconds", json!(0)),
            ("spec.securityContext", json!({"runAsUser": -5})),
            ("spec.containers.0.securityContext", json!({"runAsGroup": 4_294_967_296_i64})),
        ],
        &[
            "spec.terminationGracePeriodSeconds: -1 is negative",
            "spec.activeDeadlineSeconds: 0 is less than 1",
            "spec.securityContext.runAsUser: -5 is not an id",
            "spec.containers[0].securityContext.runAsGroup: 4294967296 is not an id",
        ],
    );
}

#[test]
fn ports_of_containers() {
    check(
        pod,
        &[(
            "spec.containers.0.ports",
            json!([
                {"containerPort": 0}, {"containerPort": 70000, "name": "80"}, {"containerPort": 80, "name": "x", "hostPort": 8080},
                {"containerPort": 81, "name": "x", "protocol": "HTTP"}, {"containerPort": 82, "hostPort": 8080},
                {"containerPort": 80, "hostPort": 8080, "hostIP": "x"},
            ]),
        )],
        &[
            "spec.containers[0].ports[0].containerPort: 0 is not a port",
            "spec.containers[0].ports[1].containerPort: 70000 is not a port",
            "spec.containers[0].ports[1].name: \"80\" is not a port name",
            "spec.containers[0].ports[3].name: \"x\" is there twice",
            "spec.containers[0].ports[3].protocol: \"HTTP\" is not supported",
            "spec.containers[0].ports[4].hostPort: 8080 TCP is also spec.containers[0].ports[2].hostPort",
            "spec.containers[0].ports[5].hostIP: \"x\" is not an IP address",
        ],
    );
    check(
        pod,
        &[
            ("spec.hostNetwork", json!(true)),
            (
                "spec.containers.0.ports",
                json!([{"containerPort": 80, "hostPort": 81}, {"containerPort": 82}]),
            ),
        ],
        &["spec.containers[0].ports[0].hostPort: with hostNetwork"],
    );
}

#[test]
fn environment() {
    check(
        pod,
        &[
            (
                "spec.containers.0.env",
                json!([
                    {"name": "A=B"}, {"value": "x"}, {"name": "C", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "D", "valueFrom": {}}, {"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "a/b"}}},
                ]),
            ),
            ("spec.containers.0.envFrom", json!([{}, {"secretRef": {"name": "S"}}])),
        ],
        &[
            "spec.containers[0].env[0].name: \"A=B\" is not the name",
            "spec.containers[0].env[1].name: required",
            "spec.containers[0].env[2].valueFrom: and value exclude",
            "spec.containers[0].env[3].valueFrom: says nothing",
            "spec.containers[0].env[4].valueFrom.configMapKeyRef.key: \"a/b\" is not a key",
            "spec.containers[0].envFrom[0]: says nothing",
            "spec.containers[0].envFrom[1].secretRef.name: \"S\" is not",
        ],
    );
}

#[test]
fn what_a_pod_tells_its_containers() {
    let variable = |from: Value| json!([{"name": "A", "valueFrom": from}]);
    for path in [
        "metadata.uid",
        "metadata.labels['a/b']",
        "metadata.annotations['X']",
        "status.hostIPs",
        "status.podIPs",
    ] {
        check(pod, &[("spec.containers.0.env", variable(json!({"fieldRef": {"fieldPath": path}})))], &[]);
    }
    for path in ["metadata.labels", "spec.host", "metadata.labels['']", "metadata.labels[a]"] {
        let expect = "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: ";
        check(
            pod,
            &[("spec.containers.0.env", variable(json!({"fieldRef": {"fieldPath": path}})))],
            &[expect],
        );
    }
    for (resource, divisor, expect) in [
        ("limits.cpu", "1m", None),
        ("limits.memory", "1Mi", None),
        ("requests.ephemeral-storage", "0", None),
        ("limits.hugepages-2Mi", "1Ki", None),
        ("limits.cpu", "2", Some("divisor: \"2\" is not a unit of cpu: 1m, 1")),
        ("limits.memory", "1m", Some("divisor: \"1m\" is not a unit of memory")),
        ("limits.gpu", "1", Some("resource: \"limits.gpu\" is not supported")),
        ("cpu", "1", Some("resource: \"cpu\" is not supported")),
    ] {
        let from = json!({"resourceFieldRef": {"resource": resource, "divisor": divisor}});
        let expect =
            expect.map(|expect| format!("spec.containers[0].env[0].valueFrom.resourceFieldRef.{expect}"));
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        check(pod, &[("spec.containers.0.env", variable(from))], &expect);
    }
    let files = json!([{"name": "d", "downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "ip", "fieldRef": {"fieldPath": "status.podIP"}},
        {"path": "cpu", "mode": 4096, "resourceFieldRef": {"resource": "limits.cpu"}},
    ]}}]);
    check(
        pod,
        &[("spec.volumes", files)],
        &[
            "spec.volumes[0].downwardAPI.items[1].fieldRef.fieldPath: \"status.podIP\" is not supported",
            "spec.volumes[0].downwardAPI.items[2].mode: 4096 is not a file mode",
            "spec.volumes[0].downwardAPI.items[2].resourceFieldRef.containerName: required",
        ],
    );
}

#[test]
fn resources_of_a_whole_pod() {
    check(
        pod,
        &[(
            "spec.resources",
            json!({"requests": {"cpu": "2", "ephemeral-storage": "1Gi"}, "limits": {"cpu": "1"}}),
        )],
        &[
            "spec.resources.requests[cpu]: 2 is more than the limit 1",
            "spec.resources.requests[ephemeral-storage]: is not for a whole pod: cpu, memory and hugepages-SIZE are",
        ],
    );
}

#[test]
fn resources() {
    check(
        pod,
        &[(
            "spec.containers.0.resources",
            json!({
                "requests": {"cpu": 2, "memory": "1Gi", "disk": "1", "example.com/gpu": "1"},
                "limits": {"cpu": "1500m", "memory": "1G", "ephemeral-storage": "lots", "hugepages-2Mi": "-1"},
            }),
        )],
        &[
            "spec.containers[0].resources.requests[cpu]: 2 is more than the limit 1500m",
            "spec.containers[0].resources.requests[memory]: 1073741824 is more than the limit 1000000000",
            "spec.containers[0].resources.requests[disk]: not a resource",
            "spec.containers[0].resources.limits[example.com/gpu]: required",
            "spec.containers[0].resources.limits[ephemeral-storage]: \"lots\" is not a quantity",
            "spec.containers[0].resources.limits[hugepages-2Mi]: -1 is negative",
        ],
    );
}

#[test]
fn volumes_and_mounts() {
    check(
        pod,
        &[
            (
                "spec.volumes",
                json!([
                    {"name": "a", "hostPath": {"path": "/a/../b"}}, {"name": "a", "emptyDir": {"medium": "Disk", "sizeLimit": "x"}},
                    {"name": "two", "emptyDir": {}, "hostPath": {"path": "/x", "type": "Pipe"}}, {"name": "B", "configMap": {}},
                    {"name": "s", "secret": {"secretName": "s", "defaultMode": 512, "items": [{"key": "k", "path": "../x"}]}},
                    {"name": "p", "projected": {"sources": [{}, {"secret": {"name": "s"}, "configMap": {"name": "m"}}]}},
                ]),
            ),
            (
                "spec.containers.0.volumeMounts",
                json!([
                    {"name": "a", "mountPath": "/x"}, {"name": "nope", "mountPath": "/x"}, {"name": "s"},
                    {"name": "s", "mountPath": "/a:b"}, {"name": "s", "mountPath": "/y", "subPath": "/abs", "mountPropagation": "Bidirectional"},
                ]),
            ),
        ],
        &[
            "spec.volumes[0].hostPath.path: \"/a/../b\" goes up",
            "spec.volumes[1].name: \"a\" is there twice",
            "spec.volumes[1].emptyDir.medium: \"Disk\" is not supported",
            "spec.volumes[1].emptyDir.sizeLimit: \"x\" is not a quantity",
            "spec.volumes[2]: has more than one source",
            "spec.volumes[2].hostPath.type: \"Pipe\" is not supported",
            "spec.volumes[3].name: \"B\" is not",
            "spec.volumes[3].configMap.name: required",
            "spec.volumes[4].secret.defaultMode: 512 is not a file mode",
            "spec.volumes[4].secret.items[0].path: \"../x\" is not",
            "spec.volumes[5].projected.sources[0]: says nothing",
            "spec.volumes[5].projected.sources[1]: says more than one thing",
            "spec.containers[0].volumeMounts[1].name: \"nope\" is not the name of a volume",
            "spec.containers[0].volumeMounts[1].mountPath: \"/x\" is there twice",
            "spec.containers[0].volumeMounts[2].mountPath: required",
            "spec.containers[0].volumeMounts[3].mountPath: \"/a:b\" has a ':'",
            "spec.containers[0].volumeMounts[4].subPath: \"/abs\" is not",
            "spec.containers[0].volumeMounts[4].mountPropagation: Bidirectional is for privileged",
        ],
    );
}

#[test]
fn mounts_that_are_read_only_with_all_below_and_images() {
    check(
        pod,
        &[
            (
                "spec.volumes",
                json!([{"name": "v", "emptyDir": {}}, {"name": "i", "image": {"pullPolicy": "Once"}}]),
            ),
            (
                "spec.containers.0.volumeMounts",
                json!([
                    {"name": "v", "mountPath": "/a", "recursiveReadOnly": "Enabled"},
                    {"name": "v", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "IfPossible", "mountPropagation": "HostToContainer"},
                    {"name": "v", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "Enabled"},
                    {"name": "v", "mountPath": "/d", "recursiveReadOnly": "Disabled"},
                ]),
            ),
        ],
        &[
            "spec.volumes[1].image.reference: required",
            "spec.volumes[1].image.pullPolicy: \"Once\" is not supported",
            "spec.containers[0].volumeMounts[0].recursiveReadOnly: only with readOnly",
            "spec.containers[0].volumeMounts[1].recursiveReadOnly: only with mountPropagation None",
        ],
    );
}

#[test]
fn names_and_rights_of_a_pod() {
    let long: Vec<String> = (0..33).map(|number| format!("a{number:0100}")).collect();
    check(
        pod,
        &[("spec.dnsConfig", json!({"searches": long}))],
        &["spec.dnsConfig.searches: has more than 32", "spec.dnsConfig.searches: has more than 2048"],
    );
    check(
        pod,
        &[("spec.dnsConfig", json!({"searches": ["a.b.", "_x.y", ".", "A"]}))],
        &["spec.dnsConfig.searches[3]: \"A\" is not"],
    );
    check(
        pod,
        &[
            ("spec.hostUsers", json!(false)),
            ("spec.hostPID", json!(true)),
            (
                "spec.securityContext",
                json!({
                    "supplementalGroups": [1, -1], "supplementalGroupsPolicy": "Some", "fsGroupChangePolicy": "Never",
                    "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}, {"name": "kernel/shm_rmid_forced", "value": "0"}, {"name": "a..b", "value": "1"}],
                    "appArmorProfile": {"type": "Localhost"},
                }),
            ),
        ],
        &[
            "spec.hostPID: and hostUsers: false exclude each other",
            "spec.securityContext.supplementalGroups[1]: -1 is not an id",
            "spec.securityContext.supplementalGroupsPolicy: \"Some\" is not supported",
            "spec.securityContext.fsGroupChangePolicy: \"Never\" is not supported",
            "spec.securityContext.sysctls[1].name: \"kernel/shm_rmid_forced\" is there twice",
            "spec.securityContext.sysctls[2].name: \"a..b\" is not the name of a sysctl",
            "spec.securityContext.appArmorProfile.localhostProfile: required with type Localhost",
        ],
    );
    check(
        pod,
        &[("spec.containers.0.securityContext", json!({"procMount": "Unmasked"}))],
        &["spec.containers[0].securityContext.procMount: Unmasked is for pods with hostUsers: false"],
    );
}

#[test]
fn probes_and_hooks() {
    check(
        pod,
        &[
            (
                "spec.containers.0.livenessProbe",
                json!({"exec": {}, "successThreshold": 2, "periodSeconds": -1}),
            ),
            (
                "spec.containers.0.readinessProbe",
                json!({"httpGet": {"port": "web", "scheme": "FTP"}, "tcpSocket": {"port": 0}, "successThreshold": 2}),
            ),
            ("spec.containers.0.startupProbe", json!({"grpc": {"port": 99999}})),
            (
                "spec.containers.0.lifecycle",
                json!({"preStop": {}, "postStart": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": "x"}]}}}),
            ),
            (
                "spec.initContainers",
                json!([{"name": "i", "image": "i:1", "livenessProbe": {"exec": {"command": ["x"]}}}]),
            ),
        ],
        &[
            "spec.containers[0].livenessProbe.exec.command: required",
            "spec.containers[0].livenessProbe.successThreshold: is 1",
            "spec.containers[0].livenessProbe.periodSeconds: -1 is less than 1",
            "spec.containers[0].readinessProbe: says more than one thing",
            "spec.containers[0].readinessProbe.httpGet.port: \"web\" is not the name of a port",
            "spec.containers[0].readinessProbe.httpGet.scheme: \"FTP\" is not supported",
            "spec.containers[0].readinessProbe.tcpSocket.port: 0 is not a port",
            "spec.containers[0].startupProbe.grpc.port: 99999 is not a port",
            "spec.containers[0].lifecycle.preStop: says nothing",
            "spec.containers[0].lifecycle.postStart.httpGet.httpHeaders[0].name: \"a b\" is not",
            "spec.initContainers[0].livenessProbe: an init container has none",
        ],
    );
}

#[test]
fn security_contexts() {
    check(
        pod,
        &[
            ("spec.securityContext", json!({"seccompProfile": {"type": "Localhost"}})),
            (
                "spec.containers.0.securityContext",
                json!({"privileged": true, "allowPrivilegeEscalation": false, "seccompProfile": {"type": "None"}}),
            ),
        ],
        &[
            "spec.securityContext.seccompProfile.localhostProfile: required",
            "spec.containers[0].securityContext.allowPrivilegeEscalation: false and privileged exclude",
            "spec.containers[0].securityContext.seccompProfile.type: \"None\" is not supported",
        ],
    );
}

#[test]
fn dns_and_host_aliases() {
    check(
        pod,
        &[
            ("spec.dnsPolicy", json!("None")),
            ("spec.hostAliases", json!([{"ip": "300.1.1.1", "hostnames": ["A B"]}])),
            ("spec.hostname", json!("a.b")),
        ],
        &[
            "spec.dnsConfig.nameservers: required",
            "spec.hostAliases[0].ip: \"300.1.1.1\" is not an IP address",
            "spec.hostAliases[0].hostnames[0]: \"A B\" is not",
            "spec.hostname: \"a.b\" is not a DNS label",
        ],
    );
}

#[test]
fn names_that_override_and_variables_from_files() {
    check(
        pod,
        &[("spec.hostnameOverride", json!("A_b")), ("spec.setHostnameAsFQDN", json!(true))],
        &[
            "spec.hostnameOverride: \"A_b\" is not",
            "spec.hostnameOverride: and setHostnameAsFQDN exclude each other",
        ],
    );
    check(pod, &[("spec.hostnameOverride", json!("db.example.com"))], &[]);
    let file = |volume: &str, path: &str, key: &str| json!({ "name": "A", "valueFrom": { "fileKeyRef": { "volumeName": volume, "path": path, "key": key } } });
    let volumes = json!([{ "name": "e", "emptyDir": {} }, { "name": "h", "hostPath": { "path": "/x" } }]);
    check(
        pod,
        &[
            ("spec.volumes", volumes),
            (
                "spec.containers.0.env",
                json!([file("e", "a/b", "K"), file("h", "../b", "K"), file("n", "", "="),]),
            ),
        ],
        &[
            "spec.containers[0].env[1].valueFrom.fileKeyRef.volumeName: \"h\" is not an emptyDir",
            "spec.containers[0].env[1].valueFrom.fileKeyRef.path: must not contain '..'",
            "spec.containers[0].env[2].valueFrom.fileKeyRef.key: \"=\" is not",
            "spec.containers[0].env[2].valueFrom.fileKeyRef.volumeName: no volume is named \"n\"",
            "spec.containers[0].env[2].valueFrom.fileKeyRef.path: required",
        ],
    );
}

#[test]
fn services() {
    check(service, &[("spec", json!({}))], &["spec.ports: required"]);
    check(service, &[("spec", json!({"clusterIP": "None"}))], &[]);
    check(service, &[("spec", json!({"type": "ExternalName"}))], &["spec.externalName: required"]);
    check(service, &[("spec.type", json!("External"))], &["spec.type: \"External\" is not supported"]);
    check(
        service,
        &[("spec.clusterIP", json!("10.0.0"))],
        &["spec.clusterIP: \"10.0.0\" is not an IP address"],
    );
    check(
        service,
        &[("spec.type", json!("NodePort")), ("spec.clusterIP", json!("None"))],
        &["spec.clusterIP: None is not for type NodePort"],
    );
    check(
        service,
        &[("spec.ports.0.nodePort", json!(30000))],
        &["spec.ports[0].nodePort: is not for type ClusterIP"],
    );
    check(
        service,
        &[
            ("spec.type", json!("NodePort")),
            (
                "spec.ports",
                json!([
                    {"port": 0}, {"name": "a", "port": 80, "targetPort": "Web"}, {"name": "a", "port": 80, "targetPort": 70000},
                    {"name": "b", "port": 81, "nodePort": 30000}, {"name": "c", "port": 82, "nodePort": 30000, "protocol": "ICMP"},
                    {"name": "d", "port": 83, "nodePort": 30000},
                ]),
            ),
            ("spec.selector", json!({"a b": "c"})),
            ("spec.sessionAffinity", json!("Cookie")),
        ],
        &[
            "spec.ports[0].name: required where there is more than one port",
            "spec.ports[0].port: 0 is not a port",
            "spec.ports[0].targetPort: 0 is not a port",
            "spec.ports[1].targetPort: \"Web\" is not a port name",
            "spec.ports[2].name: \"a\" is there twice",
            "spec.ports[2]: 80 TCP is there twice",
            "spec.ports[2].targetPort: 70000 is not a port",
            "spec.ports[4].protocol: \"ICMP\" is not supported",
            "spec.ports[5].nodePort: 30000 TCP is there twice",
            "spec.selector[a b]: \"a b\" is not a key",
            "spec.sessionAffinity: \"Cookie\" is not supported",
        ],
    );
}

#[test]
fn data_of_config_maps_and_secrets() {
    let map = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data});
    assert!(faults(map(json!({"a/b": "x"})))[0].starts_with("data[a/b]: \"a/b\" is not a key"));
    assert_eq!(faults(map(json!({"a": "x".repeat(1 << 20)}))), Vec::<String>::new());
    assert!(
        faults(map(json!({"a": "x".repeat(1 << 20), "b": "x"})))[0].starts_with("data: 1048577 bytes in all")
    );
    let mut both = map(json!({"a": "x"}));
    both["binaryData"] = json!({"a": "eA=="});
    assert_eq!(faults(both), ["binaryData[a]: is also in data"]);
}

#[test]
fn a_field_that_could_not_be_read_is_not_also_missing() {
    check(
        pod,
        &[
            ("metadata.name", json!(5)),
            ("spec.containers.0.image", json!(7)),
            ("spec.containers.0.volumeMounts", json!("x")),
        ],
        &[
            "metadata.name: expected a string",
            "spec.containers[0].image: expected a string",
            "spec.containers[0].volumeMounts: expected a list",
        ],
    );
}

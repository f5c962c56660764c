//! KubeletConfigurations as people and kubeadm write them.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use kubelet::ImageGcPolicy;

use super::*;

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

/// What kubeadm 1.36 writes into the ConfigMap kubelet-config.
const KUBEADM: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
  webhook:
    cacheTTL: 0s
    enabled: true
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
authorization:
  mode: Webhook
  webhook:
    cacheAuthorizedTTL: 0s
    cacheUnauthorizedTTL: 0s
cgroupDriver: systemd
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local
containerRuntimeEndpoint: \"\"
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
kind: KubeletConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
    text:
      infoBufferSize: \"0\"
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
";

fn with(keys: &str) -> Result<KubeletConfig, String> {
    kubelet_text(&format!("{HEAD}{keys}"))
}

#[test]
fn kubeadms_file_is_taken_as_it_is() {
    let config = kubelet_text(KUBEADM).expect("kubeadm's file");
    let names: Vec<&str> = config.ignored.iter().map(|(key, _)| *key).collect();
    assert_eq!(names, ["cgroupDriver"]);
    let expect = Settings {
        cluster_dns: vec!["10.96.0.10".parse().unwrap()],
        cluster_domain: Some("cluster.local".to_owned()),
        static_pod_path: Some(PathBuf::from("/etc/kubernetes/manifests")),
        authentication: Authentication {
            anonymous: false,
            webhook: Some(Duration::from_secs(120)),
            client_ca_file: Some(PathBuf::from("/etc/kubernetes/pki/ca.crt")),
        },
        certificates: Certificates { rotate_client: true, request_serving: false },
        ..Settings::default()
    };
    assert_eq!(config.settings, expect);
}

#[test]
fn defaults_are_upstreams() {
    let settings = Settings::default();
    let server = settings.server.as_ref().expect("a server");
    assert_eq!(server.address, "0.0.0.0:10250".parse().unwrap());
    assert_eq!(settings.healthz, Some("127.0.0.1:10248".parse().unwrap()));
    assert_eq!(settings.status.report_frequency, Duration::from_secs(300));
    assert_eq!((settings.status.lease_duration_seconds, settings.status.max_images), (40, Some(50)));
    assert_eq!((settings.capacity.max_pods, settings.capacity.pod_pids_limit), (110, None));
    assert!(settings.capacity.enforce_pods && settings.registration.register && settings.fail_swap_on);
    let memory = manifest::quantity::parse("100Mi").unwrap();
    assert_eq!(settings.eviction.memory(), Some(Threshold::Amount(memory)));
    assert_eq!(settings.image_gc, ImageGcPolicy::default());
}

#[test]
fn values_are_typed() {
    let settings = with(
        "nodeStatusUpdateFrequency: 20s\nmaxPods: 50\npodPidsLimit: 1024\nkubeReserved: {cpu: 200m, memory: 1Gi}\n\
         healthzPort: 0\nnodeStatusMaxImages: -1\nregisterWithTaints: [{key: a, effect: NoSchedule}]\n\
         evictionHard: {memory.available: 5%}\nenforceNodeAllocatable: [none]\nserverTLSBootstrap: true\n\
         tlsMinVersion: VersionTLS13\nseccompDefault: true\nimageMaximumGCAge: 1h30m\nallowedUnsafeSysctls: [net.core.*]\n",
    )
    .expect("a good file")
    .settings;
    assert_eq!(settings.status.report_frequency, Duration::from_secs(20), "as the update's");
    assert_eq!((settings.capacity.max_pods, settings.capacity.pod_pids_limit), (50, Some(1024)));
    assert_eq!(settings.capacity.kube_reserved["cpu"].milli(), 200);
    assert_eq!((settings.healthz, settings.status.max_images), (None, None));
    assert_eq!(settings.registration.taints[0].key, "a");
    assert_eq!(settings.eviction.memory(), Some(Threshold::Share(0.05)));
    assert!(settings.seccomp_default && !Settings::default().seccomp_default);
    assert!(!settings.capacity.enforce_pods && settings.certificates.request_serving);
    assert_eq!(settings.server.expect("a server").tls_min_version, TlsVersion::V13);
    assert_eq!(settings.image_gc.maximum_age, Some(Duration::from_secs(5400)));
}

#[test]
fn cgroups_are_held_to_what_is_reserved_for_them() {
    let capacity = with(
        "systemReserved: {cpu: 500m, memory: 1Gi}\nkubeReserved: {cpu: 200m, memory: 1Gi}\n\
         systemReservedCgroup: /system.slice/\nkubeReservedCgroup: /kube.slice\n\
         enforceNodeAllocatable: [system-reserved, kube-reserved-compressible]\n",
    )
    .expect("a good file")
    .settings
    .capacity;
    let told = capacity.held_cgroups.iter().map(|held| {
        let resources: Vec<&str> = held.amounts.keys().map(String::as_str).collect();
        format!("{} {} {}", held.key, held.path, resources.join(","))
    });
    let told: Vec<String> = told.collect();
    assert_eq!(told, ["systemReserved /system.slice cpu,memory", "kubeReserved /kube.slice cpu"]);
    assert!(!capacity.enforce_pods);
}

#[test]
fn the_node_is_told() {
    let config = with("podCIDR: 10.9.0.0/16\npodLogsDir: /logs\ncgroupDriver: cgroupfs\n").unwrap();
    let mut node = Node::resolve(&config.complete(&NodeArgs::default()), "box").unwrap();
    config.apply(&mut node);
    assert_eq!(node.pod_cidrs, ["10.9.0.0/16".parse::<IpNet>().unwrap()]);
    assert_eq!(node.pod_logs_dir, Path::new("/logs"));
}

#[test]
fn what_is_not_done_is_ignored_or_refused_by_name() {
    for (text, ignored) in [
        ("cpuManagerPolicy: static\n", vec!["cpuManagerPolicy"]),
        ("cpuManagerPolicy: none\nreadOnlyPort: 0\nprotectKernelDefaults: true\n", vec![]),
        ("readOnlyPort: 10255\n", vec!["readOnlyPort"]),
        ("shutdownGracePeriod: 30s\n", vec!["shutdownGracePeriod"]),
        (
            "evictionHard: {nodefs.available: 0%, imagefs.available: 0%}\nimageGCHighThresholdPercent: 100\n",
            vec![],
        ),
        ("evictionHard: {nodefs.available: 5%}\n", vec!["evictionHard"]),
        ("memorySwap: {swapBehavior: LimitedSwap}\n", vec!["memorySwap"]),
        ("featureGates: {InPlacePodVerticalScaling: true}\n", vec!["featureGates"]),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 5m0s}\n", vec![]),
        ("clusterDNS: null\nlogging: {format: text}\n", vec![]),
    ] {
        let config = with(text).expect(text);
        let names: Vec<&str> = config.ignored.iter().map(|(key, _)| *key).collect();
        assert_eq!(names, ignored, "{text}");
    }
    for (text, expect) in [
        ("staticPodURL: http://x\n", "staticPodURL"),
        ("cgroupsPerQOS: false\n", "cgroupsPerQOS"),
        ("runOnce: true\n", "runOnce"),
    ] {
        let message = with(text).expect_err(text);
        assert!(message.contains(expect), "{message}");
    }
}

#[test]
fn what_only_a_cluster_has_is_named_for_a_node_of_its_own() {
    for (text, expect) in [
        ("maxPods: 5\nevictionHard: {memory.available: 1Gi}\nallowedUnsafeSysctls: [net.core.*]\n", vec![]),
        ("authorization: {mode: \"\"}\nhealthzPort: 0\n", vec![]),
        (
            "port: 10250\nstaticPodPath: /m\nregisterNode: true\n",
            vec!["staticPodPath", "port", "registerNode"],
        ),
    ] {
        let names: Vec<&str> = with(text).expect(text).of_clusters.iter().map(|(key, _)| *key).collect();
        assert_eq!(names, expect, "{text}");
    }
}

#[test]
fn mistakes_are_refused_by_name_and_all_at_once() {
    for (text, expect) in [
        (
            "imageServiceEndpoint: unix:///run/images.sock\n",
            "imageServiceEndpoint \"unix:///run/images.sock\" is not containerRuntimeEndpoint",
        ),
        ("containerRuntimeEndpont: x\n", "unknown field `containerRuntimeEndpont`"),
        ("authentication: {x509: {caFile: x}}\n", "caFile"),
        ("cgroupDriver: cgmanager\n", "none of cgroupfs and systemd"),
        ("podCIDR: x\n", "podCIDR"),
        ("imageGCLowThresholdPercent: 85\n", "must be less"),
        ("imageGCHighThresholdPercent: 101\n", "between 0 and 100"),
        ("imageMaximumGCAge: 1m\n", "must be greater"),
        ("imageMinimumGCAge: 2 minutes\n", "duration"),
        ("containerLogMaxSize: big\n", "10Mi"),
        ("containerLogMaxFiles: 1\n", "greater than 1"),
        ("containerLogMonitorInterval: 1s\n", "3 seconds"),
        ("clusterDNS: [dns]\n", "\"dns\" is not an IP address"),
        ("authorization: {mode: RBAC}\n", "AlwaysAllow and Webhook"),
        ("tlsCertFile: /a\n", "together"),
        ("kubeReserved: {cpu: 1}\n", "kubeReserved: invalid type"),
        ("kubeReserved: {cpu: lots}\n", "kubeReserved.cpu"),
        ("kubeReserved: {cpu: lots, gpu: \"1\"}\n", "\"gpu\" cannot be reserved"),
        ("enforceNodeAllocatable: [system]\n", "\"system\" is none of pods, system-reserved"),
        ("enforceNodeAllocatable: [pods-compressible]\n", "\"pods-compressible\" is none of"),
        ("enforceNodeAllocatable: [none, pods]\n", "none stands alone"),
        ("enforceNodeAllocatable: [system-reserved]\n", "system-reserved needs systemReservedCgroup, a path"),
        (
            "enforceNodeAllocatable: [kube-reserved]\nkubeReservedCgroup: /k\n",
            "kube-reserved needs kubeReserved",
        ),
        (
            "enforceNodeAllocatable: [kube-reserved, kube-reserved-compressible]\nkubeReservedCgroup: /k\n",
            "kube-reserved is named twice",
        ),
        ("registerWithTaints: [{key: a, effect: Never}]\n", "a:Never"),
        ("staticPodPath: manifests\n", "absolute"),
    ] {
        let message = with(text).expect_err(text);
        assert!(message.contains(expect), "{message}");
    }
    let all = with("cgroupDriver: x\nclusterDNS: [y]\nrunOnce: true\n").expect_err("three mistakes");
    assert!(["cgroupDriver", "clusterDNS", "runOnce"].iter().all(|key| all.contains(key)), "{all}");
    let other = kubelet_text("apiVersion: v1\nkind: Pod\n").expect_err("a pod");
    assert!(other.contains("is no kubelet.config"), "{other}");
}

#[test]
fn a_wrong_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubelet.yaml");
    std::fs::write(&path, "kind: Pod\n").unwrap();
    let message = kubelet(Some(&path), &KubeletFlags::default()).expect_err("a pod").to_string();
    assert!(message.contains(&path.display().to_string()), "{message}");
}

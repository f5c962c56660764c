//! A KubeletConfiguration with upstream's defaults and types: what the agent is made from. Reading it is pure, and
//! finds every mistake. Upstream: pkg/kubelet/apis/config, v1beta1/defaults.go and validation.go.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use kubelet::{ImageGcPolicy, LogRotationPolicy};
use manifest::quantity::Amount;

use super::eviction::{self, Threshold};
use super::file::{Authentication as AuthenticationKeys, Authorization as AuthorizationKeys, File};
use crate::config::GoDuration;

const MINUTE: Duration = Duration::from_secs(60);

/// How a node behaves.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// The kubelet's API on port 10250; nothing when it is not to be served.
    pub(crate) server: Option<Server>,
    /// `GET /healthz` on a port of its own.
    pub(crate) healthz: Option<SocketAddr>,
    /// Who calls.
    pub(crate) authentication: Authentication,
    /// What they may.
    pub(crate) authorization: Authorization,
    /// The node's own certificates.
    pub(crate) certificates: Certificates,
    /// `clusterDNS` and `clusterDomain`.
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// The domain of Services.
    pub(crate) cluster_domain: Option<String>,
    /// What pods' resolv.conf is made of, if it is not the machine's.
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Manifests beside the API's pods.
    pub(crate) static_pod_path: Option<PathBuf>,
    /// Logs of pods.
    pub(crate) pod_logs_dir: Option<PathBuf>,
    /// How the Node object is made.
    pub(crate) registration: Registration,
    /// How the Node object is kept.
    pub(crate) status: Status,
    /// How many pods.
    pub(crate) capacity: Capacity,
    /// When pods are evicted.
    pub(crate) eviction: Eviction,
    /// When images are removed.
    pub(crate) image_gc: ImageGcPolicy,
    /// When logs of containers are rotated.
    pub(crate) log_rotation: LogRotationPolicy,
    /// The runtime, if it is not our own.
    pub(crate) container_runtime_endpoint: Option<String>,
    /// The cgroup below which `kubepods` lies.
    pub(crate) cgroup_root: Option<String>,
    /// The pods' range where nobody else says it.
    pub(crate) pod_cidr: Option<String>,
    /// Sysctls, or prefixes that end in `*`, that pods may set though they are not known to be safe.
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// Whether containers that name no seccomp profile have the runtime's.
    pub(crate) seccomp_default: bool,
    /// Whether the node may not start on a machine that swaps.
    pub(crate) fail_swap_on: bool,
    /// Whether the node may not start on cgroup v1.
    pub(crate) fail_cgroup_v1: bool,
}

/// `port`, `address`, `tls…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// A certificate and its key that an admin gave.
    pub(crate) tls_files: Option<(PathBuf, PathBuf)>,
    /// The oldest version that is spoken.
    pub(crate) tls_min_version: TlsVersion,
    /// Names of cipher suites of TLS 1.2, as Go and the RFCs write them; all when empty.
    pub(crate) tls_cipher_suites: Vec<String>,
    /// Whether logs, exec, attach and port-forward are served.
    pub(crate) debugging_handlers: bool,
    /// `enableSystemLogHandler`: whether the machine's logs are shown.
    pub(crate) system_logs: bool,
}

/// Older ones are never spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsVersion {
    /// 1.2.
    V12,
    /// 1.3.
    V13,
}

/// `authentication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authentication {
    /// Who shows nothing is `system:anonymous`.
    pub(crate) anonymous: bool,
    /// Bearer tokens are shown to the API server; how long an answer holds.
    pub(crate) webhook: Option<Duration>,
    /// Client certificates are of this authority.
    pub(crate) client_ca_file: Option<PathBuf>,
}

/// `authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Authorization {
    /// Whoever was authenticated may do everything.
    AlwaysAllow,
    /// The API server is asked.
    Webhook {
        /// How long a yes holds.
        authorized_ttl: Duration,
        /// How long a no holds.
        unauthorized_ttl: Duration,
    },
}

/// `rotateCertificates`, `serverTLSBootstrap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Certificates {
    /// The client certificate is renewed before it expires.
    pub(crate) rotate_client: bool,
    /// The serving certificate is asked of the cluster.
    pub(crate) request_serving: bool,
}

/// `registerNode` and what the Node starts with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Registration {
    /// Whether the Node object is made by us.
    pub(crate) register: bool,
    /// Its first taints.
    pub(crate) taints: Vec<v1::Taint>,
    /// `spec.providerID`.
    pub(crate) provider_id: Option<String>,
}

/// `nodeStatus…`, `nodeLeaseDurationSeconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// How often it is computed.
    pub(crate) update_frequency: Duration,
    /// How often it is sent when nothing changed.
    pub(crate) report_frequency: Duration,
    /// The lease is renewed four times in it.
    pub(crate) lease_duration_seconds: u32,
    /// How many images it names; all of them without a number.
    pub(crate) max_images: Option<u32>,
}

/// `maxPods`, `podPidsLimit`, `…Reserved`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Capacity {
    /// Pods on the node.
    pub(crate) max_pods: u32,
    /// And no more than this for each core.
    pub(crate) pods_per_core: Option<u32>,
    /// Processes in a pod.
    pub(crate) pod_pids_limit: Option<i64>,
    /// `kubeReserved`, by resource.
    pub(crate) kube_reserved: BTreeMap<String, Amount>,
    /// `systemReserved`, by resource.
    pub(crate) system_reserved: BTreeMap<String, Amount>,
    /// Whether all pods together are held to what is allocatable.
    pub(crate) enforce_pods: bool,
    /// Cgroups that are held to what is reserved for them.
    pub(crate) held_cgroups: Vec<HeldCgroup>,
}

/// A cgroup of the machine that is held to what is reserved for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeldCgroup {
    /// The key that names it.
    pub(crate) key: &'static str,
    /// Its path.
    pub(crate) path: String,
    /// By resource.
    pub(crate) amounts: BTreeMap<String, Amount>,
}

/// `eviction…`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Eviction {
    /// By signal.
    pub(crate) hard: BTreeMap<String, Threshold>,
    /// How long pressure is told after it is over.
    pub(crate) pressure_transition_period: Duration,
}

impl Eviction {
    /// `memory.available`: the only signal that is acted upon.
    pub(crate) fn memory(&self) -> Option<Threshold> {
        self.hard.get(eviction::MEMORY).copied()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::read(File::default(), &mut Vec::new())
    }
}

impl Settings {
    /// Reads the file; what is wrong is added to `faults`.
    pub(super) fn read(file: File, faults: &mut Vec<String>) -> Self {
        Self {
            server: file.enable_server.unwrap_or(true).then(|| server(&file, faults)),
            healthz: healthz(&file, faults),
            authentication: authentication(&file.authentication),
            authorization: authorization(&file.authorization, faults),
            certificates: Certificates {
                rotate_client: file.rotate_certificates,
                request_serving: file.server_tls_bootstrap,
            },
            cluster_dns: file.cluster_dns.iter().filter_map(|ip| address("clusterDNS", ip, faults)).collect(),
            cluster_domain: text(&file.cluster_domain),
            resolv_conf: file.resolv_conf.clone().map(PathBuf::from),
            static_pod_path: path("staticPodPath", &file.static_pod_path, faults),
            pod_logs_dir: path("podLogsDir", &file.pod_logs_dir, faults),
            status: status(&file),
            capacity: capacity(&file, faults),
            eviction: Eviction {
                hard: eviction::hard(&file.eviction_hard, file.merge_default_eviction_settings, faults),
                pressure_transition_period: file.eviction_pressure_transition_period.or(5 * MINUTE),
            },
            image_gc: image_gc(&file, faults),
            log_rotation: log_rotation(&file, faults),
            container_runtime_endpoint: text(&file.container_runtime_endpoint),
            cgroup_root: text(&file.cgroup_root),
            pod_cidr: text(&file.pod_cidr),
            allowed_unsafe_sysctls: file.allowed_unsafe_sysctls,
            seccomp_default: file.seccomp_default,
            fail_swap_on: file.fail_swap_on.unwrap_or(true),
            fail_cgroup_v1: file.fail_cgroup_v1,
            registration: Registration {
                register: file.register_node.unwrap_or(true),
                taints: taints(file.register_with_taints, faults),
                provider_id: text(&file.provider_id),
            },
        }
    }
}

fn text(given: &str) -> Option<String> {
    (!given.is_empty()).then(|| given.to_owned())
}

fn path(key: &str, given: &str, faults: &mut Vec<String>) -> Option<PathBuf> {
    if !given.is_empty() && !given.starts_with('/') {
        faults.push(format!("{key}: {given:?} is not an absolute path"));
    }
    text(given).map(PathBuf::from)
}

fn address(key: &str, given: &str, faults: &mut Vec<String>) -> Option<IpAddr> {
    let parsed = given.parse().ok();
    if parsed.is_none() {
        faults.push(format!("{key}: {given:?} is not an IP address"));
    }
    parsed
}

fn or_default(key: &str, given: &str, default: Ipv4Addr, faults: &mut Vec<String>) -> IpAddr {
    let parsed = (!given.is_empty()).then(|| address(key, given, faults)).flatten();
    parsed.unwrap_or(IpAddr::V4(default))
}

fn server(file: &File, faults: &mut Vec<String>) -> Server {
    let port = if file.port == 0 { 10250 } else { file.port };
    let certificate = path("tlsCertFile", &file.tls_cert_file, faults);
    let key = path("tlsPrivateKeyFile", &file.tls_private_key_file, faults);
    if certificate.is_some() != key.is_some() {
        faults.push("tlsCertFile and tlsPrivateKeyFile must be given together".to_owned());
    }
    Server {
        address: SocketAddr::new(or_default("address", &file.address, Ipv4Addr::UNSPECIFIED, faults), port),
        tls_files: certificate.zip(key),
        tls_min_version: tls_version(&file.tls_min_version, faults),
        tls_cipher_suites: file.tls_cipher_suites.clone(),
        debugging_handlers: file.enable_debugging_handlers.unwrap_or(true),
        system_logs: file.enable_system_log_handler.unwrap_or(true),
    }
}

/// Asking for less than 1.2 gets 1.2.
fn tls_version(given: &str, faults: &mut Vec<String>) -> TlsVersion {
    match given {
        "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => TlsVersion::V12,
        "VersionTLS13" => TlsVersion::V13,
        other => {
            faults.push(format!("tlsMinVersion: {other:?} is none of VersionTLS12 and VersionTLS13"));
            TlsVersion::V13
        }
    }
}

fn healthz(file: &File, faults: &mut Vec<String>) -> Option<SocketAddr> {
    let ip = or_default("healthzBindAddress", &file.healthz_bind_address, Ipv4Addr::LOCALHOST, faults);
    let port = file.healthz_port.unwrap_or(10248);
    (port != 0).then(|| SocketAddr::new(ip, port))
}

fn authentication(keys: &AuthenticationKeys) -> Authentication {
    let webhook = keys.webhook.enabled.unwrap_or(true);
    Authentication {
        anonymous: keys.anonymous.enabled,
        webhook: webhook.then(|| keys.webhook.cache_ttl.or(2 * MINUTE)),
        client_ca_file: text(&keys.x509.client_ca_file).map(PathBuf::from),
    }
}

fn authorization(keys: &AuthorizationKeys, faults: &mut Vec<String>) -> Authorization {
    match keys.mode.as_str() {
        "AlwaysAllow" => return Authorization::AlwaysAllow,
        "" | "Webhook" => {}
        other => faults.push(format!("authorization.mode: {other:?} is none of AlwaysAllow and Webhook")),
    }
    Authorization::Webhook {
        authorized_ttl: keys.webhook.cache_authorized_ttl.or(5 * MINUTE),
        unauthorized_ttl: keys.webhook.cache_unauthorized_ttl.or(MINUTE / 2),
    }
}

fn status(file: &File) -> Status {
    let update = file.node_status_update_frequency;
    // Upstream: who says how often it is computed means how often it is sent, too.
    let report = if update == GoDuration::default() { 5 * MINUTE } else { update.0 };
    Status {
        update_frequency: update.or(MINUTE / 6),
        report_frequency: file.node_status_report_frequency.or(report),
        lease_duration_seconds: match file.node_lease_duration_seconds {
            0 => 40,
            seconds => seconds,
        },
        max_images: u32::try_from(file.node_status_max_images.unwrap_or(50)).ok(),
    }
}

/// What of a reservation is enforced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it.
    Everything,
    /// What a process waits for without harm: CPU time.
    Compressible,
}

fn capacity(file: &File, faults: &mut Vec<String>) -> Capacity {
    let kube_reserved = amounts("kubeReserved", &file.kube_reserved, faults);
    let system_reserved = amounts("systemReserved", &file.system_reserved, faults);
    let mut enforce_pods = file.enforce_node_allocatable.is_none();
    let mut held_cgroups: Vec<HeldCgroup> = Vec::new();
    let all = file.enforce_node_allocatable.as_deref().unwrap_or_default();
    if all.len() > 1 && all.iter().any(|what| what == "none") {
        faults.push("enforceNodeAllocatable: none stands alone".to_owned());
    }
    for what in all {
        let (of, part) = match what.strip_suffix("-compressible") {
            Some(of) => (of, Part::Compressible),
            None => (what.as_str(), Part::Everything),
        };
        let (key, path, reserved) = match (of, part) {
            ("pods", Part::Everything) => {
                enforce_pods = true;
                continue;
            }
            ("none" | "", Part::Everything) => continue,
            ("system-reserved", _) => ("systemReserved", &file.system_reserved_cgroup, &system_reserved),
            ("kube-reserved", _) => ("kubeReserved", &file.kube_reserved_cgroup, &kube_reserved),
            _ => {
                let known =
                    "pods, system-reserved, kube-reserved, the latter two with -compressible, and none";
                faults.push(format!("enforceNodeAllocatable: {what:?} is none of {known}"));
                continue;
            }
        };
        if held_cgroups.iter().any(|held| held.key == key) {
            faults.push(format!("enforceNodeAllocatable: {of} is named twice"));
        }
        if !path.starts_with('/') || path.trim_matches('/').is_empty() {
            faults.push(format!(
                "enforceNodeAllocatable: {what} needs {key}Cgroup, a path such as /system.slice"
            ));
        }
        let mut amounts = reserved.clone();
        amounts.retain(|resource, _| part == Part::Everything || resource == "cpu");
        if amounts.is_empty() {
            faults.push(format!("enforceNodeAllocatable: {what} needs {key}"));
        }
        held_cgroups.push(HeldCgroup { key, path: path.trim_end_matches('/').to_owned(), amounts });
    }
    Capacity {
        max_pods: if file.max_pods == 0 { 110 } else { file.max_pods },
        pods_per_core: (file.pods_per_core > 0).then_some(file.pods_per_core),
        pod_pids_limit: file.pod_pids_limit.filter(|limit| *limit > 0),
        kube_reserved,
        system_reserved,
        enforce_pods,
        held_cgroups,
    }
}

/// Upstream: cmd/kubelet/app/server.go, parseResourceList.
fn amounts(
    key: &str,
    given: &BTreeMap<String, String>,
    faults: &mut Vec<String>,
) -> BTreeMap<String, Amount> {
    let mut amounts = BTreeMap::new();
    for (resource, text) in given {
        let known = ["cpu", "memory", "ephemeral-storage", "pid"].contains(&resource.as_str());
        match manifest::quantity::parse(text) {
            _ if !known => faults.push(format!("{key}: {resource:?} cannot be reserved")),
            Ok(amount) if amount.is_negative() => {
                faults.push(format!("{key}.{resource}: {text:?} must not be negative"));
            }
            Ok(amount) => drop(amounts.insert(resource.clone(), amount)),
            Err(error) => faults.push(format!("{key}.{resource}: {text:?} {error}")),
        }
    }
    amounts
}

fn taints(given: Vec<v1::Taint>, faults: &mut Vec<String>) -> Vec<v1::Taint> {
    for taint in &given {
        let effect = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&taint.effect.as_str());
        if taint.key.is_empty() || !effect || taint.time_added.is_some() {
            faults.push(format!("registerWithTaints: {}:{} is not a taint", taint.key, taint.effect));
        }
    }
    given
}

fn image_gc(file: &File, faults: &mut Vec<String>) -> ImageGcPolicy {
    let default = ImageGcPolicy::default();
    let policy = ImageGcPolicy {
        high_threshold_percent: file
            .image_gc_high_threshold_percent
            .unwrap_or(default.high_threshold_percent),
        low_threshold_percent: file.image_gc_low_threshold_percent.unwrap_or(default.low_threshold_percent),
        minimum_age: file.image_minimum_gc_age.or(default.minimum_age),
        maximum_age: Some(file.image_maximum_gc_age.0).filter(|age| !age.is_zero()),
    };
    let (high, low) = (policy.high_threshold_percent, policy.low_threshold_percent);
    if high > 100 || low > 100 {
        faults.push(
            "imageGCHighThresholdPercent and imageGCLowThresholdPercent are between 0 and 100".to_owned(),
        );
    }
    if low >= high {
        faults.push("imageGCLowThresholdPercent must be less than imageGCHighThresholdPercent".to_owned());
    }
    if policy.maximum_age.is_some_and(|age| age <= policy.minimum_age) {
        faults.push("imageMaximumGCAge must be greater than imageMinimumGCAge".to_owned());
    }
    policy
}

fn log_rotation(file: &File, faults: &mut Vec<String>) -> LogRotationPolicy {
    let mut policy = LogRotationPolicy::default();
    if let Some(text) = text(&file.container_log_max_size) {
        let amount =
            manifest::quantity::parse(&text).ok().and_then(|amount| u64::try_from(amount.ceil()).ok());
        match amount.filter(|size| *size > 0) {
            Some(size) => policy.max_size = size,
            None => faults.push(format!("containerLogMaxSize {text:?} is not a size such as 10Mi")),
        }
    }
    policy.max_files = file.container_log_max_files.unwrap_or(policy.max_files);
    if policy.max_files < 2 {
        faults.push("containerLogMaxFiles must be greater than 1".to_owned());
    }
    policy.interval = file.container_log_monitor_interval.map_or(policy.interval, |interval| interval.0);
    if policy.interval < Duration::from_secs(3) {
        faults.push("containerLogMonitorInterval must be at least 3 seconds".to_owned());
    }
    policy
}

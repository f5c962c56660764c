//! The keys of a KubeletConfiguration that ask for what is not done. Each is taken where its value asks for nothing,
//! as kubeadm writes most of them; else it is ignored with a warning, or refused where pods would be less isolated or
//! would not run at all. A cluster has one such file for all its nodes, so a refusal means that this node cannot join.

use serde_json::{Map, Value};

/// What becomes of a key whose value asks for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    Ignored,
    Refused,
}

use Reaction::{Ignored, Refused};

/// One key: the values beside zero that ask for nothing, in JSON; what happens otherwise, and why.
struct Key(&'static str, &'static [&'static str], Reaction, &'static str);

/// Where zero is no neutral value, because upstream's default is `true`.
const TRUE: &[&str] = &["true"];
const ANY: &[&str] = &["*"];

const INOTIFY: &str = "changes of files are seen at once";
const QUIET: &str = "there is no such limit";
const HANDLERS: &str = "there is no such handler";
const MANAGER: &str = "there are no CPU, memory and topology managers; containers run on every CPU";
const SIGNALS: &str = "only evictionHard's memory.available is acted upon";
const LOGS: &str = "logs are as -v and --log-level say";
const SHUTDOWN: &str = "a shutdown of the machine is not waited for";
const RUNTIME_KNOWS: &str = "it is the runtime's matter";

const KEYS: &[Key] = &[
    Key("syncFrequency", ANY, Ignored, INOTIFY),
    Key("fileCheckFrequency", ANY, Ignored, INOTIFY),
    Key("httpCheckFrequency", ANY, Ignored, "there is no manifest URL"),
    Key("staticPodURL", &[], Refused, "static pods come from staticPodPath only"),
    Key("staticPodURLHeader", &[], Ignored, "there is no manifest URL"),
    Key("readOnlyPort", &[], Ignored, "there is no port without authentication"),
    Key("tlsCurvePreferences", &[], Refused, "TLS offers X25519, P-256 and P-384"),
    Key("registryPullQPS", &["5"], Ignored, QUIET),
    Key("registryBurst", &["10"], Ignored, QUIET),
    Key(
        "imagePullCredentialsVerificationPolicy",
        &["\"NeverVerify\"", "\"NeverVerifyPreloadedImages\""],
        Refused,
        "who may use an image that is there is not verified",
    ),
    Key(
        "preloadedImagesVerificationAllowlist",
        &[],
        Refused,
        "who may use an image that is there is not verified",
    ),
    Key("eventRecordQPS", &["50"], Ignored, QUIET),
    Key("eventBurst", &["100"], Ignored, QUIET),
    Key("enableContentionProfiling", &[], Ignored, HANDLERS),
    Key("enableProfilingHandler", ANY, Ignored, HANDLERS),
    Key("enableDebugFlagsHandler", ANY, Ignored, HANDLERS),
    Key("enableSystemLogQuery", &[], Ignored, HANDLERS),
    Key(
        "streamingConnectionIdleTimeout",
        &["\"4h0m0s\"", "\"4h\""],
        Ignored,
        "a session ends when its client does not answer, not when it is quiet",
    ),
    Key("oomScoreAdj", &["-999"], Ignored, "the unit says it"),
    Key("volumeStatsAggPeriod", ANY, Ignored, "volumes are measured when asked"),
    Key("kubeletCgroups", &[], Ignored, "processes are not moved"),
    Key("systemCgroups", &[], Ignored, "processes are not moved"),
    Key("cgroupsPerQOS", TRUE, Refused, "pods have cgroups by their class"),
    Key("cpuManagerPolicy", &["\"none\""], Ignored, MANAGER),
    Key("cpuManagerPolicyOptions", &[], Ignored, MANAGER),
    Key("cpuManagerReconcilePeriod", ANY, Ignored, MANAGER),
    Key("memoryManagerPolicy", &["\"None\""], Ignored, MANAGER),
    Key("topologyManagerPolicy", &["\"none\""], Ignored, MANAGER),
    Key("topologyManagerScope", ANY, Ignored, MANAGER),
    Key("topologyManagerPolicyOptions", &[], Ignored, MANAGER),
    Key("reservedMemory", &[], Ignored, MANAGER),
    Key("reservedSystemCPUs", &[], Ignored, MANAGER),
    Key("singleProcessOOMKill", &[], Ignored, "a container is killed as a whole where the kernel can"),
    Key("qosReserved", &[], Ignored, "requests of a class are not reserved"),
    Key("runtimeRequestTimeout", ANY, Ignored, "each request has a deadline of its own"),
    Key("hairpinMode", ANY, Ignored, "it is the network plugin's matter"),
    Key("runOnce", &[], Refused, "the kubelet has no such mode any more"),
    Key("cpuCFSQuota", TRUE, Ignored, "CPU limits are enforced"),
    Key("cpuCFSQuotaPeriod", &["\"100ms\"", "\"0s\""], Ignored, "the period is 100ms"),
    Key("maxOpenFiles", ANY, Ignored, "the unit says it"),
    Key("contentType", ANY, Ignored, "the API is spoken to in JSON"),
    Key("kubeAPIQPS", &["50"], Ignored, QUIET),
    Key("kubeAPIBurst", &["100"], Ignored, QUIET),
    Key("serializeImagePulls", ANY, Ignored, RUNTIME_KNOWS),
    Key("maxParallelImagePulls", &[], Ignored, RUNTIME_KNOWS),
    Key("evictionSoft", &[], Ignored, SIGNALS),
    Key("evictionSoftGracePeriod", &[], Ignored, SIGNALS),
    Key("evictionMaxPodGracePeriod", &[], Ignored, SIGNALS),
    Key("evictionMinimumReclaim", &[], Ignored, SIGNALS),
    Key("enableControllerAttachDetach", TRUE, Refused, "volumes are attached by the controller"),
    Key("protectKernelDefaults", ANY, Ignored, "the kernel's settings are never changed"),
    Key("makeIPTablesUtilChains", ANY, Ignored, "the proxy makes the chains that it needs"),
    Key("iptablesMasqueradeBit", &["14"], Ignored, "the mark is 0x4000"),
    Key("iptablesDropBit", ANY, Ignored, "the kubelet drops nothing by mark any more"),
    Key("memorySwap", &["{\"swapBehavior\":\"NoSwap\"}"], Ignored, "pods are given no swap"),
    Key("containerLogMaxWorkers", &["1"], Ignored, "one worker rotates logs"),
    Key("configMapAndSecretChangeDetectionStrategy", ANY, Ignored, "changes are watched"),
    Key("showHiddenMetricsForVersion", &[], Ignored, "there are no hidden metrics"),
    Key("volumePluginDir", ANY, Ignored, "there are no FlexVolumes"),
    Key("kernelMemcgNotification", &[], Ignored, "memory pressure is told by the kernel where it can"),
    Key("logging", &["{\"format\":\"text\"}"], Ignored, LOGS),
    Key("shutdownGracePeriod", &[], Ignored, SHUTDOWN),
    Key("shutdownGracePeriodCriticalPods", &[], Ignored, SHUTDOWN),
    Key("shutdownGracePeriodByPodPriority", &[], Ignored, SHUTDOWN),
    Key(
        "crashLoopBackOff",
        &["{\"maxContainerRestartPeriod\":\"5m0s\"}"],
        Ignored,
        "containers wait up to 5m before they start again",
    ),
    Key("memoryThrottlingFactor", &["0.9"], Ignored, "memory.high is not set"),
    Key("memoryReservationPolicy", &["\"None\""], Ignored, "memory.min is not set"),
    Key("tracing", &[], Ignored, "no traces are sent"),
    Key(
        "localStorageCapacityIsolation",
        TRUE,
        Ignored,
        "sizes of emptyDir volumes hold where the kernel enforces them",
    ),
    Key("userNamespaces", &["{\"idsPerPod\":65536}"], Ignored, "a pod's user namespace has 65536 ids"),
    Key("featureGates", &[], Ignored, "there are no feature gates"),
];

const NO_API: &str = "a node of its own has no kubelet API";
const NO_NODE: &str = "a node of its own has no Node object";

/// Keys that `podwright run` has no use for, and why.
const OF_CLUSTERS: &[(&str, &str)] = &[
    ("staticPodPath", "a node of its own has the pods that -f names"),
    ("enableServer", NO_API),
    ("address", NO_API),
    ("port", NO_API),
    ("tlsCertFile", NO_API),
    ("tlsPrivateKeyFile", NO_API),
    ("tlsMinVersion", NO_API),
    ("tlsCipherSuites", NO_API),
    ("serverTLSBootstrap", NO_API),
    ("authentication", NO_API),
    ("authorization", NO_API),
    ("enableDebuggingHandlers", NO_API),
    ("enableSystemLogHandler", NO_API),
    ("healthzPort", NO_API),
    ("healthzBindAddress", NO_API),
    ("rotateCertificates", "a node of its own has no certificate"),
    ("registerNode", NO_NODE),
    ("registerWithTaints", NO_NODE),
    ("providerID", NO_NODE),
    ("nodeStatusUpdateFrequency", NO_NODE),
    ("nodeStatusReportFrequency", NO_NODE),
    ("nodeStatusMaxImages", NO_NODE),
    ("nodeLeaseDurationSeconds", NO_NODE),
];

/// Which of the file's keys ask for what only a cluster's node has.
pub(super) fn of_clusters(file: &Map<String, Value>) -> Vec<(&'static str, &'static str)> {
    let asks = |key: &str| file.get(key).is_some_and(|value| !is_zero(value));
    OF_CLUSTERS.iter().copied().filter(|(key, _)| asks(key)).collect()
}

/// What was said of keys that are not done, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Logged at the start.
    pub(crate) ignored: Vec<(&'static str, &'static str)>,
    /// The file cannot be used.
    pub(super) refused: Vec<String>,
}

/// Takes the keys that are not done out of the file, so that what is left is read strictly.
pub(super) fn take(file: &mut Map<String, Value>) -> Verdict {
    let mut verdict = Verdict::default();
    for Key(name, neutral, reaction, why) in KEYS {
        match (file.remove(*name), reaction) {
            (None, _) => {}
            (Some(value), _) if asks_for_nothing(&value, neutral) => {}
            (Some(_), Ignored) => verdict.ignored.push((name, why)),
            (Some(value), Refused) => {
                verdict.refused.push(format!("{name}: {value} is not supported: {why}"))
            }
        }
    }
    verdict
}

/// Nothing is zero, unless only named values are neutral.
fn asks_for_nothing(value: &Value, neutral: &[&str]) -> bool {
    let text = value.to_string();
    let named = neutral.iter().any(|neutral| *neutral == "*" || *neutral == text);
    named || (neutral != TRUE && is_zero(value))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

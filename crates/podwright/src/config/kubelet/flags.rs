//! The kubelet's flags that say what a KubeletConfiguration says; they win over the file. Upstream: cmd/kubelet/app/options,
//! `AddKubeletConfigFlags`.

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use serde_json::{Map, Value};

/// A flag, and the key that it is, with dots between nested ones.
struct Flag(&'static str, &'static str, Kind);

/// How a flag's text becomes the key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Switch,
    Number,
    /// With commas between.
    List,
    /// Of texts, as KEY=VALUE with commas between.
    Map,
    /// The same with KEY<VALUE.
    Thresholds,
    /// Of switches.
    Switches,
}

use Kind::{List, Map as Texts, Number, Switch, Switches, Text, Thresholds};

/// Without those that are flags of podwright's own (--cgroup-root, --pod-cidr, --container-runtime-endpoint, --register-with-taints), and
/// those of logs, --manifest-url-header and --reserved-memory, which are refused as unknown.
const FLAGS: &[Flag] = &[
    Flag("address", "address", Text),
    Flag("allowed-unsafe-sysctls", "allowedUnsafeSysctls", List),
    Flag("anonymous-auth", "authentication.anonymous.enabled", Switch),
    Flag("authentication-token-webhook", "authentication.webhook.enabled", Switch),
    Flag("authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL", Text),
    Flag("authorization-mode", "authorization.mode", Text),
    Flag("authorization-webhook-cache-authorized-ttl", "authorization.webhook.cacheAuthorizedTTL", Text),
    Flag("authorization-webhook-cache-unauthorized-ttl", "authorization.webhook.cacheUnauthorizedTTL", Text),
    Flag("cgroup-driver", "cgroupDriver", Text),
    Flag("cgroups-per-qos", "cgroupsPerQOS", Switch),
    Flag("client-ca-file", "authentication.x509.clientCAFile", Text),
    Flag("cluster-dns", "clusterDNS", List),
    Flag("cluster-domain", "clusterDomain", Text),
    Flag("container-log-max-files", "containerLogMaxFiles", Number),
    Flag("container-log-max-size", "containerLogMaxSize", Text),
    Flag("contention-profiling", "enableContentionProfiling", Switch),
    Flag("cpu-cfs-quota", "cpuCFSQuota", Switch),
    Flag("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Text),
    Flag("cpu-manager-policy", "cpuManagerPolicy", Text),
    Flag("cpu-manager-policy-options", "cpuManagerPolicyOptions", Texts),
    Flag("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", Text),
    Flag("enable-controller-attach-detach", "enableControllerAttachDetach", Switch),
    Flag("enable-debugging-handlers", "enableDebuggingHandlers", Switch),
    Flag("enable-server", "enableServer", Switch),
    Flag("enforce-node-allocatable", "enforceNodeAllocatable", List),
    Flag("event-burst", "eventBurst", Number),
    Flag("event-qps", "eventRecordQPS", Number),
    Flag("eviction-hard", "evictionHard", Thresholds),
    Flag("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", Number),
    Flag("eviction-minimum-reclaim", "evictionMinimumReclaim", Texts),
    Flag("eviction-pressure-transition-period", "evictionPressureTransitionPeriod", Text),
    Flag("eviction-soft", "evictionSoft", Thresholds),
    Flag("eviction-soft-grace-period", "evictionSoftGracePeriod", Texts),
    Flag("fail-cgroupv1", "failCgroupV1", Switch),
    Flag("fail-swap-on", "failSwapOn", Switch),
    Flag("feature-gates", "featureGates", Switches),
    Flag("file-check-frequency", "fileCheckFrequency", Text),
    Flag("hairpin-mode", "hairpinMode", Text),
    Flag("healthz-bind-address", "healthzBindAddress", Text),
    Flag("healthz-port", "healthzPort", Number),
    Flag("http-check-frequency", "httpCheckFrequency", Text),
    Flag("image-gc-high-threshold", "imageGCHighThresholdPercent", Number),
    Flag("image-gc-low-threshold", "imageGCLowThresholdPercent", Number),
    Flag("image-service-endpoint", "imageServiceEndpoint", Text),
    Flag("kernel-memcg-notification", "kernelMemcgNotification", Switch),
    Flag("kube-api-burst", "kubeAPIBurst", Number),
    Flag("kube-api-content-type", "contentType", Text),
    Flag("kube-api-qps", "kubeAPIQPS", Number),
    Flag("kube-reserved", "kubeReserved", Texts),
    Flag("kube-reserved-cgroup", "kubeReservedCgroup", Text),
    Flag("kubelet-cgroups", "kubeletCgroups", Text),
    Flag("local-storage-capacity-isolation", "localStorageCapacityIsolation", Switch),
    Flag("make-iptables-util-chains", "makeIPTablesUtilChains", Switch),
    Flag("manifest-url", "staticPodURL", Text),
    Flag("max-open-files", "maxOpenFiles", Number),
    Flag("max-pods", "maxPods", Number),
    Flag("memory-manager-policy", "memoryManagerPolicy", Text),
    Flag("minimum-image-ttl-duration", "imageMinimumGCAge", Text),
    Flag("node-status-max-images", "nodeStatusMaxImages", Number),
    Flag("node-status-update-frequency", "nodeStatusUpdateFrequency", Text),
    Flag("oom-score-adj", "oomScoreAdj", Number),
    Flag("pod-manifest-path", "staticPodPath", Text),
    Flag("pod-max-pids", "podPidsLimit", Number),
    Flag("pods-per-core", "podsPerCore", Number),
    Flag("port", "port", Number),
    Flag("protect-kernel-defaults", "protectKernelDefaults", Switch),
    Flag("provider-id", "providerID", Text),
    Flag("qos-reserved", "qosReserved", Texts),
    Flag("read-only-port", "readOnlyPort", Number),
    Flag("register-node", "registerNode", Switch),
    Flag("registry-burst", "registryBurst", Number),
    Flag("registry-qps", "registryPullQPS", Number),
    Flag("reserved-cpus", "reservedSystemCPUs", Text),
    Flag("resolv-conf", "resolvConf", Text),
    Flag("rotate-certificates", "rotateCertificates", Switch),
    Flag("rotate-server-certificates", "serverTLSBootstrap", Switch),
    Flag("runonce", "runOnce", Switch),
    Flag("runtime-request-timeout", "runtimeRequestTimeout", Text),
    Flag("seccomp-default", "seccompDefault", Switch),
    Flag("serialize-image-pulls", "serializeImagePulls", Switch),
    Flag("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", Text),
    Flag("sync-frequency", "syncFrequency", Text),
    Flag("system-cgroups", "systemCgroups", Text),
    Flag("system-reserved", "systemReserved", Texts),
    Flag("system-reserved-cgroup", "systemReservedCgroup", Text),
    Flag("tls-cert-file", "tlsCertFile", Text),
    Flag("tls-cipher-suites", "tlsCipherSuites", List),
    Flag("tls-min-version", "tlsMinVersion", Text),
    Flag("tls-private-key-file", "tlsPrivateKeyFile", Text),
    Flag("topology-manager-policy", "topologyManagerPolicy", Text),
    Flag("topology-manager-policy-options", "topologyManagerPolicyOptions", Texts),
    Flag("topology-manager-scope", "topologyManagerScope", Text),
    Flag("volume-plugin-dir", "volumePluginDir", Text),
    Flag("volume-stats-agg-period", "volumeStatsAggPeriod", Text),
];

/// The flags that were given, as the keys that they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct KubeletFlags(Vec<(&'static str, Value)>);

impl KubeletFlags {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts them into a KubeletConfiguration, over what is there.
    pub(super) fn put_into(&self, document: &mut Map<String, Value>) {
        for (key, value) in &self.0 {
            let mut parts: Vec<&str> = key.split('.').collect();
            let last = parts.pop().unwrap_or_default();
            let mut fields = &mut *document;
            for part in parts {
                let inner = fields.entry(part).or_insert_with(|| Value::Object(Map::new()));
                // The file was good by itself: what has keys there is an object.
                let Some(inner) = inner.as_object_mut() else { return };
                fields = inner;
            }
            fields.insert(last.to_owned(), value.clone());
        }
    }
}

impl Flag {
    fn arg(&self) -> Arg {
        let Self(flag, key, kind) = *self;
        let arg = Arg::new(flag).long(flag).help(format!("{key} of the KubeletConfiguration"));
        let arg = arg.help_heading("The kubelet's flags, which win over --config").hide_short_help(true);
        match kind {
            Switch => arg
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .action(ArgAction::Set),
            Number => arg.value_name("NUMBER").allow_negative_numbers(true).action(ArgAction::Set),
            Text => arg.value_name("VALUE").action(ArgAction::Set),
            List => arg.value_name("VALUES").action(ArgAction::Append),
            Texts | Switches => arg.value_name("KEY=VALUE").action(ArgAction::Append),
            Thresholds => arg.value_name("KEY<VALUE").action(ArgAction::Append),
        }
    }

    /// The value that the texts are; one that can be given once has one.
    fn value(&self, texts: &[String]) -> Result<Value, String> {
        let Self(flag, _, kind) = *self;
        let first = texts.first().map(String::as_str).unwrap_or_default();
        let parts = || texts.iter().flat_map(|text| text.split(',')).filter(|part| !part.is_empty());
        let pairs = |between: char| {
            let pair = |part: &str| match part.split_once(between) {
                Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
                None => Err(format!("--{flag}: {part:?} has no {between:?}")),
            };
            parts().map(pair).collect::<Result<Vec<_>, _>>()
        };
        let switch = |text: &str| match text {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(Value::Bool(false)),
            other => Err(format!("--{flag}: {other:?} is neither true nor false")),
        };
        match kind {
            Text => Ok(Value::from(first)),
            Switch => switch(first),
            Number => {
                let number = first.parse::<i64>();
                number.map(Value::from).map_err(|_| format!("--{flag}: {first:?} is no whole number"))
            }
            List => Ok(parts().collect()),
            Texts | Thresholds => {
                let pairs = pairs(if kind == Thresholds { '<' } else { '=' })?;
                Ok(pairs.into_iter().map(|(key, value)| (key, Value::from(value))).collect())
            }
            Switches => {
                let pairs = pairs('=')?.into_iter();
                pairs.map(|(key, value)| Ok((key, switch(&value)?))).collect::<Result<_, String>>()
            }
        }
    }
}

impl Args for KubeletFlags {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.iter().map(Flag::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KubeletFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given = Vec::new();
        for flag in FLAGS {
            let Some(texts) = matches.get_many::<String>(flag.0) else { continue };
            let texts: Vec<String> = texts.cloned().collect();
            let value = flag.value(&texts);
            let value = value.map_err(|fault| Error::raw(ErrorKind::InvalidValue, format!("{fault}\n")))?;
            given.push((flag.1, value));
        }
        Ok(Self(given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{API_VERSION, KIND, kubelet_document};
    use super::*;
    use serde_json::json;

    fn parse(line: &[&str]) -> Result<KubeletFlags, Error> {
        let command = KubeletFlags::augment_args(Command::new("agent"));
        let words = std::iter::once("agent").chain(line.iter().copied());
        KubeletFlags::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    fn put(line: &[&str], mut document: Value) -> Value {
        let flags = parse(line).expect("flags");
        flags.put_into(document.as_object_mut().expect("an object"));
        document
    }

    #[test]
    fn flags_are_keys_and_win_over_the_file() {
        let document = put(
            &[
                "--max-pods=30",
                "--cluster-dns=10.96.0.10,10.96.0.11",
                "--eviction-hard=memory.available<200Mi,nodefs.available<10%",
                "--system-reserved=cpu=100m,memory=1Gi",
                "--anonymous-auth=false",
                "--authentication-token-webhook",
                "--feature-gates=A=true,B=false",
                "--pod-max-pids=-1",
            ],
            json!({ "maxPods": 110, "authentication": { "x509": { "clientCAFile": "/ca" } }, "port": 10250 }),
        );
        assert_eq!(
            document,
            json!({
                "maxPods": 30, "port": 10250,
                "clusterDNS": ["10.96.0.10", "10.96.0.11"],
                "evictionHard": { "memory.available": "200Mi", "nodefs.available": "10%" },
                "systemReserved": { "cpu": "100m", "memory": "1Gi" },
                "authentication": {
                    "x509": { "clientCAFile": "/ca" },
                    "anonymous": { "enabled": false },
                    "webhook": { "enabled": true },
                },
                "featureGates": { "A": true, "B": false },
                "podPidsLimit": -1,
            })
        );
    }

    #[test]
    fn a_mistake_names_the_flag() {
        for (line, expect) in [
            ("--max-pods=many", "--max-pods: \"many\" is no whole number"),
            ("--fail-swap-on=maybe", "--fail-swap-on: \"maybe\" is neither true nor false"),
            ("--eviction-hard=memory.available=1", "--eviction-hard: \"memory.available=1\" has no '<'"),
        ] {
            let error = parse(&[line]).expect_err("a mistake").to_string();
            assert!(error.contains(expect), "{error}");
        }
    }

    /// A typo in the table would be an unknown key.
    #[test]
    fn every_flag_is_a_key_that_is_known() {
        for Flag(flag, key, kind) in FLAGS {
            let value = match kind {
                Switch => json!(true),
                Number => json!(1),
                List => json!([]),
                Texts | Thresholds | Switches => json!({}),
                Text => json!(""),
            };
            let mut document = Map::from_iter([
                ("apiVersion".to_owned(), json!(API_VERSION)),
                ("kind".to_owned(), json!(KIND)),
            ]);
            KubeletFlags(vec![(key, value)]).put_into(&mut document);
            if let Err(fault) = kubelet_document(document) {
                assert!(!fault.contains("unknown field"), "--{flag}: {fault}");
            }
        }
    }
}

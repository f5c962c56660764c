//! The configuration in force, in the file's own words: what `/configz` tells. Pure. Only keys that are acted upon are there.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::settings::{Authentication, Authorization, Settings, TlsVersion};
use super::{API_VERSION, KIND};
use crate::node::Node;

impl Settings {
    /// See the module; paths and names are the node's.
    pub(crate) fn in_force(&self, node: &Node) -> Value {
        let mut keys = Map::new();
        let mut set = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
        set("apiVersion", json!(API_VERSION));
        set("kind", json!(KIND));
        set("enableServer", json!(self.server.is_some()));
        if let Some(server) = &self.server {
            set("address", json!(server.address.ip()));
            set("port", json!(server.address.port()));
            set("enableDebuggingHandlers", json!(server.debugging_handlers));
            set("enableSystemLogHandler", json!(server.system_logs));
            let version =
                if server.tls_min_version == TlsVersion::V13 { "VersionTLS13" } else { "VersionTLS12" };
            set("tlsMinVersion", json!(version));
            if !server.tls_cipher_suites.is_empty() {
                set("tlsCipherSuites", json!(server.tls_cipher_suites));
            }
            if let Some((certificate, key)) = &server.tls_files {
                set("tlsCertFile", json!(certificate));
                set("tlsPrivateKeyFile", json!(key));
            }
        }
        set("healthzPort", json!(self.healthz.map_or(0, |address| address.port())));
        if let Some(address) = self.healthz {
            set("healthzBindAddress", json!(address.ip()));
        }
        set("authentication", authentication(&self.authentication));
        set("authorization", authorization(&self.authorization));
        set("rotateCertificates", json!(self.certificates.rotate_client));
        set("serverTLSBootstrap", json!(self.certificates.request_serving));
        set("clusterDNS", json!(node.cluster_dns));
        set("clusterDomain", json!(node.cluster_domain));
        set("resolvConf", json!(node.resolv_conf));
        set("podLogsDir", json!(node.pod_logs_dir));
        if let Some(path) = &self.static_pod_path {
            set("staticPodPath", json!(path));
        }
        set("registerNode", json!(self.registration.register));
        set("nodeStatusUpdateFrequency", go(self.status.update_frequency));
        set("nodeStatusReportFrequency", go(self.status.report_frequency));
        set("nodeLeaseDurationSeconds", json!(self.status.lease_duration_seconds));
        set("maxPods", json!(self.capacity.max_pods));
        set("podPidsLimit", json!(self.capacity.pod_pids_limit.unwrap_or(-1)));
        set("imageGCHighThresholdPercent", json!(self.image_gc.high_threshold_percent));
        set("imageGCLowThresholdPercent", json!(self.image_gc.low_threshold_percent));
        set("imageMinimumGCAge", go(self.image_gc.minimum_age));
        set("imageMaximumGCAge", go(self.image_gc.maximum_age.unwrap_or_default()));
        set("containerLogMaxSize", json!(self.log_rotation.max_size.to_string()));
        set("containerLogMaxFiles", json!(self.log_rotation.max_files));
        set("containerLogMonitorInterval", go(self.log_rotation.interval));
        set("seccompDefault", json!(self.seccomp_default));
        set("failSwapOn", json!(self.fail_swap_on));
        set("failCgroupV1", json!(self.fail_cgroup_v1));
        set("cgroupDriver", json!("cgroupfs"));
        set("cgroupRoot", json!(node.kubelet_cgroup));
        set("containerRuntimeEndpoint", json!(format!("unix://{}", node.listen.display())));
        Value::Object(keys)
    }
}

fn authentication(settings: &Authentication) -> Value {
    json!({
        "anonymous": { "enabled": settings.anonymous },
        "webhook": { "enabled": settings.webhook.is_some(), "cacheTTL": go(settings.webhook.unwrap_or_default()) },
        "x509": { "clientCAFile": settings.client_ca_file.clone().unwrap_or_default() },
    })
}

fn authorization(settings: &Authorization) -> Value {
    match settings {
        Authorization::AlwaysAllow => json!({ "mode": "AlwaysAllow" }),
        Authorization::Webhook { authorized_ttl, unauthorized_ttl } => json!({
            "mode": "Webhook",
            "webhook": { "cacheAuthorizedTTL": go(*authorized_ttl), "cacheUnauthorizedTTL": go(*unauthorized_ttl) },
        }),
    }
}

/// As Go writes a duration.
fn go(duration: Duration) -> Value {
    let (seconds, below) = (duration.as_secs(), duration.subsec_millis());
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let last = match (seconds % 60, below) {
        (seconds, 0) => format!("{seconds}s"),
        (0, below) if seconds == 0 => format!("{below}ms"),
        (seconds, below) => format!("{seconds}.{}s", format!("{below:03}").trim_end_matches('0')),
    };
    Value::String(match (hours, minutes) {
        (0, 0) => last,
        (0, minutes) => format!("{minutes}m{last}"),
        (hours, minutes) => format!("{hours}h{minutes}m{last}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::NodeArgs;

    #[test]
    fn what_is_in_force_can_be_read_again() {
        let node = Node::resolve(&NodeArgs::default(), "box").expect("a node");
        let settings = Settings::default();
        let told = settings.in_force(&node);
        assert_eq!(told["authentication"]["webhook"]["cacheTTL"], "2m0s");
        assert_eq!((&told["port"], &told["healthzPort"]), (&json!(10250), &json!(10248)));
        let read = super::super::kubelet_text(&told.to_string()).expect("our own words");
        assert_eq!(read.settings.server, settings.server);
        assert_eq!(read.settings.authentication, settings.authentication);
        assert_eq!(read.settings.authorization, settings.authorization);
        assert_eq!(read.settings.image_gc, settings.image_gc);
        assert_eq!(read.settings.log_rotation, settings.log_rotation);
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (milliseconds, expect) in [
            (0, "0s"),
            (250, "250ms"),
            (1500, "1.5s"),
            (120_000, "2m0s"),
            (3_600_000, "1h0m0s"),
            (5_400_000, "1h30m0s"),
        ] {
            assert_eq!(go(Duration::from_millis(milliseconds)), expect);
        }
    }
}

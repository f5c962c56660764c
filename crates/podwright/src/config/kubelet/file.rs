//! The keys of a KubeletConfiguration (kubelet.config.k8s.io/v1beta1) that are read, as they stand in the file. What
//! they mean together is decided in `settings`; keys that ask for what is not done are in `keys`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use serde::Deserialize;

use crate::config::GoDuration;

/// The file. An empty text, a zero duration and a zero number mean the default, as upstream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) enable_server: Option<bool>,
    pub(super) static_pod_path: String,
    pub(super) pod_logs_dir: String,
    pub(super) address: String,
    pub(super) port: u16,
    pub(super) tls_cert_file: String,
    pub(super) tls_private_key_file: String,
    pub(super) tls_min_version: String,
    pub(super) tls_cipher_suites: Vec<String>,
    pub(super) rotate_certificates: bool,
    #[serde(rename = "serverTLSBootstrap")]
    pub(super) server_tls_bootstrap: bool,
    pub(super) authentication: Authentication,
    pub(super) authorization: Authorization,
    pub(super) enable_debugging_handlers: Option<bool>,
    pub(super) enable_system_log_handler: Option<bool>,
    pub(super) healthz_port: Option<u16>,
    pub(super) healthz_bind_address: String,
    pub(super) cluster_domain: String,
    #[serde(rename = "clusterDNS")]
    pub(super) cluster_dns: Vec<String>,
    pub(super) node_status_update_frequency: GoDuration,
    pub(super) node_status_report_frequency: GoDuration,
    pub(super) node_lease_duration_seconds: u32,
    pub(super) node_status_max_images: Option<i32>,
    #[serde(rename = "imageMinimumGCAge")]
    pub(super) image_minimum_gc_age: GoDuration,
    #[serde(rename = "imageMaximumGCAge")]
    pub(super) image_maximum_gc_age: GoDuration,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub(super) image_gc_high_threshold_percent: Option<u8>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub(super) image_gc_low_threshold_percent: Option<u8>,
    pub(super) cgroup_root: String,
    pub(super) cgroup_driver: String,
    pub(super) max_pods: u32,
    pub(super) pods_per_core: u32,
    #[serde(rename = "podCIDR")]
    pub(super) pod_cidr: String,
    pub(super) pod_pids_limit: Option<i64>,
    pub(super) resolv_conf: Option<String>,
    pub(super) eviction_hard: BTreeMap<String, String>,
    pub(super) merge_default_eviction_settings: bool,
    pub(super) eviction_pressure_transition_period: GoDuration,
    pub(super) fail_swap_on: Option<bool>,
    #[serde(rename = "failCgroupV1")]
    pub(super) fail_cgroup_v1: bool,
    pub(super) seccomp_default: bool,
    pub(super) container_log_max_size: String,
    pub(super) container_log_max_files: Option<usize>,
    pub(super) container_log_monitor_interval: Option<GoDuration>,
    pub(super) system_reserved: BTreeMap<String, String>,
    pub(super) kube_reserved: BTreeMap<String, String>,
    pub(super) enforce_node_allocatable: Option<Vec<String>>,
    pub(super) system_reserved_cgroup: String,
    pub(super) kube_reserved_cgroup: String,
    pub(super) allowed_unsafe_sysctls: Vec<String>,
    #[serde(rename = "providerID")]
    pub(super) provider_id: String,
    pub(super) register_with_taints: Vec<v1::Taint>,
    pub(super) register_node: Option<bool>,
    pub(super) container_runtime_endpoint: String,
    pub(super) image_service_endpoint: String,
}

/// `authentication`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct Authentication {
    pub(super) x509: X509,
    pub(super) webhook: WebhookAuthentication,
    pub(super) anonymous: Anonymous,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct X509 {
    #[serde(rename = "clientCAFile")]
    pub(super) client_ca_file: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WebhookAuthentication {
    pub(super) enabled: Option<bool>,
    #[serde(rename = "cacheTTL")]
    pub(super) cache_ttl: GoDuration,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Anonymous {
    pub(super) enabled: bool,
}

/// `authorization`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Authorization {
    pub(super) mode: String,
    pub(super) webhook: WebhookAuthorization,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WebhookAuthorization {
    #[serde(rename = "cacheAuthorizedTTL")]
    pub(super) cache_authorized_ttl: GoDuration,
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub(super) cache_unauthorized_ttl: GoDuration,
}

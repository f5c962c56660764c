//! The flags with which the parts of the control plane are started: kubeadm's, but for what a test needs otherwise.
//!
//! etcd is on the loopback of the control plane's own network and does not wait for a disk.

use std::path::Path;

/// Where pods' addresses come from.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// Where Services' addresses come from.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// Both, and the same of IPv6.
pub const DUAL_STACK: Ranges =
    Ranges { pods: "10.244.0.0/16,fd00:10:244::/56", services: "10.96.0.0/16,fd00:10:96::/112" };

/// Where addresses come from.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// Pods'.
    pub pods: &'static str,
    /// Services'.
    pub services: &'static str,
}

impl Default for Ranges {
    fn default() -> Self {
        Self { pods: POD_CIDR, services: SERVICE_CIDR }
    }
}

/// The address of the API server as a Service: the first of [`SERVICE_CIDR`].
pub const KUBERNETES_SERVICE: &str = "10.96.0.1";
/// The address of the cluster's DNS.
pub const DNS_SERVICE: &str = "10.96.0.10";
/// The cluster's domain.
pub const DOMAIN: &str = "cluster.local";

/// Where etcd answers, on the control plane's machine.
pub const ETCD: &str = "http://127.0.0.1:2379";

/// What the flags depend on.
pub struct Place<'a> {
    /// Certificates and kubeconfig files.
    pub pki: &'a Path,
    /// etcd's files.
    pub data: &'a Path,
    /// Where the API server is reached.
    pub address: &'a str,
    /// Where addresses come from.
    pub ranges: Ranges,
}

/// A part of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// etcd.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
}

impl Component {
    /// All of them, in the order in which they start.
    pub const ALL: [Self; 4] = [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler];

    /// The name of its program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }

    /// Where it says that it is ready; asked with the admin's certificate.
    #[must_use]
    pub fn readiness(self) -> &'static str {
        match self {
            Self::Etcd => "http://127.0.0.1:2379/health",
            Self::ApiServer => "https://127.0.0.1:6443/readyz",
            Self::ControllerManager => "https://127.0.0.1:10257/healthz",
            Self::Scheduler => "https://127.0.0.1:10259/healthz",
        }
    }

    /// Its flags.
    #[must_use]
    pub fn flags(self, place: &Place<'_>) -> Vec<String> {
        match self {
            Self::Etcd => etcd(place),
            Self::ApiServer => api_server(place),
            Self::ControllerManager => controller_manager(place),
            Self::Scheduler => scheduler(place),
        }
    }
}

fn etcd(place: &Place<'_>) -> Vec<String> {
    flags(&[
        ("name", "control-plane"),
        ("data-dir", &place.data.to_string_lossy()),
        ("listen-client-urls", ETCD),
        ("advertise-client-urls", ETCD),
        ("listen-peer-urls", "http://127.0.0.1:2380"),
        ("unsafe-no-fsync", "true"),
        ("log-level", "warn"),
    ])
}

fn api_server(place: &Place<'_>) -> Vec<String> {
    let pki = |name: &str| place.pki.join(name).display().to_string();
    flags(&[
        ("advertise-address", place.address),
        ("allow-privileged", "true"),
        ("authorization-mode", "Node,RBAC"),
        ("client-ca-file", &pki("ca.crt")),
        // PodNodeSelector lets a story say once, on its namespace, which kind of node its pods are for.
        ("enable-admission-plugins", "NodeRestriction,PodNodeSelector"),
        ("enable-aggregator-routing", "true"),
        ("enable-bootstrap-token-auth", "true"),
        ("etcd-servers", ETCD),
        ("kubelet-client-certificate", &pki("apiserver-kubelet-client.crt")),
        ("kubelet-client-key", &pki("apiserver-kubelet-client.key")),
        ("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname"),
        ("proxy-client-cert-file", &pki("front-proxy-client.crt")),
        ("proxy-client-key-file", &pki("front-proxy-client.key")),
        ("requestheader-allowed-names", "front-proxy-client"),
        ("requestheader-client-ca-file", &pki("front-proxy-ca.crt")),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        ("requestheader-group-headers", "X-Remote-Group"),
        ("requestheader-username-headers", "X-Remote-User"),
        ("secure-port", "6443"),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        ("service-account-key-file", &pki("sa.pub")),
        ("service-account-signing-key-file", &pki("sa.key")),
        ("service-cluster-ip-range", place.ranges.services),
        ("tls-cert-file", &pki("apiserver.crt")),
        ("tls-private-key-file", &pki("apiserver.key")),
        // For whoever asks for these names: machines whose clocks differ from the cluster's see such certificates.
        ("tls-sni-cert-key", &format!("{},{}:future.lab", pki("future.crt"), pki("future.key"))),
        ("tls-sni-cert-key", &format!("{},{}:past.lab", pki("past.crt"), pki("past.key"))),
    ])
}

fn controller_manager(place: &Place<'_>) -> Vec<String> {
    let pki = |name: &str| place.pki.join(name).display().to_string();
    let kubeconfig = pki("controller-manager.conf");
    flags(&[
        ("allocate-node-cidrs", "true"),
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("bind-address", "127.0.0.1"),
        ("client-ca-file", &pki("ca.crt")),
        ("cluster-cidr", place.ranges.pods),
        ("cluster-name", "kubernetes"),
        ("cluster-signing-cert-file", &pki("ca.crt")),
        ("cluster-signing-key-file", &pki("ca.key")),
        ("controllers", "*,bootstrapsigner,tokencleaner"),
        ("kubeconfig", &kubeconfig),
        ("leader-elect", "false"),
        ("requestheader-client-ca-file", &pki("front-proxy-ca.crt")),
        ("root-ca-file", &pki("ca.crt")),
        ("service-account-private-key-file", &pki("sa.key")),
        ("service-cluster-ip-range", place.ranges.services),
        ("use-service-account-credentials", "true"),
    ])
}

fn scheduler(place: &Place<'_>) -> Vec<String> {
    let kubeconfig = place.pki.join("scheduler.conf").display().to_string();
    flags(&[
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("bind-address", "127.0.0.1"),
        ("kubeconfig", &kubeconfig),
        ("leader-elect", "false"),
    ])
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

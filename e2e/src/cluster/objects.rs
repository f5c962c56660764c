//! What is applied to a new cluster: the files of `objects/`, filled in; and the pod that stories of several files ask.

use super::ClusterNode;
use super::control_plane::ControlPlane;
use super::flags::{DNS_SERVICE, DOMAIN, POD_CIDR, SERVICE_CIDR};
use super::images::AGNHOST;
use super::kubeconfig;

/// The ConfigMaps and rights that kubeadm makes.
#[must_use]
pub fn kubeadm(control_plane: &ControlPlane) -> String {
    let authority = control_plane.authority().identity().certificate;
    let info = kubeconfig::of_cluster(&control_plane.server(), &authority).to_string();
    filled(include_str!("objects/kubeadm.yaml")).replace("CLUSTER_INFO", &info)
}

/// What an administrator applies for nodes with our proxy and our network of pods.
pub const NODE_RIGHTS: &str = include_str!("../../../deploy/rbac.yaml");

/// CoreDNS.
#[must_use]
pub fn coredns() -> String {
    filled(include_str!("objects/coredns.yaml"))
}

/// kube-proxy as kubeadm runs it, on the nodes with these labels (`a: b`).
#[must_use]
pub fn kube_proxy(control_plane: &ControlPlane, nodes: &str) -> String {
    filled(include_str!("objects/kube-proxy.yaml"))
        .replace("NODES", nodes)
        .replace("SERVER", &control_plane.server())
}

/// metrics-server, as its own manifests have it, but that it looks every 10 s and takes kubelets' own certificates.
#[must_use]
pub fn metrics_server() -> String {
    filled(include_str!("objects/metrics-server.yaml"))
}

/// The Secret that is a bootstrap token of kubeadm's default group.
#[must_use]
pub fn bootstrap_token(id: &str, secret: &str, expiration: &str) -> String {
    format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: bootstrap-token-{id}, namespace: kube-system}}
type: bootstrap.kubernetes.io/token
stringData:
  token-id: {id}
  token-secret: {secret}
  expiration: {expiration}
  usage-bootstrap-authentication: 'true'
  usage-bootstrap-signing: 'true'
  auth-extra-groups: system:bootstrappers:kubeadm:default-node-token
"
    )
}

fn filled(text: &str) -> String {
    text.replace("DNS_SERVICE", DNS_SERVICE)
        .replace("POD_CIDR", POD_CIDR)
        .replace("SERVICE_CIDR", SERVICE_CIDR)
        .replace("DOMAIN", DOMAIN)
}

/// A pod on that node that tells who asks, and runs what it is asked to; `more` are fields of its spec.
#[must_use]
pub fn server(name: &str, node: &ClusterNode, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}, kind: server}}}}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {{kubernetes.io/hostname: {}}}
  {more}
  containers:
  - name: main
    image: {AGNHOST}
    args: [netexec, --http-port=8080]
    readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
",
        node.name()
    )
}

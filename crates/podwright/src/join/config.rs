//! A JoinConfiguration as `kubeadm join --config` takes it (kubeadm.k8s.io/v1beta4): what we do is read, everything else is
//! refused by name.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

const API_VERSION: &str = "kubeadm.k8s.io/v1beta4";
const KIND: &str = "JoinConfiguration";

/// The file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct File {
    api_version: String,
    kind: String,
    pub(super) discovery: Discovery,
    pub(super) node_registration: NodeRegistration,
}

/// `discovery`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct Discovery {
    pub(super) bootstrap_token: Option<BootstrapTokenDiscovery>,
    pub(super) file: Option<FileDiscovery>,
    pub(super) tls_bootstrap_token: String,
}

/// `discovery.bootstrapToken`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct BootstrapTokenDiscovery {
    pub(super) token: String,
    pub(super) api_server_endpoint: String,
    pub(super) ca_cert_hashes: Vec<String>,
    #[serde(rename = "unsafeSkipCAVerification")]
    pub(super) unsafe_skip_ca_verification: bool,
}

/// `discovery.file`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FileDiscovery {
    pub(super) kube_config_path: PathBuf,
}

/// `nodeRegistration`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct NodeRegistration {
    pub(super) name: String,
    pub(super) taints: Vec<Taint>,
    pub(super) kubelet_extra_args: Vec<ExtraArg>,
}

/// One of `nodeRegistration.kubeletExtraArgs`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtraArg {
    pub(super) name: String,
    pub(super) value: String,
}

/// Flags that give the node's name.
const NAMES: [&str; 2] = ["node-name", "hostname-override"];

impl File {
    /// Reads the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let file: Self = serde_saphyr::from_str(text).map_err(|error| shortened(&error.to_string()))?;
        if (file.api_version.as_str(), file.kind.as_str()) != (API_VERSION, KIND) {
            let found = format!("apiVersion {:?}, kind {:?}", file.api_version, file.kind);
            return Err(format!("{found} is no {API_VERSION} {KIND}"));
        }
        Ok(file)
    }

    /// The node's name, if it is given.
    pub(super) fn name(&self) -> Option<String> {
        let registration = &self.node_registration;
        let overridden =
            registration.kubelet_extra_args.iter().find(|arg| NAMES.contains(&arg.name.as_str()));
        let name = Some(registration.name.clone()).filter(|name| !name.is_empty());
        name.or_else(|| overridden.map(|arg| arg.value.clone()))
    }
}

impl NodeRegistration {
    /// As flags of `podwright agent`, which has the kubelet's where they mean the same.
    pub(super) fn flags(&self) -> Vec<(String, String)> {
        let others = self.kubelet_extra_args.iter().filter(|arg| !NAMES.contains(&arg.name.as_str()));
        let given = others.map(|arg| (arg.name.clone(), arg.value.clone()));
        let taints = self.taints.iter().map(|taint| ("register-with-taints".to_owned(), taint_flag(taint)));
        given.chain(taints).collect()
    }
}

fn taint_flag(taint: &Taint) -> String {
    match &taint.value {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    }
}

/// The parser lists every field there is; the one that was found is enough.
fn shortened(message: &str) -> String {
    message.split(", expected").next().unwrap_or(message).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubeadm_reads_is_read() {
        let file = File::parse(
            "apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken:
    token: abcdef.0123456789abcdef
    apiServerEndpoint: kube-apiserver:6443
    caCertHashes: ['sha256:aa']
    unsafeSkipCAVerification: true
  tlsBootstrapToken: abcdef.0123456789abcdef
nodeRegistration:
  name: edge-1
  taints:
  - {key: edge, value: 'yes', effect: NoSchedule}
  - {key: new, effect: NoExecute}
  kubeletExtraArgs:
  - {name: node-labels, value: 'pool=edge'}
  - {name: hostname-override, value: 'edge-2'}
  - {name: max-pods, value: '30'}
",
        )
        .expect("a JoinConfiguration");
        let token = file.discovery.bootstrap_token.as_ref().expect("a token");
        assert_eq!(
            (token.api_server_endpoint.as_str(), token.unsafe_skip_ca_verification),
            ("kube-apiserver:6443", true)
        );
        assert_eq!(file.name().as_deref(), Some("edge-1"));
        let flags: Vec<String> =
            file.node_registration.flags().iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            flags,
            [
                "node-labels=pool=edge",
                "max-pods=30",
                "register-with-taints=edge=yes:NoSchedule",
                "register-with-taints=new:NoExecute",
            ]
        );
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let head = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\n";
        let fault = |text: &str| File::parse(&format!("{head}{text}")).expect_err("refused");
        for (text, name) in [
            ("controlPlane: {}\n", "controlPlane"),
            ("patches: {directory: /x}\n", "patches"),
            ("nodeRegistration: {criSocket: 'unix:///x'}\n", "criSocket"),
            ("discovery: {file: {}}\n", "kubeConfigPath"),
        ] {
            let message = fault(text);
            assert!(message.contains(name) && !message.contains("expected one of"), "{message}");
        }
        let other = File::parse("apiVersion: kubeadm.k8s.io/v1beta3\nkind: JoinConfiguration\n");
        assert!(other.expect_err("refused").contains("v1beta3"));
    }
}

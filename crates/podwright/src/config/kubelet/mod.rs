//! A KubeletConfiguration, as kubeadm writes it or a person: read strictly, with upstream's defaults. A key that nobody
//! knows is refused by name; so are all mistakes at once.

mod eviction;
mod file;
mod flags;
mod in_force;
mod keys;
mod machine;
mod settings;

use std::path::Path;

use serde_json::{Map, Value};

pub(crate) use eviction::Threshold;
pub(crate) use flags::KubeletFlags;
pub(crate) use machine::Machine;
pub(crate) use settings::*;

use super::{ConfigError, ranges, read};
use crate::cli::NodeArgs;
use crate::node::Node;
use file::File;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// What a KubeletConfiguration says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct KubeletConfig {
    /// How the node behaves.
    pub(crate) settings: Settings,
    /// Keys that ask for what is not done, and why nothing is.
    ignored: Vec<(&'static str, &'static str)>,
    /// Keys that mean something in a cluster only, and why.
    of_clusters: Vec<(&'static str, &'static str)>,
}

/// Reads a KubeletConfiguration, over which the flags win; without both everything is as by default.
pub(crate) fn kubelet(file: Option<&Path>, flags: &KubeletFlags) -> Result<KubeletConfig, ConfigError> {
    let text = file.map(read).transpose()?;
    let fault = |message| match file {
        Some(path) => ConfigError::Parse { path: path.to_owned(), message },
        None => ConfigError::KubeletFlags(message),
    };
    if flags.is_empty() {
        return text.map_or_else(|| Ok(KubeletConfig::default()), |text| kubelet_text(&text).map_err(fault));
    }
    let mut document = match text {
        // By itself first: its mistakes are not the flags'.
        Some(text) => kubelet_text(&text).and_then(|_| parse(&text)).map_err(fault)?,
        None => [("apiVersion", API_VERSION), ("kind", KIND)]
            .map(|(key, value)| (key.to_owned(), value.into()))
            .into_iter()
            .collect(),
    };
    flags.put_into(&mut document);
    kubelet_document(document).map_err(ConfigError::KubeletFlags)
}

/// The same from a text, for instance of the ConfigMap kube-system/kubelet-config.
pub(crate) fn kubelet_text(text: &str) -> Result<KubeletConfig, String> {
    kubelet_document(parse(text)?)
}

fn parse(text: &str) -> Result<Map<String, Value>, String> {
    let document: Map<String, Value> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    Ok(without_nulls(document))
}

fn kubelet_document(mut document: Map<String, Value>) -> Result<KubeletConfig, String> {
    let head = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if (head("apiVersion").as_str(), head("kind").as_str()) != (API_VERSION, KIND) {
        let what = format!("apiVersion {:?}, kind {:?}", head("apiVersion"), head("kind"));
        return Err(format!("{what} is no {API_VERSION} {KIND}"));
    }
    let mut verdict = keys::take(&mut document);
    let mut faults = std::mem::take(&mut verdict.refused);
    let of_clusters = keys::of_clusters(&document);
    let file = decode(document, &mut faults);
    check_cgroup_driver(&file.cgroup_driver, &mut verdict.ignored, &mut faults);
    if !file.image_service_endpoint.is_empty()
        && file.image_service_endpoint != file.container_runtime_endpoint
    {
        let endpoint = &file.image_service_endpoint;
        faults.push(format!(
            "imageServiceEndpoint {endpoint:?} is not containerRuntimeEndpoint: images come from the runtime"
        ));
    }
    if let Err(fault) =
        ranges("podCIDR", Some(&file.pod_cidr).filter(|cidr| !cidr.is_empty()).map(String::as_str))
    {
        faults.push(fault);
    }
    let others =
        file.eviction_hard.iter().any(|(signal, value)| signal != "memory.available" && value != "0%");
    if others {
        verdict.ignored.push(("evictionHard", "only memory.available is acted upon"));
    }
    let settings = Settings::read(file, &mut faults);
    match faults.is_empty() {
        true => Ok(KubeletConfig { settings, ignored: verdict.ignored, of_clusters }),
        false => Err(faults.join("; ")),
    }
}

/// In Kubernetes' files, null is as good as absent.
fn without_nulls(fields: Map<String, Value>) -> Map<String, Value> {
    let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
    kept.map(|(key, value)| match value {
        Value::Object(fields) => (key, Value::Object(without_nulls(fields))),
        value => (key, value),
    })
    .collect()
}

/// Key by key, so that each mistake is told with the key that it is in.
fn decode(document: Map<String, Value>, faults: &mut Vec<String>) -> File {
    let read = |fields| serde_json::from_value::<File>(Value::Object(fields));
    let mut good = Map::new();
    for (key, value) in document {
        match read(Map::from_iter([(key.clone(), value.clone())])) {
            Ok(_) => drop(good.insert(key, value)),
            Err(error) => faults.push(fault(&key, &error.to_string())),
        }
    }
    read(good).unwrap_or_default()
}

/// serde lists every key there is; the one that was found is enough.
fn fault(key: &str, message: &str) -> String {
    let message = message.split(", expected one of").next().unwrap_or(message);
    if message.contains(key) { message.to_owned() } else { format!("{key}: {message}") }
}

/// Since Kubernetes 1.34 a kubelet takes the driver that its runtime names (RuntimeConfig of CRI), whatever this key
/// says; kubeadm's default is systemd. Our runtime names cgroupfs.
fn check_cgroup_driver(
    driver: &str,
    ignored: &mut Vec<(&'static str, &'static str)>,
    faults: &mut Vec<String>,
) {
    match driver {
        "" | "cgroupfs" => {}
        "systemd" => ignored.push(("cgroupDriver", "the runtime's driver is used, and ours is cgroupfs")),
        other => faults.push(format!("cgroupDriver {other:?} is none of cgroupfs and systemd")),
    }
}

impl KubeletConfig {
    /// The flags, completed by the file.
    pub(crate) fn complete(&self, flags: &NodeArgs) -> NodeArgs {
        let flags = flags.clone();
        NodeArgs {
            pod_cidr: match flags.pod_cidr.is_empty() {
                // Checked when it was read.
                true => ranges("podCIDR", self.settings.pod_cidr.as_deref()).unwrap_or_default(),
                false => flags.pod_cidr,
            },
            cgroup_root: flags.cgroup_root.or_else(|| self.settings.cgroup_root.clone()),
            ..flags
        }
    }

    /// What has no flag.
    pub(crate) fn apply(&self, node: &mut Node) {
        let settings = &self.settings;
        node.image_gc = settings.image_gc;
        node.log_rotation = settings.log_rotation;
        if let Some(dir) = &settings.pod_logs_dir {
            node.pod_logs_dir.clone_from(dir);
        }
        if let Some(path) = &settings.resolv_conf {
            node.resolv_conf.clone_from(path);
        }
        if let Some(domain) = &settings.cluster_domain {
            node.cluster_domain.clone_from(domain);
        }
        node.cluster_dns.clone_from(&settings.cluster_dns);
        node.container_runtime_endpoint.clone_from(&settings.container_runtime_endpoint);
    }

    /// Says which keys ask for what is not done.
    pub(crate) fn tell(&self) {
        tell(&self.ignored);
    }

    /// Says which keys ask for what a node of its own has not.
    pub(crate) fn tell_of_cluster_keys(&self) {
        tell(&self.of_clusters);
    }
}

fn tell(ignored: &[(&str, &str)]) {
    for (key, why) in ignored {
        tracing::warn!(key, why, "this key of the KubeletConfiguration is ignored");
    }
}

#[cfg(test)]
mod tests;

//! Configuration files, and what can be wrong with them and with flags. `podwright runtime --config` reads TOML of
//! ours; `podwright run --config` a KubeletConfiguration. A key that is not supported is refused by name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use kubelet::{ImageGcPolicy, LogRotationPolicy};
use serde::Deserialize;

use crate::cli::NodeArgs;
use crate::node::Node;

/// What is wrong with the configuration; the process ends with exit code 2.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A flag's value cannot be used.
    #[error("--{flag} {value:?} {reason}")]
    Flag {
        /// The flag, without dashes.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An address would be a pod's and a Service's.
    #[error("--pod-cidr {pods} and --service-cidr {services} overlap")]
    Overlap {
        /// The pods' range.
        pods: IpNet,
        /// The Services' range.
        services: IpNet,
    },
    /// The file cannot be read.
    #[error("read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file's text is wrong; the message names the place.
    #[error("configuration file {}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
}

/// `podwright runtime --config FILE`: the flags of the same names, grouped.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RuntimeFile {
    root: Option<PathBuf>,
    state: Option<PathBuf>,
    listen: Option<PathBuf>,
    cgroup_root: Option<String>,
    cni: CniSection,
    registry: RegistrySection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CniSection {
    conf_dir: Option<PathBuf>,
    bin_dirs: Vec<PathBuf>,
    pod_cidr: Option<String>,
    bridge: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RegistrySection {
    config_dir: Option<PathBuf>,
}

/// The flags, completed by the TOML file.
pub(crate) fn runtime(flags: &NodeArgs, file: Option<&Path>) -> Result<NodeArgs, ConfigError> {
    let Some(path) = file else { return Ok(flags.clone()) };
    let text = read(path)?;
    let file: RuntimeFile = toml::from_str(&text)
        .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })?;
    complete(flags, file).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
}

fn complete(flags: &NodeArgs, file: RuntimeFile) -> Result<NodeArgs, String> {
    let flags = flags.clone();
    let pod_cidr = match flags.pod_cidr.is_empty() {
        true => ranges("cni.pod_cidr", file.cni.pod_cidr.as_deref())?,
        false => flags.pod_cidr,
    };
    Ok(NodeArgs {
        root: flags.root.or(file.root),
        state: flags.state.or(file.state),
        listen: flags.listen.or(file.listen),
        cni_conf_dir: flags.cni_conf_dir.or(file.cni.conf_dir),
        cni_bin_dir: if flags.cni_bin_dir.is_empty() { file.cni.bin_dirs } else { flags.cni_bin_dir },
        registry_config_dir: flags.registry_config_dir.or(file.registry.config_dir),
        cgroup_root: flags.cgroup_root.or(file.cgroup_root),
        pod_cidr,
        bridge: flags.bridge.or(file.cni.bridge),
        ..flags
    })
}

/// One range, or two with a comma between.
fn ranges(key: &str, text: Option<&str>) -> Result<Vec<IpNet>, String> {
    let ranges = text.into_iter().flat_map(|text| text.split(',')).map(|range| {
        range
            .trim()
            .parse()
            .map_err(|_| format!("{key}: {range:?} is not a range of addresses such as 10.85.0.0/16"))
    });
    ranges.collect()
}

/// The part of a KubeletConfiguration (kubelet.config.k8s.io/v1beta1) that is supported. Every other key is refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct KubeletFile {
    api_version: String,
    kind: String,
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default)]
    cgroup_root: Option<String>,
    #[serde(default)]
    cgroup_driver: Option<String>,
    #[serde(default)]
    pod_logs_dir: Option<PathBuf>,
    #[serde(default, rename = "resolvConf")]
    resolv_conf: Option<PathBuf>,
    #[serde(default, rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u8>,
    #[serde(default, rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<u8>,
    #[serde(default, rename = "imageMinimumGCAge", deserialize_with = "go_duration")]
    image_minimum_gc_age: Option<Duration>,
    #[serde(default, rename = "imageMaximumGCAge", deserialize_with = "go_duration")]
    image_maximum_gc_age: Option<Duration>,
    #[serde(default)]
    container_log_max_size: Option<String>,
    #[serde(default)]
    container_log_max_files: Option<usize>,
    #[serde(default, deserialize_with = "go_duration")]
    container_log_monitor_interval: Option<Duration>,
}

/// Reads a KubeletConfiguration; without a file nothing is configured.
pub(crate) fn kubelet(file: Option<&Path>) -> Result<KubeletFile, ConfigError> {
    let Some(path) = file else { return Ok(KubeletFile::default()) };
    let fail = |message: String| ConfigError::Parse { path: path.to_owned(), message };
    let file: KubeletFile = serde_saphyr::from_str(&read(path)?).map_err(|error| fail(error.to_string()))?;
    if (file.api_version.as_str(), file.kind.as_str())
        != ("kubelet.config.k8s.io/v1beta1", "KubeletConfiguration")
    {
        let what = format!("apiVersion {:?}, kind {:?}", file.api_version, file.kind);
        return Err(fail(format!("{what} is no kubelet.config.k8s.io/v1beta1 KubeletConfiguration")));
    }
    ranges("podCIDR", file.pod_cidr.as_deref()).map_err(fail)?;
    if let Some(driver) = file.cgroup_driver.as_deref().filter(|driver| *driver != "cgroupfs") {
        return Err(fail(format!("cgroupDriver {driver:?} is not supported, only cgroupfs")));
    }
    check_image_gc(&file.image_gc()).map_err(|what| fail(what.to_owned()))?;
    file.log_rotation().map_err(fail)?;
    Ok(file)
}

/// Upstream's rules.
fn check_image_gc(policy: &ImageGcPolicy) -> Result<(), &'static str> {
    let ImageGcPolicy { high_threshold_percent: high, low_threshold_percent: low, minimum_age, maximum_age } =
        *policy;
    if high > 100 || low > 100 {
        return Err("imageGCHighThresholdPercent and imageGCLowThresholdPercent are between 0 and 100");
    }
    if low >= high {
        return Err("imageGCLowThresholdPercent must be less than imageGCHighThresholdPercent");
    }
    if maximum_age.is_some_and(|age| age <= minimum_age) {
        return Err("imageMaximumGCAge must be greater than imageMinimumGCAge");
    }
    Ok(())
}

/// A duration as Go writes it: `1h30m`, `2m`, `500ms`.
fn go_duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    let bad = || serde::de::Error::custom(format!("{text:?} is not a duration such as 2m"));
    let mut total = Duration::ZERO;
    let mut rest = text.as_str();
    while !rest.is_empty() && text != "0" {
        let (number, tail) = rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return Err(bad()),
        };
        let part = number.parse::<f64>().ok().map(|number| Duration::try_from_secs_f64(number * seconds));
        total += part.and_then(Result::ok).ok_or_else(bad)?;
        rest = tail;
    }
    if text.is_empty() { Err(bad()) } else { Ok(Some(total)) }
}

impl KubeletFile {
    /// The flags, completed by the file.
    pub(crate) fn complete(&self, flags: &NodeArgs) -> NodeArgs {
        let flags = flags.clone();
        NodeArgs {
            pod_cidr: match flags.pod_cidr.is_empty() {
                // Checked when it was read.
                true => ranges("podCIDR", self.pod_cidr.as_deref()).unwrap_or_default(),
                false => flags.pod_cidr,
            },
            cgroup_root: flags.cgroup_root.or_else(|| self.cgroup_root.clone()),
            ..flags
        }
    }

    /// What has no flag.
    pub(crate) fn apply(self, node: &mut Node) {
        node.image_gc = self.image_gc();
        // Checked when the file was read.
        node.log_rotation = self.log_rotation().unwrap_or_default();
        if let Some(dir) = self.pod_logs_dir {
            node.pod_logs_dir = dir;
        }
        if let Some(path) = self.resolv_conf {
            node.resolv_conf = path;
        }
    }

    /// By upstream's rules.
    fn log_rotation(&self) -> Result<LogRotationPolicy, String> {
        let mut policy = LogRotationPolicy::default();
        if let Some(text) = &self.container_log_max_size {
            let amount =
                manifest::quantity::parse(text).ok().and_then(|amount| u64::try_from(amount.ceil()).ok());
            policy.max_size = amount
                .filter(|size| *size > 0)
                .ok_or_else(|| format!("containerLogMaxSize {text:?} is not a size such as 10Mi"))?;
        }
        policy.max_files = self.container_log_max_files.unwrap_or(policy.max_files);
        if policy.max_files < 2 {
            return Err("containerLogMaxFiles must be greater than 1".to_owned());
        }
        policy.interval = self.container_log_monitor_interval.unwrap_or(policy.interval);
        if policy.interval < Duration::from_secs(3) {
            return Err("containerLogMonitorInterval must be at least 3 seconds".to_owned());
        }
        Ok(policy)
    }

    fn image_gc(&self) -> ImageGcPolicy {
        let default = ImageGcPolicy::default();
        ImageGcPolicy {
            high_threshold_percent: self
                .image_gc_high_threshold_percent
                .unwrap_or(default.high_threshold_percent),
            low_threshold_percent: self
                .image_gc_low_threshold_percent
                .unwrap_or(default.low_threshold_percent),
            minimum_age: self.image_minimum_gc_age.unwrap_or(default.minimum_age),
            maximum_age: self.image_maximum_gc_age.filter(|age| !age.is_zero()),
        }
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn the_sample_configuration_is_accepted_and_says_the_defaults() {
        let (_dir, path) = file(include_str!("../../../deploy/config.toml"));
        let args = runtime(&NodeArgs::default(), Some(&path)).expect("the sample");
        let sample = crate::node::Node::resolve(&args, "box").expect("the sample resolves");
        let default = crate::node::Node::resolve(&NodeArgs::default(), "box").expect("the defaults resolve");
        // The kubelet's part of a node is not `runtime`'s.
        let kept = crate::node::Node {
            kubelet_cgroup: default.kubelet_cgroup.clone(),
            kubelet_dir: default.kubelet_dir.clone(),
            pod_logs_dir: default.pod_logs_dir.clone(),
            ..sample
        };
        assert_eq!(kept, default);
    }

    #[test]
    fn flags_win_over_the_file() {
        let (_dir, path) = file("root = '/file'\nstate = '/file-state'\n[cni]\nbridge = 'br-file'\n");
        let flags = NodeArgs { root: Some("/flag".into()), ..NodeArgs::default() };
        let args = runtime(&flags, Some(&path)).unwrap();
        assert_eq!(args.root.as_deref(), Some(Path::new("/flag")));
        assert_eq!(args.state.as_deref(), Some(Path::new("/file-state")));
        assert_eq!(args.bridge.as_deref(), Some("br-file"));
    }

    #[test]
    fn a_kubelet_configuration_is_taken_as_far_as_it_is_supported() {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let (_dir, path) =
            file(&format!("{head}podCIDR: 10.9.0.0/16\npodLogsDir: /logs\ncgroupDriver: cgroupfs\n"));
        let config = kubelet(Some(&path)).unwrap();
        let mut node = Node::resolve(&config.complete(&NodeArgs::default()), "box").unwrap();
        config.apply(&mut node);
        assert_eq!(node.pod_cidrs, ["10.9.0.0/16".parse::<IpNet>().unwrap()]);
        assert_eq!(node.pod_logs_dir, Path::new("/logs"));
        assert_eq!(node.image_gc, ImageGcPolicy::default());
        for (text, expect) in [
            ("evictionHard: {}\n", "evictionHard"),
            ("cgroupDriver: systemd\n", "only cgroupfs"),
            ("podCIDR: x\n", "podCIDR"),
            ("imageGCLowThresholdPercent: 85\n", "must be less"),
            ("imageGCHighThresholdPercent: 101\n", "between 0 and 100"),
            ("imageMaximumGCAge: 1m\n", "must be greater"),
            ("imageMinimumGCAge: 2 minutes\n", "duration"),
            ("containerLogMaxSize: big\n", "10Mi"),
            ("containerLogMaxFiles: 1\n", "greater than 1"),
            ("containerLogMonitorInterval: 1s\n", "3 seconds"),
            ("containerLogMaxWorkers: 2\n", "containerLogMaxWorkers"),
        ] {
            let (_dir, path) = file(&format!("{head}{text}"));
            let message = kubelet(Some(&path)).unwrap_err().to_string();
            assert!(message.contains(expect), "{message}");
        }
        let (_dir, path) = file("apiVersion: v1\nkind: Pod\n");
        assert!(kubelet(Some(&path)).unwrap_err().to_string().contains("is no kubelet.config"));
    }

    #[test]
    fn the_kubelet_configuration_says_when_images_are_removed() {
        let (_dir, path) = file(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nimageGCHighThresholdPercent: 70\n\
             imageGCLowThresholdPercent: 60\nimageMinimumGCAge: 0s\nimageMaximumGCAge: 1h30m\n",
        );
        let policy = kubelet(Some(&path)).unwrap().image_gc();
        let expect = ImageGcPolicy {
            high_threshold_percent: 70,
            low_threshold_percent: 60,
            minimum_age: Duration::ZERO,
            maximum_age: Some(Duration::from_secs(5400)),
        };
        assert_eq!(policy, expect);
    }

    #[test]
    fn unknown_keys_are_refused_with_file_and_name() {
        let (_dir, path) = file("[cni]\nbridgee = 'x'\n");
        let message = runtime(&NodeArgs::default(), Some(&path)).unwrap_err().to_string();
        assert!(message.contains("bridgee") && message.contains("line 2"), "{message}");
        assert!(message.contains(&path.display().to_string()), "{message}");
    }
}

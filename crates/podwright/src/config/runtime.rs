//! The TOML file of `podwright runtime`: the flags of the same names, grouped. Flags win over it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, ranges, read};
use crate::cli::NodeArgs;

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
    auth_files: Vec<PathBuf>,
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
        registry_auth_file: match flags.registry_auth_file.is_empty() {
            true => file.registry.auth_files,
            false => flags.registry_auth_file,
        },
        cgroup_root: flags.cgroup_root.or(file.cgroup_root),
        pod_cidr,
        bridge: flags.bridge.or(file.cni.bridge),
        ..flags
    })
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
        let (_dir, path) = file(include_str!("../../../../deploy/config.toml"));
        let args = runtime(&NodeArgs::default(), Some(&path)).expect("the sample");
        let sample = crate::node::Node::resolve(&args, "box").expect("the sample resolves");
        let default = crate::node::Node::resolve(&NodeArgs::default(), "box").expect("the defaults resolve");
        // The kubelet's part of a node is not `runtime`'s.
        let kept = crate::node::Node {
            kubelet_cgroup: default.kubelet_cgroup.clone(),
            kubelet_dir: default.kubelet_dir.clone(),
            pod_logs_dir: default.pod_logs_dir.clone(),
            container_logs_dir: default.container_logs_dir.clone(),
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
    fn unknown_keys_are_refused_with_file_and_name() {
        let (_dir, path) = file("[cni]\nbridgee = 'x'\n");
        let message = runtime(&NodeArgs::default(), Some(&path)).unwrap_err().to_string();
        assert!(message.contains("bridgee") && message.contains("line 2"), "{message}");
        assert!(message.contains(&path.display().to_string()), "{message}");
    }
}

//! Which files and mounts a node leaves, and taking them away. What to remove is decided by pure functions.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::node::Node;

/// What happens to images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Images {
    /// They go with everything else.
    Remove,
    /// They stay for the next start.
    Keep,
}

/// What podwright makes below its root, but for images. Configuration that may lie there is the user's.
const IN_ROOT: &[&str] = &[
    "agent.lock",
    "containers",
    "networks",
    "cni/cache",
    "cni/results",
    "services.json",
    "pod-cidrs",
    "joined",
    "kubelet",
    "pods",
    "logs",
    "lock",
];
/// The image store.
const IMAGES_IN_ROOT: &[&str] =
    &["blobs", "index.json", "recent.json", "boot", "oci-layout", "snapshots", "ingest", "tmp"];

/// Everything to remove, in order. The root itself goes only when nothing of the user's is left in it.
pub(crate) fn leftovers(node: &Node, images: Images) -> Vec<PathBuf> {
    let mut paths = vec![node.listen.clone()];
    if images == Images::Remove {
        paths.extend(IMAGES_IN_ROOT.iter().map(|name| node.root.join(name)));
    }
    paths.extend(IN_ROOT.iter().map(|name| node.root.join(name)));
    paths.push(node.state.clone());
    paths
}

/// Where the kubelet and the runtime kept files of one pod outside root and state. A path that a record names is only
/// followed where it lies in the directory of pods' logs.
pub(crate) fn of_pod(node: &Node, uid: &str, log_directory: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if !uid.is_empty() && !uid.contains('/') && uid != "." && uid != ".." {
        paths.push(node.kubelet_dir.join("pods").join(uid));
    }
    let logs = PathBuf::from(log_directory);
    if logs.parent() == Some(&node.pod_logs_dir) && logs.file_name().is_some() {
        paths.push(logs);
    }
    paths
}

/// Unmounts what lies below `dirs` in this mount namespace.
pub(crate) fn unmount_below(dirs: &[&Path]) -> anyhow::Result<()> {
    for dir in dirs {
        host::mount::detach_below(dir)
            .with_context(|| format!("unmount what lies below {}", dir.display()))?;
    }
    Ok(())
}

/// Removes a file or a tree. What is gone already is no error.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a directory if nothing is in it; tells whether it is gone.
pub(crate) fn remove_empty(path: &Path) -> anyhow::Result<bool> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) => {
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::NodeArgs;

    fn node() -> Node {
        let args = NodeArgs { root: Some("/r".into()), state: Some("/s".into()), ..NodeArgs::default() };
        Node::resolve(&args, "box").unwrap()
    }

    #[test]
    fn images_and_the_user_s_configuration_stay_where_that_is_asked() {
        let all = leftovers(&node(), Images::Remove);
        let kept = leftovers(&node(), Images::Keep);
        assert!(all.contains(&"/r/snapshots".into()) && !kept.contains(&"/r/snapshots".into()));
        for path in all.iter().chain(&kept) {
            assert!(!node().cni_conf_dir.starts_with(path), "{}", path.display());
            assert!(!node().registry_config_dir.starts_with(path), "{}", path.display());
        }
        assert!(all.contains(&"/s".into()) && kept.contains(&"/s".into()));
    }

    #[test]
    fn files_of_a_pod_are_found_but_nothing_outside() {
        let found = |uid: &str, logs: &str| of_pod(&node(), uid, logs);
        let expect: Vec<PathBuf> = vec!["/r/kubelet/pods/u1".into(), "/r/logs/pods/default_web_u1".into()];
        assert_eq!(found("u1", "/r/logs/pods/default_web_u1"), expect);
        for (uid, logs) in [("", ""), ("..", "/etc"), ("a/b", "/r/logs/pods"), (".", "/r/logs/pods/..")] {
            assert_eq!(found(uid, logs), Vec::<PathBuf>::new(), "{uid} {logs}");
        }
    }

    #[test]
    fn removing_twice_is_removing_once() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("a");
        std::fs::create_dir_all(tree.join("b")).unwrap();
        std::fs::write(tree.join("b/c"), "x").unwrap();
        assert!(!remove_empty(&tree).unwrap());
        remove(&tree).unwrap();
        remove(&tree).unwrap();
        assert!(remove_empty(&tree).unwrap());
    }
}

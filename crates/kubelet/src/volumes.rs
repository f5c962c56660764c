//! Volumes: directories below `<root>/pods/<uid>/volumes`, and what containers mount of them.
//!
//! Files of ConfigMaps and Secrets are replaced at once (upstream's atomic writer): each version is a directory of its own,
//! `..data` is a link to the current one, and the names are links through it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1;
use manifest::{ObjectKey, Objects};

use crate::pod::model::Pod;

/// The volumes of the node's pods.
#[derive(Clone, Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
}

/// Files by relative path, with their mode.
type Payload = BTreeMap<String, (Vec<u8>, u32)>;

impl Volumes {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// `<root>/pods/<uid>`.
    pub(crate) fn pod_directory(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    fn path(&self, pod: &Pod, kind: &str, name: &str) -> PathBuf {
        self.pod_directory(&pod.uid).join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
    }

    /// Makes every volume of the pod what it should be now. Repeatable: also how updates reach the files.
    ///
    /// # Errors
    /// What is missing or cannot be made, by the volume's name.
    pub(crate) fn set_up(&self, pod: &Pod, objects: &Objects) -> Result<(), String> {
        for volume in pod.source.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            self.set_up_one(pod, volume, objects).map_err(|error| {
                format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name)
            })?;
        }
        Ok(())
    }

    fn set_up_one(&self, pod: &Pod, volume: &v1::Volume, objects: &Objects) -> Result<(), String> {
        let told = |error: io::Error| error.to_string();
        if volume.empty_dir.is_some() {
            let path = self.path(pod, "empty-dir", &volume.name);
            make_directory(&path, 0o755).map_err(told)?;
            // Everybody's, whatever the umask.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).map_err(told)
        } else if let Some(host_path) = &volume.host_path {
            check_host_path(host_path)
        } else if let Some(source) = &volume.config_map {
            let found = objects.config_maps.get(&ObjectKey::new(&pod.namespace, &source.name));
            let data = match (found, source.optional) {
                (Some(map), _) => config_map_data(map),
                (None, Some(true)) => BTreeMap::new(),
                (None, _) => return Err(format!("configmap {:?} not found", source.name)),
            };
            let optional = source.optional.unwrap_or(false);
            let payload = payload(&data, source.items.as_deref(), source.default_mode, optional)?;
            write_atomically(&self.path(pod, "configmap", &volume.name), &payload).map_err(told)
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.clone().unwrap_or_default();
            let found = objects.secrets.get(&ObjectKey::new(&pod.namespace, &name));
            let data = match (found, source.optional) {
                (Some(secret), _) => {
                    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
                }
                (None, Some(true)) => BTreeMap::new(),
                (None, _) => return Err(format!("secret {name:?} not found")),
            };
            let optional = source.optional.unwrap_or(false);
            let payload = payload(&data, source.items.as_deref(), source.default_mode, optional)?;
            write_atomically(&self.path(pod, "secret", &volume.name), &payload).map_err(told)
        } else {
            Err("this kind of volume is not supported".into())
        }
    }

    /// What a container mounts, /etc/hosts included where the pod has its own.
    ///
    /// # Errors
    /// When a mount names a volume that the pod does not have.
    pub(crate) fn mounts(&self, pod: &Pod, container: &v1::Container) -> Result<Vec<cri::v1::Mount>, String> {
        let volumes: Vec<&v1::Volume> =
            pod.source.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).collect();
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            let volume = volume.ok_or_else(|| format!("volume {:?} is not one of the pod's", mount.name))?;
            let (host_path, readonly) = match (&volume.host_path, &volume.config_map, &volume.secret) {
                (Some(host_path), _, _) => (PathBuf::from(&host_path.path), false),
                (_, Some(_), _) => (self.path(pod, "configmap", &volume.name), true),
                (_, _, Some(_)) => (self.path(pod, "secret", &volume.name), true),
                _ => (self.path(pod, "empty-dir", &volume.name), false),
            };
            mounts.push(cri::v1::Mount {
                container_path: mount.mount_path.clone(),
                host_path: host_path.display().to_string(),
                readonly: readonly || mount.read_only.unwrap_or(false),
                ..Default::default()
            });
        }
        if !mounts.iter().any(|mount| mount.container_path == "/etc/hosts") {
            mounts.push(cri::v1::Mount {
                container_path: "/etc/hosts".into(),
                host_path: self.hosts_file(&pod.uid).display().to_string(),
                ..Default::default()
            });
        }
        Ok(mounts)
    }

    /// The pod's /etc/hosts.
    pub(crate) fn hosts_file(&self, uid: &str) -> PathBuf {
        self.pod_directory(uid).join("etc-hosts")
    }

    /// Writes the pod's /etc/hosts.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn write_hosts(&self, uid: &str, text: &str) -> io::Result<()> {
        make_directory(&self.pod_directory(uid), 0o750)?;
        // In place: containers have the file itself mounted.
        std::fs::write(self.hosts_file(uid), text)
    }

    /// Removes everything of a pod; nothing there is no error.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn remove(&self, uid: &str) -> io::Result<()> {
        match std::fs::remove_dir_all(self.pod_directory(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn config_map_data(map: &v1::ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

/// Which keys become which files. Pure.
fn payload(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[v1::KeyToPath]>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Payload, String> {
    let mode =
        |mode: Option<i32>| u32::try_from(mode.or(default_mode).unwrap_or(0o644)).unwrap_or(0o644) & 0o777;
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.iter().map(|(key, value)| (key.clone(), (value.clone(), mode(None)))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        let plain = Path::new(&item.path).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || item.path.starts_with("..") {
            return Err(format!("path {:?} must stay below the volume", item.path));
        }
        match data.get(&item.key) {
            Some(value) => {
                payload.insert(item.path.clone(), (value.clone(), mode(item.mode)));
            }
            None if optional => {}
            None => return Err(format!("references non-existent key: {}", item.key)),
        }
    }
    Ok(payload)
}

/// Replaces the content at once; nothing is touched when it is the same.
fn write_atomically(target: &Path, payload: &Payload) -> io::Result<()> {
    make_directory(target, 0o755)?;
    let data = target.join("..data");
    let former = std::fs::read_link(&data).ok();
    if former.is_some() && is_current(&data, payload) {
        return Ok(());
    }
    let version = format!("..{}", crate::time::wall_ns());
    let directory = target.join(&version);
    make_directory(&directory, 0o755)?;
    for (name, (content, mode)) in payload {
        let file = directory.join(name);
        if let Some(parent) = file.parent() {
            make_directory(parent, 0o755)?;
        }
        std::fs::write(&file, content)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(*mode))?;
    }
    let next = target.join("..data_tmp");
    let _ = std::fs::remove_file(&next);
    symlink(&version, &next)?;
    std::fs::rename(&next, &data)?;
    let top: std::collections::BTreeSet<&str> =
        payload.keys().filter_map(|name| name.split('/').next()).collect();
    for name in &top {
        let link = target.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    for entry in std::fs::read_dir(target)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !top.contains(name.as_str()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    match former {
        Some(former) => std::fs::remove_dir_all(target.join(former)),
        None => Ok(()),
    }
}

fn is_current(data: &Path, payload: &Payload) -> bool {
    let same = payload.iter().all(|(name, (content, mode))| {
        let file = data.join(name);
        let mode_is = file.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o777 == *mode);
        mode_is && std::fs::read(&file).is_ok_and(|now| now == *content)
    });
    same && count_files(data) == payload.len()
}

fn count_files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count_files(&entry.path()) } else { 1 }).sum()
}

/// `hostPath.type`, with upstream's sentences.
fn check_host_path(source: &v1::HostPathVolumeSource) -> Result<(), String> {
    use std::os::unix::fs::FileTypeExt;
    let path = Path::new(&source.path);
    let kind = path.metadata().map(|metadata| metadata.file_type());
    let is = |check: &dyn Fn(&std::fs::FileType) -> bool| kind.as_ref().is_ok_and(check);
    let told = |error: io::Error| error.to_string();
    let wanted = match source.type_.as_deref().unwrap_or_default() {
        "" => return Ok(()),
        "DirectoryOrCreate" if kind.is_err() => return make_directory(path, 0o755).map_err(told),
        "FileOrCreate" if kind.is_err() => return std::fs::File::create_new(path).map(drop).map_err(told),
        "Directory" | "DirectoryOrCreate" => (is(&std::fs::FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(&std::fs::FileType::is_file), "file"),
        "Socket" => (is(&std::fs::FileType::is_socket), "socket"),
        "CharDevice" => (is(&std::fs::FileType::is_char_device), "character device"),
        "BlockDevice" => (is(&std::fs::FileType::is_block_device), "block device"),
        other => return Err(format!("hostPath type {other:?} is not known")),
    };
    if wanted.0 {
        Ok(())
    } else {
        Err(format!("hostPath type check failed: {} is not a {}", source.path, wanted.1))
    }
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload_of(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(name, text)| ((*name).to_owned(), (text.as_bytes().to_vec(), 0o640))).collect()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("a directory").flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| !name.starts_with(".."));
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_at_once_and_old_ones_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("volume");
        write_atomically(&target, &payload_of(&[("a", "1"), ("d/b", "2")])).expect("written");
        assert_eq!(names(&target), ["a", "d"]);
        assert_eq!(std::fs::read_to_string(target.join("d/b")).expect("read"), "2");
        let version = std::fs::read_link(target.join("..data")).expect("a link");
        write_atomically(&target, &payload_of(&[("a", "1"), ("d/b", "2")])).expect("the same");
        assert_eq!(
            std::fs::read_link(target.join("..data")).expect("a link"),
            version,
            "nothing was touched"
        );
        write_atomically(&target, &payload_of(&[("a", "3")])).expect("written");
        assert_eq!(names(&target), ["a"]);
        assert_eq!(std::fs::read_to_string(target.join("a")).expect("read"), "3");
        assert!(!target.join(version).exists(), "the former version is gone");
    }

    #[test]
    fn items_choose_and_place_keys_below_the_volume_only() {
        let data = BTreeMap::from([("k".to_owned(), b"v".to_vec())]);
        let item =
            |key: &str, path: &str| v1::KeyToPath { key: key.into(), path: path.into(), mode: Some(0o400) };
        let made = payload(&data, Some(&[item("k", "x/y")]), None, false).expect("placed");
        assert_eq!(made.get("x/y"), Some(&(b"v".to_vec(), 0o400)));
        for (key, path) in [("k", "../x"), ("k", "/x"), ("k", "a/../../x"), ("no", "x")] {
            payload(&data, Some(&[item(key, path)]), None, false).expect_err(path);
        }
        assert!(payload(&data, Some(&[item("no", "x")]), None, true).expect("optional").is_empty());
    }
}

//! Volumes: directories below `<root>/pods/<uid>/volumes`, and what containers mount of them.
//!
//! What a file of a volume says is decided in [`content`], how files are replaced in [`writer`], what a container mounts in
//! [`mounts`]. Secrets and `medium: Memory` are in memory. Every mount of a pod lies below `<root>/pods/<uid>`: that is its
//! record, and [`Volumes::remove`] takes all of them away before it removes a file.

mod content;
mod host_path;
mod mounts;
mod sub_path;
mod writer;

use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use host::mount::{self, Parameter};
use host::path::make_directory;
use k8s_openapi::api::core::v1;
use manifest::Objects;
use rustix::fs::{Mode, OFlags};

use crate::downward::PodFacts;
use crate::huge_pages;
use crate::pod::model::Pod;
use crate::tokens::Tokens;
pub(crate) use mounts::{MountContext, wants_recursive_read_only};

/// /etc/hosts of a pod may grow to this: its containers can write to it (CVE-2020-8557).
const HOSTS_LIMIT: u64 = 1 << 20;

/// The volumes of the node's pods.
#[derive(Clone, Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
}

/// What the files of volumes are made of, beside the manifest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents<'a> {
    /// ConfigMaps and Secrets.
    pub(crate) objects: &'a Objects,
    /// What a pod may tell of itself.
    pub(crate) facts: &'a PodFacts,
    /// Its tokens.
    pub(crate) tokens: &'a Tokens,
}

/// What a volume is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    EmptyDir,
    HostPath,
    ConfigMap,
    Secret,
    DownwardApi,
    Projected,
    Image,
}

impl Kind {
    fn of(volume: &v1::Volume) -> Option<Self> {
        [
            (volume.empty_dir.is_some(), Self::EmptyDir),
            (volume.host_path.is_some(), Self::HostPath),
            (volume.config_map.is_some(), Self::ConfigMap),
            (volume.secret.is_some(), Self::Secret),
            (volume.downward_api.is_some(), Self::DownwardApi),
            (volume.projected.is_some(), Self::Projected),
            (volume.image.is_some(), Self::Image),
        ]
        .into_iter()
        .find_map(|(given, kind)| given.then_some(kind))
    }

    /// The plugin's name in paths.
    fn name(self) -> &'static str {
        match self {
            Self::EmptyDir => "empty-dir",
            Self::HostPath => "host-path",
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::DownwardApi => "downward-api",
            Self::Projected => "projected",
            Self::Image => "image",
        }
    }

    /// Whether the kubelet alone writes its files.
    fn is_written_by_kubelet(self) -> bool {
        matches!(self, Self::ConfigMap | Self::Secret | Self::DownwardApi | Self::Projected)
    }
}

impl Volumes {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// `<root>/pods/<uid>`.
    pub(crate) fn pod_directory(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// The pods that have a directory here.
    pub(crate) fn uids(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join("pods")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Where an emptyDir of that pod lies.
    pub(crate) fn empty_dir(&self, uid: &str, name: &str) -> PathBuf {
        let volumes = self.pod_directory(uid).join("volumes");
        volumes.join(format!("kubernetes.io~{}", Kind::EmptyDir.name())).join(name)
    }

    fn path(&self, pod: &Pod, kind: Kind, name: &str) -> PathBuf {
        let volumes = self.pod_directory(&pod.uid).join("volumes");
        volumes.join(format!("kubernetes.io~{}", kind.name())).join(name)
    }

    /// Gives back what a pod that has ended will not use again: its volumes. What its containers left to be read stays.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn release(&self, uid: &str) -> io::Result<()> {
        let directory = self.pod_directory(uid);
        mount::detach_below(&directory)?;
        for entry in std::fs::read_dir(&directory)?.filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.file_name() != crate::pod::termination::CONTAINERS)
        }) {
            let path = entry?.path();
            if path.is_symlink() || path.is_file() {
                std::fs::remove_file(path)?;
            } else {
                std::fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    /// Makes every volume of the pod what it should be now. Repeatable: also how updates reach the files. One that cannot be
    /// made keeps no other from it.
    ///
    /// # Errors
    /// What is missing or cannot be made, by the volume's name: the first of them.
    pub(crate) fn set_up(&self, pod: &Pod, contents: Contents<'_>) -> Result<(), String> {
        let mut made = Ok(());
        for volume in pod.source.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let one = self
                .set_up_one(pod, volume, contents)
                .map_err(|error| format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name));
            made = made.and(one);
        }
        made
    }

    fn set_up_one(&self, pod: &Pod, volume: &v1::Volume, contents: Contents<'_>) -> Result<(), String> {
        let kind = Kind::of(volume).ok_or("this kind of volume is not supported")?;
        let path = self.path(pod, kind, &volume.name);
        let told = |error: io::Error| format!("{}: {error}", path.display());
        if kind != Kind::HostPath && kind != Kind::Image {
            make_directory(path.parent().unwrap_or(&self.root), PRIVATE).map_err(told)?;
        }
        match (&volume.host_path, &volume.empty_dir) {
            (Some(source), _) => return host_path::check(source),
            (_, Some(source)) if source.medium.as_deref() == Some("Memory") => {
                let size = content::memory_size(pod, source, contents.facts.capacity);
                let memory = Memory { size: Some(size), mode: open_mode(pod), gid: fs_group(pod) };
                return mount_memory(&path, &memory).map_err(told);
            }
            (_, Some(source))
                if source.medium.as_deref().is_some_and(|medium| medium.starts_with("HugePages")) =>
            {
                let (medium, spec) = (source.medium.as_deref().unwrap_or_default(), pod.source.spec.as_ref());
                let spec = spec.ok_or("the pod has no spec")?;
                let size = huge_pages::of_medium(medium, spec, &huge_pages::sizes())?;
                return mount_huge(&path, size, open_mode(pod), fs_group(pod)).map_err(told);
            }
            (_, Some(_)) => return make_empty(&path, open_mode(pod), fs_group(pod)).map_err(told),
            (None, None) => {}
        }
        let Some(payload) = content::of_volume(pod, volume, contents)? else { return Ok(()) };
        if kind != Kind::ConfigMap {
            let memory = Memory { size: None, mode: 0o755, gid: None };
            mount_memory(&path, &memory).map_err(told)?;
        }
        writer::write(&path, &payload, fs_group(pod)).map_err(told)
    }

    /// The file that is mounted at /etc/hosts.
    pub(crate) fn hosts_file(&self, uid: &str) -> PathBuf {
        self.pod_directory(uid).join("hosts").join("etc-hosts")
    }

    /// Writes the pod's /etc/hosts, into a memory of its own that it cannot outgrow.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn write_hosts(&self, uid: &str, text: &str) -> io::Result<()> {
        let file = self.hosts_file(uid);
        make_directory(&self.pod_directory(uid), PRIVATE)?;
        let memory = Memory { size: Some(HOSTS_LIMIT), mode: 0o755, gid: None };
        mount_memory(file.parent().unwrap_or(&self.root), &memory)?;
        // In place: containers have the file itself mounted.
        std::fs::write(&file, text)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))
    }

    /// Removes everything of a pod; nothing there is no error. Nothing is removed while something is mounted there: it may
    /// be a directory of the host.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn remove(&self, uid: &str) -> io::Result<()> {
        let directory = self.pod_directory(uid);
        mount::detach_below(&directory)?;
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// `securityContext.fsGroup`.
fn fs_group(pod: &Pod) -> Option<u32> {
    let security = pod.source.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    security.and_then(|security| security.fs_group).and_then(|group| u32::try_from(group).ok())
}

/// Everybody's; with an fsGroup what is made in it belongs to that group.
fn open_mode(pod: &Pod) -> u32 {
    if fs_group(pod).is_some() { 0o2777 } else { 0o777 }
}

/// Makes an empty directory with its owner and mode at once. What containers have made of it since then stays as it is.
fn make_empty(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let new = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().display()));
    make_directory(&new, 0o755)?;
    chown(&new, None, gid)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(new, path)
}

/// A file system in memory.
struct Memory {
    /// Bytes.
    size: Option<u64>,
    mode: u32,
    gid: Option<u32>,
}

/// Mounts one on a directory, unless something is mounted there. It is never swapped out where the kernel can do that.
fn mount_memory(path: &Path, memory: &Memory) -> io::Result<()> {
    make_directory(path, 0o755)?;
    if mount::is_mount_point(path)? {
        return Ok(());
    }
    let mode = format!("{:o}", memory.mode);
    let (size, gid) = (memory.size.map(|size| size.to_string()), memory.gid.map(|gid| gid.to_string()));
    let mut parameters = vec![Parameter::String("mode", &mode)];
    parameters.extend(size.as_deref().map(|size| Parameter::String("size", size)));
    parameters.extend(gid.as_deref().map(|gid| Parameter::String("gid", gid)));
    let new = |parameters: &[Parameter<'_>]| mount::new_filesystem("tmpfs", "tmpfs", parameters, 0);
    let mut unswapped = parameters.clone();
    unswapped.push(Parameter::Flag("noswap"));
    // Linux 6.4.
    let made = new(&unswapped).or_else(|_| new(&parameters))?;
    mount::attach(&made, rustix::fs::open(path, directory_flags(), Mode::empty())?)
}

/// Mounts a file system of huge pages of that size on a directory, unless something is mounted there.
fn mount_huge(path: &Path, size: u64, mode: u32, gid: Option<u32>) -> io::Result<()> {
    make_directory(path, 0o755)?;
    if mount::is_mount_point(path)? {
        return Ok(());
    }
    let (size, gid) = (size.to_string(), gid.map(|gid| gid.to_string()));
    let mut parameters = vec![Parameter::String("pagesize", &size)];
    parameters.extend(gid.as_deref().map(|gid| Parameter::String("gid", gid)));
    let made = mount::new_filesystem("hugetlbfs", "nodev", &parameters, 0)?;
    // As a parameter it would lose the bit that hands the group down.
    let root = rustix::fs::openat(&made, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchmod(root, Mode::from_raw_mode(mode))?;
    mount::attach(&made, rustix::fs::open(path, directory_flags(), Mode::empty())?)
}

fn directory_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// What nobody but root and its group passes through: all that leads to pods' volumes, which may be anybody's.
pub(crate) const PRIVATE: u32 = 0o750;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_keeps_what_containers_made_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let volume = directory.path().join("plugin/volume");
        let mode = || volume.metadata().expect("there").permissions().mode() & 0o7777;
        make_empty(&volume, 0o777, None).expect("made");
        assert_eq!(mode(), 0o777);
        std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o700)).expect("changed");
        make_empty(&volume, 0o777, None).expect("there already");
        assert_eq!(mode(), 0o700, "a database makes its directory its own");
        assert_eq!(std::fs::read_dir(directory.path().join("plugin")).expect("a directory").count(), 1);
    }
}

//! `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`: one link per container to its log, which is what log
//! collectors follow. Upstream: pkg/kubelet/kuberuntime/legacy.go.
//!
//! Only links that lead below the directory of pods' logs are ever removed: others are somebody else's.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The longest name of a file, and its end.
const NAME_MAX: usize = 255;
const SUFFIX: &str = ".log";

/// Whose log it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) container: &'a str,
    pub(crate) id: &'a str,
}

impl Owner<'_> {
    /// The name of the link; one that is too long loses its end, and thus some of the id. Pure.
    fn link_name(&self) -> String {
        let Self { namespace, pod, container, id } = self;
        let mut name = format!("{pod}_{namespace}_{container}-{id}");
        name.truncate(name.floor_char_boundary(NAME_MAX - SUFFIX.len()));
        name + SUFFIX
    }
}

/// The directory of links.
#[derive(Clone, Debug)]
pub(crate) struct LogLinks {
    pub(crate) directory: PathBuf,
    pub(crate) pod_logs_dir: PathBuf,
}

impl LogLinks {
    /// Links to the log of a container that was started. Without a log there is no link.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub(crate) fn make(&self, owner: Owner<'_>, log: &Path) -> io::Result<()> {
        if !log.try_exists()? {
            return Ok(());
        }
        match symlink(log, self.path(owner)) {
            // Somebody removed the directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.directory)?;
                symlink(log, self.path(owner))
            }
            made => made,
        }
    }

    /// Removes the link of a container that is gone.
    pub(crate) fn remove(&self, owner: Owner<'_>) {
        // What cannot be removed dangles: the next sweep tries again, and tells.
        let _ = std::fs::remove_file(self.path(owner));
    }

    /// Removes the links of a pod whose logs lie in `logs`; a pod of the same name may have others.
    pub(crate) fn remove_all_of(&self, namespace: &str, pod: &str, logs: &Path) {
        let prefix = format!("{pod}_{namespace}_");
        let is_of_pod = |path: &Path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        };
        let _ =
            self.remove_where(|path, log| is_of_pod(path) && log().is_some_and(|log| log.starts_with(logs)));
    }

    /// Removes every link to a pod's log that is not there.
    ///
    /// # Errors
    /// When the directory cannot be read or a link cannot be removed: the last reason.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        let dangles =
            |log: PathBuf| log.starts_with(&self.pod_logs_dir) && matches!(log.try_exists(), Ok(false));
        self.remove_where(|_, log| log().is_some_and(dangles))
    }

    /// Removes links about which `go` says so, by their paths and what they lead to.
    fn remove_where(&self, go: impl Fn(&Path, &dyn Fn() -> Option<PathBuf>) -> bool) -> io::Result<()> {
        let gone_is_fine = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        };
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) => return gone_is_fine(error),
            Ok(entries) => entries,
        };
        let mut removed = Ok(());
        for entry in entries {
            let path = entry?.path();
            if go(&path, &|| std::fs::read_link(&path).ok()) {
                removed = std::fs::remove_file(&path).or_else(gone_is_fine).and(removed);
            }
        }
        removed
    }

    fn path(&self, owner: Owner<'_>) -> PathBuf {
        self.directory.join(owner.link_name())
    }
}

/// Removes links in `directory` to logs below `pod_logs_dir` that are not there: for whoever removes pods without a kubelet.
///
/// # Errors
/// When the directory cannot be read or a link cannot be removed.
pub fn sweep_log_links(directory: &Path, pod_logs_dir: &Path) -> io::Result<()> {
    LogLinks { directory: directory.to_owned(), pod_logs_dir: pod_logs_dir.to_owned() }.sweep()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container: &str) -> Owner<'_> {
        Owner { namespace: "shop", pod: "web-0", container, id: "0123456789abcdef" }
    }

    #[test]
    fn names_are_those_that_collectors_take_apart() {
        assert_eq!(owner("c").link_name(), "web-0_shop_c-0123456789abcdef.log");
        let long = "c".repeat(300);
        let expect = format!("web-0_shop_{}.log", &long[..240]);
        assert_eq!((owner(&long).link_name(), expect.len()), (expect, 255));
    }

    #[test]
    fn a_link_lives_as_long_as_its_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let links =
            LogLinks { directory: dir.path().join("containers"), pod_logs_dir: dir.path().join("pods") };
        links.sweep().expect("nothing there");
        let log = |name: &str| {
            let log = links.pod_logs_dir.join(name).join("0.log");
            std::fs::create_dir_all(log.parent().expect("a directory")).expect("made");
            std::fs::write(&log, name).expect("written");
            log
        };
        for name in ["kept", "removed", "dangling", "of-pod"] {
            links.make(owner(name), &log(name)).expect("linked");
        }
        links.make(owner("unlogged"), &links.pod_logs_dir.join("unlogged/0.log")).expect("nothing to do");
        std::fs::remove_file(links.pod_logs_dir.join("dangling/0.log")).expect("removed");
        symlink("/nowhere/else", links.directory.join("other.log")).expect("linked");
        std::fs::write(links.directory.join("file.log"), "").expect("written");
        links.remove(owner("removed"));
        links.remove(owner("removed"));
        links.remove_all_of("shop", "other", &links.pod_logs_dir.join("kept"));
        links.remove_all_of("shop", "web-0", &links.pod_logs_dir.join("of-pod"));
        links.sweep().expect("swept");
        let left = std::fs::read_dir(&links.directory).expect("listed");
        let mut left: Vec<_> = left.map(|entry| entry.expect("an entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["file.log", "other.log", "web-0_shop_kept-0123456789abcdef.log"]);
        let link = links.directory.join("web-0_shop_kept-0123456789abcdef.log");
        assert_eq!(std::fs::read_to_string(link).expect("the log"), "kept");
    }
}

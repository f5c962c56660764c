//! What a joined machine has on disk. All of it is written, or none: the kubeconfig, by which a machine counts as joined, comes
//! last, and what was written before a failure is taken back.

use std::io;
use std::path::{Path, PathBuf};

use kubelet::certificates::{Identity, Store, kubeconfig_of};
use kubelet::join::{Cluster, JoinError};

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// `/etc/kubernetes/kubelet.conf`.
    pub(super) kubeconfig: PathBuf,
    /// `/var/lib/kubelet/config.yaml`.
    pub(super) kubelet_config: PathBuf,
    /// `/etc/kubernetes/pki/ca.crt`.
    pub(super) authority: PathBuf,
    /// `/var/lib/kubelet/pki`.
    pub(super) pki: PathBuf,
    /// Where static pods come from, if from anywhere.
    pub(super) static_pods: Option<PathBuf>,
    /// The list of these files, for `podwright reset`.
    pub(super) list: PathBuf,
}

impl Places {
    /// Whether another cluster's authority lies where this one's belongs.
    pub(super) fn has_other_authority(&self, cluster: &Cluster) -> bool {
        std::fs::read_to_string(&self.authority).is_ok_and(|found| found.trim() != cluster.authority.trim())
    }

    /// Writes everything.
    pub(super) fn write(
        &self,
        cluster: &Cluster,
        kubelet_config: &str,
        identity: &Identity,
        now: i64,
    ) -> Result<(), JoinError> {
        let mut written = Vec::new();
        let all = self.write_all(cluster, kubelet_config, identity, now, &mut written);
        if all.is_err() {
            written.iter().rev().for_each(Written::take_back);
        }
        all
    }

    fn write_all(
        &self,
        cluster: &Cluster,
        kubelet_config: &str,
        identity: &Identity,
        now: i64,
        written: &mut Vec<Written>,
    ) -> Result<(), JoinError> {
        let store = Store::client(&self.pki);
        let link = store.current_path();
        let files = [&self.authority, &link, &self.kubelet_config, &self.kubeconfig];
        let list: String = files.iter().map(|path| format!("{}\n", path.display())).collect();
        create(&self.list, list.as_bytes(), 0o644, written)?;
        create(&self.authority, cluster.authority.as_bytes(), 0o644, written)?;
        let is_first = !link.exists();
        store.replace(identity, now).map_err(fault(&link))?;
        if let (true, Ok(target)) = (is_first, std::fs::read_link(&link)) {
            written.extend([self.pki.join(target), link].map(|path| Written { path, former: None }));
        }
        create(&self.kubelet_config, kubelet_config.as_bytes(), 0o644, written)?;
        if let Some(directory) = &self.static_pods {
            std::fs::create_dir_all(directory).map_err(fault(directory))?;
        }
        create(&self.kubeconfig, kubeconfig_of(cluster, &store).as_bytes(), 0o600, written)
    }
}

fn fault(path: &Path) -> impl FnOnce(io::Error) -> JoinError {
    let path = path.to_owned();
    move |source| JoinError::Write { path, source }
}

fn create(path: &Path, bytes: &[u8], mode: u32, written: &mut Vec<Written>) -> Result<(), JoinError> {
    let former = std::fs::read(path).ok();
    let write = || {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        host::state_file::write_durable(path, bytes, mode)
    };
    write().map_err(fault(path))?;
    written.push(Written { path: path.to_owned(), former });
    Ok(())
}

/// A file that was written, and what it held before.
struct Written {
    path: PathBuf,
    former: Option<Vec<u8>>,
}

impl Written {
    fn take_back(&self) {
        let done = match &self.former {
            Some(former) => std::fs::write(&self.path, former),
            None => std::fs::remove_file(&self.path),
        };
        if let Err(error) = done {
            tracing::warn!(%error, path = %self.path.display(), "a file of the join that failed is not taken back");
        }
    }
}

/// The list of what a join wrote.
pub(crate) fn list(root: &Path) -> PathBuf {
    root.join("joined")
}

/// What a join wrote, and the certificates that came after it; nothing where nobody joined.
pub(crate) fn listed(list: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_to_string(list).unwrap_or_default().lines().map(PathBuf::from).collect();
    let is_link = |file: &&PathBuf| file.file_name().is_some_and(|name| name == "kubelet-client-current.pem");
    let pki = files.iter().find(is_link).and_then(|link| link.parent()).map(Path::to_owned);
    for entry in pki.iter().filter_map(|pki| std::fs::read_dir(pki).ok()).flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["kubelet-client-", "kubelet-server-", "kubelet."].iter().any(|start| name.starts_with(start)) {
            files.push(entry.path());
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
        Identity::parse(&format!("{}{}", certificate.pem(), key.serialize_pem())).expect("an identity")
    }

    fn cluster() -> Cluster {
        Cluster { server: "https://a:6443".to_owned(), authority: "AUTHORITY\n".to_owned() }
    }

    fn places(root: &Path) -> Places {
        Places {
            kubeconfig: root.join("kubernetes/kubelet.conf"),
            kubelet_config: root.join("kubelet/config.yaml"),
            authority: root.join("kubernetes/pki/ca.crt"),
            pki: root.join("kubelet/pki"),
            static_pods: Some(root.join("kubernetes/manifests")),
            list: root.join("podwright/joined"),
        }
    }

    fn files(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => directories.push(entry.path()),
                    false => found.push(entry.path().strip_prefix(root).unwrap().display().to_string()),
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn everything_is_written_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let (places, identity) = (places(dir.path()), identity());
        places.write(&cluster(), "kind: KubeletConfiguration\n", &identity, 0).expect("written");
        assert_eq!(
            files(dir.path()),
            [
                "kubelet/config.yaml",
                "kubelet/pki/kubelet-client-1970-01-01-00-00-00.pem",
                "kubelet/pki/kubelet-client-current.pem",
                "kubernetes/kubelet.conf",
                "kubernetes/pki/ca.crt",
                "podwright/joined",
            ]
        );
        std::fs::write(places.pki.join("kubelet.key"), "self-signed").unwrap();
        std::fs::write(places.pki.join("theirs"), "theirs").unwrap();
        for file in listed(&places.list) {
            let _ = std::fs::remove_file(file);
        }
        assert_eq!(files(dir.path()), ["kubelet/pki/theirs", "podwright/joined"]);
        std::fs::write(&places.authority, &cluster().authority).unwrap();
        assert!(!places.has_other_authority(&cluster()));
        assert!(places.has_other_authority(&Cluster { authority: "OTHER".to_owned(), ..cluster() }));
    }

    #[test]
    fn a_failure_at_the_end_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (places, identity) = (places(dir.path()), identity());
        // A directory cannot be replaced by a file.
        std::fs::create_dir_all(&places.kubeconfig).unwrap();
        let error = places.write(&cluster(), "", &identity, 0).expect_err("no kubeconfig");
        assert!(error.to_string().contains("kubelet.conf"), "{error}");
        assert_eq!(files(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn a_failure_gives_back_what_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        std::fs::create_dir_all(dir.path().join("kubelet")).unwrap();
        std::fs::write(&places.kubelet_config, "former").unwrap();
        std::fs::create_dir_all(&places.kubeconfig).unwrap();
        places.write(&cluster(), "new", &identity(), 0).expect_err("no kubeconfig");
        assert_eq!(std::fs::read_to_string(&places.kubelet_config).unwrap(), "former");
        assert_eq!(files(dir.path()), ["kubelet/config.yaml"]);
    }
}

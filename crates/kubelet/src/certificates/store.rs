//! Certificates on disk, as the stock kubelet keeps them: `PREFIX-<time>.pem` with certificate and key, and the link
//! `PREFIX-current.pem` to the one that is used. Upstream: k8s.io/client-go/util/certificate, file store.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;

use super::identity::{Identity, IdentityError};

/// The certificates of one purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    directory: PathBuf,
    prefix: &'static str,
}

/// Why there is no identity in a store, though there is a file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something else in it.
    #[error("read a certificate and its key in {}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
}

impl Store {
    /// Client certificates: `kubelet-client-current.pem` in that directory.
    #[must_use]
    pub fn client(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), prefix: "kubelet-client" }
    }

    /// Serving certificates: `kubelet-server-current.pem`.
    #[must_use]
    pub fn serving(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), prefix: "kubelet-server" }
    }

    /// The link to what is used now.
    #[must_use]
    pub fn current_path(&self) -> PathBuf {
        self.directory.join(format!("{}-current.pem", self.prefix))
    }

    /// What is used now, if anything.
    ///
    /// # Errors
    /// When there is a file and no identity in it.
    pub fn current(&self) -> Result<Option<Identity>, StoreError> {
        let path = self.current_path();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        Identity::parse(&text).map(Some).map_err(|source| StoreError::Identity { path, source })
    }

    /// Makes this identity the one that is used; the former one's file goes.
    ///
    /// # Errors
    /// When the system refuses; then what was used still is.
    pub fn replace(&self, identity: &Identity, now: i64) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let link = self.current_path();
        let former = std::fs::read_link(&link).ok();
        let name = self.file_name(now);
        host::state_file::write_durable(&self.directory.join(&name), identity.pem().as_bytes(), 0o600)?;
        let temporary = self.directory.join(format!(".{}-current.{}", self.prefix, std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        symlink(&name, &temporary)?;
        std::fs::rename(&temporary, &link).inspect_err(|_| drop(std::fs::remove_file(&temporary)))?;
        // Only what we wrote ourselves is ours to remove.
        let ours = |file: &Path| {
            file.to_str().is_some_and(|text| text.starts_with(self.prefix) && !text.contains('/'))
        };
        if let Some(former) = former.filter(|former| ours(former) && *former != Path::new(&name)) {
            let _ = std::fs::remove_file(self.directory.join(former));
        }
        Ok(())
    }

    /// Upstream's names end in the local time to the second; two in one second must not share one.
    fn file_name(&self, now: i64) -> String {
        let time = Timestamp::from_second(now).unwrap_or_default().strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let plain = format!("{}-{time}.pem", self.prefix);
        let mut names =
            std::iter::once(plain).chain((1..).map(|more| format!("{}-{time}.{more}.pem", self.prefix)));
        names.find(|name| !self.directory.join(name).exists()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::self_signed;
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn identity(name: &str) -> Identity {
        let (certificate, key) = self_signed(name, 1, 2);
        Identity::parse(&format!("{certificate}{key}")).expect("an identity")
    }

    #[test]
    fn the_link_leads_to_the_newest_and_the_former_goes() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let store = Store::client(&pki);
        assert!(store.current().expect("nothing yet").is_none());
        store.replace(&identity("one"), 1_795_684_609).expect("kept");
        assert_eq!(
            std::fs::read_link(store.current_path()).unwrap(),
            Path::new("kubelet-client-2026-11-26-09-16-49.pem")
        );
        store.replace(&identity("two"), 1_795_684_609).expect("kept in the same second");
        assert_eq!(store.current().expect("readable").expect("there").leaf.name, "two");
        let files = std::fs::read_dir(&pki).unwrap().count();
        assert_eq!(files, 2, "the link and what it leads to");
        let mode = std::fs::metadata(store.current_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_the_admin_put_there_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs.pem");
        std::fs::write(&theirs, "theirs").unwrap();
        let store = Store::serving(dir.path());
        symlink(&theirs, store.current_path()).unwrap();
        assert!(store.current().is_err());
        store.replace(&identity("ours"), 0).expect("kept");
        assert!(theirs.exists());
    }
}

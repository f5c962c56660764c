//! Which entries of which directories decide where a path leads and what it gives. It looks at directories and reads no manifest.
//!
//! Every component may be a link, or missing, or go and come back: the directory that holds it tells of that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use crate::files::is_manifest;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// The directories on the way of all paths, by where they really lie.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways(pub(crate) BTreeMap<PathBuf, Directory>);

/// What a directory has to do with manifests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    /// Links and directories that the way passes.
    passed: BTreeSet<OsString>,
    /// Files, or what is to be one, and the manifests that are read by them.
    files: BTreeMap<OsString, BTreeSet<PathBuf>>,
    /// The given paths that lead to this directory: each of its manifests counts.
    given: BTreeSet<PathBuf>,
}

impl Ways {
    /// The ways of absolute paths, as they are now.
    pub(crate) fn of(paths: &[PathBuf]) -> Self {
        let mut ways = Self::default();
        for path in paths {
            let Some(directory) = ways.go(path, path) else { continue };
            for name in links(&directory) {
                ways.go(&directory.join(&name), &path.join(&name));
            }
            ways.at(&directory).given.insert(path.clone());
        }
        ways
    }

    fn at(&mut self, directory: &Path) -> &mut Directory {
        self.0.entry(directory.to_owned()).or_default()
    }

    /// Goes to `path`, by which `manifest` is read, as the kernel would. The directory, if it is one.
    fn go(&mut self, path: &Path, manifest: &Path) -> Option<PathBuf> {
        let mut at = PathBuf::from("/");
        let mut ahead: VecDeque<OsString> = steps(path).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let found = std::fs::symlink_metadata(&next).ok();
            if let Some(target) =
                found.as_ref().and_then(|found| found.is_symlink().then(|| next.read_link().ok())?)
            {
                self.at(&at).passed.insert(name);
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                steps(&target).rev().for_each(|step| ahead.push_front(step));
            } else if found.is_some_and(|found| found.is_dir()) {
                self.at(&at).passed.insert(name);
                at = next;
            } else if ahead.is_empty() {
                self.at(&at).files.entry(name).or_default().insert(manifest.to_owned());
                return None;
            } else {
                self.at(&at).passed.insert(name);
                return None;
            }
        }
        Some(at)
    }
}

impl Directory {
    /// Whether what is written to its files counts, not only which entries there are.
    pub(crate) fn holds_manifests(&self) -> bool {
        !self.given.is_empty() || !self.files.is_empty()
    }

    /// Whether a way leads on by this entry.
    pub(crate) fn is_passed(&self, name: &OsStr) -> bool {
        self.passed.contains(name)
    }

    /// The manifests that this entry gives.
    pub(crate) fn manifests(&self, name: &OsStr) -> BTreeSet<PathBuf> {
        let mut manifests = self.files.get(name).cloned().unwrap_or_default();
        if is_manifest(Path::new(name)) {
            manifests.extend(self.given.iter().map(|path| path.join(name)));
        }
        manifests
    }
}

/// A path's components below where it begins.
fn steps(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// The links among a directory's manifests.
fn links(directory: &Path) -> Vec<OsString> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    links.map(|entry| entry.file_name()).filter(|name| is_manifest(Path::new(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn each_step_is_watched_where_it_lies() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("real/deep")).unwrap();
        fs::write(at("real/deep/p.yaml"), "").unwrap();
        symlink("real/deep", at("current")).unwrap();
        symlink("../../gone/x.yaml", at("real/deep/x.yaml")).unwrap();
        let tells = |paths: &[PathBuf], directory: &str, name: &str| {
            let ways = Ways::of(paths);
            let known = ways.0.get(&at(directory));
            known.map(|known| (known.is_passed(OsStr::new(name)), known.manifests(OsStr::new(name))))
        };
        let none = BTreeSet::new();
        let file = [at("current/p.yaml")];
        assert_eq!(tells(&file, "", "current"), Some((true, none.clone())));
        assert_eq!(tells(&file, "real", "deep"), Some((true, none.clone())));
        assert_eq!(tells(&file, "real/deep", "p.yaml"), Some((false, file.clone().into())));
        assert_eq!(tells(&file, "real/deep", "other.yaml"), Some((false, none.clone())));

        let dir = [at("current")];
        assert_eq!(tells(&dir, "real/deep", "p.yaml"), Some((false, [at("current/p.yaml")].into())));
        assert_eq!(tells(&dir, "real/deep", "x.yaml"), Some((true, [at("current/x.yaml")].into())));
        assert_eq!(tells(&dir, "", "gone"), Some((true, none)), "where what is missing would come");
    }

    #[test]
    fn links_in_a_circle_end() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        symlink("b", at("a")).unwrap();
        symlink("a", at("b")).unwrap();
        let ways = Ways::of(&[at("a")]);
        assert!(ways.0[root.path()].is_passed(OsStr::new("b")));
    }
}

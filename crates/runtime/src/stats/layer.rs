//! What a container has written into its layer.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Space and entries of a directory tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerUsage {
    /// As allocated on the disk.
    pub(crate) bytes: u64,
    /// Each file once, however many names it has.
    pub(crate) inodes: u64,
}

/// Walks a tree without following links. What vanishes on the way is not counted: containers write while we look.
pub(crate) fn measure(root: &Path) -> LayerUsage {
    let mut usage = LayerUsage::default();
    let mut linked = BTreeSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            pending
                .extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        usage.bytes += metadata.blocks() * 512;
        usage.inodes += 1;
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_once_however_many_names_it_has() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("upper");
        std::fs::create_dir_all(root.join("below")).expect("directories");
        std::fs::write(root.join("file"), vec![1; 10_000]).expect("a file");
        let one = measure(&root);
        std::fs::hard_link(root.join("file"), root.join("below/again")).expect("a link");
        std::os::unix::fs::symlink("/", root.join("link")).expect("a symbolic link");
        assert_eq!(one.inodes, 3);
        assert!(one.bytes >= 10_000, "{one:?}");
        assert_eq!(measure(&root).inodes, 4);
        assert_eq!(measure(&root.join("gone")), LayerUsage::default());
    }
}

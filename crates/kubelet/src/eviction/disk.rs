//! How much of the disk a directory takes. Whoever fills it cannot lead the count outside: no link is followed, no mount entered.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat};

/// Bytes of all that lies in `directory`; a file with several names counts once. What goes meanwhile, or cannot be looked at, is
/// not counted. Blocking.
pub(super) fn usage(directory: &Path) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = openat2(CWD, directory, flags, Mode::empty(), ResolveFlags::empty()) else { return 0 };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let (mut bytes, mut seen, mut left) = (0, BTreeSet::new(), vec![PathBuf::from(".")]);
    while let Some(path) = left.pop() {
        let Ok(opened) = openat2(&root, &path, flags, Mode::empty(), beneath) else { continue };
        let Ok(entries) = Dir::read_from(&opened) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_nlink < 2 || seen.insert((stat.st_dev, stat.st_ino)) {
                bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                left.push(path.join(OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_directory_counts_once_and_nothing_outside() {
        let dir = tempfile::tempdir().expect("a directory");
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(inside.join("a/b")).expect("directories");
        std::fs::create_dir_all(&outside).expect("a directory");
        let empty = usage(&inside);
        std::fs::write(outside.join("big"), vec![1; 4 << 20]).expect("a file");
        std::os::unix::fs::symlink(&outside, inside.join("link")).expect("a link");
        std::fs::write(inside.join("a/b/file"), vec![1; 1 << 20]).expect("a file");
        std::fs::hard_link(inside.join("a/b/file"), inside.join("same")).expect("a second name");
        let full = usage(&inside) - empty;
        assert!((1 << 20..2 << 20).contains(&full), "{full}");
        assert_eq!(usage(&dir.path().join("none")), 0);
    }
}

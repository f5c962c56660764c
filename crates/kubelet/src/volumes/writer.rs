//! Files that are replaced at once (upstream's atomic writer): each version is a directory of its own, `..data` is a link to
//! the current one, and the names are links through it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use super::content::Payload;
use host::path::make_directory;

/// What a group that owns a volume may do with what it only reads. Upstream: pkg/volume/volume_linux.go.
const GROUP_FILE: u32 = 0o440;
const GROUP_DIRECTORY: u32 = 0o2550;

/// Replaces the content at once; nothing is touched when it is the same. With a group everything belongs to it.
///
/// # Errors
/// What the system said; the former content is still there.
pub(super) fn write(target: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    make_directory(target, 0o755)?;
    let data = target.join("..data");
    if data.read_link().is_ok() && is_current(&data, payload, group) {
        return Ok(());
    }
    let version = format!("..{}", crate::time::wall_ns());
    write_version(&target.join(&version), payload, group)?;
    own_directory(target, group)?;
    let next = target.join("..data_tmp");
    remove_if_there(&next)?;
    symlink(&version, &next)?;
    std::fs::rename(&next, &data)?;
    link_names(target, payload, group)?;
    remove_other_versions(target, &version)
}

fn write_version(directory: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    make_directory(directory, 0o755)?;
    own_directory(directory, group)?;
    for (name, file) in payload {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            make_directory(parent, 0o755)?;
        }
        // Nobody else reads a token before it is its owner's.
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        new.write_all(&file.content)?;
        chown(&path, file.owner, group)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode_of(file.mode, group)))?;
        let mut above = path.parent();
        while let Some(parent) = above.filter(|parent| *parent != directory) {
            own_directory(parent, group)?;
            above = parent.parent();
        }
    }
    Ok(())
}

fn own_directory(path: &Path, group: Option<u32>) -> io::Result<()> {
    if group.is_none() {
        return Ok(());
    }
    chown(path, None, group)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755 | GROUP_DIRECTORY))
}

fn mode_of(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | GROUP_FILE } else { mode }
}

/// Links for names that are new; those of names that are gone go too. What a container's subPath made is left alone.
fn link_names(target: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    let top: BTreeSet<&str> = payload.keys().filter_map(|name| name.split('/').next()).collect();
    for name in &top {
        let link = target.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), &link)?;
            lchown(&link, None, group)?;
        }
    }
    for entry in std::fs::read_dir(target)?.flatten() {
        let name = entry.file_name();
        let known = name.to_str().is_some_and(|name| top.contains(name));
        if !known && !is_internal(&name) && entry.file_type()?.is_symlink() {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Former versions, and what a crash left of one.
fn remove_other_versions(target: &Path, current: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(target)?.flatten() {
        let name = entry.file_name();
        if is_internal(&name) && name != current && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn is_internal(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"..")
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_current(data: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let same = payload.iter().all(|(name, file)| {
        let path = data.join(name);
        let fits = path.metadata().is_ok_and(|found| {
            let of_group = group.is_none_or(|group| found.gid() == group);
            let of_owner = file.owner.is_none_or(|owner| found.uid() == owner);
            of_owner && of_group && found.permissions().mode() & 0o777 == mode_of(file.mode, group)
        });
        fits && std::fs::read(&path).is_ok_and(|now| now == file.content)
    });
    same && count_files(data) == payload.len()
}

fn count_files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count_files(&entry.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::super::content::File;
    use super::*;

    fn payload_of(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { content: text.as_bytes().to_vec(), mode: 0o600, owner: None };
        files.iter().map(|(name, text)| ((*name).to_owned(), file(text))).collect()
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
        write(&target, &payload_of(&[("a", "1"), ("d/b", "2")]), None).expect("written");
        assert_eq!(names(&target), ["a", "d"]);
        assert_eq!(std::fs::read_to_string(target.join("d/b")).expect("read"), "2");
        let version = std::fs::read_link(target.join("..data")).expect("a link");
        write(&target, &payload_of(&[("a", "1"), ("d/b", "2")]), None).expect("the same");
        let same = std::fs::read_link(target.join("..data")).expect("a link");
        assert_eq!(same, version, "nothing was touched");
        write(&target, &payload_of(&[("a", "3")]), None).expect("written");
        assert_eq!(names(&target), ["a"]);
        assert_eq!(std::fs::read_to_string(target.join("a")).expect("read"), "3");
        assert!(!target.join(version).exists(), "the former version is gone");
    }

    #[test]
    fn what_a_crash_or_a_sub_path_left_does_no_harm() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("volume");
        std::fs::create_dir_all(target.join("..17/half")).expect("left by a crash");
        std::fs::create_dir_all(target.join("made-by-sub-path")).expect("made");
        symlink("..17", target.join("..data_tmp")).expect("left by a crash");
        write(&target, &payload_of(&[("a", "1")]), None).expect("written");
        assert_eq!(names(&target), ["a", "made-by-sub-path"]);
        assert!(!target.join("..17").exists());
    }

    #[test]
    fn a_group_may_read_what_it_owns() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("volume");
        let own = directory.path().metadata().expect("there").gid();
        write(&target, &payload_of(&[("d/a", "1")]), Some(own)).expect("written");
        let mode = |name: &str| target.join(name).metadata().expect("there").permissions().mode() & 0o7777;
        assert_eq!((mode("."), mode("d"), mode("d/a")), (0o2755, 0o2755, 0o640));
        let version = target.join("..data").read_link().expect("a link");
        write(&target, &payload_of(&[("d/a", "1")]), Some(own)).expect("the same");
        assert_eq!(target.join("..data").read_link().expect("a link"), version, "nothing was touched");
    }
}

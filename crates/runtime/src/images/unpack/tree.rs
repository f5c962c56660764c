//! Makes entries into files below one directory descriptor, with overlay's whiteouts.
//!
//! Every name is resolved by the kernel in that root (openat2), the last component is never followed, and attributes are set through
//! descriptors of what was just made. Directories get theirs last, so that neither a set-group-id bit nor a read-only mode acts on
//! what is unpacked into them. The tree belongs to us alone until it is renamed into place.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self as sys, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Kind};
use super::{UnpackError, Unpacked};
use crate::images::Limits;
use crate::images::remove::remove_tree;
use crate::images::space::Watch;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const IN_ROOT: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
const MAX_SYMLINKS: u32 = 40;
/// What a file system gives out space in, and what a directory takes.
const BLOCK: u64 = 4096;

pub(super) struct Tree {
    root: OwnedFd,
    /// The directory of the last entry: most entries have the same as the one before.
    parent: Option<(Vec<u8>, OwnedFd)>,
    directories: Vec<DirectoryMeta>,
    done: Unpacked,
    space: Watch,
    owner: Owner,
}

struct DirectoryMeta {
    path: Vec<u8>,
    meta: Meta,
}

struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Who we are: what is created belongs to us already, and only root gives files away.
struct Owner {
    uid: u32,
    gid: u32,
    /// Bits that a new file does not get.
    umask: u32,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, limits: &Limits) -> Self {
        let owner = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: umask(),
        };
        Self {
            root,
            parent: None,
            directories: Vec::new(),
            done: Unpacked::default(),
            space: Watch::new(limits),
            owner,
        }
    }

    pub(super) fn apply<R: BufRead>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let path = clean(&entry.path)?;
        let (directory, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], &path[..]),
        };
        if name.is_empty() {
            return match entry.kind {
                Kind::Directory => {
                    self.remember(Vec::new(), entry);
                    Ok(())
                }
                _ => Err(UnpackError::Corrupt(
                    "an entry that is not a directory has the name of the root".to_owned(),
                )),
            };
        }
        match whiteout(directory, name)? {
            Whiteout::No => {}
            Whiteout::Metadata => return Ok(()), // AUFS leftovers: nothing of the image
            Whiteout::Opaque => {
                let parent = self.directory(directory)?;
                return set_opaque(parent, &path);
            }
            Whiteout::Of(hidden) => return self.hide(directory, hidden, &path),
        }
        match entry.kind {
            Kind::File => self.file(directory, name, entry, archive),
            Kind::Directory => self.make_directory(directory, name, &path, entry),
            Kind::HardLink => self.hard_link(directory, name, entry),
            Kind::Symlink => self.symlink(directory, name, entry),
            Kind::Fifo => self.node(directory, name, entry, FileType::Fifo, 0),
            Kind::CharDevice { major, minor } => {
                self.node(directory, name, entry, FileType::CharacterDevice, sys::makedev(major, minor))
            }
            Kind::BlockDevice { major, minor } => {
                self.node(directory, name, entry, FileType::BlockDevice, sys::makedev(major, minor))
            }
        }
    }

    /// Sets the attributes of directories and reports.
    pub(super) fn finish(mut self) -> Result<Unpacked, UnpackError> {
        self.parent = None;
        // The last entry of a path counts; each setting touches only that directory itself.
        for DirectoryMeta { path, meta } in std::mem::take(&mut self.directories) {
            let directory = if path.is_empty() {
                sys::openat(&self.root, ".", OFlags::RDONLY | DIRECTORY, Mode::empty())
            } else {
                sys::openat2(
                    &self.root,
                    OsStr::from_bytes(&path),
                    OFlags::RDONLY | DIRECTORY,
                    Mode::empty(),
                    IN_ROOT,
                )
            };
            match directory {
                Ok(directory) => set_meta(directory.as_fd(), &meta, &self.owner, &path)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {} // replaced by a later entry
                Err(errno) => return Err(io_error("open directory", &path, errno)),
            }
        }
        Ok(self.done)
    }

    fn remember(&mut self, path: Vec<u8>, entry: &Entry) {
        self.directories.push(DirectoryMeta { path, meta: meta_of(entry) });
    }

    fn file<R: BufRead>(
        &mut self,
        directory: &[u8],
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        const FLAGS: OFlags = OFlags::WRONLY
            .union(OFlags::CREATE)
            .union(OFlags::EXCL)
            .union(OFlags::NOFOLLOW)
            .union(OFlags::CLOEXEC);
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let os_name = OsStr::from_bytes(name);
        let file =
            self.replacing(directory, name, "create", |parent| sys::openat(parent, os_name, FLAGS, mode))?;
        let mut size = 0;
        archive.body(|chunk| {
            size += chunk.len() as u64;
            self.check_space(chunk.len() as u64)?;
            write_all(&file, chunk).map_err(|errno| io_error("write", &entry.path, errno))
        })?;
        self.made(size);
        let as_created = entry.mode & (0o7000 | self.owner.umask) == 0
            && entry.xattrs.is_empty()
            && !self.owner.gives(entry.uid, entry.gid);
        if as_created {
            // Most files: two journalled calls fewer.
            return sys::futimens(&file, &times(entry.mtime))
                .map_err(|errno| io_error("set the time of", &entry.path, errno));
        }
        set_meta(file.as_fd(), &meta_of(entry), &self.owner, &entry.path)
    }

    /// Counts something of so many bytes. What replaces something of the same layer counts too: that is rare.
    fn made(&mut self, bytes: u64) {
        self.done.inodes += 1;
        self.done.bytes += bytes.next_multiple_of(BLOCK);
    }

    fn check_space(&mut self, bytes: u64) -> Result<(), UnpackError> {
        let looked = self.space.before(bytes, &self.root);
        looked.map_err(|errno| io_error("look at the free space of", b".", errno))?.map_err(UnpackError::Full)
    }

    fn make_directory(
        &mut self,
        directory: &[u8],
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let os_name = OsStr::from_bytes(name);
        let parent = self.directory(directory)?;
        let made = sys::mkdirat(parent, os_name, Mode::from_raw_mode(0o755));
        match made {
            Ok(()) => self.made(BLOCK),
            Err(Errno::EXIST) => {
                let stat = sys::statat(parent, os_name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| io_error("look at", path, errno))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    self.remove(directory, name, path)?;
                    let parent = self.directory(directory)?;
                    sys::mkdirat(parent, os_name, Mode::from_raw_mode(0o755))
                        .map_err(|errno| io_error("make directory", path, errno))?;
                    if is_whiteout(&stat) {
                        // Removed and made anew in one layer: nothing below shines through.
                        let made = sys::openat(parent, os_name, OFlags::RDONLY | DIRECTORY, Mode::empty())
                            .map_err(|errno| io_error("open directory", path, errno))?;
                        set_opaque(made.as_fd(), path)?;
                    }
                    self.made(BLOCK);
                }
            }
            Err(errno) => return Err(io_error("make directory", path, errno)),
        }
        self.done.implied.retain(|implied| implied.as_os_str().as_bytes() != path);
        self.remember(path.to_vec(), entry);
        Ok(())
    }

    fn hard_link(&mut self, directory: &[u8], name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let target = clean(&entry.link)?;
        let (target_directory, target_name) = match target.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&target[..slash], &target[slash + 1..]),
            None => (&target[..0], &target[..]),
        };
        let missing = || {
            let (link, target) = (entry.path.escape_ascii(), entry.link.escape_ascii());
            UnpackError::Corrupt(format!(
                "`{link}` is a hard link to `{target}`, which this layer does not have"
            ))
        };
        if target_name.is_empty() {
            return Err(missing());
        }
        let source = match open_directory(&self.root, target_directory) {
            Ok(source) => source,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            Err(errno) => return Err(io_error("open the directory of", &entry.link, errno)),
        };
        match sys::statat(&source, OsStr::from_bytes(target_name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let link = entry.path.escape_ascii();
                return Err(UnpackError::Corrupt(format!("`{link}` is a hard link to a directory")));
            }
            Ok(stat) => {
                // A link to itself must not remove what it links to.
                let own = sys::statat(
                    self.directory(directory)?,
                    OsStr::from_bytes(name),
                    AtFlags::SYMLINK_NOFOLLOW,
                );
                if own.is_ok_and(|own| (own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino)) {
                    return Ok(());
                }
            }
            Err(_) => return Err(missing()),
        }
        self.replacing(directory, name, "hard link", |parent| {
            let (from, to) = (OsStr::from_bytes(target_name), OsStr::from_bytes(name));
            // Without AT_SYMLINK_FOLLOW: a link to a symlink is a second name of the symlink.
            sys::linkat(&source, from, parent, to, AtFlags::empty())
        })
    }

    fn symlink(&mut self, directory: &[u8], name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let os_name = OsStr::from_bytes(name);
        if entry.link.is_empty() || entry.link.len() > 4095 {
            let link = entry.path.escape_ascii();
            return Err(UnpackError::Corrupt(format!(
                "the target of the symlink `{link}` is empty or too long"
            )));
        }
        self.replacing(directory, name, "symlink", |parent| {
            sys::symlinkat(OsStr::from_bytes(&entry.link), parent, os_name)
        })?;
        // A short target lies in the inode.
        self.made(if entry.link.len() < 60 { 0 } else { BLOCK });
        let foreign = self.owner.gives(entry.uid, entry.gid);
        let parent = self.directory(directory)?;
        if foreign {
            let (uid, gid) = ids(entry.uid, entry.gid);
            sys::chownat(parent, os_name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| io_error("change the owner of", &entry.path, errno))?;
        }
        sys::utimensat(parent, os_name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error("set the time of", &entry.path, errno))
    }

    fn node(
        &mut self,
        directory: &[u8],
        name: &[u8],
        entry: &Entry,
        kind: FileType,
        device: sys::Dev,
    ) -> Result<(), UnpackError> {
        let os_name = OsStr::from_bytes(name);
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        self.replacing(directory, name, "make node", |parent| {
            sys::mknodat(parent, os_name, kind, mode, device)
        })?;
        self.made(0);
        let parent = self.directory(directory)?;
        // A device is never opened: an O_PATH descriptor, and what it stands for by its name in /proc.
        let node =
            sys::openat(parent, os_name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| io_error("open", &entry.path, errno))?;
        let by_fd = format!("/proc/self/fd/{}", node.as_raw_fd());
        if self.owner.gives(entry.uid, entry.gid) {
            let (uid, gid) = ids(entry.uid, entry.gid);
            sys::chownat(&node, "", uid, gid, AtFlags::EMPTY_PATH)
                .map_err(|errno| io_error("change the owner of", &entry.path, errno))?;
        }
        sys::chmod(&by_fd, Mode::from_raw_mode(entry.mode))
            .map_err(|errno| io_error("change the mode of", &entry.path, errno))?;
        sys::utimensat(sys::CWD, &by_fd, &times(entry.mtime), AtFlags::empty())
            .map_err(|errno| io_error("set the time of", &entry.path, errno))
    }

    /// `.wh.<name>`: hides what the layers below have, not what this layer has (OCI image-spec, layer.md, Whiteouts).
    fn hide(&mut self, directory: &[u8], hidden: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        let name = OsStr::from_bytes(hidden);
        let parent = self.directory(directory)?;
        match sys::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.made(0);
                Ok(())
            }
            Err(Errno::EXIST) => match sys::openat(parent, name, OFlags::RDONLY | DIRECTORY, Mode::empty()) {
                Ok(own) => set_opaque(own.as_fd(), path),
                Err(_) => Ok(()), // a file of this layer hides what is below by itself
            },
            Err(errno) => Err(io_error("make whiteout", path, errno)),
        }
    }

    /// Does `make` in the directory; where the name is taken, removes what is there and does it again.
    fn replacing<T>(
        &mut self,
        directory: &[u8],
        name: &[u8],
        action: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let full = || [directory, b"/", name].concat();
        let mut made = make(self.directory(directory)?);
        if matches!(made, Err(Errno::EXIST)) {
            self.remove(directory, name, &full())?;
            made = make(self.directory(directory)?);
        }
        made.map_err(|errno| io_error(action, &full(), errno))
    }

    fn remove(&mut self, directory: &[u8], name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        let parent = self.directory(directory)?;
        match sys::unlinkat(parent, OsStr::from_bytes(name), AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(io_error("replace", path, errno)),
        }
        remove_tree(parent, OsStr::from_bytes(name)).map_err(|errno| io_error("replace", path, errno))?;
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let below =
            |other: &[u8]| other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        self.directories.retain(|directory| !below(&directory.path));
        self.done.implied.retain(|implied| !below(implied.as_os_str().as_bytes()));
        if self.parent.as_ref().is_some_and(|(cached, _)| cached != directory) {
            self.parent = None;
        }
        Ok(())
    }

    /// A descriptor of the directory `path` in root; what is missing is made.
    fn directory(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, UnpackError> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.parent.as_ref().is_none_or(|(cached, _)| cached != path) {
            let opened = match open_directory(&self.root, path) {
                Ok(opened) => opened,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.make_parents(path)?,
                Err(errno) => return Err(io_error("open directory", path, errno)),
            };
            self.parent = Some((path.to_vec(), opened));
        }
        Ok(self.parent.as_ref().map_or(self.root.as_fd(), |(_, opened)| opened.as_fd()))
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        match self.make_plain(path)? {
            Some(made) => Ok(made),
            None => self.walk(path),
        }
    }

    /// Makes what is missing at the end of `path`, if there is no symlink, whiteout or file in it.
    fn make_plain(&mut self, path: &[u8]) -> Result<Option<OwnedFd>, UnpackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let plain = IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let mut there = path.len();
        let mut at = loop {
            there = path[..there].iter().rposition(|b| *b == b'/').unwrap_or(0);
            let parent = if there == 0 { b"." } else { &path[..there] };
            match sys::openat2(&self.root, OsStr::from_bytes(parent), flags, Mode::empty(), plain) {
                Ok(parent) => break parent,
                Err(Errno::NOENT) if there > 0 => {}
                Err(_) => return Ok(None),
            }
        };
        let ends = (there + 1..path.len()).filter(|&end| path[end] == b'/').chain([path.len()]);
        for end in ends {
            let here = &path[..end];
            let start = here.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
            let name = OsStr::from_bytes(&here[start..]);
            match sys::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Ok(None),
                Err(errno) => return Err(io_error("make directory", here, errno)),
            }
            self.done.implied.push(PathBuf::from(OsStr::from_bytes(here)));
            self.made(BLOCK);
            at = sys::openat(&at, name, flags | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|errno| io_error("open directory", here, errno))?;
        }
        Ok(Some(at))
    }

    /// Walks `path` component by component without following anything by the kernel; symlinks are resolved in root by us.
    fn walk(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let refuse = |why: &str| UnpackError::Corrupt(format!("`{}` {why}", path.escape_ascii()));
        let mut todo: VecDeque<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let mut walked: Vec<(Vec<u8>, OwnedFd)> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    walked.pop();
                    continue;
                }
                _ => {}
            }
            let at = walked.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let os_name = OsStr::from_bytes(&name);
            let here: Vec<u8> = walked
                .iter()
                .flat_map(|(name, _)| [name.as_slice(), b"/"].concat())
                .chain(name.clone())
                .collect();
            match step(at, os_name).map_err(|errno| io_error("open", &here, errno))? {
                Step::Directory(fd) => walked.push((name, fd)),
                Step::Symlink(target) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(refuse("goes through too many symlinks"));
                    }
                    if target.first() == Some(&b'/') {
                        walked.clear();
                    }
                    for part in target.split(|b| *b == b'/').rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                Step::Other => return Err(refuse("lies in something that is not a directory")),
                found @ (Step::Missing | Step::Whiteout) => {
                    let fd = make_one(at, os_name, matches!(found, Step::Whiteout))
                        .map_err(|errno| io_error("make directory", &here, errno))?;
                    if matches!(found, Step::Missing) {
                        self.done.implied.push(PathBuf::from(OsStr::from_bytes(&here)));
                    }
                    self.made(BLOCK);
                    walked.push((name, fd));
                }
            }
        }
        match walked.pop() {
            Some((_, fd)) => Ok(fd),
            None => open_directory(&self.root, b".").map_err(|errno| io_error("open", b".", errno)),
        }
    }
}

enum Step {
    Directory(OwnedFd),
    Symlink(Vec<u8>),
    Whiteout,
    Missing,
    Other,
}

fn step(at: BorrowedFd<'_>, name: &OsStr) -> Result<Step, Errno> {
    let fd = match sys::openat(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Step::Missing),
        Err(errno) => return Err(errno),
    };
    let stat = sys::fstat(&fd)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Step::Directory(fd),
        FileType::Symlink => Step::Symlink(sys::readlinkat(&fd, "", Vec::new())?.into_bytes()),
        _ if is_whiteout(&stat) => Step::Whiteout,
        _ => Step::Other,
    })
}

fn make_one(at: BorrowedFd<'_>, name: &OsStr, whiteout: bool) -> Result<OwnedFd, Errno> {
    if whiteout {
        sys::unlinkat(at, name, AtFlags::empty())?;
    }
    sys::mkdirat(at, name, Mode::from_raw_mode(0o755))?;
    let fd = sys::openat(at, name, OFlags::RDONLY | DIRECTORY, Mode::empty())?;
    if whiteout {
        sys::fsetxattr(&fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    }
    Ok(fd)
}

/// Copies owner, mode, times and attributes from the topmost layer below that has this directory.
pub(super) fn adopt(root: &OwnedFd, path: &Path, below: &[OwnedFd]) -> Result<(), UnpackError> {
    let bytes = path.as_os_str().as_bytes();
    let fail = |errno| io_error("adopt", bytes, errno);
    for lower in below {
        let from = match sys::openat2(lower, path, OFlags::RDONLY | DIRECTORY, Mode::empty(), IN_ROOT) {
            Ok(from) => from,
            Err(_) => continue,
        };
        let to =
            sys::openat2(root, path, OFlags::RDONLY | DIRECTORY, Mode::empty(), IN_ROOT).map_err(fail)?;
        let stat = sys::fstat(&from).map_err(fail)?;
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = ids(stat.st_uid, stat.st_gid);
            sys::fchown(&to, uid, gid).map_err(fail)?;
        }
        sys::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(fail)?;
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        return sys::futimens(&to, &times(mtime)).map_err(fail);
    }
    Ok(())
}

fn set_meta(fd: BorrowedFd<'_>, meta: &Meta, owner: &Owner, path: &[u8]) -> Result<(), UnpackError> {
    if owner.gives(meta.uid, meta.gid) {
        let (uid, gid) = ids(meta.uid, meta.gid);
        sys::fchown(fd, uid, gid).map_err(|errno| io_error("change the owner of", path, errno))?;
    }
    // After the owner: changing that clears set-id bits.
    sys::fchmod(fd, Mode::from_raw_mode(meta.mode))
        .map_err(|errno| io_error("change the mode of", path, errno))?;
    for (name, value) in &meta.xattrs {
        set_xattr(fd, name, value, path)?;
    }
    sys::futimens(fd, &times(meta.mtime)).map_err(|errno| io_error("set the time of", path, errno))
}

/// `user.*` and file capabilities belong to an image; labels of the host it was built on do not, and overlay's own would forge layers.
fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], path: &[u8]) -> Result<(), UnpackError> {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        let (path, name) = (path.escape_ascii(), name.escape_ascii());
        return Err(UnpackError::Corrupt(format!(
            "`{path}` carries `{name}`, which would forge overlay's own marks"
        )));
    }
    if name != b"security.capability" && !name.starts_with(b"user.") {
        tracing::debug!(name = %name.escape_ascii(), path = %path.escape_ascii(), "left out an attribute of the build host");
        return Ok(());
    }
    match sys::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::PERM) => {
            tracing::warn!(name = %name.escape_ascii(), path = %path.escape_ascii(), "the file system does not take this attribute");
            Ok(())
        }
        Err(errno) => Err(io_error("set an attribute of", path, errno)),
    }
}

impl Owner {
    fn gives(&self, uid: u32, gid: u32) -> bool {
        self.uid == 0 && (uid, gid) != (self.uid, self.gid)
    }
}

enum Whiteout<'a> {
    No,
    Opaque,
    Metadata,
    Of(&'a [u8]),
}

fn whiteout<'a>(directory: &[u8], name: &'a [u8]) -> Result<Whiteout<'a>, UnpackError> {
    if directory.split(|b| *b == b'/').any(|part| part.starts_with(b".wh..wh.")) {
        return Ok(Whiteout::Metadata);
    }
    let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(Whiteout::No) };
    match hidden {
        b".wh..opq" => Ok(Whiteout::Opaque),
        hidden if hidden.starts_with(b".wh.") => Ok(Whiteout::Metadata),
        b"" | b"." | b".." => {
            Err(UnpackError::Corrupt(format!("`{}` is a whiteout of no name", name.escape_ascii())))
        }
        hidden => Ok(Whiteout::Of(hidden)),
    }
}

/// `a//./b/` → `a/b`; absolute names count from the layer's root; a name that climbs above it is refused.
fn clean(path: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or_else(|| {
                    UnpackError::Corrupt(format!("the name `{}` leads out of the image", path.escape_ascii()))
                })?;
            }
            part if part.contains(&0) => {
                return Err(UnpackError::Corrupt(format!("the name `{}` has a NUL", path.escape_ascii())));
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

fn open_directory(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    sys::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), IN_ROOT)
}

fn set_opaque(directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
    // An O_PATH descriptor takes no attributes; its name in /proc does.
    let by_fd = format!("/proc/self/fd/{}", directory.as_raw_fd());
    sys::setxattr(&by_fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(|errno| io_error("mark as opaque the directory of", path, errno))
}

/// Read, not asked for by setting another one: that would be visible to other threads.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o777)
}

fn is_whiteout(stat: &sys::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn meta_of(entry: &Entry) -> Meta {
    Meta {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry.xattrs.clone(),
    }
}

fn ids(uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

fn times((tv_sec, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn io_error(action: &'static str, entry: &[u8], errno: Errno) -> UnpackError {
    let entry = String::from_utf8_lossy(entry.strip_prefix(b"/").unwrap_or(entry)).into_owned();
    match errno {
        // What the archive asks for cannot be a file name: its fault, not the disk's.
        Errno::NAMETOOLONG | Errno::LOOP => UnpackError::Corrupt(format!("`{entry}`: {errno}")),
        errno => UnpackError::Io { action, entry, source: io::Error::from(errno) },
    }
}

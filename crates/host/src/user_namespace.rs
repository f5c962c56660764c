//! User namespaces: their mappings of ids, and namespaces that only stand for such a mapping. Which ids are mapped is decided elsewhere.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::namespace::{self, Namespace};
use crate::process;
use crate::sys::{self, Forked};

/// A range of ids, inside and outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id in the namespace.
    pub container: u32,
    /// First id on the host.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// Which id of the host `id` of the namespace is; `None` if it is nobody's.
#[must_use]
pub fn on_host(maps: &[IdMap], id: u32) -> Option<u32> {
    maps.iter().find_map(|map| {
        let offset = id.checked_sub(map.container).filter(|offset| *offset < map.size)?;
        map.host.checked_add(offset)
    })
}

/// Maps the ids of a process that was cloned into a new user namespace.
///
/// # Errors
/// What the kernel says, with the file's name.
pub fn write_maps(pid: i32, uid: &[IdMap], gid: &[IdMap]) -> io::Result<()> {
    let write = |name: &str, maps: &[IdMap]| {
        let text = lines(maps);
        std::fs::write(format!("/proc/{pid}/{name}"), &text)
            .map_err(|error| io::Error::new(error.kind(), format!("write {name} {text:?}: {error}")))
    };
    write("uid_map", uid)?;
    write("gid_map", gid)
}

/// Makes a user namespace in which nobody lives, for [`crate::mount::map_ids`]. Single-threaded callers only.
///
/// # Errors
/// EBUSY with several threads, else what the kernel says.
pub fn make(uid: &[IdMap], gid: &[IdMap]) -> io::Result<OwnedFd> {
    let (told, word) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (pid, pidfd) = match sys::fork_into(Namespace::User.clone_flag(), None)? {
        Forked::Child => {
            drop(word);
            let _ = rustix::io::read(&told, &mut [0_u8; 1]);
            sys::exit_now(0)
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    let made =
        write_maps(pid, uid, gid).and_then(|()| namespace::open(Path::new(&format!("/proc/{pid}/ns/user"))));
    drop(word);
    let _ = process::wait(pidfd.as_fd());
    made
}

fn lines(maps: &[IdMap]) -> String {
    maps.iter().map(|map| format!("{} {} {}\n", map.container, map.host, map.size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_in_the_range_that_has_it() {
        let maps = [
            IdMap { container: 0, host: 65_536, size: 1000 },
            IdMap { container: 2000, host: u32::MAX - 5, size: 100 },
        ];
        for (id, expect) in [
            (0, Some(65_536)),
            (999, Some(66_535)),
            (1000, None),
            (1999, None),
            (2000, Some(u32::MAX - 5)),
            (2006, None),
        ] {
            assert_eq!(on_host(&maps, id), expect, "{id}");
        }
        assert_eq!(lines(&maps[..1]), "0 65536 1000\n");
    }
}

//! The admin socket `STATE/admin.sock`: what the CLI asks of a running agent. HTTP/1 and JSON on a unix socket that
//! only root can open. Not an API for others: both ends are the same binary.

pub(crate) mod client;
pub(crate) mod server;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `GET`: a [`Report`](crate::status::report::Report).
pub(crate) const STATUS: &str = "/v1/status";
/// `POST` of an [image request](crate::image::wire::Request): a stream of updates.
pub(crate) const IMAGE: &str = "/v1/image";
/// `POST`: the agent stops, the pods keep running.
pub(crate) const STOP: &str = "/v1/stop";

/// The longest path of a unix socket, without the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// A socket's path that fits into the kernel's 108 bytes, through an open directory where it is too long.
pub(crate) struct SocketPath {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl SocketPath {
    /// Opens the directory of `path` if that is needed.
    pub(crate) fn new(path: &Path) -> std::io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(Self { path: path.to_owned(), _directory: None });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: Some(directory) })
    }

    /// The path to bind or connect to.
    pub(crate) fn as_path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_too_long_for_the_kernel_still_works() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("admin.sock");
        let _listener =
            std::os::unix::net::UnixListener::bind(SocketPath::new(&path).unwrap().as_path()).expect("binds");
        assert!(path.exists());
        std::os::unix::net::UnixStream::connect(SocketPath::new(&path).unwrap().as_path()).expect("connects");
    }
}

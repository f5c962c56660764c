//! Whether the kernel can do what pods with user namespaces need, found by doing it. A program of its own, as it forks and unshares.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use host::mount::{self, Depth, MountAttributes, Upper};
use host::namespace::{self, Namespace};
use host::user_namespace::{self, IdMap};
use rustix::fs::{Mode, OFlags};

/// The name by which the binary knows that it is this program.
pub const ARGV0: &str = "podwright-probe";

/// Tries user namespaces over layers in the directory that is the first argument; the second is one on the same file system, or where
/// containers' own layers will lie, in which it may make another. Exit code 0 or 1; the reason is on standard output.
pub fn main(arguments: &[std::ffi::OsString]) -> ExitCode {
    let [layers, scratch] = arguments else { return ExitCode::from(2) };
    match probe(Path::new(layers), Path::new(scratch)) {
        Ok(()) => ExitCode::SUCCESS,
        Err((step, error)) => {
            let _ = writeln!(io::stdout(), "{step}: {error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome<T> = Result<T, (&'static str, io::Error)>;

fn probe(layers: &Path, scratch: &Path) -> Outcome<()> {
    let ids = [IdMap { container: 0, host: 1 << 16, size: 1 << 16 }];
    let namespace = at("make a user namespace", user_namespace::make(&ids, &ids))?;
    at("make a mount namespace", namespace::unshare(&[Namespace::Mnt]))?;
    let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
    let root = at("open the root", open(Path::new("/")))?;
    at("make mounts private", mount::set_attributes(&root, Depth::Recursive, private))?;
    // Volumes in memory, and the files that the kubelet projects.
    let tmpfs = at("make a tmpfs", mount::new_filesystem("tmpfs", "tmpfs", &[], 0))?;
    at("map the ids of a tmpfs", mount::map_ids(&tmpfs, Depth::One, &namespace))?;
    let tree = at("clone the layers' directory", mount::clone_path(layers, Depth::One))?;
    at("map the ids of the layers' file system", mount::map_ids(&tree, Depth::One, &namespace))?;
    at("attach it", open(layers).and_then(|layers| mount::attach(&tree, layers)))?;
    let directory = scratch.join(format!("probe-{}", std::process::id()));
    let outcome = overlay(layers, &directory);
    let removed = std::fs::remove_dir_all(&directory);
    outcome.and(at("remove the scratch directory", removed))
}

/// Detached: it ends with this function, and the scratch directory can be removed.
fn overlay(layers: &Path, directory: &Path) -> Outcome<()> {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    let made = std::fs::create_dir_all(&upper).and_then(|()| std::fs::create_dir(&work));
    at("make a scratch directory", made)?;
    let lower = [layers.to_owned()];
    let upper = Upper { directory: &upper, work: &work };
    match at("mount an overlay over mapped ids", mount::overlay(&lower, Some(upper)))? {
        Some(_) => Ok(()),
        None => at("mount an overlay over mapped ids", mount::overlay_at(&lower, Some(upper), directory)),
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn at<T>(step: &'static str, result: io::Result<T>) -> Outcome<T> {
    result.map_err(|error| (step, error))
}

//! A disk as a node has it: ext4 with a journal, on which nothing was deleted.
//!
//! On a file system where a tree was just deleted, ext4 walks past each of its inodes for every file that it makes, for some minutes;
//! a benchmark that removes an image before it pulls the image again would measure that. The disk's file has no name any more and its
//! loop device goes with the mount, which is in this process's mount namespace: nothing of it remains, however the process ends.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use e2e::test_host::{eventually, output_of, program};

/// Sparse: it takes what is written to it.
const BYTES: u64 = 4 << 30;

/// A mounted disk; dropped, it is gone.
pub(crate) struct Disk {
    mount_point: PathBuf,
}

impl Disk {
    /// Makes a file system in a file in `directory`, and mounts it as `name` in it.
    pub(crate) fn fresh(directory: &Path, name: &str) -> Result<Self> {
        let mount_point = directory.join(name);
        std::fs::create_dir_all(&mount_point).context("create the mount point")?;
        Self::mount(&mount_point.with_extension("img"), mount_point)
    }

    /// Makes a file system, and mounts it over `/tmp`, where the machines of tests have their files.
    pub(crate) fn for_machines() -> Result<Self> {
        let file = tempfile::Builder::new().prefix("pw-").suffix(".img").tempfile_in("/var/tmp");
        let path = file.and_then(|file| Ok(file.into_temp_path().keep()?)).context("create a file")?;
        Self::mount(&path, PathBuf::from("/tmp"))
    }

    fn mount(file: &Path, mount_point: PathBuf) -> Result<Self> {
        File::create(file).and_then(|file| file.set_len(BYTES)).context("create the disk's file")?;
        // What a new file system is spared at first is written now, not while something is measured.
        let whole = "lazy_itable_init=0,lazy_journal_init=0";
        output_of(program("mkfs.ext4").args(["-q", "-F", "-E", whole]).arg(file))?;
        output_of(program("mount").args(["-o", "loop"]).args([file, &mount_point]))?;
        let disk = Self { mount_point };
        std::fs::remove_file(file).context("unlink the disk's file")?;
        Ok(disk)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmount = || output_of(program("umount").arg(&self.mount_point)).ok();
        let unmounted = eventually("the disk is not used any more", unmount);
        if let (Err(error), false) = (unmounted, std::thread::panicking()) {
            panic!("unmount {}: {error:#}", self.mount_point.display());
        }
    }
}

//! Keeps the store's disk from being filled to its last byte: others, and the kubelet's eviction, need room to act.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs as sys;
use rustix::io::Errno;

use super::{ImageError, Limits};

/// How many bytes are written at most before the free space is looked at again.
const STEP: u64 = 64 << 20;
/// A small disk need not keep more than this part of itself.
const PART: u64 = 20;

/// Looks at the free space now and then while something is written.
pub(super) struct Watch {
    reserve: u64,
    unchecked: u64,
    step: u64,
}

impl Watch {
    pub(super) fn new(limits: &Limits) -> Self {
        // The first write looks.
        Self { reserve: limits.reserve_bytes, unchecked: STEP, step: STEP }
    }

    /// To be called before so many bytes are written in the file system of `at`; tells in numbers what is missing.
    pub(super) fn before(&mut self, bytes: u64, at: &impl AsFd) -> Result<Result<(), String>, Errno> {
        self.unchecked += bytes;
        if self.unchecked < self.step {
            return Ok(Ok(()));
        }
        self.unchecked = 0;
        let stat = sys::fstatvfs(at)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let (room, step) = room(bytes(stat.f_bavail), bytes(stat.f_blocks), self.reserve);
        self.step = step;
        Ok(room)
    }
}

/// Whether more may be written, and how much before the next look.
fn room(free: u64, size: u64, reserve: u64) -> (Result<(), String>, u64) {
    let reserve = reserve.min(size / PART);
    let step = STEP.min(reserve / 4).max(1 << 20);
    if free < reserve + step {
        return (Err(format!("{free} of {size} bytes are free, {reserve} must stay free")), step);
    }
    (Ok(()), step)
}

/// A [`Watch`] for who has a path.
pub(super) struct PathWatch {
    watch: Watch,
    directory: OwnedFd,
}

impl PathWatch {
    pub(super) fn new(path: &Path, limits: &Limits) -> Result<Self, ImageError> {
        let directory = std::fs::File::open(path).map_err(|error| ImageError::io("open", path, error))?;
        Ok(Self { watch: Watch::new(limits), directory: directory.into() })
    }

    pub(super) fn before(&mut self, bytes: u64, path: &Path) -> Result<(), ImageError> {
        let looked = self.watch.before(bytes, &self.directory);
        looked
            .map_err(|errno| ImageError::io("look at the free space of", path, errno))?
            .map_err(|detail| ImageError::DiskFull { path: path.to_owned(), detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_stays_free_and_is_smaller_on_a_small_disk() {
        let (mega, giga) = (1 << 20, 1 << 30);
        for (free, size, fits) in [
            (100 * giga, 100 * giga, true),
            (321 * mega, 100 * giga, true),
            (319 * mega, 100 * giga, false),
            (60 * mega, giga, false),
            (70 * mega, giga, true),
            (2 * mega, 20 * mega, true),
            (mega, 20 * mega, false),
            (0, 0, false),
        ] {
            let (room, step) = room(free, size, 256 * mega);
            assert_eq!(room.is_ok(), fits, "{free} of {size}: {room:?}");
            assert!(step >= mega && step <= 64 * mega);
        }
    }
}

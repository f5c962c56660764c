//! The reading end of a pipe that a process writes its output to.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// What one read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes.
    Data(usize),
    /// Nothing now.
    Empty,
    /// Nothing ever again: every writer is gone.
    End,
}

/// Makes a pipe whose reading end does not wait, and whose writing end is an ordinary one for a program. It belongs to the
/// program's user, who could write to it but else not open it again as `/dev/stdout`.
pub(super) fn pipe_of(user: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    if user != 0 {
        rustix::fs::fchown(&writer, Some(rustix::fs::Uid::from_raw(user)), None)?;
    }
    Ok((reader, writer))
}

/// The same for input: the writing end, which is ours, does not wait.
pub(super) fn pipe_to(user: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    if user != 0 {
        rustix::fs::fchown(&reader, Some(rustix::fs::Uid::from_raw(user)), None)?;
    }
    Ok((reader, writer))
}

pub(super) fn read(pipe: &OwnedFd, buffer: &mut [u8]) -> Read {
    loop {
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => return Read::End,
            Ok(length) => return Read::Data(length),
            Err(Errno::AGAIN) => return Read::Empty,
            Err(Errno::INTR) => {}
            Err(_) => return Read::End,
        }
    }
}

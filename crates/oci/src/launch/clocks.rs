//! Time namespaces: whoever makes one does not enter it, its children do; and its clocks can be set until then.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use host::namespace::{self, Namespace};
use host::process;
use host::sys::Forked;

use crate::plan::ClockOffset;

/// Lets the next child have a time namespace with these clocks.
pub(super) fn set_for_children(clocks: &[ClockOffset]) -> io::Result<()> {
    namespace::unshare(&[Namespace::Time])?;
    let line = |clock: &ClockOffset| format!("{} {} {}\n", clock.clock, clock.seconds, clock.nanoseconds);
    let lines: String = clocks.iter().map(line).collect();
    if lines.is_empty() { Ok(()) } else { std::fs::write("/proc/self/timens_offsets", lines) }
}

/// Clones by `fork`, with such a namespace if `clocks` are given; the caller's next children have the caller's clocks again.
pub(super) fn fork_with(
    clocks: Option<&[ClockOffset]>,
    fork: impl FnOnce() -> io::Result<Forked>,
) -> io::Result<Forked> {
    let Some(clocks) = clocks else { return fork() };
    let own = namespace::open(Path::new("/proc/self/ns/time"))?;
    let forked = match set_for_children(clocks) {
        Ok(()) => fork(),
        Err(error) => Err(error),
    };
    if matches!(forked, Ok(Forked::Child)) {
        return forked;
    }
    match (namespace::join(&own, Namespace::Time), forked) {
        (Err(error), Ok(Forked::Parent { pidfd, .. })) => {
            let _it_may_be_gone = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _likewise = process::wait(pidfd.as_fd());
            Err(error)
        }
        (_, forked) => forked,
    }
}

//! The terminal of a new process: made in the container's devpts, known from then on by descriptor only.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use host::sys;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::termios::Winsize;

use super::report::{Failure, Step};
use crate::plan::ProcessPlan;

/// Makes a terminal, sends its controlling side to `console`, and gives the side of the process.
pub(super) fn open(root: &OwnedFd, console: &OwnedFd, process: &ProcessPlan) -> Result<OwnedFd, Failure> {
    let controlling = open_multiplexer(root)?;
    let terminal = sys::open_terminal_peer(controlling.as_fd())
        .step(|| "open a terminal by its other side".to_owned())?;
    if let Some(size) = process.terminal.and_then(|terminal| terminal.size) {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, size).step(|| "set the size of the terminal".to_owned())?;
    }
    send(console, &controlling).step(|| "send the terminal to the console socket".to_owned())?;
    Ok(terminal)
}

/// The devpts below the root. An exec session looks for it in a root that the container may have changed: no link is followed, nothing
/// can make the opening wait, and what was opened is the multiplexer or is refused.
fn open_multiplexer(root: &OwnedFd) -> Result<OwnedFd, Failure> {
    let step = || "open /dev/ptmx".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |name: &str| rustix::fs::openat2(root, name, flags, Mode::empty(), resolve);
    let opened = match open("dev/pts/ptmx") {
        // A /dev of the container's own making, with a plain node.
        Err(Errno::NOENT | Errno::NOTDIR) => open("dev/ptmx"),
        other => other,
    };
    let multiplexer = opened.step(step)?;
    let stat = rustix::fs::fstat(&multiplexer).step(step)?;
    let is_character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_character || stat.st_rdev != rustix::fs::makedev(5, 2) {
        let what = std::io::Error::from_raw_os_error(libc::ENODEV);
        return Err(Failure::step("/dev/ptmx of the container is no terminal multiplexer", &what));
    }
    rustix::fs::fcntl_setfl(&multiplexer, OFlags::empty()).step(step)?;
    Ok(multiplexer)
}

fn send(console: &OwnedFd, controlling: &OwnedFd) -> rustix::io::Result<()> {
    let descriptors = [controlling.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    // The name is what runc sends; receivers go by the descriptor.
    let name = [IoSlice::new(b"/dev/ptmx")];
    rustix::net::sendmsg(console, &name, &mut control, SendFlags::NOSIGNAL).map(drop)
}

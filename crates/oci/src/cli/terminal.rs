//! Where a process of the command line reads and writes: the caller's own streams, a terminal whose other side goes to a console
//! socket, or a terminal that is this one's continuation while the command waits.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use host::process::{self, Exit};
use host::sys;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::termios::{OptionalActions, Termios};

use super::CliError;
use crate::console;
use crate::launch::Stdio;

/// What the command keeps of the process's standard streams.
pub(super) enum Rest {
    /// Nothing: they are its own now.
    Nothing,
    /// Once it is started, the terminal's controlling side comes out here.
    Relay(OwnedFd),
}

/// Decides by what runc decides: a terminal needs a socket where nobody waits, and a socket needs a terminal.
pub(super) fn stdio(terminal: bool, socket: Option<&Path>, detach: bool) -> Result<(Stdio, Rest), CliError> {
    match (terminal, socket) {
        (true, Some(socket)) => Ok((Stdio::Terminal { console: connect(socket)? }, Rest::Nothing)),
        (true, None) if detach => Err(CliError::new(
            "cannot allocate tty if the command will detach without setting console socket",
        )),
        (true, None) => {
            let (console, relay) =
                console::pair().map_err(|error| because("make a console socket", error))?;
            Ok((Stdio::Terminal { console }, Rest::Relay(relay)))
        }
        (false, Some(_)) => Err(CliError::new("cannot use console socket if the process has no terminal")),
        (false, None) => Ok((own_stdio()?, Rest::Nothing)),
    }
}

fn because(doing: &str, error: impl Into<std::io::Error>) -> CliError {
    CliError::because(doing, &error.into())
}

fn connect(path: &Path) -> Result<OwnedFd, CliError> {
    let doing = format!("connect to console socket {}", path.display());
    let address = SocketAddrUnix::new(path).map_err(|error| because(&doing, error))?;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .and_then(|socket| rustix::net::connect(&socket, &address).map(|()| socket))
        .map_err(|error| because(&doing, error))
}

fn own_stdio() -> Result<Stdio, CliError> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, 64).map_err(|error| because("copy the standard streams", error))
    };
    Ok(Stdio::Streams {
        stdin: copy(rustix::stdio::stdin())?,
        stdout: copy(rustix::stdio::stdout())?,
        stderr: copy(rustix::stdio::stderr())?,
    })
}

/// Waits for the process's end, passes on every signal that arrives here meanwhile, and what goes through its terminal.
pub(super) fn wait(pidfd: &OwnedFd, signals: &OwnedFd, rest: &Rest) -> std::io::Result<Exit> {
    let relay = match rest {
        Rest::Nothing => None,
        Rest::Relay(socket) => Some(Relay::new(console::receive(socket)?)?),
    };
    let mut input = relay.is_some();
    loop {
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let stdin = rustix::stdio::stdin();
        if let Some(relay) = &relay {
            fds.push(PollFd::new(&relay.terminal, PollFlags::IN));
            if input {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if let Some(relay) = &relay {
            if ready[2] {
                relay.copy_output()?;
            }
            if ready.get(3) == Some(&true) {
                input = relay.copy_input()?;
            }
        }
        if let Some(exit) = process::try_wait(pidfd.as_fd())? {
            if let Some(relay) = &relay {
                while relay.has_output() && relay.copy_output()? {}
            }
            return Ok(exit);
        }
        while let Some(signal) = sys::read_signal(signals.as_fd())? {
            match (signal, &relay) {
                (libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE, _) => {}
                (libc::SIGWINCH, Some(relay)) => relay.copy_size(),
                _ => drop(process::pidfd_send_signal(pidfd.as_fd(), signal)?),
            }
        }
    }
}

/// The other side of the process's terminal. This one is raw meanwhile, and as before in the end.
struct Relay {
    terminal: OwnedFd,
    before: Option<Termios>,
}

impl Relay {
    fn new(terminal: OwnedFd) -> std::io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
        }
        let relay = Self { terminal, before };
        relay.copy_size();
        Ok(relay)
    }

    fn copy_size(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.terminal, size);
        }
    }

    fn has_output(&self) -> bool {
        let mut fds = [PollFd::new(&self.terminal, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::IN)
    }

    /// False at the end: reading a terminal that nobody has open any more is EIO.
    fn copy_output(&self) -> std::io::Result<bool> {
        copy(&self.terminal, rustix::stdio::stdout())
    }

    /// False at the end of the input; the process learns of it as a person would tell it.
    fn copy_input(&self) -> std::io::Result<bool> {
        let more = copy(rustix::stdio::stdin(), &self.terminal)?;
        if !more {
            const END_OF_TRANSMISSION: &[u8] = &[4];
            rustix::io::write(&self.terminal, END_OF_TRANSMISSION)?;
        }
        Ok(more)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

fn copy(from: impl AsFd, to: impl AsFd) -> std::io::Result<bool> {
    let mut buffer = [0_u8; 4096];
    let length = match rustix::io::read(from, &mut buffer) {
        Ok(0) | Err(Errno::IO) => return Ok(false),
        Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
        other => other?,
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

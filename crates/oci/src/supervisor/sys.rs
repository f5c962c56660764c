//! The system calls of the supervisor that the compiler cannot check. Nothing else here is unsafe, and nothing here decides.
#![expect(
    unsafe_code,
    reason = "signal handlers, ioctl, waitid and changing users have no safe form; see each block"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Written to by the handler of SIGCHLD; -1 before there is one.
static CHILD_EVENT: AtomicI32 = AtomicI32::new(-1);

/// Whether init has sent SIGTERM.
static IS_TOLD_BY_INIT: AtomicBool = AtomicBool::new(false);

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Closes every descriptor from `first` on.
pub(super) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called before this program owns any descriptor in the range, or in a child that uses none of them again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } as libc::c_int).map(drop)
}

/// Takes descriptor 0, which the agent passed, as a close-on-exec descriptor with a higher number.
pub(super) fn take_stdin() -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?)
}

/// Makes 0, 1 and 2 the null device.
pub(super) fn null_stdio() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    if null.as_raw_fd() <= 2 {
        std::mem::forget(null);
    }
    Ok(())
}

/// Survives what a terminal or a mistyped `kill` sends, and turns SIGCHLD, and SIGTERM from init, into an event to poll for. Handlers,
/// unlike ignored signals and blocked ones, do not carry over into the programs that containers run.
pub(super) fn install_signal_handlers() -> io::Result<OwnedFd> {
    let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    CHILD_EVENT.store(event.as_raw_fd(), Ordering::Relaxed);
    let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) = on_signal;
    for signal in [libc::SIGCHLD, libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGQUIT] {
        // SAFETY: a zeroed sigaction is valid; the handler is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
            check(libc::sigaction(signal, &action, std::ptr::null_mut()))?;
        }
    }
    Ok(event)
}

/// Whether the machine goes down: then init sends SIGTERM to whatever still runs, and SIGKILL 90 s later (systemd-shutdown).
pub(super) fn machine_goes_down() -> bool {
    IS_TOLD_BY_INIT.load(Ordering::Relaxed)
}

extern "C" fn on_signal(signal: libc::c_int, info: *const libc::siginfo_t, _context: *const libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo; the pid is there for a signal that a process has sent.
    let is_inits = unsafe { (*info).si_code == libc::SI_USER && (*info).si_pid() == 1 };
    match signal {
        libc::SIGCHLD => {}
        libc::SIGTERM if is_inits => IS_TOLD_BY_INIT.store(true, Ordering::Relaxed),
        _ => return,
    }
    // SAFETY: write and errno are async-signal-safe; the descriptor lives as long as the process, and in a forked child,
    // where it may be closed, the write fails without effect because nothing is opened under its number there.
    unsafe {
        let errno = *libc::__errno_location();
        let one = 1_u64.to_ne_bytes();
        libc::write(CHILD_EVENT.load(Ordering::Relaxed), one.as_ptr().cast(), one.len());
        *libc::__errno_location() = errno;
    }
}

/// Puts back the default action of every signal handled, in a forked child.
pub(super) fn reset_signal_handlers() {
    CHILD_EVENT.store(-1, Ordering::Relaxed);
    for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGQUIT] {
        // SAFETY: the default action is always valid.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: as above; an ignored SIGCHLD makes the kernel reap children by itself.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Sets the loopback interface of the current network namespace up.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: a zeroed ifreq is valid, and both requests read and write nothing but one ifreq.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request))?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request)).map(drop)
    }
}

/// Gives up root: every group, user and capability, for good.
pub(super) fn drop_privileges(id: u32) -> io::Result<()> {
    // SAFETY: plain system calls on values; setgroups is told of an empty list.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(id, id, id))?;
        // With no user id of root left, the kernel clears the permitted and effective capabilities.
        check(libc::setresuid(id, id, id))?;
    }
    Ok(())
}

/// Kills this process when its parent dies. Changing users clears the setting, so this comes last.
pub(super) fn die_with_parent() -> io::Result<()> {
    // SAFETY: plain system call on values.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// Moves a descriptor of the parent's to number 3, in a forked child that then closes all others above it.
pub(super) fn move_to_three(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the child never returns into code that owns either number, so nothing else closes or uses them.
    unsafe {
        if descriptor != 3 {
            check(libc::dup3(descriptor, 3, libc::O_CLOEXEC))?;
        }
        Ok(OwnedFd::from_raw_fd(3))
    }
}

/// The pid of a child that has ended and was not collected yet.
pub(super) fn ended_child() -> io::Result<Option<i32>> {
    // SAFETY: a zeroed siginfo is valid, and the kernel writes nothing else; it leaves the pid zero when there is no child to tell of.
    let pid = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        check(libc::waitid(
            libc::P_ALL,
            0,
            &mut info,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL,
        ))?;
        info.si_pid()
    };
    Ok((pid != 0).then_some(pid))
}

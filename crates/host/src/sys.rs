//! System calls that rustix does not have, each behind a function that is safe for all inputs. No decisions here.
#![expect(
    unsafe_code,
    reason = "raw system calls; every block states why its pointers and descriptors are valid"
)]

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::process::Exit;

/// Turns the return value of a raw system call into a result.
fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Sends a signal through a pidfd.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call; a null siginfo is allowed.
    let value = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(value).map(drop)
}

/// Collects a child through its pidfd; `None` when WNOHANG was given and it still runs.
pub fn waitid_pidfd(pidfd: BorrowedFd<'_>, options: i32) -> io::Result<Option<Exit>> {
    // SAFETY: siginfo_t is plain data for which all zeroes is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` lives through the call.
    let value =
        unsafe { libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, &raw mut info, options) };
    check(value.into())?;
    // SAFETY: waitid succeeded, so the SIGCHLD members of the union are the initialised ones (zero if nothing ended).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) }))
}

/// unshare(2).
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// setns(2) with a namespace file or a pidfd.
pub fn setns(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags) }).map(drop)
}

/// Which side of [`fork_into`] the caller is on.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The caller, with the child's pid and pidfd.
    Parent {
        /// Pid in the caller's namespace.
        pid: i32,
        /// Becomes readable when the child ends.
        pidfd: OwnedFd,
    },
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// clone3(2) with copied memory: new namespaces by `flags`, straight into a cgroup v2 directory if one is given.
///
/// Sound only in a single-threaded process: a lock held by another thread would stay locked in the child forever. This is checked:
/// the call refuses with EBUSY when the process has more than one thread.
pub fn fork_into(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(cgroup) = cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    fork(args)
}

/// As [`fork_into`], but the new process is a child of the caller's parent, and ends as the caller would.
pub fn fork_sibling(flags: u64) -> io::Result<Forked> {
    fork(CloneArgs { flags: flags | u64::from(libc::CLONE_PARENT as u32), ..CloneArgs::default() })
}

fn fork(mut args: CloneArgs) -> io::Result<Forked> {
    if !is_single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: RawFd = -1;
    args.flags |= u64::from(libc::CLONE_PIDFD as u32);
    args.pidfd = (&raw mut pidfd) as u64;
    // SAFETY: `args` and `pidfd` live through the call; without CLONE_VM the child has its own copy of this stack, and the process
    // has one thread, so the child's memory is consistent.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has just created this descriptor for us; nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid: pid as i32, pidfd })
}

/// The number of links of the task directory is the number of threads + 2.
fn is_single_threaded() -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self/task")?.nlink() == 3)
}

/// What [`mount_setattr`] changes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
    /// The user namespace of `MOUNT_ATTR_IDMAP`; else 0.
    pub userns_fd: u64,
}

/// mount_setattr(2) on the mount that `fd` stands on, and on all below it if `recursive`.
pub fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attributes: MountAttributes) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path and the attributes live through the call.
    let value = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    check(value).map(drop)
}

/// Marks every descriptor from `first` up as close-on-exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no memory is involved, and flags of descriptors do not invalidate their owners.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, 4_u32 /* CLOSE_RANGE_CLOEXEC */)
    })
    .map(drop)
}

/// Ends the process at once, without destructors or atexit handlers: the way out of a forked child.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// execveat(2) of an open file.
pub fn exec_fd(file: BorrowedFd<'_>, argv: &[&CStr], env: &[&CStr]) -> io::Error {
    let argv = null_terminated(argv);
    let env = null_terminated(env);
    // SAFETY: both vectors are null-terminated and, with the strings they point to, live through the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// execve(2). Returns only on failure.
pub fn exec(program: &CStr, argv: &[&CStr], env: &[&CStr]) -> io::Error {
    let argv = null_terminated(argv);
    let env = null_terminated(env);
    // SAFETY: as for `exec_fd`.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn null_terminated(strings: &[&CStr]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Loads and attaches programs for cgroup v2; `attributes` is a `union bpf_attr` whose pointers the caller keeps alive.
pub(crate) fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: size and pointer describe `attributes`; the two callers in `cgroup::device` keep what it points to alive.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) })
}

/// Takes ownership of a descriptor that a system call has just returned.
pub(crate) fn own_fd(raw: i64) -> OwnedFd {
    // SAFETY: callers pass the fresh result of a successful system call.
    unsafe { OwnedFd::from_raw_fd(raw as RawFd) }
}

/// Sets a resource limit of the calling process by its `RLIMIT_*` number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives through the call, and no old value is asked for.
    let value = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    check(value).map(drop)
}

/// How the processor's time comes to a process: what sched_setattr(2) takes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Scheduling {
    /// Of this structure; see [`set_scheduling`].
    #[serde(skip)]
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the ordinary and the batch policy.
    pub nice: i32,
    /// For the realtime policies.
    pub priority: u32,
    /// For the deadline policy, in nanoseconds.
    pub runtime: u64,
    /// Likewise.
    pub deadline: u64,
    /// Likewise.
    pub period: u64,
}

impl Scheduling {
    /// A policy by its number, and nothing else.
    #[must_use]
    pub fn new(policy: u32) -> Self {
        Self { policy, ..Self::default() }
    }
}

/// Sets how the calling thread is scheduled.
pub fn set_scheduling(scheduling: &Scheduling) -> io::Result<()> {
    let attributes = Scheduling { size: size_of::<Scheduling>() as u32, ..*scheduling };
    // SAFETY: the structure says its size, and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// Sets the I/O priority of the calling thread: one of the kernel's classes, and a level in it.
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const WHO_PROCESS: u32 = 1;
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << 13 | level) }).map(drop)
}

/// personality(2).
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::personality(domain.into()) }.into()).map(drop)
}

/// Lets go of the pages of a mapping of a file; what is needed again is read from the file, or found in the page cache.
pub(crate) fn forget_pages(mapping: std::ops::Range<usize>) -> io::Result<()> {
    let start = std::ptr::without_provenance_mut(mapping.start);
    // SAFETY: the caller passes the bounds of a mapping that is private, of a file, and never was writable: nothing but what the file has
    // was ever in it, so a page that is mapped anew has the same content.
    check(unsafe { libc::madvise(start, mapping.len(), libc::MADV_DONTNEED) }.into()).map(drop)
}

/// Lets go of a part of the main thread's stack.
pub(crate) fn forget_left_stack(left: std::ops::Range<usize>) -> io::Result<()> {
    let start = std::ptr::without_provenance_mut(left.start);
    // SAFETY: the caller passes what lies a page or more beyond its own frame: nothing is there, and what is put there next is written before
    // it is read.
    check(unsafe { libc::madvise(start, left.len(), libc::MADV_DONTNEED) }.into()).map(drop)
}

/// Lets go of memory that the program has written, and sleeps until a signal kills the process. For a process of one thread without
/// handlers of signals. Empty ranges are passed over.
pub(crate) fn sleep_without(memory: [std::ops::Range<usize>; 16]) -> ! {
    for range in &memory {
        if range.is_empty() {
            continue;
        }
        let start = std::ptr::without_provenance_mut(range.start);
        // SAFETY: from here on nothing runs but these two loops, whose frames and arguments are on the part of the stack that stays: no
        // memory that is let go of is read or written again. These calls are the kernel's own and touch no errno, which is in that memory.
        let _ = unsafe { rustix::mm::madvise(start, range.len(), rustix::mm::Advice::LinuxDontNeed) };
    }
    loop {
        rustix::event::pause();
    }
}

/// Gives free pages of the heap back to the kernel.
pub fn trim_heap() {
    // SAFETY: malloc_trim may be called whenever malloc may be.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the other side of a pseudo-terminal be opened, and opens it by the controlling side alone: no name in any /dev/pts is looked up.
pub fn open_terminal_peer(controlling: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed for the call, and the kernel reads one int.
    check(unsafe { libc::ioctl(controlling.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the descriptor is borrowed for the call; the argument is a value.
    check(unsafe { libc::ioctl(controlling.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into()).map(own_fd)
}

/// sethostname(2).
pub fn set_hostname(name: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::syscall(libc::SYS_sethostname, name.as_ptr(), name.len()) }).map(drop)
}

/// setdomainname(2).
pub fn set_domainname(name: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) }).map(drop)
}

/// Gives every signal its default action and unblocks all: what a program expects to begin with.
pub fn reset_signals() {
    for signal in 1..=64 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: the default action runs no code of this program. Numbers that libc keeps for itself are refused.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    let none = [0_u64; 1];
    // SAFETY: an empty kernel signal set of 8 bytes, and no old set is asked for.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            none.as_ptr(),
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        );
    }
}

/// Installs a system call filter given as `struct sock_filter`s.
pub fn install_seccomp(program: &[u8], flags: u32) -> io::Result<()> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    if program.is_empty() || !program.len().is_multiple_of(size_of::<libc::sock_filter>()) {
        return Err(invalid());
    }
    // A vector of the right type, as bytes need not be aligned.
    let ops: Vec<libc::sock_filter> = program
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|op| libc::sock_filter {
            code: u16::from_ne_bytes([op[0], op[1]]),
            jt: op[2],
            jf: op[3],
            k: u32::from_ne_bytes([op[4], op[5], op[6], op[7]]),
        })
        .collect();
    let length = u16::try_from(ops.len()).map_err(|_| invalid())?;
    let filter = libc::sock_fprog { len: length, filter: ops.as_ptr().cast_mut() };
    // SAFETY: `filter` and the operations it points to live through the call; the kernel copies and checks them.
    let value =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    check(value).map(drop)
}

/// Blocks every signal and gives a descriptor from which they are read instead, with [`read_signal`].
pub fn signals_as_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data, filled by sigfillset before use; the kernel copies it.
    let fd = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    check(fd.into()).map(own_fd)
}

/// The next signal that has arrived, if any.
pub fn read_signal(signals: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(signals, &mut info) {
        // ssi_signo is the first member.
        Ok(_) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

//! How large a table of legacy iptables is: one system call, so that a change by somebody else is seen without a process.
#![expect(unsafe_code, reason = "getsockopt with a structure that rustix does not know")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The number of entries and bytes of one table. Each rule and each chain counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Entries.
    pub entries: u32,
    /// Bytes.
    pub bytes: u32,
}

/// Which table: `iptables` or `ip6tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

/// `struct ipt_getinfo` of linux/netfilter_ipv4/ip_tables.h; the same for IPv6.
#[repr(C)]
#[derive(Clone, Copy)]
struct GetInfo {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;

/// Asks for the size of a table (`nat`, `filter`) in the network namespace of the calling thread.
///
/// # Errors
/// When there is no such table, or legacy iptables is not in the kernel.
pub fn table_size(protocol: Protocol, table: &str) -> io::Result<TableSize> {
    let (domain, level) = match protocol {
        Protocol::V4 => (libc::AF_INET, libc::IPPROTO_IP),
        Protocol::V6 => (libc::AF_INET6, libc::IPPROTO_IPV6),
    };
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info =
        GetInfo { name: [0; 32], valid_hooks: 0, hook_entry: [0; 5], underflow: [0; 5], entries: 0, size: 0 };
    let name = table.as_bytes();
    let fits = info.name.len() - 1;
    let Some(name) = name.get(..name.len().min(fits)) else { return Err(io::ErrorKind::InvalidInput.into()) };
    info.name[..name.len()].copy_from_slice(name);
    let mut length = size_of::<GetInfo>() as libc::socklen_t;
    // SAFETY: `info` and `length` live through the call, and `length` is the size of `info`.
    let value = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if value < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TableSize { entries: info.entries, bytes: info.size })
}

//! Sysctls of a pod: which may be set, and as what file. Pure but for [`write_all`].

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::protocol::{NamespaceMode, PodNamespaces};

/// Why a sysctl is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SysctlError {
    #[error("sysctl {0:?} is not a valid name")]
    Name(String),
    #[error("value of sysctl {0} is empty, or has control characters, + or =")]
    Value(String),
    #[error("sysctl {0} does not belong to a namespace and would change the node")]
    NotNamespaced(String),
    #[error("sysctl {0} cannot be set because the pod shares the node's {1} namespace")]
    NodeNamespace(String, &'static str),
}

/// The file below `/proc/sys` for a sysctl, if this pod may set it.
pub(super) fn plan(name: &str, value: &str, namespaces: PodNamespaces) -> Result<PathBuf, SysctlError> {
    let path = file_of(name).ok_or_else(|| SysctlError::Name(name.to_owned()))?;
    // No setting of a namespace has + or = in its value; who asks for it has a second setting in mind (CVE-2022-0811).
    let odd = |byte: u8| (byte.is_ascii_control() && byte != b'\t') || byte == b'+' || byte == b'=';
    if value.is_empty() || value.bytes().any(odd) {
        return Err(SysctlError::Value(name.to_owned()));
    }
    let (mode, namespace) = match path.split('/').collect::<Vec<_>>().as_slice() {
        ["net", ..] => (namespaces.network, "network"),
        ["kernel", name] if is_ipc(name) => (namespaces.ipc, "ipc"),
        ["fs", "mqueue", _] => (namespaces.ipc, "ipc"),
        ["kernel", "domainname"] => (namespaces.uts, "uts"),
        _ => return Err(SysctlError::NotNamespaced(name.to_owned())),
    };
    match mode {
        NamespaceMode::Pod => Ok(PathBuf::from(path)),
        NamespaceMode::Node => Err(SysctlError::NodeNamespace(name.to_owned(), namespace)),
    }
}

fn is_ipc(name: &str) -> bool {
    name.starts_with("shm") || name.starts_with("msg") || name == "sem"
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are the same; the separator that comes first decides, and the other
/// one stands for itself (`net/ipv4/conf/eth0.1/forwarding`, `net.ipv4.conf.eth0/1.forwarding`), as sysctl(8) has it.
fn file_of(name: &str) -> Option<String> {
    let separator = name.find(['.', '/'])?;
    let path: String = if name.as_bytes()[separator] == b'/' {
        name.to_owned()
    } else {
        name.chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect()
    };
    let valid = path.split('/').all(|part| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    });
    valid.then_some(path)
}

/// Checks all, then writes all, in the namespaces of the calling thread. The error says which one.
pub(super) fn write_all(
    sysctls: &BTreeMap<String, String>,
    namespaces: PodNamespaces,
) -> Result<(), (String, io::Error)> {
    let mut files = Vec::with_capacity(sysctls.len());
    for (name, value) in sysctls {
        let path = plan(name, value, namespaces)
            .map_err(|error| (name.clone(), io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        files.push((name, path, value));
    }
    if files.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/proc/sys", flags, Mode::empty())
        .map_err(|error| ("/proc/sys".to_owned(), error.into()))?;
    for (name, path, value) in files {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        openat2(&root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
            .and_then(|file| rustix::io::write(&file, value.as_bytes()))
            .map_err(|error| (name.clone(), error.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_pods_own_namespaces_are_written() {
        let pod = PodNamespaces::default();
        let node_net = PodNamespaces { network: NamespaceMode::Node, ..pod };
        let node_ipc = PodNamespaces { ipc: NamespaceMode::Node, ..pod };
        check("net.core.somaxconn", "1024", pod, Ok("net/core/somaxconn"));
        check("net/ipv4/conf/eth0.1/forwarding", "1", pod, Ok("net/ipv4/conf/eth0.1/forwarding"));
        check("net.ipv4.conf.eth0/1.forwarding", "1", pod, Ok("net/ipv4/conf/eth0.1/forwarding"));
        check("net.ipv4.ping_group_range", "0\t2147483647", pod, Ok("net/ipv4/ping_group_range"));
        check("kernel.shm_rmid_forced", "1", pod, Ok("kernel/shm_rmid_forced"));
        check("kernel.sem", "1 2 3 4", pod, Ok("kernel/sem"));
        check("fs.mqueue.msg_max", "5", pod, Ok("fs/mqueue/msg_max"));
        check("net.core.somaxconn", "1", node_net, Err("shares the node's network namespace"));
        check("kernel.msgmax", "1", node_ipc, Err("shares the node's ipc namespace"));
        for node_wide in
            ["kernel.core_pattern", "vm.swappiness", "fs.file-max", "kernel.hostname", "kernel.shmmax.x"]
        {
            check(node_wide, "1", pod, Err("does not belong to a namespace"));
        }
        for name in [
            "net",
            "",
            "net..core",
            "net.core.",
            "net.//.kernel",
            "net/../kernel/core_pattern",
            "net.a b",
            "net.a\n",
        ] {
            check(name, "1", pod, Err("is not a valid name"));
        }
    }

    /// A value that smuggles in another setting.
    #[test]
    fn cve_2022_0811_a_value_is_one_value() {
        let pod = PodNamespaces::default();
        for value in [
            "",
            "1\nkernel.core_pattern=|/bin/evil",
            "1\0",
            "1+kernel.core_pattern",
            "1 kernel.core_pattern=x",
        ] {
            check("net.core.somaxconn", value, pod, Err("is empty, or has control characters, + or ="));
        }
    }

    fn check(name: &str, value: &str, namespaces: PodNamespaces, expect: Result<&str, &str>) {
        match (plan(name, value, namespaces), expect) {
            (Ok(path), Ok(expect)) => assert_eq!(path, PathBuf::from(expect), "{name}"),
            (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{name}: {error}"),
            (result, expect) => panic!("{name}={value:?}: {result:?}, expected {expect:?}"),
        }
    }
}

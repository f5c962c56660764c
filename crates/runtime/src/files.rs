//! The files of a sandbox that its containers share: hostname, hosts, resolv.conf, and the tmpfs of /dev/shm.

use std::path::Path;

use cri::v1;
use oci::plan::UserPlan;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::containers::give_to_root_of;
use crate::error::Error;

/// Writes the files and mounts `shm` (64 MiB, as everybody's); they belong to the pod's root. Nothing is mounted where the pod shares the host's IPC.
pub(crate) fn prepare(
    directory: &Path,
    config: &v1::PodSandboxConfig,
    shares_host_ipc: bool,
    user: Option<&UserPlan>,
) -> Result<(), Error> {
    let hostname = match config.hostname.as_str() {
        "" => std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        given => given.to_owned(),
    };
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let resolv_conf = match &config.dns_config {
        None => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        Some(dns) => render_resolv_conf(dns)?,
    };
    for (name, text) in [("hostname", hostname + "\n"), ("hosts", hosts), ("resolv.conf", resolv_conf)] {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(Error::io("write", &path))?;
        if let Some(user) = user {
            give_to_root_of(user, &path)?;
        }
    }
    if !shares_host_ipc {
        let shm = directory.join("shm");
        std::fs::create_dir(&shm).map_err(Error::io("create", &shm))?;
        let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
        let (uid, gid) = user.map_or((0, 0), |user| (user.host_uid(0), user.host_gid(0)));
        let options = std::ffi::CString::new(format!("mode=1777,size=65536k,uid={uid},gid={gid}"));
        mount("shm", &shm, "tmpfs", flags, options.ok().as_deref())
            .map_err(|error| Error::io("mount a tmpfs on", &shm)(error.into()))?;
    }
    Ok(())
}

/// Takes the mount away; none is no error.
pub(crate) fn release(directory: &Path) -> Result<(), Error> {
    let shm = directory.join("shm");
    match unmount(&shm, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::io("unmount", shm)(error.into())),
    }
}

/// A line break in a name would become another line.
fn render_resolv_conf(dns: &v1::DnsConfig) -> Result<String, Error> {
    let words = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if let Some(word) = words.into_iter().find(|word| word.contains(['\n', '\r', '\0'])) {
        return Err(Error::Invalid(format!("dns_config: {word:?} has a line break in it")));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    dns.servers.iter().for_each(|server| text += &format!("nameserver {server}\n"));
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_what_was_asked_for() {
        let dns = v1::DnsConfig {
            servers: vec!["192.0.2.1".into(), "192.0.2.2".into()],
            searches: vec!["a.test".into(), "b.test".into()],
            options: vec!["ndots:5".into()],
        };
        let wanted = "search a.test b.test\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:5\n";
        assert_eq!(render_resolv_conf(&dns).expect("valid"), wanted);
        render_resolv_conf(&v1::DnsConfig { servers: vec!["1\nx".into()], ..dns }).expect_err("a line break");
    }
}

//! Limits and devices.

use cri::v1;
use oci_spec::runtime::{
    LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory,
    LinuxResources,
};

use super::{Request, SpecError};

/// The limits; 0 means none in CRI. A field that CRI does not have is left to the kernel.
pub(super) fn render(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<LinuxResources, SpecError> {
    let asked = request.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(asked.cpu_shares))
        .set_quota((asked.cpu_quota != 0).then_some(asked.cpu_quota))
        .set_period(positive(asked.cpu_period))
        .set_cpus((!asked.cpuset_cpus.is_empty()).then_some(asked.cpuset_cpus))
        .set_mems((!asked.cpuset_mems.is_empty()).then_some(asked.cpuset_mems));
    let mut memory = LinuxMemory::default();
    let limit = (asked.memory_limit_in_bytes != 0).then_some(asked.memory_limit_in_bytes);
    let swap = (asked.memory_swap_limit_in_bytes != 0).then_some(asked.memory_swap_limit_in_bytes);
    memory.set_limit(limit).set_swap(swap);
    let mut hugepages = Vec::new();
    // A kubelet limits every size of pages to none for a container that asks for none, on any machine.
    let without = |limit: &&v1::HugepageLimit| request.limits_huge_pages || limit.limit > 0;
    for limit in asked.hugepage_limits.iter().filter(without) {
        let mut one = LinuxHugepageLimit::default();
        let bytes = i64::try_from(limit.limit)
            .map_err(|_| SpecError::Invalid(format!("hugepage limit {} is too large", limit.limit)))?;
        one.set_page_size(limit.page_size.clone()).set_limit(bytes);
        hugepages.push(one);
    }
    let mut resources = LinuxResources::default();
    resources
        .set_devices(Some(device_rules(request, security)))
        .set_cpu(Some(cpu))
        .set_memory(Some(memory))
        .set_hugepage_limits((!hugepages.is_empty()).then_some(hugepages))
        .set_unified((!asked.unified.is_empty()).then(|| asked.unified.into_iter().collect()));
    Ok(resources)
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

/// Nothing but what is listed; a privileged container may all.
fn device_rules(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_access(Some(access.to_owned()));
        rule
    };
    if security.privileged {
        return vec![rule(true, "rwm")];
    }
    let mut rules = vec![rule(false, "rwm")];
    for (device, asked) in asked_devices(request) {
        let mut one = rule(true, &asked.permissions);
        one.set_typ(Some(device.typ())).set_major(Some(device.major())).set_minor(Some(device.minor()));
        rules.push(one);
    }
    rules
}

/// The device nodes beside the default ones.
pub(super) fn devices(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Option<Vec<LinuxDevice>> {
    if security.privileged {
        return Some(request.host_devices.to_vec());
    }
    let asked: Vec<LinuxDevice> = asked_devices(request)
        .map(|(device, asked)| {
            let mut node = device.clone();
            node.set_path(asked.container_path.clone().into());
            node
        })
        .collect();
    (!asked.is_empty()).then_some(asked)
}

/// The devices that the container asks for, as far as the node has them.
fn asked_devices<'a>(request: &'a Request<'_>) -> impl Iterator<Item = (&'a LinuxDevice, &'a v1::Device)> {
    request.config.devices.iter().filter_map(|asked| {
        let found =
            request.host_devices.iter().find(|device| device.path().as_os_str() == asked.host_path.as_str());
        found.map(|device| (device, asked))
    })
}

/// Every device node below /dev of this machine.
pub(crate) fn host_devices() -> Vec<LinuxDevice> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut found = Vec::new();
    let mut pending = vec![std::path::PathBuf::from("/dev")];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            let path = entry.path();
            let skipped = ["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console"];
            if skipped.iter().any(|skip| path.as_os_str() == *skip) {
                continue;
            }
            let kind = metadata.file_type();
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_char_device() || kind.is_block_device() {
                let mut device = LinuxDevice::default();
                let typ = if kind.is_block_device() { LinuxDeviceType::B } else { LinuxDeviceType::C };
                device
                    .set_path(path)
                    .set_typ(typ)
                    .set_major(i64::from(rustix::fs::major(metadata.rdev())))
                    .set_minor(i64::from(rustix::fs::minor(metadata.rdev())))
                    .set_file_mode(Some(metadata.mode() & 0o777))
                    .set_uid(Some(metadata.uid()))
                    .set_gid(Some(metadata.gid()));
                found.push(device);
            }
        }
    }
    found.sort_by(|a, b| a.path().cmp(b.path()));
    found
}

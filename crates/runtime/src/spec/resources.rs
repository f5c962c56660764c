//! Limits and devices.

use cri::v1;
use oci_spec::runtime::{
    LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxResources,
};

use super::{Request, SpecError};
use crate::devices::Granted;

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
    // Who is limited does not go on in the swap.
    memory.set_limit(limit).set_swap(swap.or(limit.filter(|_| request.limits_swap)));
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
    let rule = |allow: bool, access: &str| -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_access(Some(access.to_owned()));
        rule
    };
    if security.privileged {
        return vec![rule(true, "rwm")];
    }
    let mut rules = vec![rule(false, "rwm")];
    for Granted { node, permissions } in request.devices {
        let mut one = rule(true, permissions.as_str());
        one.set_typ(Some(node.typ())).set_major(Some(node.major())).set_minor(Some(node.minor()));
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
    let nodes: Vec<LinuxDevice> = request.devices.iter().map(|granted| granted.node.clone()).collect();
    (!nodes.is_empty()).then_some(nodes)
}

//! linux.resources as cgroup limits.

use host::cgroup::{DeviceKind, DeviceRule, Limits};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources};

use super::PlanError;
use super::refuse::first;

pub(super) fn plan_limits(resources: Option<&LinuxResources>) -> Result<Limits, PlanError> {
    let Some(resources) = resources else { return Ok(Limits::default()) };
    refuse(resources)?;
    let mut limits = Limits::default();
    if let Some(memory) = resources.memory() {
        limits.memory_limit = memory.limit();
        limits.memory_reservation = memory.reservation();
        limits.memory_swap = memory.swap();
    }
    if let Some(cpu) = resources.cpu() {
        limits.cpu_shares = cpu.shares().filter(|shares| *shares != 0);
        limits.cpu_quota = cpu.quota();
        limits.cpu_period = cpu.period();
        limits.cpu_burst = cpu.burst();
        limits.cpu_idle = cpu.idle();
        limits.cpuset_cpus = cpu.cpus().clone().filter(|cpus| !cpus.is_empty());
        limits.cpuset_mems = cpu.mems().clone().filter(|mems| !mems.is_empty());
    }
    limits.pids = resources.pids().as_ref().map(|pids| pids.limit());
    limits.devices = plan_devices(resources.devices().as_deref().unwrap_or(&[]))?;
    limits.unified = resources.unified().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(limits)
}

fn refuse(resources: &LinuxResources) -> Result<(), PlanError> {
    let memory = resources.memory().as_ref();
    let cpu = resources.cpu().as_ref();
    let realtime = cpu.is_some_and(|cpu| {
        cpu.realtime_runtime().is_some_and(|v| v != 0) || cpu.realtime_period().is_some_and(|v| v != 0)
    });
    let block = resources.block_io().as_ref().is_some_and(|block| *block != Default::default());
    let huge = resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty());
    let rdma = resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty());
    first([
        (memory.is_some_and(has_kernel_memory), "linux.resources.memory.kernel", "kernel memory limits"),
        (
            memory.and_then(LinuxMemory::swappiness).is_some(),
            "linux.resources.memory.swappiness",
            "it exists on cgroup v1 only",
        ),
        (
            memory.and_then(LinuxMemory::disable_oom_killer) == Some(true),
            "linux.resources.memory.disableOOMKiller",
            "it exists on cgroup v1 only",
        ),
        (realtime, "linux.resources.cpu.realtimeRuntime", "it exists on cgroup v1 only"),
        (block, "linux.resources.blockIO", "block I/O limits"),
        (huge, "linux.resources.hugepageLimits", "huge page limits"),
        (resources.network().is_some(), "linux.resources.network", "it exists on cgroup v1 only"),
        (rdma, "linux.resources.rdma", "RDMA limits"),
    ])
}

fn has_kernel_memory(memory: &LinuxMemory) -> bool {
    memory.kernel().is_some_and(|limit| limit != 0) || memory.kernel_tcp().is_some_and(|limit| limit != 0)
}

/// The spec's rules, followed by the devices that every container has (OCI runtime spec, default devices).
fn plan_devices(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<DeviceRule>>, PlanError> {
    if rules.is_empty() {
        return Ok(None);
    }
    let mut planned: Vec<DeviceRule> = rules.iter().map(plan_rule).collect::<Result<_, _>>()?;
    planned.push(DeviceRule::new(true, DeviceKind::Char, None, None, "m"));
    planned.push(DeviceRule::new(true, DeviceKind::Block, None, None, "m"));
    let default = [(1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1), (5, 2)];
    planned.extend(default.map(|(major, minor)| DeviceRule::char(true, Some(major), Some(minor), "rwm")));
    planned.push(DeviceRule::char(true, Some(136), None, "rwm"));
    Ok(Some(planned))
}

fn plan_rule(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, PlanError> {
    const FIELD: &str = "linux.resources.devices";
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => DeviceKind::All,
        Some(LinuxDeviceType::B) => DeviceKind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => DeviceKind::Char,
        Some(LinuxDeviceType::P) => return Err(PlanError::invalid(FIELD, "fifos are not controlled")),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| PlanError::invalid(FIELD, format!("{number} is no device number"))),
    };
    let (major, minor) = (number(rule.major())?, number(rule.minor())?);
    let access = rule.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    if access.contains(|letter| !"rwm".contains(letter)) {
        return Err(PlanError::invalid(FIELD, format!("access {access:?}")));
    }
    if kind == DeviceKind::All && (major.is_some() || minor.is_some() || access.len() < 3) {
        // v1 ignores everything behind an `a`, so this would mean something else than it says.
        return Err(PlanError::unsupported(
            FIELD,
            "a rule for both kinds of devices with a number or partial access",
        ));
    }
    Ok(DeviceRule::new(rule.allow(), kind, major, minor, access))
}

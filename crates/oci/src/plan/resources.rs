//! linux.resources as cgroup limits.

use std::collections::BTreeMap;

use host::cgroup::{DeviceKind, DeviceRule, IoLimits, Limits, Rate, Throttle, settle_devices};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory, LinuxResources,
};

use super::PlanError;
use super::refuse::first;

const DEVICES: &str = "linux.resources.devices";

pub(super) fn plan_limits(resources: Option<&LinuxResources>) -> Result<Limits, PlanError> {
    let Some(resources) = resources else {
        return Ok(Limits { devices: Some(plan_devices(&[])?), ..Limits::default() });
    };
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
    if let Some(block) = resources.block_io() {
        limits.io = plan_io(block)?;
    }
    limits.hugepages = plan_hugepages(resources.hugepage_limits().as_deref().unwrap_or(&[]))?;
    limits.v1_only = v1_files(resources);
    limits.devices = Some(plan_devices(resources.devices().as_deref().unwrap_or(&[]))?);
    limits.unified = resources.unified().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(limits)
}

fn refuse(resources: &LinuxResources) -> Result<(), PlanError> {
    let memory = resources.memory().as_ref();
    let block = resources.block_io().as_ref();
    let leaf = block.is_some_and(|block| block.leaf_weight().is_some());
    let rdma = resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty());
    first([
        // The kernel has taken the limit away (5.16), and ignores what is written there.
        (
            memory.and_then(LinuxMemory::kernel).is_some_and(|limit| limit != 0),
            "linux.resources.memory.kernel",
            "kernel memory limits",
        ),
        (leaf, "linux.resources.blockIO.leafWeight", "it belonged to the CFQ I/O scheduler"),
        (rdma, "linux.resources.rdma", "RDMA limits"),
    ])
}

/// What v2 has nothing for, as files of v1.
fn v1_files(resources: &LinuxResources) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            files.insert(name.to_owned(), value);
        }
    };
    if let Some(memory) = resources.memory() {
        add("memory.swappiness", memory.swappiness().map(|value| value.to_string()));
        add("memory.oom_control", memory.disable_oom_killer().filter(|off| *off).map(|_| "1".to_owned()));
        let tcp = memory.kernel_tcp().filter(|limit| *limit != 0);
        add("memory.kmem.tcp.limit_in_bytes", tcp.map(|limit| limit.to_string()));
    }
    if let Some(cpu) = resources.cpu() {
        let period = cpu.realtime_period().filter(|period| *period != 0);
        add("cpu.rt_period_us", period.map(|period| period.to_string()));
        let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
        add("cpu.rt_runtime_us", runtime.map(|runtime| runtime.to_string()));
    }
    if let Some(network) = resources.network() {
        add("net_cls.classid", network.class_id().map(|class| class.to_string()));
        let line = |(name, priority): (&String, u32)| format!("{name} {priority}\n");
        let priorities = network.priorities().iter().flatten();
        let lines: String = priorities.map(|entry| line((entry.name(), entry.priority()))).collect();
        add("net_prio.ifpriomap", Some(lines).filter(|lines| !lines.is_empty()));
    }
    files
}

fn plan_io(block: &LinuxBlockIo) -> Result<IoLimits, PlanError> {
    const FIELD: &str = "linux.resources.blockIO";
    let number = |number: i64| {
        u32::try_from(number).map_err(|_| PlanError::invalid(FIELD, format!("{number} is no device number")))
    };
    let weight = |weight: u16| match weight {
        10..=1000 => Ok(weight),
        _ => Err(PlanError::invalid(FIELD, format!("weight {weight} is not in 10 to 1000"))),
    };
    let mut limits = IoLimits {
        weight: block.weight().filter(|weight| *weight != 0).map(weight).transpose()?,
        ..IoLimits::default()
    };
    for device in block.weight_device().iter().flatten() {
        if device.leaf_weight().is_some() {
            return Err(PlanError::unsupported(FIELD, "leafWeight"));
        }
        if let Some(given) = device.weight() {
            limits.device_weights.push((number(device.major())?, number(device.minor())?, weight(given)?));
        }
    }
    let lists = [
        (block.throttle_read_bps_device(), Rate::ReadBytes),
        (block.throttle_write_bps_device(), Rate::WriteBytes),
        (block.throttle_read_iops_device(), Rate::Reads),
        (block.throttle_write_iops_device(), Rate::Writes),
    ];
    for (devices, what) in lists {
        for device in devices.iter().flatten() {
            let (major, minor) = (number(device.major())?, number(device.minor())?);
            limits.throttles.push(Throttle { major, minor, what, rate: device.rate() });
        }
    }
    Ok(limits)
}

/// A page size becomes part of a file's name.
fn plan_hugepages(limits: &[LinuxHugepageLimit]) -> Result<BTreeMap<String, u64>, PlanError> {
    let plan = |limit: &LinuxHugepageLimit| {
        let size = limit.page_size();
        let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let unit = &size[digits.len()..];
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !plain || !matches!(unit, "KB" | "MB" | "GB") {
            let reason = format!("{size:?} is no page size such as 2MB");
            return Err(PlanError::invalid("linux.resources.hugepageLimits", reason));
        }
        let bytes = u64::try_from(limit.limit()).map_err(|_| {
            PlanError::invalid("linux.resources.hugepageLimits", format!("a limit of {}", limit.limit()))
        })?;
        Ok((size.clone(), bytes))
    };
    limits.iter().map(plan).collect()
}

/// What the spec says over nothing at all, followed by the devices that runc lets every container have: those of the OCI runtime spec,
/// terminals, tunnels, and nodes of any kind to be made.
fn plan_devices(rules: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, PlanError> {
    let mut planned: Vec<DeviceRule> = rules.iter().map(plan_rule).collect::<Result<_, _>>()?;
    planned.push(DeviceRule::new(true, DeviceKind::Char, None, None, "m"));
    planned.push(DeviceRule::new(true, DeviceKind::Block, None, None, "m"));
    let default = [(1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 2), (10, 200)];
    planned.extend(default.map(|(major, minor)| DeviceRule::char(true, Some(major), Some(minor), "rwm")));
    planned.push(DeviceRule::char(true, Some(136), None, "rwm"));
    settle_devices(&planned).map_err(|error| PlanError::invalid(DEVICES, error.to_string()))
}

fn plan_rule(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, PlanError> {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => DeviceKind::All,
        Some(LinuxDeviceType::B) => DeviceKind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => DeviceKind::Char,
        Some(LinuxDeviceType::P) => return Err(PlanError::invalid(DEVICES, "fifos are not controlled")),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| PlanError::invalid(DEVICES, format!("{number} is no device number"))),
    };
    let (major, minor) = (number(rule.major())?, number(rule.minor())?);
    let access = rule.access().as_deref().unwrap_or_default();
    if access.is_empty() || access.contains(|letter| !"rwm".contains(letter)) {
        return Err(PlanError::invalid(DEVICES, format!("access {access:?} is not made of r, w and m")));
    }
    let partial = "rwm".chars().any(|letter| !access.contains(letter));
    if kind == DeviceKind::All && (major.is_some() || minor.is_some() || partial) {
        // v1 ignores everything behind an `a`, so this would mean something else than it says.
        return Err(PlanError::unsupported(
            DEVICES,
            "a rule for both kinds of devices with a number or partial access",
        ));
    }
    Ok(DeviceRule::new(rule.allow(), kind, major, minor, access))
}

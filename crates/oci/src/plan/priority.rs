//! How a process is scheduled, its I/O priority and its execution domain.

use host::sys::Scheduling;
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Scheduler,
};

use super::PlanError;

pub(super) fn plan_scheduling(scheduler: &Scheduler) -> Result<Scheduling, PlanError> {
    use LinuxSchedulerPolicy as Policy;
    let policy = *scheduler.policy();
    let invalid = |field: &str, reason: &str| {
        Err(PlanError::invalid(&format!("process.scheduler.{field}"), format!("{reason} ({policy})")))
    };
    let nice = scheduler.nice().unwrap_or(0);
    if matches!(policy, Policy::SchedOther | Policy::SchedBatch) && !(-20..=19).contains(&nice) {
        return invalid("nice", "it is not between -20 and 19");
    }
    let Ok(priority) = u32::try_from(scheduler.priority().unwrap_or(0)) else {
        return invalid("priority", "it is negative");
    };
    if priority != 0 && !matches!(policy, Policy::SchedFifo | Policy::SchedRr) {
        return invalid("priority", "only SCHED_FIFO and SCHED_RR have one");
    }
    let times = [scheduler.runtime(), scheduler.deadline(), scheduler.period()].map(|time| time.unwrap_or(0));
    if times != [0; 3] && policy != Policy::SchedDeadline {
        return invalid("runtime", "only SCHED_DEADLINE has runtime, deadline and period");
    }
    let mut planned = Scheduling::new(policy_number(policy));
    planned.flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| flags | flag_number(*flag));
    (planned.nice, planned.priority) = (nice, priority);
    [planned.runtime, planned.deadline, planned.period] = times;
    Ok(planned)
}

/// linux/sched.h.
fn policy_number(policy: LinuxSchedulerPolicy) -> u32 {
    match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

fn flag_number(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// The kernel's number of the class (linux/ioprio.h), and the level.
pub(super) fn plan_io_priority(wanted: &LinuxIOPriority) -> Result<(u32, u32), PlanError> {
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(wanted.priority()) {
        Ok(level @ 0..=7) => Ok((class, level)),
        _ => Err(PlanError::invalid("process.ioPriority.priority", "it is not between 0 and 7")),
    }
}

pub(super) fn personality(wanted: &LinuxPersonality) -> u32 {
    match wanted.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }
}

//! Who the process is: limits, priorities, user, groups, capabilities.

use std::io;

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use host::sys;

use super::report::{Failure, Step};
use crate::plan::{CAPABILITY_NAMES, ProcessPlan, WithoutRights, capability_names};

/// Raising a hard limit needs CAP_SYS_RESOURCE, which not every root has.
pub(super) fn set_rlimits(process: &ProcessPlan) -> Result<(), Failure> {
    for (resource, soft, hard) in &process.rlimits {
        if_allowed(process, sys::set_rlimit(*resource, *soft, *hard))
            .step(|| format!("set rlimit {resource} to {soft}:{hard}"))?;
    }
    Ok(())
}

/// What the kernel said, unless it denied a right without which the process is to run all the same.
pub(super) fn if_allowed(process: &ProcessPlan, outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error)
            if process.without_rights == WithoutRights::GoOn
                && matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// How it is scheduled, and which kernel it sees: all of it while there is the right to.
pub(super) fn set_priorities(process: &ProcessPlan) -> Result<(), Failure> {
    if let Some(scheduling) = &process.scheduling {
        sys::set_scheduling(scheduling).step(|| "set the scheduler".to_owned())?;
    }
    if let Some((class, level)) = process.io_priority {
        sys::set_io_priority(class, level).step(|| "set the I/O priority".to_owned())?;
    }
    if let Some(domain) = process.personality {
        sys::set_personality(domain).step(|| "set the execution domain".to_owned())?;
    }
    Ok(())
}

/// Takes user, groups, umask and capabilities, in the order in which each still may be changed.
pub(super) fn drop_privileges(process: &ProcessPlan) -> Result<(), Failure> {
    let step = |what: &'static str| move || what.to_owned();
    let own = thread::capabilities(None).step(step("read capabilities"))?;
    let available = own.permitted.bits();
    let wanted = &process.capabilities;
    for number in 0..CAPABILITY_NAMES.len() {
        let bit = CapabilitySet::from_bits_retain(1 << number);
        if wanted.bounding & bit.bits() == 0 {
            match thread::remove_capability_from_bounding_set(bit) {
                // A kernel older than the capability.
                Err(rustix::io::Errno::INVAL) => {}
                other => other.step(step("limit the bounding set"))?,
            }
        }
    }
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022)));
    thread::set_keep_capabilities(true).step(step("keep capabilities"))?;
    let groups: Vec<Gid> = process.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    thread::set_thread_groups(&groups).step(step("set the supplementary groups"))?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    thread::set_thread_res_gid(gid, gid, gid).step(|| format!("set group {}", process.gid))?;
    thread::set_thread_res_uid(uid, uid, uid).step(|| format!("set user {}", process.uid))?;
    thread::set_keep_capabilities(false).step(step("stop keeping capabilities"))?;
    set_capabilities(process, available)?;
    if process.no_new_privileges {
        thread::set_no_new_privs(true).step(step("set no_new_privs"))?;
    }
    Ok(())
}

/// Inheritable is what ambient needs and nothing else (CVE-2022-29162). What this process does not have itself cannot be given.
fn set_capabilities(process: &ProcessPlan, available: u64) -> Result<(), Failure> {
    let wanted = &process.capabilities;
    let missing = (wanted.effective | wanted.permitted | wanted.ambient) & !available;
    if missing != 0 {
        if_allowed(process, Err(io::Error::from_raw_os_error(libc::EPERM))).step(|| {
            format!("set capabilities that the starter has not itself: {}", capability_names(missing))
        })?;
    }
    let set = |bits: u64| CapabilitySet::from_bits_retain(bits & available);
    let sets = CapabilitySets {
        effective: set(wanted.effective),
        permitted: set(wanted.permitted),
        inheritable: set(wanted.ambient),
    };
    thread::set_capabilities(None, sets).step(|| "set capabilities".to_owned())?;
    for number in 0..CAPABILITY_NAMES.len() {
        let bit = set(wanted.ambient & 1 << number);
        if !bit.is_empty() {
            thread::configure_capability_in_ambient_set(bit, true)
                .step(|| "raise ambient capabilities".to_owned())?;
        }
    }
    Ok(())
}

//! Fields that mean something which is not done here: each is refused by its name.

use oci_spec::runtime::{Linux, Spec};

use super::PlanError;

pub(super) fn whole_spec(spec: &Spec) -> Result<(), PlanError> {
    let mapped =
        [spec.uid_mappings(), spec.gid_mappings()].into_iter().flatten().any(|maps| !maps.is_empty());
    first([
        (mapped, "uidMappings", "user namespaces"),
        (spec.solaris().is_some(), "solaris", "another operating system"),
        (spec.windows().is_some(), "windows", "another operating system"),
        (spec.vm().is_some(), "vm", "virtual machines"),
        (spec.zos().is_some(), "zos", "another operating system"),
    ])
}

pub(super) fn linux(linux: &Linux) -> Result<(), PlanError> {
    let label = linux.mount_label().as_ref().is_some_and(|label| !label.is_empty());
    let devices = linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty());
    let personality = linux.personality().as_ref().and_then(|personality| personality.flags().as_ref());
    first([
        (
            personality.is_some_and(|flags| !flags.is_empty()),
            "linux.personality.flags",
            "the spec names none",
        ),
        (label, "linux.mountLabel", "SELinux"),
        (linux.intel_rdt().is_some(), "linux.intelRdt", "resource director technology"),
        (linux.memory_policy().is_some(), "linux.memoryPolicy", "NUMA memory policies"),
        (devices, "linux.netDevices", "moving network devices"),
    ])
}

/// The first that is given, as an error.
pub(super) fn first<const N: usize>(refusals: [(bool, &str, &str); N]) -> Result<(), PlanError> {
    match refusals.into_iter().find(|(given, ..)| *given) {
        Some((_, field, reason)) => Err(PlanError::unsupported(field, reason)),
        None => Ok(()),
    }
}

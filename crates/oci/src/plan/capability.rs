//! Capability names and sets.

use oci_spec::runtime::{LinuxCapabilities, Process};

use super::Capabilities;

/// Capability names without `CAP_`; the index is the kernel's number.
pub const CAPABILITY_NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The bit of a capability by its name, with or without `CAP_`; `None` for a name the kernel does not have.
pub fn capability_mask(name: &str) -> Option<u64> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    CAPABILITY_NAMES.iter().position(|known| *known == name).map(|index| 1 << index)
}

/// Which capabilities exist here: an older kernel refuses those it does not know.
pub fn known_to_kernel() -> u64 {
    static LAST: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *LAST.get_or_init(|| {
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
        let last = last.and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(40).min(62);
        (1 << (last + 1)) - 1
    })
}

/// The names of a mask's capabilities, for people.
pub fn capability_names(mask: u64) -> String {
    let names = CAPABILITY_NAMES.iter().enumerate().filter(|(number, _)| mask & 1 << number != 0);
    names.map(|(_, name)| format!("CAP_{name}")).collect::<Vec<_>>().join(", ")
}

/// The sets of a process. Inheritable of the spec is not taken over (CVE-2022-29162): the launch sets exactly what ambient needs.
pub(super) fn plan_capabilities(process: &Process) -> Capabilities {
    let Some(sets) = process.capabilities() else { return Capabilities::default() };
    let permitted = mask(sets, LinuxCapabilities::permitted);
    Capabilities {
        bounding: mask(sets, LinuxCapabilities::bounding),
        // The kernel would refuse an effective or ambient capability that is not permitted.
        effective: mask(sets, LinuxCapabilities::effective) & permitted,
        permitted,
        ambient: mask(sets, LinuxCapabilities::ambient) & permitted,
    }
}

type Set = Option<oci_spec::runtime::Capabilities>;

fn mask(sets: &LinuxCapabilities, set: impl Fn(&LinuxCapabilities) -> &Set) -> u64 {
    let Some(set) = set(sets) else { return 0 };
    let mut mask = 0;
    // The order of the set does not matter for a union of bits.
    for capability in set {
        mask |= capability_mask(&capability.to_string()).unwrap_or(0);
    }
    mask
}

/// Takes the names that are no capability's out of the sets of a config.json, and gives them in order.
pub(super) fn take_unknown(spec: &mut serde_json::Value) -> Vec<String> {
    let mut unknown = std::collections::BTreeSet::new();
    let sets = spec.pointer_mut("/process/capabilities").and_then(serde_json::Value::as_object_mut);
    for (_, set) in sets.into_iter().flatten() {
        if let Some(names) = set.as_array_mut() {
            names.retain(|name| match name.as_str() {
                Some(name) if capability_mask(name).is_none() => {
                    unknown.insert(name.to_owned());
                    false
                }
                _ => true,
            });
        }
    }
    unknown.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_spec_has_its_kernel_number() {
        for name in CAPABILITY_NAMES {
            let parsed: oci_spec::runtime::Capability =
                serde_json::from_value(serde_json::json!(format!("CAP_{name}"))).unwrap();
            assert_eq!(capability_mask(&parsed.to_string()), capability_mask(name), "{name}");
        }
        assert_eq!(capability_mask("CAP_SYS_ADMIN"), Some(1 << 21));
        assert_eq!(capability_mask("CAP_NOTHING"), None);
        assert_eq!(capability_names(1 << 21 | 1 << 5), "CAP_KILL, CAP_SYS_ADMIN");
    }
}

//! `features` and `--version`: what this runtime does, in the form of the OCI runtime spec (features.md). Only what is true.

use serde_json::{Value, json};

use super::CliError;
use super::log;
use crate::plan::CAPABILITY_NAMES;

/// The newest version of the OCI runtime spec whose fields are known here.
const SPEC_VERSION: &str = "1.3.0";

/// Prints the features.
pub(super) fn print() -> Result<(), CliError> {
    log::print_json(&features())
}

/// In runc's form, which callers parse line by line.
pub(super) fn version() -> String {
    format!("podwright oci version {}\nspec: {SPEC_VERSION}\n", env!("CARGO_PKG_VERSION"))
}

fn features() -> Value {
    let capabilities: Vec<String> = CAPABILITY_NAMES.iter().map(|name| format!("CAP_{name}")).collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "archs": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
                "knownFlags": FILTER_FLAGS,
                "supportedFlags": FILTER_FLAGS,
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": false },
        },
        "annotations": { "dev.podwright.version": env!("CARGO_PKG_VERSION") },
    })
}

const FILTER_FLAGS: [&str; 3] =
    ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG"];

/// Every option that `plan::mounts` knows by name; others are handed to the file system.
fn mount_options() -> Vec<String> {
    let attributes = [
        "ro",
        "rw",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "noatime",
        "atime",
        "strictatime",
        "nostrictatime",
        "relatime",
        "norelatime",
        "nodiratime",
        "diratime",
        "nosymfollow",
        "symfollow",
    ];
    let propagation = ["private", "slave", "shared", "unbindable"];
    let mut options: Vec<String> =
        ["bind", "rbind", "defaults", "idmap", "ridmap", "tmpcopyup"].map(str::to_owned).to_vec();
    for name in attributes.iter().chain(&propagation) {
        options.extend([(*name).to_owned(), format!("r{name}")]);
    }
    options.sort();
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_spec_calls_features() {
        let features: oci_spec::runtime::Features = serde_json::from_value(features()).unwrap();
        assert_eq!(features.oci_version_max(), SPEC_VERSION);
    }

    #[test]
    fn every_mount_option_that_is_told_is_taken() {
        for option in mount_options() {
            let kind = if option == "tmpcopyup" { "tmpfs" } else { "bind" };
            let mount = json!({ "destination": "/x", "type": kind, "source": "/y", "options": [option] });
            let mount = serde_json::from_value(mount).unwrap();
            crate::plan::plan_mounts(&[mount], std::path::Path::new("/")).unwrap();
        }
    }
}

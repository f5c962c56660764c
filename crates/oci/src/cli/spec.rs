//! `spec`: a config.json to begin with.

use std::path::Path;

use serde_json::{Value, json};

use super::CliError;

/// Writes `config.json` into the directory, or the current one; never over another.
pub(super) fn write(bundle: Option<&Path>) -> Result<(), CliError> {
    use std::io::Write;
    let path = bundle.unwrap_or(Path::new("")).join("config.json");
    let text = serde_json::to_string_pretty(&example())
        .map_err(|error| CliError::because("write the spec", &error))?;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    match file.and_then(|mut file| file.write_all(text.as_bytes())) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(CliError::new(format!("file {} exists: remove it first", path.display())))
        }
        other => other.map_err(|error| CliError::because(&format!("write {}", path.display()), &error)),
    }
}

/// A shell with few rights, in namespaces of its own.
fn example() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.2.1",
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "podwright",
        "mounts": mounts(),
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": host::proc_paths::masked(),
            "readonlyPaths": host::proc_paths::READONLY,
        },
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| {
        let source = match kind {
            "tmpfs" if destination == "/dev/shm" => "shm",
            "cgroup" => "cgroup",
            other => other,
        };
        json!({ "destination": destination, "type": kind, "source": source, "options": options })
    };
    let quiet = ["nosuid", "noexec", "nodev"];
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &[&quiet[..], &["mode=1777", "size=65536k"]].concat()),
        mount("/dev/mqueue", "mqueue", &quiet),
        mount("/sys", "sysfs", &[&quiet[..], &["ro"]].concat()),
        mount("/sys/fs/cgroup", "cgroup", &[&quiet[..], &["relatime", "ro"]].concat()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{InheritedNamespaces, LaunchOptions, Rootfs, plan_launch};

    #[test]
    fn the_example_can_be_run_without_a_terminal() {
        let mut example = example();
        example["process"]["terminal"] = json!(false);
        let options = LaunchOptions {
            rootfs: Rootfs::Directory("/r".into()),
            cgroup: Some("/c".into()),
            seccomp: None,
            inherit: InheritedNamespaces::default(),
            bundle: "/b".into(),
            hooks_for: None,
        };
        plan_launch(&serde_json::from_value(example).unwrap(), &options).unwrap();
    }
}

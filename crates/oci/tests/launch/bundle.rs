//! A busybox root and a spec around it, and how to run them.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use host::cgroup::CgroupManager;
use host::error::chain;
use host::process::{Exit, ProcessId, wait};
use oci::console;
use oci::launch::{self, Child, Gate, LaunchError, Stdio};
use oci::plan::{
    ExecTarget, InheritedNamespaces, LaunchOptions, LaunchPlan, PlanError, Rootfs, plan_exec, plan_launch,
};
use serde_json::{Value, json};

/// A root directory, a spec, a cgroup of its own.
pub(crate) struct Bundle {
    pub(crate) spec: Value,
    pub(crate) cgroups: CgroupManager,
    pub(crate) cgroup: String,
    directory: tempfile::TempDir,
}

/// A container that runs, with the other end of its output.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) plan: LaunchPlan,
    output: OwnedFd,
}

impl Bundle {
    /// `/bin/sh -c SCRIPT` with every namespace of its own and the usual mounts.
    pub(crate) fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "sys"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in [
            "sh", "cat", "echo", "id", "grep", "ls", "mount", "readlink", "sleep", "stat", "pwd", "hostname",
            "unshare", "tty", "stty", "head",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("etc/plain"), "text").unwrap();
        let name = directory.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        Self {
            spec: spec(script),
            cgroups: CgroupManager::detect().unwrap(),
            cgroup: format!("/pw-launch-{}-{name}", std::process::id()),
            directory,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    pub(crate) fn plan_on(&self, rootfs: Rootfs) -> Result<LaunchPlan, PlanError> {
        let options = LaunchOptions {
            rootfs,
            cgroup: Some(self.cgroup.clone()),
            seccomp: None,
            inherit: InheritedNamespaces::default(),
            bundle: self.path().to_owned(),
            hooks_for: None,
        };
        plan_launch(&serde_json::from_value(self.spec.clone()).unwrap(), &options)
    }

    pub(crate) fn start_on(&self, rootfs: Rootfs, gate: Option<Gate>) -> Result<Running, LaunchError> {
        let plan = self.plan_on(rootfs).unwrap();
        let (output, stdio) = pipes();
        let child = launch::start(&self.cgroups, &plan, stdio, gate)?;
        Ok(Running { child, plan, output })
    }

    pub(crate) fn start(&self) -> Result<Running, LaunchError> {
        self.start_on(Rootfs::Directory(self.root()), None)
    }

    /// Starts it on a terminal of which `line` and `finish` read the controlling side.
    pub(crate) fn start_on_terminal(&self) -> Result<Running, LaunchError> {
        let plan = self.plan_on(Rootfs::Directory(self.root())).unwrap();
        let (console, ours) = console::pair().unwrap();
        let child = launch::start(&self.cgroups, &plan, Stdio::Terminal { console }, None)?;
        Ok(Running { child, plan, output: console::receive(&ours).unwrap() })
    }

    /// Runs it to its end and gives everything it wrote.
    pub(crate) fn output(&self) -> String {
        let (text, exit) = self.start().unwrap_or_else(|error| panic!("{}", chain(&error))).finish();
        self.remove_cgroup();
        assert_eq!(exit, Exit::Code(0), "{text}");
        text
    }

    /// Starts it, which must not work, and gives the error with its causes.
    pub(crate) fn error(&self) -> (String, i32) {
        let Err(error) = self.start() else { panic!("it has started") };
        assert!(!self.cgroups.open(&self.cgroup).unwrap().exists(), "a failed start leaves a cgroup");
        (chain(&error), error.exit_code())
    }

    pub(crate) fn remove_cgroup(&self) {
        self.cgroups.open(&self.cgroup).unwrap().destroy(std::time::Duration::from_secs(5)).unwrap();
    }
}

impl Running {
    /// Waits for the end of its output and of itself.
    pub(crate) fn finish(self) -> (String, Exit) {
        (read_all(self.output), wait(self.child.pidfd.as_fd()).unwrap())
    }

    pub(crate) fn kill(self) {
        host::process::pidfd_send_signal(self.child.pidfd.as_fd(), libc::SIGKILL).unwrap();
        wait(self.child.pidfd.as_fd()).unwrap();
    }

    /// Waits for one line of output.
    pub(crate) fn line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0_u8; 1];
        while rustix::io::read(&self.output, &mut byte).unwrap() == 1 && byte != *b"\n" {
            line.extend_from_slice(&byte);
        }
        String::from_utf8(line).unwrap()
    }

    /// Runs a process of the given spec inside and gives its output and end.
    pub(crate) fn exec(&self, bundle: &Bundle, process: Value) -> Result<(String, Exit), LaunchError> {
        let target = ExecTarget {
            user: None,
            init: ProcessId::of(self.child.pid).unwrap(),
            namespaces: self.plan.own_namespaces(),
        };
        let process = serde_json::from_value(process).unwrap();
        let plan =
            plan_exec(&process, Some(bundle.cgroup.clone()), self.plan.process.seccomp.clone()).unwrap();
        let (output, stdio) = pipes();
        let child = launch::exec(&bundle.cgroups, &target, &plan, stdio)?;
        Ok((read_all(output), wait(child.pidfd.as_fd()).unwrap()))
    }

    /// The same on a terminal.
    pub(crate) fn exec_on_terminal(&self, bundle: &Bundle, process: Value) -> (String, Exit) {
        let target = ExecTarget {
            user: None,
            init: ProcessId::of(self.child.pid).unwrap(),
            namespaces: self.plan.own_namespaces(),
        };
        let process = serde_json::from_value(process).unwrap();
        let plan = plan_exec(&process, Some(bundle.cgroup.clone()), None).unwrap();
        let (console, ours) = console::pair().unwrap();
        let child = launch::exec(&bundle.cgroups, &target, &plan, Stdio::Terminal { console });
        let child = child.unwrap_or_else(|error| panic!("{}", chain(&error)));
        (read_all(console::receive(&ours).unwrap()), wait(child.pidfd.as_fd()).unwrap())
    }
}

/// Up to the end, which on a terminal is EIO.
fn read_all(output: OwnedFd) -> String {
    let mut text = Vec::new();
    match std::fs::File::from(output).read_to_end(&mut text) {
        Err(error) if error.raw_os_error() != Some(libc::EIO) => panic!("{error}"),
        _ => String::from_utf8(text).unwrap(),
    }
}

fn pipes() -> (OwnedFd, Stdio) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdin = std::fs::File::open("/dev/null").unwrap().into();
    (reader, Stdio::Streams { stdin, stdout: writer.try_clone().unwrap(), stderr: writer })
}

/// The process of a session or container.
pub(crate) fn process(args: &[&str]) -> Value {
    let caps = json!(["CAP_KILL", "CAP_CHOWN"]);
    json!({
        "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true,
        "capabilities": { "bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps },
    })
}

fn spec(script: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "hostname": "inside",
        "process": process(&["/bin/sh", "-c", script]),
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "cgroup" }],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }], "pids": { "limit": 20 }, "cpu": { "shares": 512 } },
            "maskedPaths": ["/proc/keys", "/proc/acpi", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

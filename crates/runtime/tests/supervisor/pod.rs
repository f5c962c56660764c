//! A pod for one story: a directory, a supervisor, and what to run in it. Everything ends with the value.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use host::cgroup::{CgroupManager, Limits};
use host::namespace::Namespace;
use oci::plan::{Capabilities, CgroupPlan, ExecPlan, LaunchPlan, MountKind, MountPlan, ProcessPlan, Rootfs};
use oci::supervisor::protocol::{
    Event, ExitRecord, LogFile, PidMode, PodNamespaces, Setup, StartContainer, Started,
};
use runtime::supervisor::Supervisor;
use tokio::sync::mpsc::UnboundedReceiver;

pub(crate) struct Pod {
    pub(crate) supervisor: Supervisor,
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) directory: tempfile::TempDir,
}

impl Pod {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut setup = setup(directory.path());
        change(&mut setup);
        let supervisor = Supervisor::spawn(&exe(), &setup).await.unwrap();
        Self { events: supervisor.events(), supervisor, directory }
    }

    pub(crate) async fn start(&self, name: &str, script: &str) -> Started {
        self.supervisor.start(self.container(name, &["/bin/sh", "-c", script])).await.unwrap()
    }

    pub(crate) fn container(&self, name: &str, args: &[&str]) -> StartContainer {
        StartContainer {
            container: name.into(),
            plan: plan(self.directory.path(), name, args),
            log: Some(LogFile {
                directory: self.directory.path().join("logs"),
                path: format!("{name}/0.log").into(),
            }),
            exit_file: self.exit_file(name),
            stdin: false,
            tty: false,
            stdin_once: false,
        }
    }

    pub(crate) fn exit_file(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.exit"))
    }

    /// Stream, tag and content of each log entry.
    pub(crate) fn log(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log_path(name)).unwrap();
        text.lines().map(|line| line[31..].to_owned()).collect()
    }

    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("logs/{name}/0.log"))
    }

    pub(crate) async fn exit(&mut self) -> (String, ExitRecord) {
        let Event::Exited { container, exit } = self.events.recv().await.expect("an exit");
        (container, exit)
    }

    pub(crate) async fn end(self) {
        self.supervisor.shutdown().await.unwrap();
        assert!(self.supervisor.is_dead());
        assert!(!self.directory.path().join("sup.sock").exists());
    }
}

pub(crate) fn setup(directory: &Path) -> Setup {
    Setup {
        sandbox_id: "5".repeat(64),
        directory: directory.to_owned(),
        namespaces: PodNamespaces { pid: PidMode::Container, ..PodNamespaces::default() },
        user: None,
        hostname: Some("story".into()),
        sysctls: [("net.core.somaxconn".to_owned(), "77".to_owned())].into(),
        cgroup: None,
        oom_score_adj: None,
    }
}

pub(crate) fn exe() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// A container with namespaces of its own over a root of busybox alone; as much of a plan as these stories need.
pub(crate) fn plan(pod: &Path, name: &str, args: &[&str]) -> LaunchPlan {
    let root = pod.join("rootfs").join(name);
    for directory in ["bin", "proc", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    if !root.join("bin/busybox").exists() {
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    }
    for applet in ["sh", "sleep", "cat", "head", "hostname", "grep", "wc", "true", "tail"] {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
    }
    LaunchPlan {
        clocks: Vec::new(),
        new_namespaces: vec![Namespace::Pid, Namespace::Mnt],
        join_namespaces: Vec::new(),
        cgroup: Some(CgroupPlan { path: container_cgroup(pod, name), limits: Limits::default() }),
        rootfs: Rootfs::Directory(root),
        readonly_rootfs: false,
        root_propagation: 1 << 18,
        mounts: vec![mount("/proc", "proc"), bind(Path::new("/dev")), bind(pod)],
        devices: Vec::new(),
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        sysctls: Vec::new(),
        hostname: None,
        domainname: None,
        process: process(args),
        hooks: None,
        user: None,
    }
}

/// The cgroup of a pod's containers, one for each pod so that each can be removed as a whole.
fn pod_cgroup(pod: &Path) -> String {
    format!("/podwright-test-{}", pod.file_name().unwrap().to_str().unwrap().trim_start_matches(".tmp"))
}

fn container_cgroup(pod: &Path, name: &str) -> String {
    format!("{}/{name}", pod_cgroup(pod))
}

fn mount(target: &str, filesystem: &str) -> MountPlan {
    let kind = MountKind::New {
        filesystem: filesystem.into(),
        source: filesystem.into(),
        options: Vec::new(),
        copy_up: false,
    };
    MountPlan { kind, ..bind(Path::new(target)) }
}

/// The pod's directory, at the same path inside: for fifos that stories and scripts share.
fn bind(path: &Path) -> MountPlan {
    MountPlan {
        target: path.to_owned(),
        kind: MountKind::Bind { source: path.to_owned(), recursive: false },
        set: 0,
        clear: 0,
        set_recursive: 0,
        clear_recursive: 0,
        propagation: 0,
        propagation_recursive: false,
        ids: None,
    }
}

fn process(args: &[&str]) -> ProcessPlan {
    let all = (1 << 38) - 1;
    ProcessPlan {
        args: args.iter().map(ToString::to_string).collect(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        capabilities: Capabilities { bounding: all, effective: all, permitted: all, ambient: 0 },
        ..ProcessPlan::default()
    }
}

impl Pod {
    pub(crate) fn cgroup(&self, container: &str) -> host::cgroup::Cgroup {
        CgroupManager::detect().unwrap().open(&container_cgroup(self.directory.path(), container)).unwrap()
    }

    pub(crate) fn exec_plan(&self, container: &str, script: &str) -> ExecPlan {
        let cgroup = Some(container_cgroup(self.directory.path(), container));
        ExecPlan { process: process(&["/bin/sh", "-c", script]), cgroup }
    }
}

impl Drop for Pod {
    /// A story that failed half-way leaves nothing either.
    fn drop(&mut self) {
        let process = self.supervisor.process();
        if let Ok(Some(pidfd)) = process.pidfd() {
            let _ = host::process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        let pod = CgroupManager::detect().unwrap().open(&pod_cgroup(self.directory.path())).unwrap();
        pod.kill().unwrap();
        while pod.remove().is_err() {
            let _ = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
            std::thread::yield_now();
        }
    }
}

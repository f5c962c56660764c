//! What containers and exec sessions see and may do.

use std::os::unix::fs::symlink;

use host::error::chain;
use host::process::Exit;
use oci::launch::Gate;
use oci::plan::Rootfs;
use serde_json::json;

use crate::bundle::{Bundle, process};

type Story = fn();

/// Every story with its name.
pub(crate) const ALL: &[(&str, Story)] = &[
    ("an_overlay_is_seen_only_inside", overlay),
    ("an_overlay_by_path_takes_any_character", overlay_by_path),
    ("sessions_join_the_container", session),
    ("a_session_cannot_start_in_a_leaked_directory", session_directory),
    ("a_terminal_controls_the_session_and_is_the_console", terminal),
    ("a_session_gets_a_terminal_of_its_own", session_terminal),
    ("a_terminal_is_only_made_by_a_terminal_multiplexer", false_multiplexer),
    ("a_session_needs_a_running_container", session_after_end),
    ("a_missing_program_is_told_in_the_words_of_runc", missing_programs),
    ("an_image_whose_dev_is_a_link_gets_a_dev_of_its_own", dev_link),
    ("an_image_whose_proc_or_sys_is_a_link_is_refused", proc_link),
    ("mount_targets_stay_in_the_root", target_link),
    ("the_default_seccomp_profile_is_in_force", seccomp),
    ("inheritable_capabilities_stay_empty", capabilities),
    ("kernel_parameters_reach_only_own_namespaces", sysctls),
    ("the_gate_holds_the_program_back", gate),
    ("a_slave_bind_sees_later_mounts_of_the_host", propagation),
    ("devices_outside_the_rules_cannot_be_opened", devices),
    ("killing_the_cgroup_ends_everything_in_it", kill_cgroup),
    ("the_program_of_the_starter_cannot_be_written", own_program),
];

fn overlay() {
    let bundle = Bundle::new("echo new > /written; cat /etc/plain; grep -c overlay /proc/self/mountinfo");
    let (upper, work) = (bundle.path().join("upper"), bundle.path().join("work"));
    std::fs::create_dir(&upper).unwrap();
    std::fs::create_dir(&work).unwrap();
    let top = bundle.path().join("top");
    std::fs::create_dir_all(top.join("etc")).unwrap();
    std::fs::write(top.join("etc/plain"), "from the top layer\n").unwrap();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let rootfs = Rootfs::Overlay { lower: vec![top, bundle.root()], upper: upper.clone(), work };
    let running = bundle.start_on(rootfs, None).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(running.finish(), ("from the top layer\n1\n".to_owned(), Exit::Code(0)));
    bundle.remove_cgroup();
    assert_eq!(std::fs::read_to_string(upper.join("written")).unwrap(), "new\n");
    assert!(!bundle.root().join("written").exists());
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

/// What kernels before 6.8 need.
fn overlay_by_path() {
    let bundle = Bundle::new("");
    let layer = bundle.path().join("a:b,c\\\\d");
    let [upper, work, target] = ["upper", "work", "target"].map(|name| bundle.path().join(name));
    for directory in [&layer, &upper, &work, &target] {
        std::fs::create_dir(directory).unwrap();
    }
    std::fs::write(layer.join("found"), "").unwrap();
    let writable = host::mount::Upper { directory: &upper, work: &work };
    host::mount::overlay_at(&[layer, bundle.root()], Some(writable), &target).unwrap();
    assert!(target.join("found").exists() && target.join("etc/plain").exists());
    host::mount::detach(&target).unwrap();
    host::mount::detach(&target).expect("gone already is fine");
}

fn session() {
    let bundle = Bundle::new("echo up; sleep 1000");
    let running = bundle.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(running.line(), "up");
    let script = "for n in net mnt pid ipc uts cgroup; do [ $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) ] || echo $n; done; \
        hostname; cat /proc/self/cgroup | grep -v ':/$'; grep ^CapEff /proc/self/status; ls /proc/self/fd | grep -c .; pwd; exit 3";
    let mut exec = process(&["sh", "-c", script]);
    exec["cwd"] = json!("/tmp");
    let outcome = running.exec(&bundle, exec).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(outcome, ("inside\nCapEff:\t0000000000000021\n4\n/tmp\n".to_owned(), Exit::Code(3)));
    let mut exec = process(&["id"]);
    exec["user"] = json!({ "uid": 12, "gid": 34, "additionalGids": [56] });
    assert_eq!(running.exec(&bundle, exec).unwrap().0, "uid=12 gid=34 groups=56\n");
    let error = running.exec(&bundle, process(&["nothing"])).unwrap_err();
    assert_eq!(error.to_string(), "exec: \"nothing\": executable file not found in $PATH");
    running.kill();
    bundle.remove_cgroup();
}

fn session_directory() {
    let bundle = Bundle::new("echo up; sleep 1000");
    let running = bundle.start().unwrap();
    running.line();
    for descriptor in 0..32 {
        let mut exec = process(&["cat", "../../../../../etc/hostname"]);
        exec["cwd"] = json!(format!("/proc/self/fd/{descriptor}"));
        let error = running.exec(&bundle, exec).unwrap_err();
        assert!(chain(&error).starts_with("chdir to cwd"), "{}", chain(&error));
    }
    running.kill();
    bundle.remove_cgroup();
}

fn session_after_end() {
    let bundle = Bundle::new("exit 0");
    let running = bundle.start().unwrap();
    host::process::wait_ended(&running.child.pidfd, std::time::Duration::from_secs(10)).unwrap();
    let error = running.exec(&bundle, process(&["id"])).unwrap_err();
    assert_eq!(error.to_string(), "container is not running");
    running.finish();
    bundle.remove_cgroup();
}

fn missing_programs() {
    let table = [
        ("nothing", "executable file not found in $PATH", 127),
        ("/no/such", "no such file or directory", 127),
        ("/etc/plain", "permission denied", 126),
        ("/etc", "is a directory", 126),
    ];
    for (program, reason, code) in table {
        let mut bundle = Bundle::new("");
        bundle.spec["process"]["args"] = json!([program]);
        assert_eq!(bundle.error(), (format!("exec: {program:?}: {reason}"), code));
    }
}

/// runc CVE-2026-41579.
fn dev_link() {
    let bundle = Bundle::new("ls /dev/null && echo x > /dev/null && echo fine");
    let outside = bundle.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, bundle.root().join("dev")).unwrap();
    // In the root the link leads nowhere, and nothing is made through it.
    let started = bundle.start();
    assert!(started.is_err(), "a dangling /dev is refused");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    std::fs::remove_file(bundle.root().join("dev")).unwrap();
    symlink("/tmp", bundle.root().join("dev")).unwrap();
    assert_eq!(bundle.output(), "/dev/null\nfine\n");
    assert_eq!(std::fs::read_dir(bundle.root().join("tmp")).unwrap().count(), 0, "only mounted over");
}

/// runc CVE-2019-19921, CVE-2023-27561.
fn proc_link() {
    for name in ["proc", "sys"] {
        let bundle = Bundle::new("echo not reached");
        std::fs::remove_dir(bundle.root().join(name)).unwrap();
        std::fs::create_dir(bundle.root().join("elsewhere")).unwrap();
        symlink("/elsewhere", bundle.root().join(name)).unwrap();
        let (error, _) = bundle.error();
        assert!(error.contains("must be an ordinary directory"), "{error}");
    }
}

/// runc CVE-2021-30465, CVE-2024-45310.
fn target_link() {
    let mut bundle = Bundle::new("cat /link/file");
    let outside = bundle.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink("../../../../../../../tmp", bundle.root().join("link")).unwrap();
    let source = bundle.path().join("source");
    std::fs::write(&source, "bound\n").unwrap();
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({ "destination": "/link/file", "type": "bind", "source": source, "options": ["bind", "ro"] }),
    );
    assert_eq!(bundle.output(), "bound\n");
    assert!(bundle.root().join("tmp/file").exists(), "the link was followed inside the root");
    std::fs::remove_file(bundle.root().join("link")).unwrap();
    symlink(&outside, bundle.root().join("link")).unwrap();
    bundle.error();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

fn seccomp() {
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::new(
            "grep -E '^Seccomp:' /proc/self/status; unshare -u true 2>/dev/null || echo refused; id",
        );
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.spec["linux"]["seccomp"] =
            serde_json::to_value(oci::seccomp::runtime_default(1 << 5)).unwrap();
        assert_eq!(bundle.output(), "Seccomp:\t2\nrefused\nuid=0 gid=0\n");
    }
}

/// CVE-2022-29162.
fn capabilities() {
    let mut bundle = Bundle::new("grep ^Cap /proc/self/status");
    let none = "0000000000000000";
    let set = "0000000000000021";
    assert_eq!(
        bundle.output(),
        format!("CapInh:\t{none}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{none}\n")
    );
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    bundle.spec["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]);
    let kill = "0000000000000020";
    assert_eq!(
        bundle.output(),
        format!("CapInh:\t{kill}\nCapPrm:\t{kill}\nCapEff:\t{kill}\nCapBnd:\t{set}\nCapAmb:\t{kill}\n")
    );
}

fn sysctls() {
    let mut bundle = Bundle::new(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced; (echo 0 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo refused",
    );
    let read = || std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    let before = read();
    bundle.spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1" });
    bundle.spec["process"]["oomScoreAdj"] = json!(500);
    assert_eq!(bundle.output(), "1\n1\nrefused\n");
    assert_eq!(read(), before, "the host's own is untouched");
}

fn gate() {
    let bundle = Bundle::new("echo started");
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let running = bundle.start_on(Rootfs::Directory(bundle.root()), Some(Gate(reader))).unwrap();
    let comm = std::fs::read_to_string(format!("/proc/{}/cmdline", running.child.pid)).unwrap();
    assert!(!comm.contains("/bin/sh"), "it has not executed its program: {comm}");
    rustix::io::write(&writer, b"0").unwrap();
    assert_eq!(running.finish(), ("started\n".to_owned(), Exit::Code(0)));
    bundle.remove_cgroup();
}

fn propagation() {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
    let mut bundle =
        Bundle::new("echo up; while [ ! -e /shared/later/file ]; do sleep 0.01; done; echo seen");
    let shared = bundle.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    mount("tmpfs", &shared, "tmpfs", MountFlags::empty(), None).unwrap();
    mount_change(&shared, MountPropagationFlags::SHARED).unwrap();
    std::fs::create_dir(shared.join("later")).unwrap();
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({ "destination": "/shared", "type": "bind", "source": shared, "options": ["rbind", "rslave"] }),
    );
    let running = bundle.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(running.line(), "up");
    mount("tmpfs", shared.join("later"), "tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::write(shared.join("later/file"), "").unwrap();
    assert_eq!(running.finish(), ("seen\n".to_owned(), Exit::Code(0)));
    bundle.remove_cgroup();
    unmount(shared.join("later"), UnmountFlags::DETACH).unwrap();
    unmount(&shared, UnmountFlags::DETACH).unwrap();
}

fn devices() {
    let mut bundle = Bundle::new(
        "(: < /dev/allowed) && echo allowed; (: < /dev/denied) 2>/dev/null || echo denied; stat -c '%a %u %t:%T' /dev/net/deep",
    );
    bundle.spec["linux"]["devices"] = json!([
        { "path": "/dev/allowed", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600 },
        { "path": "/dev/denied", "type": "c", "major": 1, "minor": 11 },
        { "path": "/dev/net/deep", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7 },
    ]);
    assert_eq!(bundle.output(), "allowed\ndenied\n640 7 1:3\n");
}

fn kill_cgroup() {
    let bundle = Bundle::new("sleep 1000 & sleep 1000 & echo up; wait");
    let running = bundle.start().unwrap();
    assert_eq!(running.line(), "up");
    let cgroup = bundle.cgroups.open(&bundle.cgroup).unwrap();
    assert_eq!(cgroup.pids().unwrap().len(), 3);
    cgroup.kill().unwrap();
    assert_eq!(running.finish().1, Exit::Signal(libc::SIGKILL));
    cgroup.destroy(std::time::Duration::from_secs(5)).unwrap();
    assert!(!bundle.cgroups.open(&bundle.cgroup).unwrap().exists());
    cgroup.destroy(std::time::Duration::ZERO).expect("gone already is fine");
}

/// CVE-2019-5736: what a container's processes are made from lies on a read-only clone.
fn own_program() {
    let sealed = host::self_exe::open().unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&sealed));
    // Opening it for writing is refused as long as it runs in any case; this is refused for good.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    let error = std::fs::set_permissions(path, mode).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
}

fn terminal() {
    let mut bundle = Bundle::new(
        "tty; stty size; stat -c %u:%t:%T /dev/console /dev/pts/0; echo controlling > /dev/tty; \
         echo again > /dev/console; ls /proc/self/fd | grep -c .",
    );
    bundle.spec["process"]["terminal"] = json!(true);
    bundle.spec["process"]["consoleSize"] = json!({ "height": 33, "width": 111 });
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let running = bundle.start_on_terminal().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let (text, exit) = running.finish();
    let lines: Vec<&str> = text.split("\r\n").collect();
    let expect = ["/dev/pts/0", "33 111", "1000:88:0", "1000:88:0", "controlling", "again", "4", ""];
    assert_eq!((lines.as_slice(), exit), (&expect[..], Exit::Code(0)), "{text}");
    bundle.remove_cgroup();
    let Err(error) = bundle.start() else { panic!("a terminal that nobody holds") };
    assert!(chain(&error).contains("nobody takes its other side"), "{}", chain(&error));
}

fn session_terminal() {
    let bundle = Bundle::new("echo up; exec sleep 60");
    let running = bundle.start().unwrap();
    assert_eq!(running.line(), "up");
    let mut inside =
        process(&["/bin/sh", "-c", "tty; stty size; echo controlling > /dev/tty; ls /dev/console"]);
    inside["terminal"] = json!(true);
    inside["consoleSize"] = json!({ "height": 5, "width": 6 });
    let (text, exit) = running.exec_on_terminal(&bundle, inside);
    assert!(text.starts_with("/dev/pts/0\r\n5 6\r\ncontrolling\r\n"), "{text}");
    assert!(text.contains("No such file"), "a session's terminal is no console: {text}");
    assert_eq!(exit, Exit::Code(1));
    running.kill();
    bundle.remove_cgroup();
}

/// CVE-2025-52565 and its like: a /dev of the container's making must not lead anywhere.
fn false_multiplexer() {
    for trick in ["ln -s /etc/plain", "echo >", "mknod -m 666", "ln -s pts/ptmx"] {
        let mut bundle = Bundle::new("");
        // Without a devpts, and with a /dev that is the image's.
        let dev = bundle.path().join("dev");
        std::fs::create_dir(&dev).unwrap();
        match trick {
            "ln -s /etc/plain" => symlink("/etc/plain", dev.join("ptmx")).unwrap(),
            "echo >" => std::fs::write(dev.join("ptmx"), "").unwrap(),
            "ln -s pts/ptmx" => symlink("pts/ptmx", dev.join("ptmx")).unwrap(),
            _ => rustix::fs::mknodat(
                rustix::fs::CWD,
                dev.join("ptmx"),
                rustix::fs::FileType::Fifo,
                0o666.into(),
                0,
            )
            .unwrap(),
        }
        bundle.spec["process"]["terminal"] = json!(true);
        bundle.spec["mounts"] = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "bind", "source": dev, "options": ["rbind", "rw"] },
        ]);
        let Err(error) = bundle.start_on_terminal() else { panic!("{trick}: it has started") };
        assert!(chain(&error).contains("/dev/ptmx"), "{trick}: {}", chain(&error));
    }
}

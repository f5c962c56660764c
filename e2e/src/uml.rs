//! A whole machine of its own: user-mode Linux, an ordinary program that boots a kernel with cgroup v2 in two seconds.
//!
//! Its root is a small directory: busybox, and this machine's `/usr` to look at. It has no network but the one that a machine of a lab
//! lends it, and what runs in it is gone with it. One slow processor: for what is right, never for how long it takes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::bundle::busybox_root;
use crate::lab::Machine;
use crate::test_host::{Daemon, eventually, program};

/// What makes a machine of the kernel: file systems, the modules a node needs, a loopback device.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
for directory in /dev/shm /run /tmp /var; do mount -t tmpfs -o size=100% tmpfs $directory; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t hostfs -o /usr hostfs /usr
mount -t hostfs -o /usr/lib/uml/modules hostfs /lib/modules
hostname guest
ip link set lo up
export PATH=/legacy:/bin:/programs:/usr/sbin:/usr/bin HOME=/
";

/// Then the story, and nothing else.
const STORY: &str = "sh -e /story >/output 2>&1
echo $? >/status
poweroff -f
";

/// Or systemd, with what lies in `/keep` at its place in `/var/lib` also after the next boot.
const SYSTEMD: &str = "mkdir -p /var/lib /keep
for directory in /keep/*; do
  mkdir -p /var/lib/${directory##*/}
  mount --bind $directory /var/lib/${directory##*/}
done
exec /usr/lib/systemd/systemd
";

/// Where the guest's own units are.
const UNITS: &str = "etc/systemd/system";

/// Does what [`Guest::order`] gives, one after the other.
const ORDERS: &str = "[Service]
Environment=PATH=/legacy:/bin:/programs:/usr/sbin:/usr/bin HOME=/
ExecStart=/bin/sh -c 'while :; do if mv /order /doing 2>/dev/null; then sh -e /doing >/said 2>&1; echo $? >/done; fi; sleep 0.2; done'
";

/// Units of this machine's Debian that need a bus, a terminal or devices.
const MASKED: [&str; 9] = [
    "dbus.service",
    "dbus.socket",
    "getty.target",
    "systemd-logind.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-user-sessions.service",
];

/// Seconds after which a guest is given up.
const PATIENCE: &str = "180";

/// A machine that is off.
pub struct Guest {
    root: TempDir,
}

impl Guest {
    /// Makes the machine's root directory.
    ///
    /// # Errors
    /// When busybox-static or user-mode-linux is not installed.
    pub fn new() -> Result<Self> {
        ensure!(Path::new("/usr/bin/linux.uml").exists(), "user-mode-linux is not installed");
        let root = tempfile::Builder::new().prefix("pw-uml-").tempdir_in("/tmp").context("create a root")?;
        let guest = Self { root };
        busybox_root(guest.path())?;
        for directory in ["usr", "run", "var", "sbin", "programs", "legacy", "lib/modules"] {
            std::fs::create_dir_all(guest.path().join(directory)).context("create a directory")?;
        }
        guest.write("init", &format!("{INIT}{STORY}"))?;
        guest.link("/bin/busybox", "sbin/modprobe")?;
        guest.link_libraries()?;
        for name in ["iptables", "iptables-save", "iptables-restore"] {
            guest.link("/usr/sbin/xtables-legacy-multi", &format!("legacy/{name}"))?;
        }
        Ok(guest)
    }

    /// The machine's root directory, as this machine sees it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Puts a program into the machine's PATH.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn install(&self, source: &Path) -> Result<()> {
        let name = source.file_name().context("a program has a name")?;
        std::fs::copy(source, self.path().join("programs").join(name))
            .with_context(|| format!("copy {}", source.display()))
            .map(drop)
    }

    /// Writes an executable file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("write {name}"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).context("set permissions")
    }

    /// Boots, runs a shell script (`sh -e`), and powers off; gives what the script wrote.
    ///
    /// # Errors
    /// When the machine does not come to the end of the script, or the script fails: with all that was written.
    pub fn run(&self, script: &str) -> Result<String> {
        self.write("story", script)?;
        let console = self.boot()?;
        let (output, status) = (self.read("output"), self.read("status"));
        ensure!(
            status.trim() == "0",
            "the guest's script ended with {status:?}:\n{output}\n--- console ---\n{}{}",
            String::from_utf8_lossy(&console.stdout),
            String::from_utf8_lossy(&console.stderr)
        );
        Ok(output)
    }

    /// Makes systemd the guest's first process. Directories of `/var/lib` that are named are kept over boots.
    ///
    /// # Errors
    /// When this machine has no systemd, or the files cannot be written.
    pub fn with_systemd(&self, kept: &[&str]) -> Result<()> {
        ensure!(Path::new("/usr/lib/systemd/systemd").exists(), "systemd is not installed");
        let units = self.path().join(UNITS).join("multi-user.target.wants");
        for directory in kept.iter().map(|name| self.path().join("keep").join(name)).chain([units]) {
            std::fs::create_dir_all(directory).context("create a directory")?;
        }
        for unit in MASKED {
            self.link("/dev/null", &format!("{UNITS}/{unit}"))?;
        }
        self.link("/usr/lib/systemd", "lib/systemd")?;
        self.link("/usr/lib/systemd/system/multi-user.target", &format!("{UNITS}/default.target"))?;
        self.link("/usr/lib/os-release", "etc/os-release")?;
        self.write("etc/machine-id", "")?;
        self.write("etc/passwd", "root:x:0:0:root:/:/bin/sh\n")?;
        self.write("etc/group", "root:x:0:\n")?;
        self.unit("orders.service", ORDERS)?;
        self.write("init", &format!("{INIT}{SYSTEMD}"))
    }

    /// A unit that starts with each boot.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn unit(&self, name: &str, text: &str) -> Result<()> {
        self.write(&format!("{UNITS}/{name}"), text)?;
        self.link(&format!("../{name}"), &format!("{UNITS}/multi-user.target.wants/{name}"))
    }

    /// Lets a guest that systemd has booted run a shell script (`sh -e`), and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn give(&self, script: &str) -> Result<()> {
        let _ = std::fs::remove_file(self.path().join("done"));
        self.write("order.new", script)?;
        std::fs::rename(self.path().join("order.new"), self.path().join("order")).context("give an order")
    }

    /// The same to its end; gives what the script wrote.
    ///
    /// # Errors
    /// When it does not end in time, or fails: with what it wrote.
    pub fn order(&self, script: &str) -> Result<String> {
        self.give(script)?;
        let code = eventually(script, || Some(self.read("done")).filter(|code| code.ends_with('\n')))?;
        let said = self.read("said");
        ensure!(code.trim() == "0", "{script} ended with {code}{said}");
        Ok(said)
    }

    /// Boots it where a machine of a lab is: `vec0` has that machine's cable, and may have its address.
    ///
    /// # Errors
    /// When the machine's link cannot be lent, or the kernel does not start.
    pub fn boot_at(&self, machine: &Machine) -> Result<Daemon> {
        let lend = "set -e
            ! ip link show guest0 >/dev/null 2>&1 || exit 0
            ip link add guest0 type bridge
            ip tuntap add dev guest1 mode tap
            ip address flush dev up0
            for link in up0 guest1; do ip link set $link master guest0 up; done
            ip link set guest0 up";
        machine.host.run("sh", &["-c", lend]).context("lend the machine's link")?;
        let mut command = machine.host.command("timeout");
        self.kernel(&mut command).arg("vec0:transport=tap,ifname=guest1,depth=64,gro=0");
        machine.host.spawn("guest", &mut command)
    }

    /// What the guest has written there so far.
    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    fn boot(&self) -> Result<Output> {
        self.kernel(&mut program("timeout")).output().context("start linux.uml (user-mode-linux)")
    }

    /// The kernel keeps the guest's memory in a file of TMPDIR, which must be on a tmpfs. In a pid namespace, as each of the guest's
    /// processes is one of this machine, and none of them may outlive the guest.
    fn kernel<'a>(&self, timeout: &'a mut Command) -> &'a mut Command {
        timeout
            .args(["--signal=KILL", PATIENCE, "unshare", "--pid", "--fork", "--kill-child", "linux.uml"])
            .args(["mem=1G", "rootfstype=hostfs", "root=none", "rw"])
            .arg(format!("rootflags={}", self.path().display()))
            .args(["init=/init", "quiet", "con=null", "con0=fd:0,fd:1"])
            .env("TMPDIR", "/dev/shm")
            .stdin(Stdio::null())
    }

    /// Programs of this machine find their loader and libraries where they expect them.
    fn link_libraries(&self) -> Result<()> {
        self.link("/usr/lib64", "lib64")?;
        for entry in std::fs::read_dir("/usr/lib").context("read /usr/lib")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with("-linux-gnu") {
                self.link(&format!("/usr/lib/{name}"), &format!("lib/{name}"))?;
            }
        }
        Ok(())
    }

    fn link(&self, target: &str, name: &str) -> Result<()> {
        let link: PathBuf = self.path().join(name);
        std::os::unix::fs::symlink(target, link).with_context(|| format!("link {name}"))
    }
}

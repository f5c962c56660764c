//! A network of machines made of namespaces: each has a name, an address and one link to the switch in the middle, as
//! machines in a rack have. Nothing of it is linked to this machine's own interfaces.
//!
//! A second switch has other machines, which are no neighbours of the first one's. The switch is also the router: every machine's default route, and the place of whatever "the internet" offers. It is
//! the whole outside world of a lab.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::TestHost;
use crate::test_host::{output_of, program};

/// The network's prefix (TEST-NET-1: never routed anywhere).
pub const NETWORK: &str = "192.0.2";
/// The router's address: where the lab's registry and name server are.
pub const ROUTER: &str = "192.0.2.1";

/// A switch: its name on the router, and the prefix of its network.
struct Switch {
    bridge: &'static str,
    network: &'static str,
}

const NEAR: Switch = Switch { bridge: "br0", network: NETWORK };
/// TEST-NET-2.
const FAR: Switch = Switch { bridge: "br1", network: "198.51.100" };

/// A router with machines around it. The machines end on their own: a lab knows only their links.
pub struct Lab {
    router: TestHost,
}

/// One machine of a lab.
pub struct Machine {
    /// Its name, and host name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// The cgroup under which everything of this machine lies, in every hierarchy: `/NAME`.
    pub cgroup: String,
    /// Its namespaces and directory.
    pub host: TestHost,
    port: String,
    bridge: &'static str,
}

impl Machine {
    /// Whether it is on the first switch.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.bridge == NEAR.bridge
    }
}

impl Lab {
    /// Makes the router.
    ///
    /// # Errors
    /// When this process is not root, or `unshare` and `ip` are missing.
    pub fn new() -> Result<Self> {
        let router = TestHost::machine("router", "podwright-lab-router")?;
        let set_up = format!(
            "set -e
             # A machine's way to another one's pods goes through here: it need not learn a shorter one.
             echo 0 > /proc/sys/net/ipv4/conf/all/send_redirects
             add() {{
                 ip link add $1 type bridge
                 ip address add $2.1/24 dev $1
                 ip link set $1 up
                 echo 0 > /proc/sys/net/ipv4/conf/$1/send_redirects
             }}
             add {} {}
             add {} {}",
            NEAR.bridge, NEAR.network, FAR.bridge, FAR.network
        );
        router.run("sh", &["-c", &set_up])?;
        Ok(Self { router })
    }

    /// The router.
    #[must_use]
    pub fn router(&self) -> &TestHost {
        &self.router
    }

    /// Makes a machine with the address `192.0.2.NUMBER`.
    ///
    /// # Errors
    /// When its namespaces or its link cannot be made.
    pub fn machine(&self, name: &str, number: u8) -> Result<Machine> {
        self.machine_at(&NEAR, name, number)
    }

    /// Makes a machine behind the router, with the address `198.51.100.NUMBER`.
    ///
    /// # Errors
    /// As [`machine`](Self::machine).
    pub fn far_machine(&self, name: &str, number: u8) -> Result<Machine> {
        self.machine_at(&FAR, name, number)
    }

    fn machine_at(&self, switch: &Switch, name: &str, number: u8) -> Result<Machine> {
        let Switch { bridge, network } = switch;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("podwright-e2e-{}-m{count}", std::process::id());
        let host = TestHost::machine(name, &cgroup)?;
        let (address, port) = (format!("{network}.{number}"), format!("{bridge}p{number}"));
        let plug = format!(
            "set -e
             ip link add {port} type veth peer name up0 netns {}
             ip link set {port} master {bridge} up",
            host.pid()
        );
        // Only the router's network is entered: the pid is one of this side.
        let enter = format!("--net=/proc/{}/ns/net", self.router.pid());
        output_of(program("nsenter").args([&enter, "sh", "-c", &plug]))
            .with_context(|| format!("plug {name} in"))?;
        let start = format!(
            "set -e
             ip address add {address}/24 dev up0
             ip link set up0 up
             ip route add default via {network}.1 dev up0
             echo 'nameserver {ROUTER}' > /etc/resolv.conf"
        );
        host.run("sh", &["-c", &start])?;
        Ok(Machine { name: name.to_owned(), address, cgroup: format!("/{cgroup}"), host, port, bridge })
    }

    /// Sends what is for `cidr` to that machine, as the routes of a cloud do.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn route(&self, cidr: &str, to: &Machine) -> Result<()> {
        self.router.run("ip", &["route", "replace", cidr, "via", &to.address]).map(drop)
    }

    /// Pulls a machine's cable, as the machine does not see it.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn cut(&self, machine: &Machine) -> Result<()> {
        self.router.run("ip", &["link", "set", &machine.port, "nomaster"]).map(drop)
    }

    /// Lets a machine send no more than `rate` (`64kbit`) until the value is dropped: what it answers comes seconds late.
    ///
    /// # Errors
    /// When `tc` fails.
    pub fn throttle<'a>(&self, machine: &'a Machine, rate: &str) -> Result<Throttle<'a>> {
        let bucket = ["burst", "5kb", "latency", "60s"];
        let words =
            [&["qdisc", "add", "dev", "up0", "root", "tbf", "rate", rate], bucket.as_slice()].concat();
        machine.host.run("tc", &words)?;
        Ok(Throttle { machine })
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn heal(&self, machine: &Machine) -> Result<()> {
        self.router.run("ip", &["link", "set", &machine.port, "master", machine.bridge]).map(drop)
    }
}

/// A machine whose answers come late.
pub struct Throttle<'a> {
    machine: &'a Machine,
}

impl Drop for Throttle<'_> {
    fn drop(&mut self) {
        let _ = self.machine.host.run("tc", &["qdisc", "del", "dev", "up0", "root"]);
    }
}

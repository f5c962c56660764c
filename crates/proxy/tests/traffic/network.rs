//! A node with a bridge, pods on it, and a client beside it: each a network namespace that a thread lives in. All of it
//! goes with the test's process.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use host::namespace::{Namespace, unshare};

/// What pods listen on.
pub(crate) const PORT: u16 = 8080;
/// Set in the process that is alone.
const INSIDE: &str = "PODWRIGHT_TEST_ISOLATED";
/// A connection that hangs is a failure, not an endless test.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which iptables a test uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Nft,
    Legacy,
}

/// Runs `story` in a process that has its own network and mounts.
pub(crate) fn isolated(test: &str, backend: Backend, story: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return story();
    }
    let tools = tools(backend);
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap_or_default());
    let this = std::env::current_exe().expect("this program");
    let status = command("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(this)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .env("PATH", path)
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{test} in its own namespaces: {status}");
}

/// A directory in which `iptables` is the wanted one.
fn tools(backend: Backend) -> tempfile::TempDir {
    let tools = tempfile::tempdir().expect("a directory");
    let program = match backend {
        Backend::Nft => "xtables-nft-multi",
        Backend::Legacy => "xtables-legacy-multi",
    };
    let names = ["iptables", "ip6tables"]
        .into_iter()
        .flat_map(|name| ["", "-save", "-restore"].map(|end| format!("{name}{end}")));
    for name in names {
        let target = Path::new("/usr/sbin").join(program);
        std::os::unix::fs::symlink(target, tools.path().join(name)).expect("a link");
    }
    tools
}

/// The namespaces of a story.
pub(crate) struct Network {
    node: Place,
    pods: Vec<Place>,
    client: Place,
    _uplink: Place,
}

impl Network {
    pub(crate) fn new(pods: u8) -> Self {
        // The lock of legacy iptables lies here.
        run("mount -t tmpfs none /run");
        run("ip link set lo up");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding");
        run("ip link add br0 type bridge");
        run("ip addr add 10.85.0.1/16 dev br0");
        run("ip addr add fd00:85::1/64 dev br0 nodad");
        run("ip link set br0 up");
        let pods = (1..=pods).map(Self::add_pod).collect();
        let client = Place::new();
        run(&format!("ip link add outside type veth peer name eth0 netns {}", client.thread));
        run("ip addr add 192.0.2.1/24 dev outside");
        run("ip link set outside up");
        run("ip addr add 2001:db8::1/64 dev outside nodad");
        client.configure("192.0.2.2/24", "192.0.2.1");
        client.configure("2001:db8::2/64", "2001:db8::1");
        // As every node has: without it nothing leaves for an address that only rules know. Not by the client: the kernel
        // would tell it of a shorter way, and its limit for such messages is also that for refusals.
        let uplink = Place::new();
        run(&format!("ip link add uplink type veth peer name eth0 netns {}", uplink.thread));
        run("ip addr add 198.51.100.1/24 dev uplink");
        run("ip link set uplink up");
        uplink.configure("198.51.100.2/24", "198.51.100.1");
        run("ip route add default via 198.51.100.2");
        run("ip addr add 2001:db8:1::1/64 dev uplink nodad");
        uplink.configure("2001:db8:1::2/64", "2001:db8:1::1");
        run("ip route add default via 2001:db8:1::2");
        Self { node: Place::here(), pods, client, _uplink: uplink }
    }

    fn add_pod(number: u8) -> Place {
        let pod = Place::new();
        run(&format!("ip link add pod{number} type veth peer name eth0 netns {}", pod.thread));
        run(&format!("ip link set pod{number} master br0 up"));
        run(&format!("ip link set pod{number} type bridge_slave hairpin on"));
        pod.configure(&format!("10.85.0.{}/16", 10 + number), "10.85.0.1");
        pod.configure(&format!("fd00:85::1{number}/64"), "fd00:85::1");
        pod.run(move || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("bind");
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let address = peer.ip().to_canonical();
                    socket.send_to(format!("pod-{number} {address}").as_bytes(), peer).expect("answer");
                }
            });
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("listen");
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    let mut connection = connection.expect("a connection");
                    let peer = connection.peer_addr().expect("a peer").ip().to_canonical();
                    connection.write_all(format!("pod-{number} {peer}").as_bytes()).expect("answer");
                }
            });
        });
        pod
    }

    pub(crate) fn node(&self) -> &Place {
        &self.node
    }

    pub(crate) fn client(&self) -> &Place {
        &self.client
    }

    pub(crate) fn pod(&self, number: usize) -> &Place {
        &self.pods[number - 1]
    }

    /// Every rule and chain of ours, as iptables-save prints them, without counters.
    pub(crate) fn rules(&self) -> Vec<String> {
        let saved = ["iptables-save", "ip6tables-save"].map(|program| {
            let output = command(program).output().expect("it runs");
            String::from_utf8(output.stdout).expect("text")
        });
        let text = saved.concat();
        let lines = text.lines().filter(|line| line.contains("KUBE-"));
        let mut lines: Vec<String> =
            lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned()).collect();
        lines.sort();
        lines
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, by a thread that lives in it.
pub(crate) struct Place {
    thread: i32,
    jobs: mpsc::Sender<Job>,
}

impl Place {
    fn here() -> Self {
        Self::started(|| {})
    }

    fn new() -> Self {
        Self::started(|| {
            unshare(&[Namespace::Net]).expect("a network namespace");
            run("ip link set lo up");
        })
    }

    fn started(enter: impl FnOnce() + Send + 'static) -> Self {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (ready, thread) = mpsc::channel();
        std::thread::spawn(move || {
            enter();
            let link = std::fs::read_link("/proc/thread-self").expect("this thread");
            let name = link.file_name().expect("its number").to_string_lossy().into_owned();
            ready.send(name.parse().expect("a number")).expect("someone waits");
            for job in todo {
                job();
            }
        });
        Self { thread: thread.recv().expect("the thread starts"), jobs }
    }

    /// Runs `job` here and waits for what it gives.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || done.send(job()).expect("someone waits"));
        self.jobs.send(job).expect("the thread lives");
        result.recv().expect("the job did not panic")
    }

    fn configure(&self, address: &str, gateway: &str) {
        let (address, gateway) = (address.to_owned(), gateway.to_owned());
        self.run(move || {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            run(&format!("ip addr add {address} dev eth0{nodad}"));
            run("ip link set eth0 up");
            run(&format!("ip route add default via {gateway}"));
        });
    }

    /// Connects `times` times; gives what was answered.
    pub(crate) fn ask(&self, address: SocketAddr, times: usize) -> Vec<String> {
        self.run(move || {
            let answer = |number| {
                let mut text = String::new();
                let mut connection = TcpStream::connect_timeout(&address, PATIENCE)
                    .unwrap_or_else(|error| panic!("connection {number} to {address}: {error}"));
                connection.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                connection.read_to_string(&mut text).expect("an answer");
                text
            };
            (0..times).map(answer).collect()
        })
    }

    /// A UDP client: from one and the same port, as long as it lives.
    pub(crate) fn udp(&self, address: SocketAddr) -> Udp {
        let local: SocketAddr =
            if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
        let socket = self.run(move || UdpSocket::bind(local)).expect("bind");
        socket.connect(address).expect("connect");
        Udp(socket)
    }

    /// How a connection to `address` fails.
    pub(crate) fn refusal(&self, address: SocketAddr) -> ErrorKind {
        self.run(move || match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => panic!("{address} answered"),
            Err(error) => error.kind(),
        })
    }
}

/// See [`Place::udp`].
pub(crate) struct Udp(UdpSocket);

impl Udp {
    /// Sends a packet; gives the answer.
    pub(crate) fn ask(&self) -> std::io::Result<String> {
        self.0.set_read_timeout(Some(PATIENCE))?;
        self.0.send(b"who?")?;
        let mut buffer = [0; 64];
        let length = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().expect("bound").port()
    }
}

/// The UDP flows that the kernel tracks from a client's port, as /proc shows them.
pub(crate) fn tracked(port: u16) -> Vec<String> {
    let table =
        std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").expect("the table of connections");
    let from = format!("sport={port} ");
    table.lines().filter(|line| line.contains("udp") && line.contains(&from)).map(str::to_owned).collect()
}

#[expect(clippy::disallowed_methods, reason = "a test that drives real programs")]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

pub(crate) fn run(line: &str) {
    let mut words = line.split(' ');
    let output = command(words.next().expect("a program"))
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

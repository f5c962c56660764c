//! What hostile pods and neighbours tried over the network, named after what went wrong elsewhere.

use std::net::{Ipv6Addr, SocketAddrV6};

use anyhow::{Context, Result};
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{container, create, exec, pod, run_pod, start};
use e2e::story::Story;
use e2e::test_host::{eventually, output_of, program};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

e2e::cri_stories! {
    cve_2020_10749_no_pod_announces_itself_as_a_router,
    cve_2020_15257_no_abstract_socket_of_the_runtime_is_reachable,
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// The prefix that the rogue router announces (documentation, RFC 3849).
const ROGUE: &str = "2001:db8:bad:";

/// A router advertisement (RFC 4861 §4.2): a default router for half an hour, and a prefix to make addresses of.
fn advertisement() -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    message.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets());
    message
}

/// Sends advertisements to all nodes of `eth0`'s link from inside a container's network, as a process with NET_RAW can.
fn advertise(pid: &str) -> Result<()> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).context("open the pod's network")?;
    let send = move || -> Result<()> {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(kind))?;
        let raw = SocketType::RAW;
        let socket =
            rustix::net::socket_with(AddressFamily::INET6, raw, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6))?;
        sockopt::set_ipv6_multicast_hops(&socket, 255)?;
        let index = rustix::net::netdevice::name_to_index(&socket, "eth0")?;
        let all_nodes = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
        // Until duplicate address detection is over there is no address to send from.
        eventually("the pod's link-local address is usable", || {
            rustix::net::sendto(&socket, &advertisement(), SendFlags::empty(), &all_nodes).ok()
        })?;
        for _ in 0..5 {
            rustix::net::sendto(&socket, &advertisement(), SendFlags::empty(), &all_nodes)?;
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(())
    };
    std::thread::spawn(send).join().ok().context("the sender panicked")?
}

fn cve_2020_10749_no_pod_announces_itself_as_a_router(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let mut pids = Vec::new();
        let mut ids = Vec::new();
        for name in ["router", "neighbour"] {
            let config = pod(server.host.path(), name);
            let pod_id = run_pod(&mut runtime, &config).await?;
            // The reference switches IPv6 off in pods without an address of it.
            let id = create(&mut runtime, &pod_id, &config, &container("c", &["sleep", "1000"])).await?;
            start(&mut runtime, &id).await?;
            let pid = server.crictl_json(&["inspect", &id])?["info"]["pid"].to_string();
            let enable =
                "for c in all default eth0; do echo 0 > /proc/sys/net/ipv6/conf/$c/disable_ipv6; done";
            output_of(program("nsenter").args(["--net", "--target", &pid, "sh", "-c", enable]))?;
            pids.push(pid);
            ids.push(id);
        }
        advertise(&pids[0])?;
        let believed = |command: &mut std::process::Command| {
            let text = output_of(command)?;
            Ok::<bool, anyhow::Error>(text.contains(ROGUE) || text.contains("proto ra"))
        };
        for question in ["ip -6 route show", "ip -6 address show"] {
            assert!(!believed(server.host.command("sh").args(["-c", question]))?, "the node: {question}");
        }
        // Only ours keeps pods from believing each other.
        if server.implementation == Implementation::Podwright {
            let inside = ["ip", "-6", "address", "show"];
            let text = String::from_utf8(exec(&mut runtime, &ids[1], &inside).await?.stdout)?;
            assert!(!text.contains(ROGUE), "{text}");
        }
        // The same message is believed by whoever listens: so the silence above means something.
        let listen = "echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_ra";
        output_of(program("nsenter").args(["--net", "--target", &pids[1], "sh", "-c", listen]))?;
        advertise(&pids[0])?;
        eventually("a listener believes the router", || {
            let show = ["--net", "--target", &pids[1], "ip", "-6", "address", "show"];
            believed(program("nsenter").args(show)).ok()?.then_some(())
        })
    })
}

fn cve_2020_15257_no_abstract_socket_of_the_runtime_is_reachable(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        // Something must run for a supervisor, or a shim, to listen.
        let busy = pod(server.host.path(), "busy");
        let busy_id = run_pod(&mut runtime, &busy).await?;
        let id = create(&mut runtime, &busy_id, &busy, &container("c", &["sleep", "1000"])).await?;
        start(&mut runtime, &id).await?;
        let mut config = pod(server.host.path(), "host-network");
        config.hostname = String::new();
        let mut in_host = container("c", &["sleep", "1000"]);
        let of_node = |options: &mut Option<cri::v1::NamespaceOption>| {
            options.get_or_insert_default().network = cri::v1::NamespaceMode::Node.into();
        };
        let linux = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        of_node(&mut linux.namespace_options);
        let linux = in_host.linux.get_or_insert_default().security_context.get_or_insert_default();
        of_node(&mut linux.namespace_options);
        let pod_id = run_pod(&mut runtime, &config).await?;
        let id = create(&mut runtime, &pod_id, &config, &in_host).await?;
        start(&mut runtime, &id).await?;
        let table = String::from_utf8(exec(&mut runtime, &id, &["cat", "/proc/net/unix"]).await?.stdout)?;
        assert!(table.contains(&server.socket().display().to_string()), "the node's own table: {table}");
        let names = table.lines().filter_map(|line| line.split_whitespace().nth(7));
        let abstract_names: Vec<&str> = names.filter(|name| name.starts_with('@')).collect();
        assert!(abstract_names.is_empty(), "{abstract_names:?}");
        Ok(())
    })
}

/// A neighbour on the pods' bridge sends packets to the node's 127.0.0.1, while a port of the node makes the bridge route it.
#[test]
#[ignore = "needs root"]
fn cve_2020_8558_a_neighbour_does_not_reach_the_nodes_loopback() -> Result<()> {
    let text = "apiVersion: v1
kind: Pod
metadata: {name: served}
spec:
  containers:
  - name: web
    image: IMAGE
    command: [sleep, '1000000']
    ports: [{containerPort: 8080, hostPort: 8081}]
---
apiVersion: v1
kind: Pod
metadata: {name: neighbour}
spec:
  containers: [{name: c, image: IMAGE, command: [sleep, '1000000']}]
";
    let story = Story::start(&[("pods.yaml", text)])?;
    story.ready("served")?;
    let neighbour = story.ready("neighbour")?;
    let mut command = story.host.command("busybox");
    command.args(["httpd", "-f", "-p", "127.0.0.1:9999", "-h", "/"]);
    let mut secret = story.host.spawn("httpd", &mut command)?;
    secret.wait_until("listening", || {
        story.host.run("ss", &["-ltn"]).ok().filter(|text| text.contains("127.0.0.1:9999"))
    })?;
    let routed = story.host.run("cat", &["/proc/sys/net/ipv4/conf/podwright0/route_localnet"])?;
    assert_eq!(routed.trim(), "1", "without it the story tells nothing");
    let id = e2e::story::container_id(&neighbour)?;
    let inspected: serde_json::Value = serde_json::from_str(&story.crictl(&["inspect", &id])?)?;
    let pid = inspected["info"]["pid"].to_string();
    let spoof = "set -e
        ip address del 127.0.0.1/8 dev lo
        for c in all eth0; do echo 1 > /proc/sys/net/ipv4/conf/$c/route_localnet; done
        ip route add 127.0.0.1/32 via 10.85.0.1 dev eth0
        curl --silent --max-time 3 http://127.0.0.1:9999/ && echo REACHED || true";
    let text = output_of(program("nsenter").args(["--net", "--target", &pid, "sh", "-c", spoof]))?;
    assert!(!text.contains("REACHED"), "{text}");
    // Somebody's guard has seen the packets: that of the ports, or that of the Services before it.
    let rules = story.host.run("iptables-save", &["-c", "-t", "filter"])?;
    let dropped = |line: &&str| line.ends_with("-j DROP") && !line.starts_with("[0:0]");
    assert!(rules.lines().any(|line| dropped(&line)), "nothing was dropped: {rules}");
    drop(secret);
    Ok(())
}

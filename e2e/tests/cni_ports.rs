//! Ports of the node that lead to pods, leases that never leak, and pods with addresses of both families.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use e2e::TestHost;
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{self, container, create, exec, pod, run_pod, start};
use e2e::test_host::eventually;

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn leases(server: &CriServer) -> BTreeSet<String> {
    let files =
        std::fs::read_dir(server.host.path().join("root/networks/podwright")).into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
}

/// An HTTP request by netcat: a static wget would load the host's name services and crash.
fn http_get(address: &str, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} {port}")
}

fn mapping(protocol: cri::v1::Protocol, host_port: i32) -> cri::v1::PortMapping {
    cri::v1::PortMapping {
        protocol: protocol.into(),
        container_port: 8080,
        host_port,
        host_ip: String::new(),
    }
}

/// A pod that serves its name by HTTP on port 8080.
async fn serve(
    runtime: &mut requests::Runtime,
    host: &TestHost,
    name: &str,
    ports: Vec<cri::v1::PortMapping>,
) -> Result<(String, String)> {
    let mut config = pod(host.path(), name);
    config.port_mappings = ports;
    let id = run_pod(runtime, &config).await?;
    let script =
        format!("mkdir -p /tmp/w && echo {name} > /tmp/w/index.html && exec httpd -f -p 8080 -h /tmp/w");
    let container = create(runtime, &id, &config, &container("web", &["/bin/sh", "-c", &script])).await?;
    start(runtime, &container).await?;
    Ok((id, container))
}

async fn remove(runtime: &mut requests::Runtime, id: &str) -> Result<()> {
    runtime.stop_pod_sandbox(cri::v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    runtime.remove_pod_sandbox(cri::v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}

fn fetch(host: &TestHost, address: &str) -> Result<String> {
    let url = format!("http://{address}/");
    eventually(&format!("{address} answers"), || {
        host.run("curl", &["-sf", "--max-time", "5", &url]).ok().map(|text| text.trim().to_owned())
    })
}

/// What the kernel tracks of UDP to a port of the node.
fn tracked(host: &TestHost, port: u16) -> Result<usize> {
    let table = host.run("cat", &["/proc/net/nf_conntrack"])?;
    let to = format!("dport={port} ");
    Ok(table.lines().filter(|line| line.contains("udp") && line.contains(&to)).count())
}

#[test]
#[ignore = "needs root"]
fn a_port_of_the_node_leads_to_the_pod() -> Result<()> {
    let mut story = CriServer::podwright_with(TestHost::new()?, &[])?;
    block_on(async {
        use cri::v1::Protocol::{Tcp, Udp};
        let mut runtime = story.clients().await?.0;
        let (one, in_one) =
            serve(&mut runtime, &story.host, "one", vec![mapping(Tcp, 8081), mapping(Udp, 8081)]).await?;
        let (two, in_two) = serve(&mut runtime, &story.host, "two", vec![mapping(Tcp, 8082)]).await?;
        // From the node by each of its addresses, from the other pod, and from the pod itself.
        for address in ["192.0.2.2:8081", "127.0.0.1:8081", "10.85.0.1:8081"] {
            assert_eq!(fetch(&story.host, address)?, "one", "{address}");
        }
        for (from, port, expect) in [(&in_two, 8081, "one"), (&in_one, 8082, "two"), (&in_one, 8081, "one")] {
            let got = exec(&mut runtime, from, &["/bin/sh", "-c", &http_get("192.0.2.2", port)]).await?;
            assert!(
                String::from_utf8_lossy(&got.stdout).ends_with(&format!("{expect}\n")),
                "{port}: {got:?}"
            );
        }
        // CVE-2020-8558: the node's loopback is no neighbour's, although a port of it leads to a pod.
        let guard = story.host.run("iptables", &["-S", "PODWRIGHT-LOCALNET"])?;
        assert!(guard.contains("-i podwright0") && guard.contains("DROP"), "{guard}");

        // A crash of the agent changes nothing; the flow of a UDP client ends with the pod.
        story.host.run("bash", &["-c", "echo hi > /dev/udp/192.0.2.2/8081"])?;
        drop(runtime);
        story.crash_and_restart()?;
        let mut runtime = story.clients().await?.0;
        assert_eq!(fetch(&story.host, "192.0.2.2:8081")?, "one");
        assert!(tracked(&story.host, 8081)? > 0);
        remove(&mut runtime, &one).await?;
        assert_eq!(tracked(&story.host, 8081)?, 0);
        assert_eq!(fetch(&story.host, "192.0.2.2:8082")?, "two", "the other pod keeps its port");
        let rules = story.host.run("iptables-save", &[])?;
        assert!(!rules.contains("8081"), "{rules}");
        remove(&mut runtime, &two).await?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_port_that_is_taken_is_a_clear_error() -> Result<()> {
    let mut server = CriServer::start(Implementation::Podwright)?;
    block_on(async {
        use cri::v1::Protocol::Tcp;
        let mut runtime = server.clients().await?.0;
        let (one, _) = serve(&mut runtime, &server.host, "one", vec![mapping(Tcp, 8081)]).await?;
        let mut config = pod(server.host.path(), "two");
        config.port_mappings = vec![mapping(Tcp, 8081)];
        let error = format!("{:?}", run_pod(&mut runtime, &config).await.expect_err("it is taken"));
        assert!(error.contains("host port 8081/tcp is taken by pod default/one"), "{error}");

        let mut command = server.host.command("busybox");
        command.args(["httpd", "-f", "-p", "192.0.2.2:8082"]);
        let mut listener = server.host.spawn("httpd", &mut command)?;
        listener.wait_until("listening", || {
            server.host.run("ss", &["-ltn"]).ok().filter(|text| text.contains(":8082"))
        })?;
        config.port_mappings = vec![mapping(Tcp, 8082)];
        let error = format!("{:?}", run_pod(&mut runtime, &config).await.expect_err("it is taken"));
        assert!(error.contains("host port 8082/tcp is taken by a process of the node"), "{error}");
        drop(listener);

        // Nothing is left of either, and a port that is free again can be had.
        let pods =
            runtime.list_pod_sandbox(cri::v1::ListPodSandboxRequest::default()).await?.into_inner().items;
        assert_eq!(pods.len(), 1);
        remove(&mut runtime, &one).await?;
        config.port_mappings = vec![mapping(Tcp, 8081)];
        let id = run_pod(&mut runtime, &config).await?;
        remove(&mut runtime, &id).await
    })?;
    server.node().context("ours")?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn pods_have_addresses_of_both_families() -> Result<()> {
    let story = CriServer::podwright_with(TestHost::new()?, &["--pod-cidr", "10.85.0.0/16,fd00:85::/64"])?;
    block_on(async {
        use cri::v1::Protocol::Tcp;
        let mut runtime = story.clients().await?.0;
        let (one, in_one) = serve(&mut runtime, &story.host, "one", vec![mapping(Tcp, 8081)]).await?;
        let (two, in_two) = serve(&mut runtime, &story.host, "two", vec![]).await?;
        let request = cri::v1::PodSandboxStatusRequest { pod_sandbox_id: one.clone(), verbose: false };
        let status = runtime.pod_sandbox_status(request).await?.into_inner().status.context("a status")?;
        let network = status.network.context("a network")?;
        let also: Vec<&str> = network.additional_ips.iter().map(|ip| ip.ip.as_str()).collect();
        assert_eq!((network.ip.as_str(), also.as_slice()), ("10.85.0.2", &["fd00:85::2"][..]));
        story.host.run("ip", &["-6", "address", "add", "2001:db8::2/64", "dev", "up0", "nodad"])?;
        for address in ["10.85.0.2:8080", "[fd00:85::2]:8080", "[2001:db8::2]:8081", "192.0.2.2:8081"] {
            assert_eq!(fetch(&story.host, address)?, "one", "{address}");
        }
        let got = exec(&mut runtime, &in_two, &["/bin/sh", "-c", &http_get("fd00:85::2", 8080)]).await?;
        assert!(String::from_utf8_lossy(&got.stdout).ends_with("one\n"), "{got:?}");

        // CVE-2020-10749: nobody on the bridge is anybody's router but the node.
        for (from, setting) in [(&in_one, "eth0"), (&in_two, "eth0")] {
            let path = format!("/proc/sys/net/ipv6/conf/{setting}/accept_ra");
            let got = exec(&mut runtime, from, &["cat", &path]).await?;
            assert_eq!(String::from_utf8_lossy(&got.stdout).trim(), "0", "{got:?}");
        }
        let bridge = story.host.run("cat", &["/proc/sys/net/ipv6/conf/podwright0/accept_ra"])?;
        assert_eq!(bridge.trim(), "0");
        let rules = story.host.run("ip6tables-save", &["-t", "nat"])?;
        assert!(rules.contains("-s fd00:85::/64 -j PODWRIGHT-MASQUERADE"), "{rules}");
        remove(&mut runtime, &one).await?;
        remove(&mut runtime, &two).await?;
        eventually("every lease is free", || leases(&story).is_empty().then_some(()))
    })
}

#[test]
#[ignore = "needs root"]
fn an_exhausted_range_is_told_and_recovers() -> Result<()> {
    let story = CriServer::podwright_with(TestHost::new()?, &["--pod-cidr", "10.85.0.0/29"])?;
    block_on(async {
        let mut runtime = story.clients().await?.0;
        let mut ids = Vec::new();
        for number in 0..5 {
            ids.push(run_pod(&mut runtime, &pod(story.host.path(), &format!("p{number}"))).await?);
        }
        let error =
            run_pod(&mut runtime, &pod(story.host.path(), "late")).await.expect_err("no address is left");
        let error = format!("{error:?}");
        assert!(error.contains("no free address in 10.85.0.0/29"), "{error}");
        assert_eq!(leases(&story).len(), 5, "a failed sandbox holds none");
        remove(&mut runtime, &ids.remove(0)).await?;
        let late = pod(story.host.path(), "late");
        let mut last = None;
        // The address rests until its link has vanished.
        for _ in 0..500 {
            match run_pod(&mut runtime, &late).await {
                Ok(id) => {
                    last = Some(id);
                    break;
                }
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
        last.context("an address is free again")?;
        Ok(())
    })
}

/// Pods come and go, and the agent dies in the middle of it, again and again: no lease is lost, none is given twice.
#[test]
#[ignore = "needs root"]
fn leases_survive_crashes_and_never_leak() -> Result<()> {
    let mut story = CriServer::podwright_with(TestHost::new()?, &["--pod-cidr", "10.85.0.0/27"])?;
    for round in 0..3 {
        block_on(async {
            let runtime = story.clients().await?.0;
            let path = story.host.path().to_owned();
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0..6 {
                let (mut runtime, config) = (runtime.clone(), pod(&path, &format!("r{round}-{number}")));
                tasks.spawn(async move {
                    let id = run_pod(&mut runtime, &config).await?;
                    if number % 2 == 0 {
                        remove(&mut runtime, &id).await?;
                    }
                    Ok::<_, anyhow::Error>(())
                });
            }
            // In the middle: some have begun, none need have ended.
            let _ = tasks.join_next().await;
            story.node().context("ours")?.crash();
            while tasks.join_next().await.is_some() {}
            Ok(())
        })?;
        story.restart()?;
        block_on(async {
            let mut runtime = story.clients().await?.0;
            let pods =
                runtime.list_pod_sandbox(cri::v1::ListPodSandboxRequest::default()).await?.into_inner().items;
            let mut held = BTreeSet::new();
            for pod in pods.iter().filter(|pod| pod.state() == cri::v1::PodSandboxState::SandboxReady) {
                let request =
                    cri::v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
                let status =
                    runtime.pod_sandbox_status(request).await?.into_inner().status.context("a status")?;
                assert!(held.insert(status.network.context("a network")?.ip), "an address was given twice");
            }
            eventually("leases are those of the pods", || (leases(&story) == held).then_some(()))?;
            for pod in pods {
                remove(&mut runtime, &pod.id).await?;
            }
            eventually("every lease is free", || leases(&story).is_empty().then_some(()))
        })?;
    }
    Ok(())
}

//! Nodes whose pods have addresses of both families: each finds its way to other nodes' pods, by routes and wrapped.

use std::sync::{LazyLock, OnceLock};

use anyhow::{Context, Result, ensure};
use e2e::cluster::flags::DUAL_STACK;
use e2e::cluster::objects::server;
use e2e::cluster::{Cluster, ClusterNode, ClusterStory, NodeKind, NodeSettings};
use e2e::test_host::eventually;
use serde_json::Value;

static CLUSTER: LazyLock<Cluster> =
    LazyLock::new(|| Cluster::start_with(DUAL_STACK).expect("start a cluster of both families"));

/// A node with a fixed way to the others.
fn node(
    cell: &'static OnceLock<ClusterNode>,
    name: &str,
    flags: &'static [&'static str],
) -> &'static ClusterNode {
    cell.get_or_init(|| {
        let settings = NodeSettings { flags, ..NodeSettings::default() };
        CLUSTER.node_with(NodeKind::Podwright, name, &settings).expect("start the node")
    })
}

fn one() -> &'static ClusterNode {
    static ONE: OnceLock<ClusterNode> = OnceLock::new();
    node(&ONE, "one", &[])
}

fn tell(name: &str, story: impl FnOnce(&ClusterStory) -> Result<()>) -> Result<()> {
    let told = ClusterStory::anywhere(&CLUSTER, one(), name)?;
    story(&told).with_context(|| told.picture())
}

/// What a shell script in a server's pod prints, told by the server itself.
fn inside(node: &ClusterNode, address: &str, script: &str) -> Result<String> {
    let (url, script) = (format!("http://{}:8080/shell", in_url(address)), format!("shellCommand={script}"));
    let words = ["-sS", "--max-time", "60", "-G", "--data-urlencode", &script, &url];
    let text = node.machine.host.run("curl", &words)?;
    let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(answer["error"].is_null(), "{answer}");
    Ok(answer["output"].as_str().unwrap_or_default().trim().to_owned())
}

fn in_url(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// The addresses of a pod: of IPv4, of IPv6.
fn addresses(story: &ClusterStory, pod: &str) -> Result<[String; 2]> {
    let pod = story.get(&format!("pod/{pod}"))?;
    let ip = |index: usize| pod["status"]["podIPs"][index]["ip"].as_str().map(str::to_owned);
    Ok([ip(0).context("an address")?, ip(1).context("an address of the other family")?])
}

/// How a node gets to another one's pods: the route of each family.
fn ways(from: &ClusterNode, to: &ClusterNode) -> Result<[String; 2]> {
    let ranges = to.object(&CLUSTER)?["spec"]["podCIDRs"].clone();
    let way = |family: &str, index: usize| {
        let range = ranges[index].as_str().context("a range")?;
        eventually("there is a way", || {
            let route = from.machine.host.run("ip", &[family, "route", "show", range]).ok()?;
            (!route.is_empty()).then_some(route)
        })
    };
    Ok([way("-4", 0)?, way("-6", 1)?])
}

/// Pods here and there speak as themselves, by both families, also with packets of the largest size, and by a Service of both.
fn pods_speak_by_both_families(
    story: &ClusterStory,
    here: &ClusterNode,
    there: &ClusterNode,
    mtu: &str,
) -> Result<()> {
    story.apply(&format!(
        "{}{}apiVersion: v1
kind: Service
metadata: {{name: there}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: there}}
  ports: [{{port: 80, targetPort: 8080}}]
",
        server("here", here, ""),
        server("there", there, ""),
    ))?;
    ["here", "there"].into_iter().try_for_each(|pod| story.ready(pod))?;
    let (here_ips, there_ips) = (addresses(story, "here")?, addresses(story, "there")?);
    let services = story.get("service/there")?["spec"]["clusterIPs"].clone();
    for (index, (own, other)) in here_ips.iter().zip(&there_ips).enumerate() {
        let ask = |to: &str| {
            let seen = inside(here, own, &format!("curl -sS --max-time 5 {to}/clientip"))?;
            let address = seen.rsplit_once(':').map_or("", |(address, _)| address);
            Ok::<_, anyhow::Error>(address.trim_matches(&['[', ']'][..]).to_owned())
        };
        let pod = format!("{}:8080", in_url(other));
        assert_eq!(eventually("there is a way", || ask(&pod).ok())?, *own, "pod to pod");
        let service = in_url(services[index].as_str().context("a ClusterIP")?);
        assert_eq!(eventually("the Service answers", || ask(&service).ok())?, *own, "by a Service");
        assert_eq!(inside(here, own, "cat /sys/class/net/eth0/mtu")?, mtu);
        // With its headers 1450 bytes.
        let (ping, size) = if index == 0 { ("ping", 1422) } else { ("ping6", 1402) };
        let got = inside(here, own, &format!("busybox {ping} -c 1 -W 5 -s {size} {other}"))?;
        ensure!(got.contains(" 0% packet loss"), "{got}");
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn neighbours_have_a_way_for_each_family() -> Result<()> {
    static TWO: OnceLock<ClusterNode> = OnceLock::new();
    let two = node(&TWO, "two", &[]);
    tell("neighbours-have-a-way", |story| {
        pods_speak_by_both_families(story, one(), two, "1450")?;
        // The nodes have addresses of IPv4 only: IPv6 goes inside it.
        let [v4, v6] = ways(one(), two)?;
        ensure!(v4.contains(&two.machine.address) && v6.contains("podwright-vx"), "{v4}{v6}");
        Ok(())
    })
}

#[test]
#[ignore = "needs a cluster"]
fn nodes_with_addresses_of_both_families_need_only_routes() -> Result<()> {
    let start = |name, address| {
        let settings = NodeSettings {
            flags: &["--pod-network-backend=routes"],
            ipv6: Some(address),
            ..NodeSettings::default()
        };
        CLUSTER.node_with(NodeKind::Podwright, name, &settings).expect("start the node")
    };
    let (five, six) = (start("five", "fd00:192::5"), start("six", "fd00:192::6"));
    tell("only-routes", |story| {
        pods_speak_by_both_families(story, &five, &six, "1500")?;
        let [v4, v6] = ways(&five, &six)?;
        ensure!(v4.contains(&six.machine.address) && v6.contains("via fd00:192::6"), "{v4}{v6}");
        story.apply(&server("on-the-node", &five, "hostNetwork: true"))?;
        story.ready("on-the-node")?;
        let status = story.get("pod/on-the-node")?["status"].clone();
        for (list, what) in [("podIPs", "its own"), ("hostIPs", "the node's")] {
            assert_eq!(status[list][1]["ip"], "fd00:192::5", "{what}");
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs a cluster"]
fn everything_is_wrapped_where_that_is_asked_for() -> Result<()> {
    static NODES: [OnceLock<ClusterNode>; 2] = [const { OnceLock::new() }; 2];
    let flags = &["--pod-network-backend=vxlan"];
    let (three, four) = (node(&NODES[0], "three", flags), node(&NODES[1], "four", flags));
    tell("everything-is-wrapped", |story| {
        pods_speak_by_both_families(story, three, four, "1450")?;
        for way in ways(three, four)? {
            ensure!(way.contains("podwright-vx"), "{way}");
        }
        Ok(())
    })
}

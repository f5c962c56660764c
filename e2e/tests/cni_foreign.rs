//! CNI with other people's parts: upstream's plugin binaries under our runtime, our plugins under containerd's CRI.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::requests::{self, container, create, exec, pod, run_pod, start};
use e2e::test_host::eventually;
use e2e::{Node, TestHost, containerd, cri_server, image, parts};
use serde_json::{Value, json};

/// A runtime that runs the plugins of `bin_dir`, with one conflist.
struct Host {
    node: Option<Node>,
    host: TestHost,
}

impl Host {
    fn start(bin_dir: &Path, conflist: &Value) -> Result<Self> {
        let host = TestHost::new()?;
        let layout = image::busybox(host.path())?;
        let node = Node::runtime_with(&host, &["--cni-bin-dir", &bin_dir.display().to_string()])?;
        node.import(&host, &layout)?;
        let host = Self { node: Some(node), host };
        host.configure(conflist)?;
        Ok(host)
    }

    /// Writes the conflist as an installer does, while the runtime runs.
    fn configure(&self, conflist: &Value) -> Result<()> {
        let directory = self.host.path().join("net.d-empty");
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(".new"), conflist.to_string())?;
        std::fs::rename(directory.join(".new"), directory.join("10-net.conflist"))
            .context("write the conflist")
    }

    fn node(&mut self) -> &mut Node {
        self.node.as_mut().expect("the node lives as long as the story")
    }

    async fn runtime(&self) -> Result<requests::Runtime> {
        let socket = self.node.as_ref().context("the node")?.socket.clone();
        Ok(cri_server::clients(&socket).await?.0)
    }

    fn leases(&self) -> Vec<String> {
        let files =
            std::fs::read_dir(self.host.path().join("leases/foreign")).into_iter().flatten().flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        let mut leases: Vec<String> =
            names.filter(|name| name.starts_with("10.") || name.contains(':')).collect();
        leases.sort();
        leases
    }

    fn rules(&self) -> Result<String> {
        self.host.run("iptables-save", &[])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            node.reset(&self.host);
        }
    }
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn ipam(host: &Path) -> Value {
    json!({ "type": "host-local", "dataDir": host.join("leases"),
        "ranges": [[{ "subnet": "10.99.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] })
}

/// An HTTP request by netcat: a static wget would load the host's name services and crash.
const REQUEST: &str = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 192.0.2.2 8082";

const PATH_OF_HOST: &str = "HOST";

/// The conflist with the host's directory filled in.
fn with_host(conflist: &Value, host: &Path) -> Result<Value> {
    let text = conflist.to_string().replace(PATH_OF_HOST, &host.display().to_string());
    serde_json::from_str(&text).context("a conflist")
}

/// As kindnet writes it, but for its own directory of leases.
fn ptp() -> Value {
    json!({ "cniVersion": "0.3.1", "name": "foreign", "plugins": [
        { "type": "ptp", "ipMasq": false, "mtu": 1400, "ipam": ipam(Path::new(PATH_OF_HOST)) },
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ]})
}

/// Upstream's bridge, which is run as a program because ours does not do what is asked (duplicate address detection).
fn bridge() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "foreign", "plugins": [
        { "type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "enabledad": true, "ipam": ipam(Path::new(PATH_OF_HOST)) },
        { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true, "backend": "nftables" },
        { "type": "tuning", "sysctl": { "net.ipv4.ip_default_ttl": "77" } },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
    ]})
}

/// A pod that serves its name on port 8080 of its own, and on a port of the node.
async fn serve(
    runtime: &mut requests::Runtime,
    host: &Path,
    name: &str,
    host_port: i32,
) -> Result<(String, String)> {
    let mut config = pod(host, name);
    config.port_mappings =
        vec![cri::v1::PortMapping { container_port: 8080, host_port, ..cri::v1::PortMapping::default() }];
    let id = run_pod(runtime, &config).await?;
    let script =
        format!("mkdir -p /tmp/w && echo {name} > /tmp/w/index.html && exec httpd -f -p 8080 -h /tmp/w");
    let container = create(runtime, &id, &config, &container("web", &["/bin/sh", "-c", &script])).await?;
    start(runtime, &container).await?;
    Ok((id, container))
}

fn fetch(host: &TestHost, address: &str) -> Result<String> {
    let url = format!("http://{address}/");
    eventually(&format!("{address} answers"), || {
        host.run("curl", &["-sf", "--max-time", "5", &url]).ok().map(|text| text.trim().to_owned())
    })
}

async fn address_of(runtime: &mut requests::Runtime, id: &str) -> Result<String> {
    let request = cri::v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = runtime.pod_sandbox_status(request).await?.into_inner().status.context("a status")?;
    Ok(status.network.context("a network")?.ip)
}

async fn remove(runtime: &mut requests::Runtime, id: &str) -> Result<()> {
    runtime.stop_pod_sandbox(cri::v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    runtime.remove_pod_sandbox(cri::v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}

fn upstream_story(conflist: &Value) -> Result<()> {
    let mut story =
        Host::start(&parts::upstream_cni(), &json!({ "cniVersion": "1.0.0", "name": "x", "plugins": [] }))?;
    story.configure(&with_host(conflist, story.host.path())?)?;
    let path = story.host.path().to_owned();
    block_on(async {
        let mut runtime = story.runtime().await?;
        let (one, in_one) = serve(&mut runtime, &path, "one", 8081).await?;
        let (two, _) = serve(&mut runtime, &path, "two", 8082).await?;
        let address = address_of(&mut runtime, &one).await?;
        assert!(address.starts_with("10.99.0."), "{address}");
        assert_eq!(fetch(&story.host, &format!("{address}:8080"))?, "one", "from the node");
        assert_eq!(fetch(&story.host, "192.0.2.2:8082")?, "two", "a port of the node");
        let got = exec(&mut runtime, &in_one, &["/bin/sh", "-c", REQUEST]).await?;
        assert!(String::from_utf8_lossy(&got.stdout).ends_with("two\n"), "from the other pod: {got:?}");
        assert_eq!(story.leases().len(), 2);

        // The configuration goes: what was added with it is deleted with it, also after a crash.
        std::fs::remove_file(path.join("net.d-empty/10-net.conflist"))?;
        remove(&mut runtime, &one).await?;
        assert_eq!(story.leases().len(), 1);
        drop(runtime);
        story.node().crash();
        story.node.as_mut().context("the node")?.restart(&story.host)?;
        let mut runtime = story.runtime().await?;
        assert_eq!(fetch(&story.host, "192.0.2.2:8082")?, "two", "it runs on");
        remove(&mut runtime, &two).await?;
        assert_eq!(story.leases(), Vec::<String>::new());
        let rules = story.rules()?;
        assert!(!rules.contains("10.99.0."), "{rules}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn upstream_s_ptp_and_host_local_connect_pods_as_kindnet_has_them() -> Result<()> {
    upstream_story(&ptp())
}

#[test]
#[ignore = "needs root"]
fn upstream_s_bridge_portmap_tuning_and_bandwidth_connect_pods() -> Result<()> {
    upstream_story(&bridge())
}

/// A sandbox that disappears while the agent is down is deleted with its plugins when the agent is back.
#[test]
#[ignore = "needs root"]
fn what_died_with_the_agent_is_given_back_to_the_plugins() -> Result<()> {
    let mut story =
        Host::start(&parts::upstream_cni(), &json!({ "cniVersion": "1.0.0", "name": "x", "plugins": [] }))?;
    story.configure(&with_host(&ptp(), story.host.path())?)?;
    let path = story.host.path().to_owned();
    let id = block_on(async {
        let mut runtime = story.runtime().await?;
        Ok(serve(&mut runtime, &path, "one", 8081).await?.0)
    })?;
    assert_eq!(story.leases().len(), 1);
    story.node().crash();
    // As a boot leaves it: no process, no record below the state directory, but what the disk keeps.
    let state = story.node().state();
    let supervisor = story.node().supervisor(&id)?;
    story.host.run("kill", &["-KILL", &supervisor.to_string()])?;
    std::fs::remove_file(state.join("sandboxes").join(&id).join("record.json"))?;
    let Host { node, host } = &mut story;
    node.as_mut().context("the node")?.restart(host)?;
    eventually("the lease is free", || story.leases().is_empty().then_some(()))?;
    assert!(!story.rules()?.contains("10.99.0."));
    Ok(())
}

/// What inspecting a sandbox says of it: a fact by its name.
async fn fact(runtime: &mut requests::Runtime, id: &str, name: &str) -> Result<Value> {
    let request = cri::v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let info = runtime.pod_sandbox_status(request).await?.into_inner().info;
    let facts: Value = serde_json::from_str(info.get("info").context("facts")?)?;
    Ok(facts[name].clone())
}

/// Ours alone.
fn bundled(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "foreign", "plugins": [
        { "type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "ipam": ipam(Path::new(PATH_OF_HOST)) },
        { "type": "portmap", "capabilities": { "portMappings": true } },
        { "type": "firewall" },
    ]})
}

/// A pod whose network somebody breaks is told of to whoever inspects it, and in the log when a new agent takes it over. It
/// is left alone. `expect` is a part of what is said of a lost address.
fn check_story(conflist: &Value, expect: &str) -> Result<()> {
    let mut story = Host::start(&parts::upstream_cni(), &with_host(conflist, Path::new("/nowhere"))?)?;
    story.configure(&with_host(conflist, story.host.path())?)?;
    let path = story.host.path().to_owned();
    block_on(async {
        let mut runtime = story.runtime().await?;
        let (one, _) = serve(&mut runtime, &path, "one", 8081).await?;
        let (two, _) = serve(&mut runtime, &path, "two", 8082).await?;
        for id in [&one, &two] {
            assert_eq!(fact(&mut runtime, id, "cniCheck").await?, "intact");
        }
        let pid = fact(&mut runtime, &one, "pid").await?;
        let inside = format!("--net=/proc/{pid}/ns/net");
        story.host.run("nsenter", &[&inside, "ip", "address", "flush", "dev", "eth0"])?;
        let found = fact(&mut runtime, &one, "cniCheck").await?;
        let found = found.as_str().context("a verdict")?;
        assert!(found.starts_with("broken: ") && found.contains(expect), "{found}");
        assert_eq!(fact(&mut runtime, &two, "cniCheck").await?, "intact");
        drop(runtime);
        story.node().crash();
        story.node.as_mut().context("the node")?.restart(&story.host)?;
        let told = eventually("the log tells of the broken network", || {
            let log = story.node.as_ref()?.log();
            log.lines().find(|line| line.contains("has lost its network")).map(str::to_owned)
        })?;
        assert!(told.contains("default/one") && told.contains(expect), "{told}");
        assert!(!story.node().log().contains("default/two"), "{}", story.node().log());
        let mut runtime = story.runtime().await?;
        assert_eq!(fact(&mut runtime, &one, "processStatus").await?, "running");
        remove(&mut runtime, &one).await?;
        remove(&mut runtime, &two).await
    })
}

#[test]
#[ignore = "needs root"]
fn a_network_that_upstream_s_plugins_made_is_checked_by_them() -> Result<()> {
    check_story(&bridge(), "bridge CHECK: ")
}

#[test]
#[ignore = "needs root"]
fn a_network_that_the_bundled_plugins_made_is_checked() -> Result<()> {
    check_story(&bundled("1.1.0"), "eth0 does not have the address 10.99.0.2/24")?;
    let story = Host::start(Path::new("/nowhere"), &bundled("0.4.0"))?;
    story.configure(&with_host(&bundled("0.4.0"), story.host.path())?)?;
    let path = story.host.path().to_owned();
    block_on(async {
        let mut runtime = story.runtime().await?;
        let (one, _) = serve(&mut runtime, &path, "one", 8081).await?;
        // Rules that somebody removed are the writer's to put back.
        let before = story.rules()?;
        story.host.run("iptables", &["-t", "nat", "-F", "PODWRIGHT-HOSTPORTS"])?;
        assert_eq!(fact(&mut runtime, &one, "cniCheck").await?, "intact");
        let lines = |text: &str| text.lines().filter(|line| line.starts_with("-A")).count();
        assert_eq!(lines(&story.rules()?), lines(&before));
        let links = story.host.run("ip", &["-o", "link", "show", "master", "cni9"])?;
        let name = links.split(&[' ', '@'][..]).nth(1).context("a port of the bridge")?;
        story.host.run("ip", &["link", "delete", name])?;
        let found = fact(&mut runtime, &one, "cniCheck").await?;
        assert_eq!(found, format!("broken: the pod's link {name} is gone"));
        remove(&mut runtime, &one).await
    })
}

#[test]
#[ignore = "needs root"]
fn what_a_network_does_not_let_be_checked_is_not() -> Result<()> {
    let story = Host::start(&parts::upstream_cni(), &bundled("1.1.0"))?;
    let path = story.host.path().to_owned();
    let mut disabled = bundled("1.1.0");
    disabled["disableCheck"] = true.into();
    let cases = [
        (ptp(), "unknown: CNI 0.3.1 has no CHECK"),
        (disabled, "unknown: the network's configuration has disableCheck"),
    ];
    block_on(async {
        let mut runtime = story.runtime().await?;
        for (conflist, expect) in cases {
            story.configure(&with_host(&conflist, &path)?)?;
            let id = run_pod(&mut runtime, &pod(&path, "web")).await?;
            assert_eq!(fact(&mut runtime, &id, "cniCheck").await?, expect);
            remove(&mut runtime, &id).await?;
        }
        let mut on_the_node = pod(&path, "node");
        let linux = on_the_node.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        let namespaces =
            linux.and_then(|context| context.namespace_options.as_mut()).context("namespaces")?;
        namespaces.set_network(cri::v1::NamespaceMode::Node);
        let id = run_pod(&mut runtime, &on_the_node).await?;
        assert_eq!(fact(&mut runtime, &id, "cniCheck").await?, Value::Null);
        remove(&mut runtime, &id).await
    })
}

/// Whoever asks for marks gets them: a bit of their own, or a chain of theirs that marks what they masquerade.
#[test]
#[ignore = "needs root"]
fn ports_of_the_node_mark_what_is_masqueraded_as_it_is_asked_for() -> Result<()> {
    let conflist = |key: &str, value: Value| {
        let mut conflist = bundled("1.0.0");
        conflist["plugins"][0]["hairpinMode"] = true.into();
        conflist["plugins"][1][key] = value;
        conflist
    };
    let mut story = Host::start(Path::new("/nowhere"), &bundled("1.0.0"))?;
    let path = story.host.path().to_owned();
    let theirs = "iptables -t nat -N THEIRS
        iptables -t nat -A THEIRS -j MARK --or-mark 0x200
        iptables -t nat -A POSTROUTING -m mark --mark 0x200/0x200 -j MASQUERADE";
    story.host.run("sh", &["-ec", theirs])?;
    let cases = [
        (
            conflist("markMasqBit", 12.into()),
            "-s 127.0.0.0/8 -p tcp -m tcp --dport 8081 -m comment --comment \"default/one\" -j MARK --set-xmark 0x1000/0x1000",
        ),
        (
            conflist("externalSetMarkChain", "THEIRS".into()),
            "-s 127.0.0.0/8 -p tcp -m tcp --dport 8081 -m comment --comment \"default/one\" -j THEIRS",
        ),
    ];
    for (conflist, rule) in cases {
        story.configure(&with_host(&conflist, &path)?)?;
        block_on(async {
            let mut runtime = story.runtime().await?;
            let (one, in_one) = serve(&mut runtime, &path, "one", 8081).await?;
            let rules = story.rules()?;
            assert!(rules.contains(rule), "{rules}");
            // By the loopback, and from the pod itself: neither is answered unless it is masqueraded.
            assert_eq!(fetch(&story.host, "127.0.0.1:8081")?, "one");
            let request = REQUEST.replace("8082", "8081");
            let got = exec(&mut runtime, &in_one, &["/bin/sh", "-c", &request]).await?;
            assert!(String::from_utf8_lossy(&got.stdout).ends_with("one\n"), "from itself: {got:?}");
            remove(&mut runtime, &one).await
        })?;
    }
    // A chain of others is neither emptied nor deleted, also by who starts anew.
    story.node().crash();
    story.node.as_mut().context("the node")?.restart(&story.host)?;
    let left = story.host.run("iptables", &["-t", "nat", "-S", "THEIRS"])?;
    assert_eq!(left.lines().count(), 2, "{left}");
    Ok(())
}

/// Our binary as whoever else runs CNI plugins calls it.
#[test]
#[ignore = "needs root"]
fn our_bridge_answers_check_as_a_program() -> Result<()> {
    let host = TestHost::new()?;
    let bridge = host.path().join("bridge");
    std::os::unix::fs::symlink(parts::podwright(), &bridge)?;
    host.run("ip", &["netns", "add", "pod"])?;
    let call = |command: &str, config: &Value| {
        let script = format!("echo '{config}' | {}", bridge.display());
        let variables = [
            format!("CNI_COMMAND={command}"),
            "CNI_CONTAINERID=c1".to_owned(),
            "CNI_NETNS=/run/netns/pod".to_owned(),
            "CNI_IFNAME=eth0".to_owned(),
            "CNI_PATH=/nowhere".to_owned(),
        ];
        let words: Vec<&str> = variables.iter().map(String::as_str).chain(["sh", "-c", &script]).collect();
        host.run("env", &words)
    };
    let mut config = with_host(&bundled("1.0.0"), host.path())?["plugins"][0].clone();
    (config["name"], config["cniVersion"]) = ("foreign".into(), "1.0.0".into());
    config["prevResult"] = serde_json::from_str(&call("ADD", &config)?)?;
    assert_eq!(call("CHECK", &config)?, "");
    let fails = |expect: &str| {
        let said = call("CHECK", &config).map_or_else(|error| format!("{error:#}"), |_| "nothing".to_owned());
        assert!(said.contains(expect), "{said}");
    };
    host.run("iptables", &["-t", "nat", "-F", "POSTROUTING"])?;
    fails("netfilter rules of the container are missing");
    host.run("ip", &["-n", "pod", "address", "flush", "dev", "eth0"])?;
    fails("eth0 does not have the address 10.99.0.2/24");
    call("DEL", &config)?;
    fails("container c1 holds no address");
    Ok(())
}

/// `NetworkReady` says what is missing, and a sandbox fails with the plugin's own words and leaves nothing.
#[test]
#[ignore = "needs root"]
fn a_plugin_that_fails_or_is_missing_is_told_in_its_own_words() -> Result<()> {
    let host_dir = tempfile::Builder::new().prefix("pw-bin-").tempdir_in("/tmp")?;
    let plugin = host_dir.path().join("moody");
    let calls = host_dir.path().join("calls");
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND >> {calls}\ncat > {last}.$CNI_COMMAND\n[ $CNI_COMMAND = ADD ] || exit 0\necho '{{\"code\":999,\"msg\":\"not today\"}}'\nexit 1\n",
        calls = calls.display(),
        last = host_dir.path().join("config").display()
    );
    let missing = json!({ "cniVersion": "1.0.0", "name": "foreign", "plugins": [{ "type": "weird" }] });
    let story = Host::start(host_dir.path(), &missing)?;
    block_on(async {
        let mut runtime = story.runtime().await?;
        let status = runtime.status(cri::v1::StatusRequest { verbose: false }).await?.into_inner();
        let conditions = status.status.context("a status")?.conditions;
        let network =
            conditions.iter().find(|condition| condition.r#type == "NetworkReady").context("NetworkReady")?;
        assert!(!network.status && network.message.contains("weird"), "{network:?}");

        std::fs::write(&plugin, &script)?;
        std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let moody = json!({ "type": "moody", "capabilities": { "dns": true, "portMappings": true } });
        story.configure(&json!({ "cniVersion": "1.1.0", "name": "foreign", "plugins": [moody] }))?;
        let error =
            run_pod(&mut runtime, &pod(story.host.path(), "web")).await.expect_err("the plugin fails");
        let text = format!("{error:?}");
        assert!(text.contains("not today"), "{text}");
        let called = std::fs::read_to_string(&calls)?;
        let called: Vec<&str> = called.lines().filter(|call| ["ADD", "DEL"].contains(call)).collect();
        assert_eq!(called[..2], ["ADD", "DEL"], "a failed ADD is undone");
        let config: Value = serde_json::from_slice(&std::fs::read(host_dir.path().join("config.ADD"))?)?;
        assert_eq!(config["runtimeConfig"]["dns"]["servers"], json!(["192.0.2.53"]), "{config}");
        assert_eq!(config["runtimeConfig"].get("portMappings"), None, "nothing is mapped: {config}");
        let pods =
            runtime.list_pod_sandbox(cri::v1::ListPodSandboxRequest::default()).await?.into_inner().items;
        assert_eq!(pods.len(), 0);
        let results = story.host.path().join("root/cni/cache/results");
        assert_eq!(std::fs::read_dir(results)?.count(), 0);
        Ok(())
    })
}

/// containerd's CRI with our binary as its bridge, host-local, portmap and firewall.
#[test]
#[ignore = "needs root"]
fn our_plugins_connect_containerd_s_pods() -> Result<()> {
    let host = TestHost::new()?;
    let bin = host.path().join("bin");
    std::fs::create_dir(&bin)?;
    for name in ["bridge", "host-local", "portmap", "firewall", "loopback"] {
        std::os::unix::fs::symlink(parts::podwright(), bin.join(name))?;
    }
    let conflist = json!({ "cniVersion": "1.0.0", "name": "foreign", "plugins": [
        { "type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam(host.path()) },
        { "type": "portmap", "capabilities": { "portMappings": true } },
        { "type": "firewall" },
    ]});
    let layout = image::busybox(host.path())?;
    let containerd = containerd::Containerd::start_with_network(&host, &bin, &conflist)?;
    containerd.import(&host, &layout, image::BUSYBOX)?;
    let socket = containerd.socket.clone();
    let story = block_on(async {
        // Whoever forwards nothing by itself still forwards pods' traffic.
        host.run("iptables", &["-P", "FORWARD", "DROP"])?;
        let mut runtime = cri_server::clients(&socket).await?.0;
        let (one, in_one) = serve(&mut runtime, host.path(), "one", 8081).await?;
        let (two, _) = serve(&mut runtime, host.path(), "two", 8082).await?;
        let address = address_of(&mut runtime, &one).await?;
        assert!(address.starts_with("10.99.0."), "{address}");
        assert_eq!(fetch(&host, &format!("{address}:8080"))?, "one");
        assert_eq!(fetch(&host, "192.0.2.2:8082")?, "two");
        assert_eq!(fetch(&host, "127.0.0.1:8081")?, "one");
        let got = exec(&mut runtime, &in_one, &["/bin/sh", "-c", REQUEST]).await?;
        assert!(String::from_utf8_lossy(&got.stdout).ends_with("two\n"), "from the other pod: {got:?}");
        let rules = host.run("iptables-save", &["-t", "nat"])?;
        assert!(rules.contains("CNI-MQ-") && rules.contains("MASQUERADE"), "{rules}");
        remove(&mut runtime, &one).await?;
        remove(&mut runtime, &two).await?;
        let rules = host.run("iptables-save", &[])?;
        let left: Vec<&str> =
            rules.lines().filter(|line| line.contains("CNI-") && !line.contains("CNI-ADMIN")).collect();
        assert_eq!(left, Vec::<&str>::new());
        let leases = std::fs::read_dir(host.path().join("leases/foreign"))?.flatten();
        assert!(!leases.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("10.")));
        Ok(())
    });
    containerd.stop(&host);
    story
}

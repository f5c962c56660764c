//! What CNI asks of plugins beside ADD, DEL and CHECK: STATUS, GC and VERSION, both ways; and a plugin that never answers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::requests::{self, pod, run_pod};
use e2e::test_host::{eventually, text_of};
use e2e::{CriServer, TestHost, parts};
use serde_json::{Value, json};

/// Notes what it is called with; STATUS fails while `tired` exists beside it, ADD never ends while `asleep` does.
const PLUGIN: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo $CNI_COMMAND >> $here/calls
cat > $here/config.$CNI_COMMAND.new
mv $here/config.$CNI_COMMAND.new $here/config.$CNI_COMMAND
case $CNI_COMMAND in
STATUS)
  [ -e $here/tired ] || exit 0
  echo '{"cniVersion":"1.1.0","code":50,"msg":"too tired","details":"back after the break"}'
  exit 1;;
ADD)
  if [ -e $here/asleep ]; then
    sleep 1000 &
    echo $! > $here/sleeper
    wait
  fi
  echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.99.0.7/24","interface":0}]}';;
esac
"#;

/// A runtime whose network is that plugin alone.
struct Moody {
    server: CriServer,
    bin: tempfile::TempDir,
}

impl Moody {
    fn start() -> Result<Self> {
        let bin = tempfile::Builder::new().prefix("pw-bin-").tempdir_in("/tmp")?;
        std::fs::write(bin.path().join("moody"), PLUGIN)?;
        std::fs::set_permissions(bin.path().join("moody"), PermissionsExt::from_mode(0o755))?;
        let host = TestHost::new()?;
        let net_d = host.path().join("net.d-empty");
        std::fs::create_dir_all(&net_d)?;
        let conflist = json!({ "cniVersion": "1.1.0", "name": "moods", "plugins": [{ "type": "moody" }] });
        std::fs::write(net_d.join("10-net.conflist"), conflist.to_string())?;
        let flags = ["--cni-bin-dir", &bin.path().display().to_string()];
        Ok(Self { server: CriServer::podwright_with(host, &flags)?, bin })
    }

    async fn runtime(&self) -> Result<requests::Runtime> {
        Ok(self.server.clients().await?.0)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.bin.path().join(name)
    }

    /// The configuration of the last call of that command.
    fn config(&self, command: &str) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.file(&format!("config.{command}"))).ok()?).ok()
    }

    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.file("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

async fn remove(runtime: &mut requests::Runtime, id: &str) -> Result<()> {
    runtime.stop_pod_sandbox(cri::v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    runtime.remove_pod_sandbox(cri::v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}

async fn network_ready(runtime: &mut requests::Runtime) -> Result<cri::v1::RuntimeCondition> {
    let status = runtime.status(cri::v1::StatusRequest { verbose: false }).await?.into_inner();
    let conditions = status.status.context("a status")?.conditions;
    conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").context("NetworkReady")
}

#[test]
#[ignore = "needs root"]
fn the_network_is_ready_when_its_plugin_says_so() -> Result<()> {
    let story = Moody::start()?;
    block_on(async {
        let mut runtime = story.runtime().await?;
        ensure!(network_ready(&mut runtime).await?.status);
        std::fs::write(story.file("tired"), "")?;
        let told = network_ready(&mut runtime).await?;
        ensure!(!told.status && told.reason == "NetworkPluginNotReady", "{told:?}");
        ensure!(told.message.contains("moody STATUS: too tired (back after the break)"), "{told:?}");
        let config = story.config("STATUS").context("a configuration")?;
        ensure!(config["name"] == "moods" && config["cniVersion"] == "1.1.0", "{config}");
        std::fs::remove_file(story.file("tired"))?;
        ensure!(network_ready(&mut runtime).await?.status);
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn plugins_are_told_what_is_still_attached_when_an_agent_starts() -> Result<()> {
    let mut story = Moody::start()?;
    let ids = block_on(async {
        let mut runtime = story.runtime().await?;
        let mut ids = Vec::new();
        for name in ["one", "two"] {
            ids.push(run_pod(&mut runtime, &pod(story.server.host.path(), name)).await?);
        }
        Ok(ids)
    })?;
    let told = |ids: &[&String]| {
        let mut valid: Vec<Value> =
            ids.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        valid.sort_by_key(Value::to_string);
        valid
    };
    let valid = |story: &Moody| {
        let mut valid = story.config("GC")?["cni.dev/valid-attachments"].as_array()?.clone();
        valid.sort_by_key(Value::to_string);
        Some(valid)
    };
    story.server.crash_and_restart()?;
    let both = told(&[&ids[0], &ids[1]]);
    eventually("GC names both", || (valid(&story)? == both).then_some(()))?;
    block_on(async {
        let mut runtime = story.runtime().await?;
        remove(&mut runtime, &ids[0]).await
    })?;
    story.server.crash_and_restart()?;
    let one = told(&[&ids[1]]);
    eventually("GC names the one that is left", || (valid(&story)? == one).then_some(()))?;
    ensure!(
        !story.calls().contains(&"VERSION".to_owned()),
        "its configuration says which version: {:?}",
        story.calls()
    );
    block_on(async { remove(&mut story.runtime().await?, &ids[1]).await })
}

#[test]
#[ignore = "needs root"]
fn a_plugin_that_never_answers_is_told_and_leaves_nothing() -> Result<()> {
    let story = Moody::start()?;
    std::fs::write(story.file("asleep"), "")?;
    block_on(async {
        let mut runtime = story.runtime().await?;
        let failed = run_pod(&mut runtime, &pod(story.server.host.path(), "web")).await;
        let text = format!("{:?}", failed.err().context("a failure")?);
        ensure!(text.contains("moody ADD did not end within 60 s and was killed"), "{text}");
        let sandboxes = runtime.list_pod_sandbox(cri::v1::ListPodSandboxRequest::default()).await?;
        ensure!(sandboxes.into_inner().items.is_empty());
        Ok(())
    })?;
    let calls: Vec<String> =
        story.calls().into_iter().filter(|call| ["ADD", "DEL"].contains(&call.as_str())).collect();
    ensure!(calls[..2] == ["ADD", "DEL"], "what it may have done is undone: {calls:?}");
    let sleeper = std::fs::read_to_string(story.file("sleeper"))?;
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", sleeper.trim())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, state)| !state.trim_start().starts_with('Z'))
    };
    eventually("what it started is gone", || (!alive()).then_some(()))?;
    let root = story.server.host.path().join("root");
    ensure!(
        is_empty(&root.join("cni/cache/results"))?
            && is_empty(&story.server.host.path().join("state/sandboxes"))?
    );
    // The next one is not in its way.
    std::fs::remove_file(story.file("asleep"))?;
    block_on(async {
        let mut runtime = story.runtime().await?;
        let id = run_pod(&mut runtime, &pod(story.server.host.path(), "web")).await?;
        remove(&mut runtime, &id).await
    })
}

fn is_empty(directory: &Path) -> Result<bool> {
    Ok(std::fs::read_dir(directory).with_context(|| directory.display().to_string())?.next().is_none())
}

/// Our binary as whoever else runs CNI plugins calls it.
#[test]
#[ignore = "needs root"]
fn our_plugins_answer_version_status_and_gc_as_programs() -> Result<()> {
    let host = TestHost::new()?;
    let call = |plugin: &str, command: &str, container: &str, config: &Value| -> Result<String> {
        let program = host.path().join(plugin);
        if !program.exists() {
            std::os::unix::fs::symlink(parts::podwright(), &program)?;
        }
        let script = format!("echo '{config}' | {}", program.display());
        let variables = [
            format!("CNI_COMMAND={command}"),
            format!("CNI_CONTAINERID={container}"),
            "CNI_NETNS=/run/netns/pod".to_owned(),
            "CNI_IFNAME=eth0".to_owned(),
            "CNI_PATH=/nowhere".to_owned(),
        ];
        let words: Vec<&str> = variables.iter().map(String::as_str).chain(["sh", "-c", &script]).collect();
        host.run("env", &words)
    };
    let ipam = json!({ "type": "host-local", "dataDir": host.path().join("leases"),
        "ranges": [[{ "subnet": "10.99.0.0/24" }]] });
    let config = |plugin: &str| json!({ "cniVersion": "1.1.0", "name": "net", "type": plugin, "bridge": "cni9", "ipam": ipam });
    for plugin in ["bridge", "host-local", "portmap", "firewall", "loopback"] {
        // A runtime asks so before it knows which versions there are.
        let version = call(plugin, "VERSION", "", &json!({ "cniVersion": "9.9.9" }))?;
        let version: Value = serde_json::from_str(&version)?;
        let supported = version["supportedVersions"].as_array().context("versions")?;
        for known in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            ensure!(supported.contains(&known.into()), "{plugin}: {version}");
        }
        assert_eq!(call(plugin, "STATUS", "", &config(plugin))?, "", "{plugin}");
    }
    let leases = || {
        let files = std::fs::read_dir(host.path().join("leases/net")).into_iter().flatten().flatten();
        let mut names: Vec<_> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.starts_with("10."));
        names.sort();
        names
    };
    for collector in ["host-local", "bridge"] {
        for container in ["c1", "c2", "c3"] {
            call("host-local", "ADD", container, &config("host-local"))?;
        }
        let before = leases();
        ensure!(before.len() == 3, "{before:?}");
        let mut collecting = config(collector);
        let of = |container: &str| json!({ "containerID": container, "ifname": "eth0" });
        collecting["cni.dev/valid-attachments"] =
            json!([of("c2"), { "containerID": "c3", "ifname": "eth1" }]);
        // libcni sends both names.
        collecting["cni.dev/attachments"] = collecting["cni.dev/valid-attachments"].clone();
        assert_eq!(call(collector, "GC", "", &collecting)?, "");
        ensure!(leases() == before[1..2], "{collector}: {:?} of {before:?}", leases());
        collecting["cni.dev/valid-attachments"] = json!([]);
        call(collector, "GC", "", &collecting)?;
        ensure!(leases().is_empty(), "{collector}: {:?}", leases());
    }
    Ok(())
}

/// A stand-alone ADD of our bridge in a network namespace of the host's own.
#[test]
#[ignore = "needs root"]
fn another_add_of_our_bridge_leaves_the_first_one_s_connection_alone() -> Result<()> {
    let host = TestHost::new()?;
    let program = host.path().join("bridge");
    std::os::unix::fs::symlink(parts::podwright(), &program)?;
    host.run("ip", &["netns", "add", "pod"])?;
    let leases = host.path().join("leases");
    let config = json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "cni9",
        "isGateway": true, "ipMasq": true,
        "ipam": { "type": "host-local", "dataDir": leases, "ranges": [[{ "subnet": "10.99.0.0/24" }]] } });
    let call = |command: &str| {
        let script = format!("echo '{config}' | {}", program.display());
        let mut call = host.command("env");
        call.args([&format!("CNI_COMMAND={command}"), "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0"]);
        call.args(["CNI_NETNS=/run/netns/pod", "CNI_PATH=/nowhere", "sh", "-c", &script]);
        call.output()
    };
    let is_connected = || -> Result<bool> {
        let addresses = host.run("ip", &["-n", "pod", "-o", "address", "show", "dev", "eth0"])?;
        let ports = host.run("ip", &["-o", "link", "show", "master", "cni9"])?;
        Ok(addresses.contains("10.99.0.2/24") && ports.contains("veth"))
    };
    let rules = || host.run("iptables-save", &["-t", "nat"]);
    ensure!(call("ADD")?.status.success());
    ensure!(is_connected()?);
    let before = rules()?;
    ensure!(before.contains("CNI-MQ-"), "{before}");

    let again = call("ADD")?;
    let told: Value = serde_json::from_slice(&again.stdout)?;
    let message = told["msg"].as_str().context("a message")?;
    ensure!(!again.status.success() && message.contains("holds the address 10.99.0.2 already"), "{told}");
    ensure!(is_connected()?);
    ensure!(leases.join("net/10.99.0.2").exists() && !leases.join("net/10.99.0.3").exists());
    let lines = |text: &str| text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect();
    let (now, then): (Vec<String>, Vec<String>) = (lines(&rules()?), lines(&before));
    assert_eq!(now, then);

    // Where the name is taken inside, what was begun is undone.
    ensure!(call("DEL")?.status.success());
    host.run("ip", &["-n", "pod", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"])?;
    ensure!(!call("ADD")?.status.success());
    ensure!(!leases.join("net/10.99.0.3").exists(), "its lease is given back");
    ensure!(!host.run("ip", &["-o", "link", "show", "master", "cni9"])?.contains("veth"));
    host.run("ip", &["netns", "delete", "pod"]).map(drop)
}

/// Somebody removed the plugin while pods are connected by it.
#[test]
#[ignore = "needs root"]
fn a_plugin_that_is_gone_is_waited_for_at_a_stop_and_not_at_a_reset() -> Result<()> {
    let mut story = Moody::start()?;
    let (path, plugin, hidden) =
        (story.server.host.path().to_owned(), story.file("moody"), story.file("hidden"));
    let (one, two) = block_on(async {
        let mut runtime = story.runtime().await?;
        Ok((
            run_pod(&mut runtime, &pod(&path, "one")).await?,
            run_pod(&mut runtime, &pod(&path, "two")).await?,
        ))
    })?;
    std::fs::rename(&plugin, &hidden)?;
    block_on(async {
        let mut runtime = story.runtime().await?;
        let stop = || cri::v1::StopPodSandboxRequest { pod_sandbox_id: one.clone() };
        // Once and again: what the plugin holds is not given up.
        for _ in 0..2 {
            let failed = runtime.stop_pod_sandbox(stop()).await.err().context("a failure")?;
            ensure!(failed.message().contains("there is no program \"moody\""), "{failed:?}");
        }
        std::fs::rename(&hidden, &plugin)?;
        runtime.stop_pod_sandbox(stop()).await?;
        ensure!(story.calls().ends_with(&["DEL".to_owned()]), "{:?}", story.calls());
        Ok(())
    })?;
    std::fs::remove_file(&plugin)?;
    let node = story.server.node().context("ours")?;
    let supervisor = node.supervisor(&two)?;
    node.crash();
    let reset = story.server.podwright(&["reset"])?.output()?;
    let told = text_of(&reset);
    ensure!(reset.status.success() && told.contains("there is no program \"moody\""), "{told}");
    ensure!(!path.join("state").exists() && !path.join("root/cni/cache").exists());
    ensure!(!Path::new(&format!("/proc/{supervisor}/ns/net")).exists(), "the supervisor lives on");
    // The harness ends what runs.
    story.server.restart()
}

//! The subcommands of crictl beside the everyday ones: what they print on podwright and on containerd.

use anyhow::{Context, Result, ensure};
use e2e::CriServer;
use e2e::cri_server::Implementation;
use e2e::requests::{container, create, pod as sandbox, run_pod, start};
use serde_json::Value;

macro_rules! on_both {
    ($($story:ident)*) => {
        mod on_podwright {
            $(#[test]
            #[ignore = "needs root"]
            fn $story() {
                super::run(e2e::cri_server::Implementation::Podwright, |server| Box::pin(super::$story(server)));
            })*
        }
        mod on_containerd {
            $(#[test]
            #[ignore = "needs root"]
            fn $story() {
                super::run(e2e::cri_server::Implementation::Containerd, |server| Box::pin(super::$story(server)));
            })*
        }
    };
}

on_both! {
    stats_tell_what_a_container_uses
    stats_of_a_pod_tell_of_its_network_and_its_containers
    metrics_have_the_names_that_their_descriptors_promise
    update_changes_the_limits_of_a_running_container
    a_refused_update_leaves_the_former_limits
    an_update_before_the_start_holds_at_the_start
    info_and_inspect_have_what_people_look_for
    lists_can_be_filtered
    a_runtime_handler_that_does_not_exist_is_refused
    image_file_system_and_runtime_configuration_are_told
    a_container_runs_by_one_command_and_its_events_are_told
    a_checkpoint_is_refused_and_the_container_runs_on
}

type Story<'a> = std::pin::Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

fn run(implementation: Implementation, story: impl for<'a> FnOnce(&'a mut CriServer) -> Story<'a>) {
    let mut server = CriServer::start(implementation).expect("start the server");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let told = runtime.block_on(story(&mut server));
    told.unwrap_or_else(|error| panic!("{error:#}"));
}

/// A pod with one running container that writes 1 MiB into its layer and burns CPU.
async fn busy(server: &CriServer, name: &str) -> Result<(String, String)> {
    busy_in(server, name, "").await
}

/// The same with a cgroup that the client has chosen, as a kubelet does it.
async fn busy_in(server: &CriServer, name: &str, cgroup_parent: &str) -> Result<(String, String)> {
    let (mut runtime, _images) = server.clients().await?;
    let mut pod = sandbox(server.host.path(), name);
    pod.linux.get_or_insert_default().cgroup_parent = cgroup_parent.to_owned();
    let pod_id = run_pod(&mut runtime, &pod).await?;
    let script = "dd if=/dev/zero of=/written bs=1M count=1 2>/dev/null; touch /ready; while :; do :; done";
    let config = container("main", &["sh", "-c", script]);
    let id = create(&mut runtime, &pod_id, &pod, &config).await?;
    start(&mut runtime, &id).await?;
    e2e::test_host::eventually("the container has begun", || {
        server.crictl(&["exec", "--sync", &id, "test", "-e", "/ready"]).ok()
    })?;
    Ok((pod_id, id))
}

fn number(value: &Value) -> u64 {
    value["value"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

async fn stats_tell_what_a_container_uses(server: &mut CriServer) -> Result<()> {
    let (_pod, id) = busy(server, "stats").await?;
    // The runtimes count a layer's size now and then.
    let stats = e2e::test_host::eventually("the layer has been measured", || {
        let stats = server.crictl_json(&["stats", "-o", "json", &id]).ok()?["stats"][0].clone();
        (number(&stats["writableLayer"]["usedBytes"]) >= 1 << 20
            && number(&stats["cpu"]["usageNanoCores"]) > 0)
            .then_some(stats)
    })?;
    ensure!(stats["attributes"]["id"] == id.as_str() && stats["attributes"]["metadata"]["name"] == "main");
    ensure!(number(&stats["cpu"]["usageCoreNanoSeconds"]) > 1_000_000, "{stats}");
    // The container has half a CPU.
    ensure!(number(&stats["cpu"]["usageNanoCores"]) < 1_000_000_000, "{stats}");
    for field in ["workingSetBytes", "usageBytes", "rssBytes", "pageFaults", "availableBytes"] {
        ensure!(number(&stats["memory"][field]) > 0, "{field}: {stats}");
    }
    ensure!(number(&stats["memory"]["availableBytes"]) < 64 << 20, "{stats}");
    ensure!(number(&stats["writableLayer"]["inodesUsed"]) >= 2, "{stats}");
    let mountpoint = stats["writableLayer"]["fsId"]["mountpoint"].as_str().context("a mount point")?;
    let images = server.crictl_json(&["imagefsinfo", "-o", "json"])?;
    ensure!(images.to_string().contains(mountpoint), "{mountpoint} is not in {images}");
    for part in ["cpu", "memory", "writableLayer"] {
        let timestamp = stats[part]["timestamp"].as_str().and_then(|text| text.parse::<i64>().ok());
        ensure!(timestamp.is_some_and(|at| at > 0), "{part}: {stats}");
    }
    let table = server.crictl(&["stats"])?;
    ensure!(table.contains("CPU %") && table.contains("main"), "{table}");
    Ok(())
}

async fn stats_of_a_pod_tell_of_its_network_and_its_containers(server: &mut CriServer) -> Result<()> {
    let parent =
        CgroupParent(format!("podwright-e2e-parent-{}-{:?}", std::process::id(), server.implementation));
    let (pod, id) = busy_in(server, "podstats", &format!("/{}", parent.0)).await?;
    server.crictl(&["exec", "--sync", &id, "sh", "-c", "ping -c 1 -W 1 10.85.0.1 || true"])?;
    let stats = server.crictl_json(&["statsp", "-o", "json", "--id", &pod])?["stats"][0].clone();
    ensure!(stats["attributes"]["metadata"]["name"] == "podstats", "{stats}");
    let linux = &stats["linux"];
    ensure!(number(&linux["memory"]["workingSetBytes"]) > 0, "{stats}");
    ensure!(number(&linux["cpu"]["usageCoreNanoSeconds"]) > 0, "{stats}");
    ensure!(linux["network"]["defaultInterface"]["name"] == "eth0", "{stats}");
    ensure!(number(&linux["network"]["defaultInterface"]["txBytes"]) > 0, "{stats}");
    ensure!(linux["containers"][0]["attributes"]["id"] == id.as_str(), "{stats}");
    ensure!(number(&linux["process"]["processCount"]) >= 1, "{stats}");
    let table = server.crictl(&["statsp"])?;
    ensure!(table.contains("podstats"), "{table}");
    server.crictl(&["rmp", "-f", &pod])?;
    Ok(())
}

/// A pod's cgroup, which its client removes.
struct CgroupParent(String);

impl Drop for CgroupParent {
    fn drop(&mut self) {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for parent in hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let _ = std::fs::remove_dir(parent.join(&self.0));
        }
    }
}

async fn metrics_have_the_names_that_their_descriptors_promise(server: &mut CriServer) -> Result<()> {
    let (pod, id) = busy(server, "metrics").await?;
    let descriptors = server.crictl_json(&["metricdescs", "-o", "json"])?["descriptors"].clone();
    let labels_of = |name: &Value| {
        let known = descriptors.as_array().into_iter().flatten().find(|one| one["name"] == *name);
        known.map(|one| one["labelKeys"].as_array().map_or(0, Vec::len))
    };
    let metrics = server.crictl_json(&["metricsp", "-o", "json"])?;
    let of_pod = metrics["podMetrics"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["podSandboxId"] == pod.as_str())
        .context("metrics of the pod")?;
    let of_container = &of_pod["containerMetrics"][0];
    ensure!(of_container["containerId"] == id.as_str(), "{of_pod}");
    let all: Vec<&Value> = [&of_pod["metrics"], &of_container["metrics"]]
        .into_iter()
        .filter_map(Value::as_array)
        .flatten()
        .collect();
    for metric in &all {
        let labels =
            labels_of(&metric["name"]).with_context(|| format!("{} is described", metric["name"]))?;
        ensure!(metric["labelValues"].as_array().map_or(0, Vec::len) == labels, "{metric}");
        ensure!(metric["labelValues"][0] == "metrics" && metric["labelValues"][1] == "default", "{metric}");
    }
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_network_receive_bytes_total",
        "container_processes",
        "container_fs_usage_bytes",
        "container_start_time_seconds",
    ] {
        ensure!(all.iter().any(|metric| metric["name"] == name), "{name} is missing in {of_pod}");
    }
    Ok(())
}

/// The value of a control file of the container, read in one of the two places where it may be.
fn limit(server: &CriServer, id: &str, v1: &str, v2: &str) -> Result<String> {
    let pid = server.crictl_json(&["inspect", id])?["info"]["pid"].as_i64().context("a pid")?;
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read the process's cgroups")?;
    let (controller, file) = v1.split_once('/').context("a controller and a file")?;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        if controllers.split(',').any(|name| name == controller) {
            let file = format!("/sys/fs/cgroup/{controllers}{path}/{file}");
            return Ok(std::fs::read_to_string(&file).context(file)?.trim().to_owned());
        }
    }
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).context("a v2 cgroup")?;
    let file = format!("/sys/fs/cgroup{path}/{v2}");
    Ok(std::fs::read_to_string(&file).context(file)?.trim().to_owned())
}

async fn update_changes_the_limits_of_a_running_container(server: &mut CriServer) -> Result<()> {
    let (_pod, id) = busy(server, "update").await?;
    // Who is limited does not go on in the swap. v1 counts both together.
    let swap = || limit(server, &id, "memory/memory.memsw.limit_in_bytes", "memory.swap.max");
    ensure!(["67108864", "0"].contains(&swap()?.as_str()), "{}", swap()?);
    server.crictl(&["update", "--cpu-quota", "20000", "--memory", "50331648", &id])?;
    ensure!(limit(server, &id, "memory/memory.limit_in_bytes", "memory.max")? == "50331648");
    let quota = limit(server, &id, "cpu/cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota.starts_with("20000"), "{quota}");
    let status = server.crictl_json(&["inspect", &id])?;
    let told = &status["status"]["resources"]["linux"];
    ensure!(told["memoryLimitInBytes"] == "50331648" && told["cpuQuota"] == "20000", "{told}");
    // What was not given stays.
    ensure!(told["cpuShares"] == "512", "{told}");
    let spec = &status["info"]["runtimeSpec"]["linux"]["resources"];
    ensure!(spec["memory"]["limit"] == 50_331_648, "{spec}");
    if server.implementation == Implementation::Podwright {
        server.crash_and_restart()?;
    }
    let after = server.crictl_json(&["inspect", &id])?;
    ensure!(after["status"]["resources"]["linux"] == *told, "{after}");
    Ok(())
}

async fn a_refused_update_leaves_the_former_limits(server: &mut CriServer) -> Result<()> {
    let (_pod, id) = busy(server, "refused").await?;
    // The kernel has no CPU 4095 here; the memory limit alone would have been fine.
    let refused = server.crictl(&["update", "--memory", "50331648", "--cpuset-cpus", "4095", &id]);
    ensure!(refused.is_err(), "the update was taken");
    ensure!(limit(server, &id, "memory/memory.limit_in_bytes", "memory.max")? == "67108864");
    let told = server.crictl_json(&["inspect", &id])?["status"]["resources"]["linux"].clone();
    ensure!(told["memoryLimitInBytes"] == "67108864", "{told}");
    Ok(())
}

async fn an_update_before_the_start_holds_at_the_start(server: &mut CriServer) -> Result<()> {
    let (mut runtime, _images) = server.clients().await?;
    let pod = sandbox(server.host.path(), "early");
    let pod_id = run_pod(&mut runtime, &pod).await?;
    let id = create(&mut runtime, &pod_id, &pod, &container("main", &["sleep", "600"])).await?;
    server.crictl(&["update", "--memory", "50331648", &id])?;
    start(&mut runtime, &id).await?;
    ensure!(limit(server, &id, "memory/memory.limit_in_bytes", "memory.max")? == "50331648");
    Ok(())
}

async fn info_and_inspect_have_what_people_look_for(server: &mut CriServer) -> Result<()> {
    let (pod, id) = busy(server, "inspect").await?;
    let info = server.crictl_json(&["info"])?;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let conditions = info["status"]["conditions"].as_array().context("conditions")?;
        ensure!(conditions.iter().any(|one| one["type"] == kind && one["status"] == true), "{kind}: {info}");
    }
    let handlers = info["runtimeHandlers"].as_array().context("handlers")?;
    ensure!(handlers.iter().any(|one| one["name"] == "runc"), "{info}");
    ensure!(handlers.iter().all(|one| one["features"]["recursive_read_only_mounts"] == true), "{info}");
    ensure!(info["features"]["supplemental_groups_policy"] == true, "{info}");
    ensure!(info["config"].is_object() && info["cniconfig"].is_object(), "{info}");
    let inspected = server.crictl_json(&["inspect", &id])?;
    let info = &inspected["info"];
    ensure!(info["sandboxID"] == pod.as_str() && info["pid"].as_i64() > Some(1), "{info}");
    ensure!(info["snapshotter"] == "overlayfs" && info["snapshotKey"] == id.as_str(), "{info}");
    ensure!(info["runtimeSpec"]["process"]["args"][0] == "sh", "{info}");
    ensure!(info["config"]["metadata"]["name"] == "main", "{info}");
    let inspected = server.crictl_json(&["inspectp", &pod])?;
    let info = &inspected["info"];
    ensure!(info["pid"].as_i64() > Some(1) && info["config"]["metadata"]["name"] == "inspect", "{info}");
    let address = inspected["status"]["network"]["ip"].as_str().context("an address")?;
    ensure!(info["cniResult"]["Interfaces"]["eth0"]["IPConfigs"][0]["IP"] == address, "{info}");
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("namespaces")?;
    let network = namespaces.iter().find(|one| one["type"] == "network").context("a network namespace")?;
    ensure!(network["path"].as_str().is_some_and(|path| path.starts_with('/')), "{network}");
    let image = server.crictl_json(&["inspecti", e2e::image::BUSYBOX])?;
    ensure!(image["info"]["imageSpec"]["os"] == "linux", "{image}");
    Ok(())
}

async fn lists_can_be_filtered(server: &mut CriServer) -> Result<()> {
    let (pod, id) = busy(server, "lists").await?;
    let ids = |arguments: &[&str]| server.crictl(arguments).map(|text| text.trim().to_owned());
    ensure!(ids(&["ps", "-q"])? == id);
    ensure!(ids(&["ps", "-q", "--state", "exited"])?.is_empty());
    ensure!(ids(&["ps", "-q", "--pod", &pod[..12]])? == id);
    ensure!(ids(&["ps", "-q", "--name", "ma.*"])? == id);
    ensure!(ids(&["pods", "-q", "--name", "lists"])? == pod);
    ensure!(ids(&["pods", "-q", "--state", "notready"])?.is_empty());
    ensure!(ids(&["pods", "-q", "--label", "io.kubernetes.pod.name=lists"])? == pod);
    ensure!(ids(&["pods", "-q", "--label", "io.kubernetes.pod.name=other"])?.is_empty());
    Ok(())
}

async fn a_runtime_handler_that_does_not_exist_is_refused(server: &mut CriServer) -> Result<()> {
    let (mut runtime, _images) = server.clients().await?;
    let pod = sandbox(server.host.path(), "handler");
    let request = |handler: &str| cri::v1::RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: handler.to_owned(),
    };
    let refused = runtime.run_pod_sandbox(request("kata")).await;
    let message = refused.err().context("a refusal")?.message().to_owned();
    ensure!(message.contains("no runtime for \"kata\" is configured"), "{message}");
    ensure!(server.crictl(&["pods", "-q"])?.is_empty(), "something is left");
    runtime.run_pod_sandbox(request("runc")).await.context("the handler that Status names")?;
    Ok(())
}

async fn image_file_system_and_runtime_configuration_are_told(server: &mut CriServer) -> Result<()> {
    // containerd counts its images now and then.
    e2e::test_host::eventually("images take up space", || {
        let images = server.crictl_json(&["imagefsinfo", "-o", "json"]).ok()?;
        let one = &images["status"]["imageFilesystems"][0];
        (number(&one["usedBytes"]) > 0 && number(&one["inodesUsed"]) > 0).then_some(())
    })?;
    let config = server.crictl(&["runtime-config"])?;
    ensure!(config.contains("CGROUPFS"), "{config}");
    // What the network's configuration says counts: it is taken, and nothing follows.
    server.crictl(&["update-runtime-config", "--pod-cidr", "10.77.0.0/16"])?;
    let version = server.crictl(&["version"])?;
    ensure!(version.contains("RuntimeApiVersion:  v1"), "{version}");
    Ok(())
}

/// What `crictl events` has printed so far; it ends with the value.
struct Events {
    crictl: std::process::Child,
    told: std::sync::Arc<std::sync::Mutex<Vec<Value>>>,
}

impl Events {
    fn follow(server: &CriServer) -> Result<Self> {
        let mut crictl = server.crictl_command(&["events"]);
        let mut crictl = crictl.stdout(std::process::Stdio::piped()).spawn()?;
        let stdout = crictl.stdout.take().context("piped")?;
        let told = std::sync::Arc::<std::sync::Mutex<Vec<Value>>>::default();
        let telling = told.clone();
        std::thread::spawn(move || {
            let events = serde_json::Deserializer::from_reader(stdout).into_iter::<Value>();
            for event in events.map_while(Result::ok) {
                telling.lock().expect("nobody panics with it").push(event);
            }
        });
        Ok(Self { crictl, told })
    }

    /// The kinds of a container's events; none without an id is any container's.
    fn kinds(&self, id: Option<&str>) -> Vec<String> {
        let told = self.told.lock().expect("nobody panics with it");
        let of = told.iter().filter(|event| id.is_none_or(|id| event["containerId"] == id));
        of.map(|event| event["containerEventType"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.crictl.kill();
        let _ = self.crictl.wait();
    }
}

async fn a_container_runs_by_one_command_and_its_events_are_told(server: &mut CriServer) -> Result<()> {
    let path = server.host.path();
    let (pod, container) = (path.join("pod.json"), path.join("container.json"));
    let metadata = serde_json::json!({ "name": "alone", "uid": "u1", "namespace": "default" });
    let config = serde_json::json!({ "metadata": metadata, "log_directory": path.join("logs"), "linux": {} });
    std::fs::write(&pod, config.to_string())?;
    let config = serde_json::json!({
        "metadata": { "name": "main" }, "image": { "image": e2e::image::BUSYBOX }, "log_path": "main.log",
        "command": ["sh", "-c", "echo hello; exec sleep 1000"], "linux": {},
    });
    std::fs::write(&container, config.to_string())?;
    let run_and_remove = || -> Result<String> {
        let (container, pod) = (container.display().to_string(), pod.display().to_string());
        let id = server.crictl(&["run", "--no-pull", &container, &pod])?.trim().to_owned();
        e2e::test_host::eventually("it has said hello", || {
            (server.crictl(&["logs", &id]).ok()? == "hello\n").then_some(())
        })?;
        let pods = server.crictl(&["pods", "-q"])?;
        server.crictl(&["stop", "--timeout", "0", &id])?;
        server.crictl(&["rm", &id])?;
        server.crictl(&["rmp", "-f", pods.trim()])?;
        Ok(id)
    };
    let events = Events::follow(server)?;
    // crictl says nothing when it begins to listen.
    e2e::test_host::eventually("events are told", || {
        run_and_remove().ok()?;
        (!events.kinds(None).is_empty()).then_some(())
    })?;
    let id = run_and_remove()?;
    let kinds = e2e::test_host::eventually("the end is told", || {
        Some(events.kinds(Some(&id))).filter(|kinds| kinds.iter().any(|kind| kind.contains("DELETED")))
    })?;
    let all = ["CREATED", "STARTED", "STOPPED", "DELETED"].map(|kind| format!("CONTAINER_{kind}_EVENT"));
    ensure!(kinds == all, "{kinds:?}");
    Ok(())
}

async fn a_checkpoint_is_refused_and_the_container_runs_on(server: &mut CriServer) -> Result<()> {
    let (_pod, id) = busy(server, "checkpoint").await?;
    let archive = server.host.path().join("checkpoint.tar");
    let refused = server.crictl(&["checkpoint", "--export", &archive.display().to_string(), &id]);
    let refused = format!("{:#}", refused.err().context("a refusal")?);
    // containerd would ask CRIU, which is not on this machine.
    let why = match server.implementation {
        Implementation::Podwright => "code = Unimplemented desc = podwright does not",
        Implementation::Containerd => "criu",
    };
    ensure!(refused.contains(why), "{refused}");
    ensure!(server.crictl(&["ps", "-q"])?.trim() == id && !archive.exists());
    Ok(())
}

/// Only ours streams its lists here: crictl has no option for it, and the pieces are what clients of 1.36 ask for.
#[test]
#[ignore = "needs root"]
fn streamed_lists_tell_the_same_as_lists() {
    use cri::v1;
    run(Implementation::Podwright, |server| {
        Box::pin(async move {
            let (pod, id) = busy(server, "streams").await?;
            let (mut runtime, mut images) = server.clients().await?;
            let mut pods =
                runtime.stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default()).await?.into_inner();
            ensure!(pods.message().await?.context("a piece")?.pod_sandboxes[0].id == pod);
            ensure!(pods.message().await?.is_none());
            let mut containers =
                runtime.stream_containers(v1::StreamContainersRequest::default()).await?.into_inner();
            ensure!(containers.message().await?.context("a piece")?.containers[0].id == id);
            let mut stats = runtime
                .stream_container_stats(v1::StreamContainerStatsRequest::default())
                .await?
                .into_inner();
            ensure!(stats.message().await?.context("a piece")?.container_stats.len() == 1);
            let mut stats = runtime
                .stream_pod_sandbox_stats(v1::StreamPodSandboxStatsRequest::default())
                .await?
                .into_inner();
            ensure!(stats.message().await?.context("a piece")?.pod_sandbox_stats.len() == 1);
            let mut metrics = runtime
                .stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest::default())
                .await?
                .into_inner();
            ensure!(metrics.message().await?.context("a piece")?.pod_sandbox_metrics.len() == 1);
            let mut list = images.stream_images(v1::StreamImagesRequest::default()).await?.into_inner();
            ensure!(list.message().await?.context("a piece")?.images.len() == 1);
            let checkpoint = v1::CheckpointContainerRequest { container_id: id, ..Default::default() };
            let refused = runtime.checkpoint_container(checkpoint).await.err().context("a refusal")?;
            ensure!(
                refused.code() == tonic::Code::Unimplemented && refused.message().contains("checkpoints")
            );
            Ok(())
        })
    });
}

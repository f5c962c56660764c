//! `kill -9` of the agent at any moment of a start: afterwards all of it is there or nothing, and nothing is started twice.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cri::v1::{
    ContainerState, ContainerStatusRequest, ListContainersRequest, ListPodSandboxRequest,
    RemovePodSandboxRequest,
};
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{self, Runtime};
use e2e::test_host::eventually;

/// When the agent is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// So long after the request.
    After(Duration),
    /// As soon as a record says that phase.
    In(&'static str),
    /// Once it has answered.
    Answered,
}

/// A start takes some 10 ms: moments from its request to after its answer, and those at which a record says `phase`.
fn moments(step: Duration, phase: &'static str) -> impl Iterator<Item = Moment> {
    let timed = (0..16).map(move |count| Moment::After(step * count));
    timed.chain(std::iter::repeat_n(Moment::In(phase), 8)).chain([Moment::Answered])
}

/// Whether a record of a sandbox or container below `state` says that phase.
fn is_recorded(state: &Path, phase: &str) -> bool {
    let sandboxes = state.join("sandboxes");
    let records = names(sandboxes.clone()).into_iter().flat_map(|sandbox| {
        let directory = sandboxes.join(sandbox);
        let containers = directory.join("containers");
        let inside = names(containers.clone()).into_iter().map(move |name| containers.join(name));
        std::iter::once(directory).chain(inside)
    });
    let word = format!("\"phase\": \"{phase}\"");
    records
        .map(|directory| std::fs::read_to_string(directory.join("record.json")))
        .any(|text| text.is_ok_and(|text| text.contains(&word)))
}

fn start() -> Result<(tokio::runtime::Runtime, CriServer)> {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok((tokio, CriServer::start(Implementation::Podwright)?))
}

/// Sends a request, kills the agent at that moment, starts another, and gives a client of it and whether the phase that it was killed for
/// is what the dead one left.
async fn crash_during<F>(server: &mut CriServer, moment: Moment, request: F) -> Result<(Runtime, bool)>
where
    F: Future<Output = Result<String>> + Send + 'static,
{
    let node = server.node().context("our node")?;
    let state = node.state();
    let asked = tokio::spawn(request);
    match moment {
        Moment::After(time) => tokio::time::sleep(time).await,
        // No event comes in time: the phase is over in a few milliseconds.
        Moment::In(phase) => while !is_recorded(&state, phase) && !asked.is_finished() {},
        Moment::Answered => {
            while !asked.is_finished() {
                tokio::task::yield_now().await;
            }
        }
    }
    node.crash();
    let caught = matches!(moment, Moment::In(phase) if is_recorded(&state, phase));
    server.restart()?;
    // Whether it was answered does not matter: the client of an agent that dies cannot rely on it.
    let _ = asked.await?;
    Ok((server.clients().await?.0, caught))
}

/// What the machine holds for sandboxes, by the sandbox's id.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    records: BTreeSet<String>,
    leases: BTreeSet<String>,
    supervisors: BTreeSet<String>,
}

fn held(server: &mut CriServer) -> Result<Held> {
    let directory = server.host.path().to_owned();
    let root = server.node().context("our node")?.cgroup_root().trim_start_matches('/').to_owned();
    let mut leases = BTreeSet::new();
    for network in names(directory.join("root/networks")) {
        let network = directory.join("root/networks").join(network);
        for name in names(network.clone()).into_iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        {
            let lease = std::fs::read_to_string(network.join(name)).unwrap_or_default();
            leases.insert(lease.lines().next().unwrap_or_default().trim().to_owned());
        }
    }
    // The v2 tree of the hybrid layout, or v2 itself.
    let supervisors = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(|mount| names(PathBuf::from(mount).join(&root).join("supervisors")))
        .into_iter()
        .flatten()
        .filter(|name| !name.contains('.')) // the kernel's own files
        .collect();
    Ok(Held { records: names(directory.join("state/sandboxes")), leases, supervisors })
}

fn names(directory: PathBuf) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The ids that CRI lists are those for which something is held, no more, no less.
async fn check_held(server: &mut CriServer, runtime: &mut Runtime) -> Result<BTreeSet<String>> {
    let listed = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
    let ids: BTreeSet<String> = listed.into_iter().map(|sandbox| sandbox.id).collect();
    let supervisors = ids.iter().map(|id| id[..13].to_owned()).collect();
    let wanted = Held { records: ids.clone(), leases: ids.clone(), supervisors };
    let mut last = None;
    // The kernel frees a network in the background, and its lease follows.
    eventually("what is held is what is listed", || {
        last = held(server).ok();
        (last.as_ref() == Some(&wanted)).then_some(())
    })
    .with_context(|| format!("listed {ids:?}, held {last:?}"))?;
    Ok(ids)
}

async fn remove(runtime: &mut Runtime, sandbox: &str) -> Result<()> {
    let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
    runtime.remove_pod_sandbox(request).await.context("RemovePodSandbox").map(drop)
}

#[test]
#[ignore = "needs root"]
fn killing_the_agent_while_it_makes_a_sandbox_leaves_all_or_nothing() -> Result<()> {
    let (tokio, mut server) = start()?;
    tokio.block_on(async {
        let mut runtime = server.clients().await?.0;
        let (mut whole, mut nothing, mut half) = (0, 0, 0);
        for (count, moment) in moments(Duration::from_millis(1), "creating").enumerate() {
            let pod = requests::pod(server.host.path(), &format!("pod-{count}"));
            let asked = pod.clone();
            let request = async move { requests::run_pod(&mut runtime, &asked).await };
            let caught;
            (runtime, caught) = crash_during(&mut server, moment, request).await?;
            half += usize::from(caught);
            let left = check_held(&mut server, &mut runtime).await?;
            match left.iter().next() {
                Some(id) => {
                    whole += 1;
                    // It is no wreck: a container runs in it.
                    let container =
                        requests::container("c", &["/bin/sh", "-c", "ip -4 -o address show eth0"]);
                    let (status, log) = requests::run_to_end(&mut runtime, id, &pod, &container).await?;
                    ensure!(status.exit_code == 0 && log.contains("10.85."), "{status:?}\n{log}");
                    remove(&mut runtime, id).await?;
                }
                None => {
                    nothing += 1;
                    // Its name is free again.
                    let id = requests::run_pod(&mut runtime, &pod).await?;
                    remove(&mut runtime, &id).await?;
                }
            }
            ensure!(check_held(&mut server, &mut runtime).await?.is_empty(), "something is left");
        }
        ensure!(
            whole > 0 && nothing > 0 && half > 0,
            "not every kind of moment was hit: {whole} whole, {nothing} undone, {half} of them half made"
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn killing_the_agent_while_it_starts_a_container_starts_it_once() -> Result<()> {
    let (tokio, mut server) = start()?;
    tokio.block_on(async {
        let mut runtime = server.clients().await?.0;
        let mut half = 0;
        for (count, moment) in moments(Duration::from_micros(500), "starting").enumerate() {
            let pod = requests::pod(server.host.path(), &format!("pod-{count}"));
            let container = requests::container("c", &["/bin/sh", "-c", "echo started; exec sleep 1000"]);
            let sandbox = requests::run_pod(&mut runtime, &pod).await?;
            let (id, asked_pod, asked) = (sandbox.clone(), pod.clone(), container.clone());
            let request = async move {
                let id = requests::create(&mut runtime, &id, &asked_pod, &asked).await?;
                requests::start(&mut runtime, &id).await?;
                Ok(id)
            };
            let caught;
            (runtime, caught) = crash_during(&mut server, moment, request).await?;
            half += usize::from(caught);

            let listed =
                runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers;
            ensure!(listed.len() <= 1, "{listed:?}");
            // As a kubelet goes on: what is missing is made, what was only made is started.
            let id = match listed.into_iter().next() {
                Some(found) => found.id,
                None => requests::create(&mut runtime, &sandbox, &pod, &container).await?,
            };
            if requests::status(&mut runtime, &id).await?.state() == ContainerState::ContainerCreated {
                requests::start(&mut runtime, &id).await?;
            }
            let status = requests::status(&mut runtime, &id).await?;
            ensure!(status.state() == ContainerState::ContainerRunning, "after {moment:?}: {status:?}");
            let log = eventually("it says that it started", || {
                requests::log_of(&pod, &container).ok().filter(|text| !text.is_empty())
            })?;
            ensure!(log == "started\n", "after {moment:?} it was started more than once:\n{log}");
            remove(&mut runtime, &sandbox).await?;
            ensure!(check_held(&mut server, &mut runtime).await?.is_empty(), "something is left");
        }
        ensure!(half > 0, "no moment was in a start");
        Ok(())
    })
}

/// Records of another version, a supervisor that does not answer: what they stand for is ended, never forgotten while it runs.
#[test]
#[ignore = "needs root"]
fn what_a_new_agent_cannot_take_over_is_ended() -> Result<()> {
    let (tokio, mut server) = start()?;
    tokio.block_on(async {
        let mut runtime = server.clients().await?.0;
        let container = requests::container("c", &["/bin/sleep", "1000"]);
        let mut pods = Vec::new();
        for name in ["kept", "sandbox-record", "container-record", "silent"] {
            let pod = requests::pod(server.host.path(), name);
            let sandbox = requests::run_pod(&mut runtime, &pod).await?;
            let id = requests::create(&mut runtime, &sandbox, &pod, &container).await?;
            requests::start(&mut runtime, &id).await?;
            let pid = pid_of(&mut runtime, &id).await?;
            pods.push((sandbox, id, pid));
        }
        let node = server.node().context("our node")?;
        let sandboxes = node.state().join("sandboxes");
        let directory = |sandbox: &str| sandboxes.join(sandbox);
        let silent = node.supervisor(&pods[3].0)?;
        node.crash();
        let foreign = r#"{"version":"of another age"}"#;
        std::fs::write(directory(&pods[1].0).join("record.json"), foreign)?;
        std::fs::write(
            directory(&pods[2].0).join("containers").join(&pods[2].1).join("record.json"),
            foreign,
        )?;
        let silent = rustix::process::Pid::from_raw(silent.cast_signed()).context("a pid")?;
        rustix::process::kill_process(silent, rustix::process::Signal::STOP)?;
        server.restart()?;

        let mut runtime = server.clients().await?.0;
        assert_eq!(pid_of(&mut runtime, &pods[0].1).await?, pods[0].2, "the others go on");
        for (sandbox, _, pid) in &pods[1..] {
            let gone = || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(());
            eventually("its container has ended", gone).with_context(|| format!("sandbox {sandbox}"))?;
            remove(&mut runtime, sandbox).await?;
        }
        let left = check_held(&mut server, &mut runtime).await?;
        assert_eq!(left.into_iter().collect::<Vec<_>>(), [pods[0].0.clone()]);
        remove(&mut runtime, &pods[0].0).await
    })
}

/// The process of a running container.
async fn pid_of(runtime: &mut Runtime, id: &str) -> Result<i64> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let info = runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("verbose facts")?)?;
    info["pid"].as_i64().context("a pid")
}

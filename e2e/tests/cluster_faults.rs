//! What becomes of pods while the API server, the agent or the way between them is away: none is lost, none started twice. Told on
//! our node and on the stock kubelet with containerd. Each kind has a cluster of its own, and one story of it is told at a time.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::images::BUSYBOX;
use e2e::cluster::{Cluster, ClusterNode, Component, NodeKind};
use e2e::test_host::eventually;
use serde_json::Value;

macro_rules! faults {
    ($($name:ident),* $(,)?) => {
        mod on_podwright {
            $(#[test] #[ignore = "needs a cluster"] fn $name() { super::tell(&super::PODWRIGHT, super::$name); })*
        }
        mod on_stock {
            $(#[test] #[ignore = "needs a cluster"] fn $name() { super::tell(&super::STOCK, super::$name); })*
        }
    };
}

faults![
    pods_go_on_without_the_api_server_for_a_minute,
    an_agent_that_starts_again_starts_nothing_again,
    an_agent_that_starts_without_the_api_server_keeps_its_pods,
    a_pod_that_is_deleted_while_the_agent_is_away_ends,
    a_pod_that_is_deleted_by_force_behind_a_cut_link_ends,
    a_pod_that_is_deleted_ends_while_the_api_server_is_down,
    an_api_server_that_comes_and_goes_starts_nothing_twice,
    a_slow_api_server_only_makes_things_late,
    a_watch_that_has_expired_loses_nothing,
    a_node_without_its_rights_keeps_its_pods_until_it_has_them_again,
];

static PODWRIGHT: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::start(NodeKind::Podwright)));
static STOCK: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::start(NodeKind::Stock)));

/// A cluster with one node, of which parts can be taken away.
struct World {
    cluster: Cluster,
    node: ClusterNode,
}

fn tell(world: &LazyLock<Mutex<World>>, story: fn(&World) -> Result<()>) {
    // A story that failed leaves a world in which the next one may work.
    let world = world.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = story(&world) {
        panic!("{error:?}\n{}", world.picture());
    }
}

impl World {
    fn start(kind: NodeKind) -> Self {
        let cluster = Cluster::start().unwrap_or_else(|error| panic!("start a cluster: {error:?}"));
        let node = cluster.node(kind, "node").unwrap_or_else(|error| panic!("start a node: {error:?}"));
        Self { cluster, node }
    }

    /// A pod whose process nobody confuses with another: it sleeps for that many seconds.
    fn sleeper(&self, name: &str, seconds: u32, more: &str) -> Result<()> {
        self.cluster.apply(&manifest(name, seconds, more))?;
        self.ready(name)
    }

    fn ready(&self, pod: &str) -> Result<()> {
        let pod = format!("pod/{pod}");
        self.cluster.kubectl(&["wait", "--for=create", &pod, "--timeout=60s"])?;
        self.cluster.kubectl(&["wait", "--for=condition=Ready", &pod, "--timeout=120s"]).map(drop)
    }

    fn pod(&self, name: &str) -> Result<Pod> {
        self.cluster.get(&[&format!("pod/{name}")]).map(Pod)
    }

    /// How many processes of the node sleep that long.
    fn sleeping(&self, seconds: u32) -> usize {
        let pids = self.node.machine.host.run("pgrep", &["-fx", &format!("sleep {seconds}")]);
        pids.unwrap_or_default().lines().count()
    }

    fn gone(&self, pod: &str) -> Result<()> {
        self.cluster.kubectl(&["wait", "--for=delete", &format!("pod/{pod}"), "--timeout=120s"]).map(drop)
    }

    fn delete(&self, pods: &[&str]) -> Result<()> {
        self.cluster.kubectl(&[&["delete", "pod", "--timeout=60s"], pods].concat()).map(drop)
    }

    fn picture(&self) -> String {
        let pods = self.cluster.kubectl(&["describe", "pods"]).unwrap_or_else(|error| error.to_string());
        let log = self.node.log();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "{pods}\n--- the last lines of the agent ---\n{}",
            lines[lines.len().saturating_sub(80)..].join("\n")
        )
    }
}

fn manifest(name: &str, seconds: u32, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '{seconds}']
{more}"
    )
}

struct Pod(Value);

impl Pod {
    fn container(&self) -> &Value {
        &self.0["status"]["containerStatuses"][0]
    }

    fn restarts(&self) -> i64 {
        self.container()["restartCount"].as_i64().unwrap_or(-1)
    }

    /// What a restart of anything but the pod does not change.
    fn identity(&self) -> (Value, Value, Value) {
        let conditions = self.0["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|one| one["type"] == "Ready").unwrap_or_default();
        (self.container()["containerID"].clone(), self.container()["state"].clone(), ready)
    }
}

/// Only the passing of time shows that nothing happens.
fn pass(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

const PROBED: &str = "    readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}\n";

/// An outage is told of by everybody whom it concerns, once, and by nobody else.
fn warns_of_each_thing_once(log: &str) -> Result<()> {
    let warnings = log.lines().filter_map(|line| line.split_once(" WARN "));
    let mut told: Vec<&str> =
        warnings.map(|(_, what)| what.split(" error=").next().unwrap_or(what)).collect();
    let all = told.len();
    told.sort_unstable();
    told.dedup();
    ensure!(told.len() == all && !told.is_empty(), "some of these more than once:\n{log}");
    ensure!(!told.iter().any(|what| what.starts_with("kube_")), "a library speaks:\n{log}");
    Ok(())
}

fn pods_go_on_without_the_api_server_for_a_minute(world: &World) -> Result<()> {
    world.sleeper("steady", 11_001, PROBED)?;
    // Ends once, in the middle of the outage.
    world.cluster.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: once}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: w, emptyDir: {{}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, '[ -e /w/second ] && exec sleep 11002; touch /w/second; sleep 20; exit 1']
    volumeMounts: [{{name: w, mountPath: /w}}]
"
    ))?;
    world.ready("once")?;
    let steady = world.pod("steady")?;
    let logged = world.node.log().len();
    world.cluster.control_plane.kill(Component::ApiServer);
    let manifests = world.node.machine.host.path().join("kubernetes/manifests");
    let fixed = format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: fixed}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '11003']}}]
"
    );
    std::fs::write(manifests.join("fixed.yaml"), fixed)?;
    eventually("a static pod starts without it", || (world.sleeping(11_003) == 1).then_some(()))?;
    pass(60);
    ensure!(world.sleeping(11_001) == 1 && world.sleeping(11_002) == 1, "a pod is lost, or there twice");
    if world.node.kind == NodeKind::Podwright {
        warns_of_each_thing_once(&world.node.log()[logged..])?;
    }
    world.cluster.control_plane.start_component(Component::ApiServer)?;
    eventually("the restart is told", || (world.pod("once").ok()?.restarts() == 1).then_some(()))?;
    world.ready("once")?;
    world.ready("fixed-node")?;
    let after = world.pod("steady")?;
    assert_eq!(
        (after.restarts(), &after.container()["containerID"]),
        (0, &steady.container()["containerID"])
    );
    world.node.wait_ready(&world.cluster)?;
    eventually("what the cluster thought of the pod meanwhile is set right", || {
        (world.pod("steady").ok()?.identity().2["status"] == "True").then_some(())
    })?;
    world.sleeper("after-a-minute", 11_004, "")?;
    std::fs::remove_file(manifests.join("fixed.yaml"))?;
    world.gone("fixed-node")?;
    world.delete(&["steady", "once", "after-a-minute"])
}

fn an_agent_that_starts_again_starts_nothing_again(world: &World) -> Result<()> {
    world.sleeper("probed", 12_001, PROBED)?;
    world.sleeper("plain", 12_002, "")?;
    let before = [world.pod("probed")?.identity(), world.pod("plain")?.identity()];
    for _ in 0..2 {
        world.node.end_agent();
        pass(2);
        world.node.start_agent()?;
        world.node.wait_ready(&world.cluster)?;
        pass(5);
    }
    let after = [world.pod("probed")?.identity(), world.pod("plain")?.identity()];
    // A stock kubelet takes a probed pod's readiness away until its probe has answered again.
    let told = |pods: [(Value, Value, Value); 2]| match world.node.kind {
        NodeKind::Stock => pods.map(|(id, state, _)| (id, state, Value::Null)),
        _ => pods,
    };
    assert_eq!(told(after), told(before));
    ensure!(world.sleeping(12_001) == 1 && world.sleeping(12_002) == 1, "there twice");
    world.delete(&["probed", "plain"])
}

fn an_agent_that_starts_without_the_api_server_keeps_its_pods(world: &World) -> Result<()> {
    world.sleeper("kept", 13_001, PROBED)?;
    let before = world.pod("kept")?.container()["containerID"].clone();
    world.cluster.control_plane.kill(Component::ApiServer);
    world.node.end_agent();
    world.node.start_agent()?;
    pass(10);
    assert_eq!(world.sleeping(13_001), 1, "while nobody says what is wanted");
    world.cluster.control_plane.start_component(Component::ApiServer)?;
    world.node.wait_ready(&world.cluster)?;
    world.sleeper("new", 13_002, "")?;
    world.ready("kept")?;
    let after = world.pod("kept")?;
    assert_eq!((after.restarts(), &after.container()["containerID"]), (0, &before));
    world.delete(&["kept", "new"])
}

/// What is left of a machine that has started anew: disks, and nothing that ran. The reference's parts are not ours to take apart.
#[test]
#[ignore = "needs a cluster"]
fn a_machine_that_starts_without_the_api_server_starts_its_static_pods_alone() {
    tell(&PODWRIGHT, |world| {
        let manifests = world.node.machine.host.path().join("kubernetes/manifests");
        std::fs::write(manifests.join("static.yaml"), manifest("static", 19_001, ""))?;
        world.ready("static-node")?;
        world.sleeper("bound", 19_002, "")?;
        world.cluster.control_plane.kill(Component::ApiServer);
        world.node.end_agent();
        let script = "pkill -KILL -f '^podwright-supervisor'; pkill -KILL -fx 'sleep 1900[12]'
            umount /run/podwright/sandboxes/*/shm && rm -r /run/podwright";
        world.node.machine.host.run("sh", &["-c", script])?;
        assert_eq!((world.sleeping(19_001), world.sleeping(19_002)), (0, 0), "nothing outlives a machine");
        world.node.start_agent()?;
        eventually("the static pod starts", || (world.sleeping(19_001) == 1).then_some(()))?;
        pass(10);
        assert_eq!(world.sleeping(19_002), 0, "nobody has said that it is still wanted");
        world.cluster.control_plane.start_component(Component::ApiServer)?;
        eventually("what is bound to the node starts", || (world.sleeping(19_002) == 1).then_some(()))?;
        world.node.wait_ready(&world.cluster)?;
        world.ready("bound")?;
        world.ready("static-node")?;
        std::fs::remove_file(manifests.join("static.yaml"))?;
        world.gone("static-node")?;
        world.delete(&["bound"])
    });
}

fn a_pod_that_is_deleted_while_the_agent_is_away_ends(world: &World) -> Result<()> {
    world.sleeper("polite", 14_001, "")?;
    world.sleeper("forced", 14_002, "")?;
    world.node.end_agent();
    world.cluster.kubectl(&["delete", "pod", "polite", "--wait=false"])?;
    world.cluster.kubectl(&["delete", "pod", "forced", "--force", "--grace-period=0"])?;
    pass(2);
    assert_eq!((world.sleeping(14_001), world.sleeping(14_002)), (1, 1), "nobody is there to end them");
    world.node.start_agent()?;
    world.gone("polite")?;
    eventually("nothing of them runs", || {
        (world.sleeping(14_001) + world.sleeping(14_002) == 0).then_some(())
    })
}

fn a_pod_that_is_deleted_by_force_behind_a_cut_link_ends(world: &World) -> Result<()> {
    world.sleeper("lost", 15_001, "")?;
    world.cluster.lab.cut(&world.node.machine)?;
    world.cluster.kubectl(&["delete", "pod", "lost", "--force", "--grace-period=0"])?;
    pass(5);
    assert_eq!(world.sleeping(15_001), 1, "the node cannot know");
    world.cluster.lab.heal(&world.node.machine)?;
    eventually("nothing of it runs", || (world.sleeping(15_001) == 0).then_some(()))?;
    world.node.wait_ready(&world.cluster)
}

fn a_pod_that_is_deleted_ends_while_the_api_server_is_down(world: &World) -> Result<()> {
    let directory = world.node.machine.host.path().join("held");
    std::fs::create_dir_all(&directory)?;
    world.cluster.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: held}}
spec:
  terminationGracePeriodSeconds: 600
  volumes: [{{name: w, hostPath: {{path: {}}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'trap \"touch /w/signal; exit 0\" TERM; sleep 19001 & while :; do sleep 0.1; done']
    volumeMounts: [{{name: w, mountPath: /w}}]
    lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'touch /w/hook; while ! [ -e /w/go ]; do sleep 0.1; done']}}}}}}
",
        directory.display()
    ))?;
    world.ready("held")?;
    world.cluster.kubectl(&["delete", "pod", "held", "--wait=false"])?;
    eventually("its hook runs", || directory.join("hook").exists().then_some(()))?;
    world.cluster.control_plane.kill(Component::ApiServer);
    std::fs::write(directory.join("go"), "")?;
    eventually("its hook is over, and the signal follows", || {
        directory.join("signal").exists().then_some(())
    })?;
    eventually("nothing of it runs", || (world.sleeping(19_001) == 0).then_some(()))?;
    world.cluster.control_plane.start_component(Component::ApiServer)?;
    world.gone("held")?;
    world.node.wait_ready(&world.cluster)?;
    std::fs::remove_dir_all(&directory)?;
    world.sleeper("next", 19_002, "")?;
    world.delete(&["next"])
}

fn an_api_server_that_comes_and_goes_starts_nothing_twice(world: &World) -> Result<()> {
    world.cluster.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: many}}
spec:
  replicas: 10
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '16001']}}]
"
    ))?;
    // Of the agent that runs now: a former one may have been ended in the middle of an outage.
    let told = |what: &str| {
        let log = world.node.log();
        log.rsplit("podwright::agent: ready").next().unwrap_or_default().matches(what).count()
    };
    let away = "the API server does not answer; Services stay as they are";
    let back = "the API server tells of Services again";
    eventually("what was told of former outages is over", || (told(away) == told(back)).then_some(()))?;
    let (before, refused) = (told(away), told("may not list and watch"));
    for _ in 0..3 {
        pass(1);
        world.cluster.control_plane.kill(Component::ApiServer);
        world.cluster.control_plane.start_component(Component::ApiServer)?;
    }
    eventually("all ten are ready", || {
        let many = world.cluster.get(&["deployment/many"]).ok()?;
        (many["status"]["readyReplicas"] == 10).then_some(())
    })?;
    assert_eq!(world.sleeping(16_001), 10);
    let pods = world.cluster.get(&["pods", "-l", "app=many"])?;
    let pods = pods["items"].as_array().context("pods")?.clone();
    let restarts: Vec<i64> = pods.into_iter().map(|pod| Pod(pod).restarts()).collect();
    assert_eq!(restarts, [0; 10]);
    if world.node.kind == NodeKind::Podwright {
        eventually("the log says that it is back", || (told(back) == before + 1).then_some(()))?;
        assert_eq!(told(away), before + 1, "one outage is told of once:\n{}", world.node.log());
        assert_eq!(told("may not list and watch"), refused, "nothing is refused:\n{}", world.node.log());
    }
    world.cluster.kubectl(&["delete", "deployment", "many", "--cascade=foreground", "--timeout=120s"])?;
    eventually("nothing of them runs", || (world.sleeping(16_001) == 0).then_some(()))
}

/// Its answers share 40 kbit/s: an object of a pod takes a second, a list of some more than that.
fn a_slow_api_server_only_makes_things_late(world: &World) -> Result<()> {
    world.sleeper("unmoved", 20_001, PROBED)?;
    let before = world.pod("unmoved")?.identity();
    let node_ready = || -> Result<Value> {
        let node = world.node.object(&world.cluster)?;
        Ok(e2e::cluster::story::condition(&node, "Ready").clone())
    };
    let since = node_ready()?["lastTransitionTime"].clone();
    let slow = world.cluster.lab.throttle(world.cluster.control_plane.machine(), "40kbit")?;
    world.cluster.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: late}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: late}}}}
  template:
    metadata: {{labels: {{app: late}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: {BUSYBOX}
        command: [sleep, '20002']
        readinessProbe: {{exec: {{command: ['true']}}, periodSeconds: 1}}
"
    ))?;
    world.cluster.kubectl(&["rollout", "status", "deployment/late", "--timeout=120s"])?;
    assert_eq!(world.sleeping(20_002), 3);
    world.cluster.kubectl(&["scale", "deployment", "late", "--replicas=1"])?;
    eventually("two of them end", || (world.sleeping(20_002) == 1).then_some(()))?;
    let pods = || world.cluster.get(&["pods", "-l", "app=late"]).ok()?["items"].as_array().map(Vec::len);
    eventually("and their objects go", || (pods()? == 1).then_some(()))?;
    if world.node.kind == NodeKind::Podwright {
        // A stock kubelet's probed pods are not ready after a restart, until it could ask.
        world.node.end_agent();
        world.node.start_agent()?;
        world.node.wait_ready(&world.cluster)?;
    }
    let now = node_ready()?;
    assert_eq!(
        (&now["status"], &now["lastTransitionTime"]),
        (&"True".into(), &since),
        "the node was always Ready"
    );
    drop(slow);
    assert_eq!(world.pod("unmoved")?.identity(), before);
    assert_eq!((world.sleeping(20_001), world.sleeping(20_002)), (1, 1));
    world.cluster.kubectl(&["delete", "deployment", "late", "--cascade=foreground", "--timeout=120s"])?;
    world.delete(&["unmoved"])
}

fn a_watch_that_has_expired_loses_nothing(world: &World) -> Result<()> {
    let control_plane = &world.cluster.control_plane;
    world.sleeper("stays", 17_001, PROBED)?;
    world.sleeper("goes", 17_002, "")?;
    let before = world.pod("stays")?.container()["containerID"].clone();
    let heard = world.pod("goes")?.0["metadata"]["resourceVersion"].clone();
    world.cluster.lab.cut(&world.node.machine)?;
    world.cluster.kubectl(&["delete", "pod", "goes", "--force", "--grace-period=0"])?;
    world.cluster.apply(&manifest("comes", 17_003, ""))?;
    world.cluster.kubectl(&["wait", "--for=jsonpath={.spec.nodeName}=node", "pod/comes", "--timeout=60s"])?;
    // Neither etcd nor the API server knows any more what happened meanwhile.
    control_plane.compact()?;
    control_plane.kill(Component::ApiServer);
    control_plane.start_component(Component::ApiServer)?;
    let version = heard.as_str().context("a version")?;
    let watch = format!("/api/v1/pods?watch=true&timeoutSeconds=2&resourceVersion={version}");
    let told = world.cluster.kubectl(&["get", "--raw", &watch]).unwrap_or_else(|error| error.to_string());
    ensure!(told.contains("too old resource version"), "the watch has not expired: {told}");
    world.cluster.lab.heal(&world.node.machine)?;
    world.ready("comes")?;
    eventually("what was deleted ends", || (world.sleeping(17_002) == 0).then_some(()))?;
    world.node.wait_ready(&world.cluster)?;
    world.ready("stays")?;
    let after = world.pod("stays")?;
    assert_eq!((after.restarts(), &after.container()["containerID"]), (0, &before));
    assert_eq!((world.sleeping(17_001), world.sleeping(17_003)), (1, 1));
    world.delete(&["stays", "comes"])
}

fn a_node_without_its_rights_keeps_its_pods_until_it_has_them_again(world: &World) -> Result<()> {
    let control_plane = &world.cluster.control_plane;
    world.sleeper("kept-on", 18_001, PROBED)?;
    let before = world.pod("kept-on")?.container()["containerID"].clone();
    let refusals = || world.node.log().matches("is forbidden").count();
    let former = refusals();
    control_plane.kill(Component::ApiServer);
    control_plane.start_component_with(Component::ApiServer, "authorization-mode", "RBAC")?;
    eventually("the node says what is refused", || (refusals() > former).then_some(()))?;
    pass(5);
    assert_eq!(world.sleeping(18_001), 1, "nobody has said that it is to end");
    control_plane.kill(Component::ApiServer);
    control_plane.start_component(Component::ApiServer)?;
    world.sleeper("new-again", 18_002, "")?;
    world.node.wait_ready(&world.cluster)?;
    world.ready("kept-on")?;
    let after = world.pod("kept-on")?;
    assert_eq!((after.restarts(), &after.container()["containerID"]), (0, &before));
    world.delete(&["kept-on", "new-again"])
}

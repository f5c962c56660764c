//! One story on a shared cluster: a namespace of its own, whose pods run on the node that the story is about.

use std::sync::{LazyLock, OnceLock};

use anyhow::{Context, Result};
use serde_json::Value;

use super::images::{self, BUSYBOX};
use super::{Cluster, ClusterNode, NodeKind};
use crate::registry::{Registry, write_only_mirror};

/// Where the registry with a password listens, on the machine between the nodes.
const PRIVATE: &str = "192.0.2.1:5001";

/// See the module. The namespace goes with the value.
pub struct ClusterStory {
    /// The cluster that stories share.
    pub cluster: &'static Cluster,
    /// The node on which the namespace's pods run.
    pub node: &'static ClusterNode,
    /// The namespace.
    pub namespace: String,
}

/// The cluster of this test process, which starts with the first story and ends with the process.
///
/// # Panics
/// When it does not come up: no story could be told.
pub fn shared() -> &'static Cluster {
    static SHARED: LazyLock<Cluster> = LazyLock::new(|| {
        Cluster::start().unwrap_or_else(|error| panic!("start the shared cluster: {error:?}"))
    });
    &SHARED
}

/// The shared cluster's node of that kind.
///
/// # Panics
/// When it does not get Ready.
pub fn shared_node(kind: NodeKind) -> &'static ClusterNode {
    static NODES: [OnceLock<ClusterNode>; 4] = [const { OnceLock::new() }; 4];
    let (number, name) = match kind {
        NodeKind::Podwright => (0, "podwright"),
        NodeKind::Stock => (1, "stock"),
        NodeKind::PodwrightOnContainerd => (2, "podwright-on-containerd"),
        NodeKind::StockOnPodwright => (3, "stock-on-podwright"),
    };
    let node = &NODES[number];
    node.get_or_init(|| {
        shared().node(kind, name).unwrap_or_else(|error| panic!("start the node {name}: {error:?}"))
    })
}

/// Tells a story on the shared cluster's node of that kind.
///
/// # Panics
/// When it fails: with its chain of causes, and what the namespace looks like.
pub fn tell(kind: NodeKind, name: &str, story: fn(&ClusterStory) -> Result<()>) {
    let node = shared_node(kind);
    let namespace = format!("{}-{}", name.replace('_', "-"), node.name());
    tell_in(ClusterStory::start(shared(), node, &namespace), story);
}

/// Tells a story on the shared cluster whose pods run wherever their manifests say. `node` is the one whose log is shown.
///
/// # Panics
/// As [`tell`].
pub fn tell_anywhere(
    node: &'static ClusterNode,
    name: &str,
    story: impl FnOnce(&ClusterStory) -> Result<()>,
) {
    tell_in(ClusterStory::anywhere(shared(), node, &name.replace('_', "-")), story);
}

/// Lets a node of the shared cluster know `private.example`: a registry that lets nobody in without [`Registry::USER`]'s password.
///
/// # Errors
/// When it does not come up.
pub fn private_registry(node: &ClusterNode) -> Result<()> {
    static REGISTRY: LazyLock<Result<Registry>> = LazyLock::new(|| {
        let router = shared().lab.router();
        Registry::serve_with_password_at(router, PRIVATE, &images::storage()?)
    });
    if let Err(error) = &*REGISTRY {
        anyhow::bail!("{error:?}");
    }
    write_only_mirror(&node.machine.host.path().join("certs.d"), "private.example", PRIVATE)
}

fn tell_in(told: Result<ClusterStory>, story: impl FnOnce(&ClusterStory) -> Result<()>) {
    let told = told.and_then(|told| {
        let result = story(&told);
        result.with_context(|| told.picture())
    });
    if let Err(error) = told {
        panic!("{error:?}");
    }
}

impl ClusterStory {
    /// Makes the namespace; its pods run on `node`.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub fn start(cluster: &'static Cluster, node: &'static ClusterNode, namespace: &str) -> Result<Self> {
        let selector = format!("kubernetes.io/hostname={}", node.name());
        Self::make(cluster, node, namespace, &selector)
    }

    /// Makes the namespace; its pods run on any node.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub fn anywhere(cluster: &'static Cluster, node: &'static ClusterNode, namespace: &str) -> Result<Self> {
        Self::make(cluster, node, namespace, "kubernetes.io/os=linux")
    }

    fn make(
        cluster: &'static Cluster,
        node: &'static ClusterNode,
        namespace: &str,
        selector: &str,
    ) -> Result<Self> {
        // Names of namespaces end at 63 characters.
        let namespace = namespace[namespace.len().saturating_sub(63)..].trim_start_matches('-');
        cluster.apply(&format!(
            "apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  annotations: {{scheduler.alpha.kubernetes.io/node-selector: {selector}}}
"
        ))?;
        let told = Self { cluster, node, namespace: namespace.to_owned() };
        told.kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=60s"])?;
        Ok(told)
    }

    /// kubectl in the namespace.
    ///
    /// # Errors
    /// When it fails: with what it wrote.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&self.words(arguments))
    }

    /// kubectl in the namespace as a command, to be run with pipes of one's own.
    #[must_use]
    pub fn kubectl_command(&self, arguments: &[&str]) -> std::process::Command {
        self.cluster.kubectl_command(&self.words(arguments))
    }

    /// `kubectl apply` in the namespace.
    ///
    /// # Errors
    /// When the API server does not take the manifests.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.cluster.kubectl_as("admin", &self.words(&["apply", "-f", "-"]), Some(manifests)).map(drop)
    }

    /// Runs a shell script in a pod with an empty directory `/data`, and waits until it is Ready.
    ///
    /// # Errors
    /// When it does not get so.
    pub fn run_shell(&self, pod: &str, script: &str) -> Result<()> {
        self.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {pod}}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: data, emptyDir: {{}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, {script:?}]
    volumeMounts: [{{name: data, mountPath: /data}}]
"
        ))?;
        self.ready(pod)
    }

    /// An object of the namespace.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, object: &str) -> Result<Value> {
        self.cluster.get(&self.words(&[object]))
    }

    /// The address of a pod.
    ///
    /// # Errors
    /// When it has none yet.
    pub fn address_of(&self, pod: &str) -> Result<String> {
        Ok(self.get(&format!("pod/{pod}"))?["status"]["podIP"].as_str().context("an address")?.to_owned())
    }

    /// `kubectl wait --for=CONDITION`, for two minutes; an object that is not there yet is waited for too.
    ///
    /// # Errors
    /// When it does not get so.
    pub fn wait(&self, object: &str, condition: &str) -> Result<()> {
        if condition != "delete" {
            self.kubectl(&["wait", "--for=create", object, "--timeout=60s"])?;
        }
        self.kubectl(&["wait", &format!("--for={condition}"), object, "--timeout=120s"]).map(drop)
    }

    /// Waits until a pod is Ready.
    ///
    /// # Errors
    /// When it does not get so.
    pub fn ready(&self, pod: &str) -> Result<()> {
        self.wait(&format!("pod/{pod}"), "condition=Ready")
    }

    /// What a shell script in a pod's container prints.
    ///
    /// # Errors
    /// When it fails: with what it wrote.
    pub fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }

    /// What the namespace looks like, for whoever reads that a story failed.
    #[must_use]
    pub fn picture(&self) -> String {
        let pods = self.kubectl(&["get", "pods", "-o", "wide"]).unwrap_or_else(|error| error.to_string());
        let described = self.kubectl(&["describe", "pods"]).unwrap_or_default();
        let log = self.node.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(60)..].join("\n");
        format!("{pods}\n{described}\n--- the last lines of the agent ---\n{last}")
    }

    fn words<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["-n", self.namespace.as_str()], arguments].concat()
    }
}

impl Drop for ClusterStory {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

/// A string of an object; empty where there is none.
#[must_use]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The condition of that type of an object; null where there is none.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

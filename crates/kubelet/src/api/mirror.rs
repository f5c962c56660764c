//! Mirror pods: what the API server shows of the static pods of this node. Whoever deletes one does not end the pod: it is shown
//! again. Upstream: pkg/kubelet/pod/mirror_client.go, and the kubelet's tryReconcileMirrorPods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use manifest::ObjectKey;
use tokio::sync::watch;

use super::source::key_of;
use super::trouble::Trouble;
use crate::report::NodeReport;
use crate::static_pod::{is_mirror_of, is_static_source, mirror_pod};

/// After a request, until its effect is heard of; and after one that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pods by namespace and name.
pub(super) type Pods = BTreeMap<ObjectKey, Arc<v1::Pod>>;

/// What decides about mirrors, as it changes.
pub(super) struct Inputs {
    /// The node's own object, which mirrors belong to.
    pub(super) node: watch::Receiver<Option<Arc<v1::Node>>>,
    /// The static pods that are wanted.
    pub(super) statics: watch::Receiver<Arc<Pods>>,
    /// The mirrors that there are; nothing before they were listed once.
    pub(super) mirrors: watch::Receiver<Option<Arc<Pods>>>,
    /// The pods that run.
    pub(super) reports: watch::Receiver<Arc<NodeReport>>,
}

/// Keeps the mirrors as they should be, for ever.
pub(super) async fn keep(client: Client, mut inputs: Inputs) {
    let mut trouble = Trouble::new("static pods are not shown by the API server; trying again");
    loop {
        let actions = inputs.plan();
        let mut failed = false;
        for action in &actions {
            match tokio::time::timeout(PATIENCE, carry_out(&client, action)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    failed = true;
                    trouble.meet(&error);
                }
                Err(_) => {
                    failed = true;
                    trouble.meet_text("the API server does not answer");
                }
            }
        }
        if !failed {
            trouble.is_over();
        }
        match actions.is_empty() {
            true => inputs.changed().await,
            false => tokio::time::sleep(AGAIN).await,
        }
    }
}

impl Inputs {
    fn plan(&mut self) -> Vec<Action> {
        let node = self.node.borrow_and_update().clone();
        let statics = self.statics.borrow_and_update().clone();
        let mirrors = self.mirrors.borrow_and_update().clone();
        let report = self.reports.borrow_and_update().clone();
        let (Some(node), Some(mirrors)) = (node, mirrors) else { return Vec::new() };
        let running = report.pods.iter().filter(|pod| is_static_source(pod));
        let running = running.map(|pod| key_of(&**pod)).collect();
        plan(&statics, &mirrors, &running, &node)
    }

    async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.node.changed() => {}
            Ok(()) = self.statics.changed() => {}
            Ok(()) = self.mirrors.changed() => {}
            Ok(()) = self.reports.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// One request.
#[derive(Debug, PartialEq)]
enum Action {
    Create(Box<v1::Pod>),
    Delete { key: ObjectKey, uid: String },
}

/// A mirror of another static pod, one that somebody deletes, and one whose pod is gone make room.
fn plan(statics: &Pods, mirrors: &Pods, running: &BTreeSet<ObjectKey>, node: &v1::Node) -> Vec<Action> {
    let delete = |key: &ObjectKey, mirror: &v1::Pod| Action::Delete {
        key: key.clone(),
        uid: mirror.metadata.uid.clone().unwrap_or_default(),
    };
    let wanted = statics.iter().filter_map(|(key, pod)| match mirrors.get(key) {
        None => Some(Action::Create(Box::new(owned(pod, node)))),
        Some(mirror) if mirror.metadata.deletion_timestamp.is_some() || !is_mirror_of(mirror, pod) => {
            Some(delete(key, mirror))
        }
        Some(_) => None,
    });
    let unwanted = mirrors.iter().filter(|(key, _)| !statics.contains_key(key) && !running.contains(key));
    wanted.chain(unwanted.map(|(key, mirror)| delete(key, mirror))).collect()
}

/// A node may only make pods that belong to it.
fn owned(pod: &v1::Pod, node: &v1::Node) -> v1::Pod {
    let mut mirror = mirror_pod(pod);
    mirror.metadata.creation_timestamp = None;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    mirror
}

async fn carry_out(client: &Client, action: &Action) -> Result<(), kube::Error> {
    let done = match action {
        Action::Create(mirror) => {
            let namespace = mirror.metadata.namespace.as_deref().unwrap_or("default");
            let api = Api::<v1::Pod>::namespaced(client.clone(), namespace);
            return api.create(&PostParams::default(), mirror).await.map(drop);
        }
        Action::Delete { key, uid } => {
            let api = Api::<v1::Pod>::namespaced(client.clone(), &key.namespace);
            let preconditions = Some(Preconditions { uid: Some(uid.clone()), resource_version: None });
            let parameters = DeleteParams { preconditions, ..DeleteParams::default().grace_period(0) };
            api.delete(&key.name, &parameters).await.map(drop)
        }
    };
    match done {
        // It is gone already, or another one.
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::static_pod::static_pod;

    fn pods(all: &[&v1::Pod]) -> Pods {
        all.iter().map(|&pod| (key_of(pod), Arc::new(pod.clone()))).collect()
    }

    fn source(image: &str) -> v1::Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "n" }, "spec": { "containers": [{ "name": "a", "image": image }] },
        }))
        .expect("a pod")
    }

    #[test]
    fn each_static_pod_has_one_mirror_that_is_its_own() {
        let node: v1::Node =
            serde_json::from_value(json!({ "metadata": { "name": "box", "uid": "node-uid" } }))
                .expect("a node");
        let (pod, other) = (static_pod(&source("i"), "box"), static_pod(&source("j"), "box"));
        let key = key_of(&pod);
        let mut mirror = mirror_pod(&pod);
        mirror.metadata.uid = Some("m".into());
        let (wanted, none) = (pods(&[&pod]), Pods::new());
        let plan = |statics: &Pods, mirrors: &Pods, running: &[&ObjectKey]| {
            super::plan(statics, mirrors, &running.iter().map(|&key| key.clone()).collect(), &node)
        };
        let [Action::Create(made)] = &plan(&wanted, &none, &[])[..] else { panic!("it is made") };
        let owner = made.metadata.owner_references.as_ref().map(|all| all[0].clone()).unwrap_or_default();
        assert_eq!((owner.uid.as_str(), owner.controller), ("node-uid", Some(true)));
        assert_eq!(plan(&wanted, &pods(&[&mirror]), &[&key]), []);
        let delete = || vec![Action::Delete { key: key.clone(), uid: "m".into() }];
        assert_eq!(plan(&pods(&[&other]), &pods(&[&mirror]), &[]), delete(), "it shows a former pod");
        assert_eq!(plan(&none, &pods(&[&mirror]), &[&key]), [], "its pod still ends");
        assert_eq!(plan(&none, &pods(&[&mirror]), &[]), delete());
        mirror.metadata.deletion_timestamp = crate::time::api_time(1_000_000_000);
        assert_eq!(plan(&wanted, &pods(&[&mirror]), &[&key]), delete(), "then it is made again");
    }
}

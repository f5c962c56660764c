//! The pods and containers that requests name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cri::v1 as crv1;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use manifest::Loaded;
use serde::Serialize;
use tonic::Status;

use super::respond::{self, Answer};
use super::{Server, route};
use crate::cri_requests::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::report::NodeReport;
use crate::static_pod::CONFIG_SOURCE;

/// `/pods` and `/runningpods/`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodList<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: ListMeta,
    items: Vec<&'a v1::Pod>,
}

/// The API's list of pods.
pub(super) fn list(pods: &[Arc<v1::Pod>]) -> Answer {
    let (metadata, items) = (ListMeta::default(), pods.iter().map(|pod| &**pod).collect());
    respond::json(&PodList { kind: "PodList", api_version: "v1", metadata, items })
}

/// Every pod of the node with its status, and those whose worker has told nothing yet: pure.
pub(super) fn all(report: &NodeReport, desired: &Loaded) -> Vec<Arc<v1::Pod>> {
    let told = |pod: &v1::Pod| report.pods.iter().any(|known| known.metadata.uid == pod.metadata.uid);
    let others = desired.objects.pods.values().filter(|pod| !told(pod));
    report.pods.iter().chain(others).cloned().collect()
}

/// The pod of that name: the one that is wanted, where another of its name is still ending. Pure.
pub(super) fn by_name(
    report: &NodeReport,
    desired: &Loaded,
    namespace: &str,
    name: &str,
) -> Option<Arc<v1::Pod>> {
    let is_named = |pod: &&Arc<v1::Pod>| {
        let meta = &pod.metadata;
        meta.name.as_deref() == Some(name) && meta.namespace.as_deref().unwrap_or("default") == namespace
    };
    let wanted = desired.objects.pods.values().find(is_named);
    let told = || report.pods.iter().filter(is_named);
    let of_wanted = wanted.and_then(|wanted| told().find(|pod| pod.metadata.uid == wanted.metadata.uid));
    of_wanted.or(wanted).or_else(|| told().next()).cloned()
}

/// Whether the API server's uid is this pod's: a static pod has another one there, that of its mirror.
pub(super) fn has_uid(pod: &v1::Pod, uid: Option<&str>) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|all| all.get(CONFIG_SOURCE));
    uid.is_none() || pod.metadata.uid.as_deref() == uid || source.is_some_and(|source| source != "api")
}

/// The container as the pod has it: any kind of it.
pub(super) fn has_container(pod: &v1::Pod, name: &str) -> bool {
    container(pod, name).is_some()
}

/// Whether a container of the pod has a terminal.
pub(super) fn has_tty(pod: &v1::Pod, name: &str) -> bool {
    container(pod, name) == Some(true)
}

/// Whether the container of that name has a terminal.
fn container(pod: &v1::Pod, name: &str) -> Option<bool> {
    let spec = pod.spec.as_ref()?;
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let all = all.map(|one| (one.name.as_str(), one.tty));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|one| (one.name.as_str(), one.tty));
    all.chain(ephemeral).find(|(known, _)| *known == name).map(|(_, tty)| tty.unwrap_or(false))
}

/// Pods as the runtime knows them: by the labels of their running containers. Pure.
fn running(containers: Vec<crv1::Container>) -> Vec<Arc<v1::Pod>> {
    let mut pods: BTreeMap<[String; 3], Vec<v1::Container>> = BTreeMap::new();
    for container in containers {
        let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
        let pod = [POD_NAMESPACE, POD_NAME, POD_UID].map(label);
        let told = v1::Container {
            name: label(CONTAINER_NAME),
            image: container.image.map(|image| image.image),
            ..v1::Container::default()
        };
        pods.entry(pod).or_default().push(told);
    }
    let pods = pods.into_iter().map(|([namespace, name, uid], mut containers)| {
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        let metadata = ObjectMeta {
            name: Some(name),
            namespace: Some(namespace),
            uid: Some(uid),
            ..ObjectMeta::default()
        };
        let spec = Some(v1::PodSpec { containers, ..v1::PodSpec::default() });
        Arc::new(v1::Pod { metadata, spec, status: None })
    });
    pods.collect()
}

impl Server {
    /// `/runningpods/`.
    pub(super) async fn running_pods(&self) -> Answer {
        match self.running_containers(HashMap::new()).await {
            Ok(containers) => list(&running(containers)),
            Err(status) => respond::of_runtime(&status),
        }
    }

    /// The pod of that name.
    pub(super) fn pod(&self, wanted: &route::Pod<'_>) -> Option<Arc<v1::Pod>> {
        by_name(&self.report.borrow(), &self.desired.borrow(), wanted.namespace, wanted.name)
    }

    /// The running container of that name; its id.
    pub(super) async fn running_container(
        &self,
        pod: &v1::Pod,
        name: &str,
    ) -> Result<Option<String>, Status> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let labels = HashMap::from([(POD_UID.to_owned(), uid), (CONTAINER_NAME.to_owned(), name.to_owned())]);
        let containers = self.running_containers(labels).await?;
        let newest = containers.into_iter().max_by_key(|one| one.created_at);
        Ok(newest.map(|container| container.id))
    }

    async fn running_containers(
        &self,
        label_selector: HashMap<String, String>,
    ) -> Result<Vec<crv1::Container>, Status> {
        let state = crv1::ContainerStateValue { state: crv1::ContainerState::ContainerRunning.into() };
        let filter = crv1::ContainerFilter { state: Some(state), label_selector, ..Default::default() };
        let request = crv1::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime().list_containers(request).await?.into_inner().containers)
    }

    /// The ready sandbox of the pod; its id.
    pub(super) async fn ready_sandbox(&self, pod: &v1::Pod) -> Result<Option<String>, Status> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let state = crv1::PodSandboxStateValue { state: crv1::PodSandboxState::SandboxReady.into() };
        let filter = crv1::PodSandboxFilter {
            state: Some(state),
            label_selector: HashMap::from([(POD_UID.to_owned(), uid)]),
            ..Default::default()
        };
        let listed =
            self.runtime().list_pod_sandbox(crv1::ListPodSandboxRequest { filter: Some(filter) }).await?;
        let newest = listed.into_inner().items.into_iter().max_by_key(|one| one.created_at);
        Ok(newest.map(|sandbox| sandbox.id))
    }
}

#[cfg(test)]
mod tests {
    use manifest::ObjectKey;
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, phase: &str) -> Arc<v1::Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": "p", "namespace": "n", "uid": uid },
                "spec": {
                    "containers": [{ "name": "main", "tty": true }],
                    "initContainers": [{ "name": "init" }],
                    "ephemeralContainers": [{ "name": "debugger", "tty": true }],
                },
                "status": { "phase": phase },
            }))
            .unwrap(),
        )
    }

    fn world(told: &[Arc<v1::Pod>], wanted: &[Arc<v1::Pod>]) -> (NodeReport, Loaded) {
        let mut desired = Loaded::default();
        let wanted = wanted.iter().map(|pod| (ObjectKey::new("n", "p"), pod.clone()));
        desired.objects.pods = wanted.collect();
        (NodeReport { pods: told.to_vec(), ..NodeReport::default() }, desired)
    }

    #[test]
    fn a_name_means_the_pod_that_is_wanted() {
        let uid = |(report, desired): (NodeReport, Loaded)| {
            by_name(&report, &desired, "n", "p").and_then(|pod| {
                let phase = pod.status.clone().and_then(|status| status.phase);
                Some(format!("{} {}", pod.metadata.uid.clone()?, phase?))
            })
        };
        assert_eq!(uid(world(&[], &[])), None);
        assert_eq!(uid(world(&[], &[pod("new", "Pending")])).as_deref(), Some("new Pending"));
        let both = [pod("old", "Running"), pod("new", "Running")];
        assert_eq!(uid(world(&both, &[pod("new", "Pending")])).as_deref(), Some("new Running"));
        assert_eq!(uid(world(&both[..1], &[])).as_deref(), Some("old Running"));
        let (report, desired) = world(&both[..1], &[pod("new", "Pending")]);
        assert_eq!(all(&report, &desired).len(), 2);
        assert!(by_name(&report, &desired, "other", "p").is_none());
    }

    #[test]
    fn running_containers_are_put_together_by_their_pods() {
        let container = |pod: &str, name: &str| crv1::Container {
            labels: HashMap::from([
                (POD_NAMESPACE.to_owned(), "n".to_owned()),
                (POD_NAME.to_owned(), pod.to_owned()),
                (CONTAINER_NAME.to_owned(), name.to_owned()),
            ]),
            ..crv1::Container::default()
        };
        let pods = running(vec![container("b", "y"), container("a", "z"), container("b", "x")]);
        let names = pods.iter().map(|pod| {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let names: Vec<&str> = containers.map(|container| container.name.as_str()).collect();
            format!("{}: {}", pod.metadata.name.as_deref().unwrap(), names.join(" "))
        });
        assert_eq!(names.collect::<Vec<_>>(), ["a: z", "b: x y"]);
    }

    #[test]
    fn any_kind_of_container_has_a_name() {
        let pod = pod("u", "Running");
        assert!(["main", "init", "debugger"].iter().all(|name| has_container(&pod, name)));
        assert!(!has_container(&pod, "other"));
        assert!(has_tty(&pod, "debugger") && !has_tty(&pod, "init"));
    }

    #[test]
    fn a_static_pod_is_known_by_its_mirrors_uid_too() {
        let mut pod = (*pod("hash", "Running")).clone();
        assert!(has_uid(&pod, None) && has_uid(&pod, Some("hash")) && !has_uid(&pod, Some("mirror")));
        pod.metadata.annotations = Some([(CONFIG_SOURCE.to_owned(), "file".to_owned())].into());
        assert!(has_uid(&pod, Some("mirror")));
    }
}

//! What a CRI server alone knows of its pods, told as v1 Pods: for `podwright runtime`, which has no kubelet.

use anyhow::Context;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::{
    Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxState,
    PodSandboxStatusRequest,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tonic::transport::Channel;

/// Asks the server for everything it has.
pub(crate) async fn pods(cri: Channel) -> anyhow::Result<Vec<Pod>> {
    let mut client = RuntimeServiceClient::new(cri);
    let sandboxes =
        client.list_pod_sandbox(ListPodSandboxRequest::default()).await.context("list sandboxes")?;
    let containers =
        client.list_containers(ListContainersRequest::default()).await.context("list containers")?;
    let containers = containers.into_inner().containers;
    let mut pods = Vec::new();
    for sandbox in sandboxes.into_inner().items {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), ..Default::default() };
        // One that is removed meanwhile has no address, and the next report will not have it.
        let status =
            client.pod_sandbox_status(request).await.ok().and_then(|reply| reply.into_inner().status);
        let ip =
            status.and_then(|status| status.network).map(|network| network.ip).filter(|ip| !ip.is_empty());
        pods.push(pod(&sandbox, ip, &containers)?);
    }
    Ok(pods)
}

/// One sandbox with its containers as a Pod.
pub(super) fn pod(sandbox: &PodSandbox, ip: Option<String>, containers: &[Container]) -> anyhow::Result<Pod> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let mine: Vec<&Container> =
        containers.iter().filter(|container| container.pod_sandbox_id == sandbox.id).collect();
    let name = |container: &Container| container.metadata.clone().unwrap_or_default().name;
    let specs: Vec<Value> = mine.iter().map(|container| json!({"name": name(container)})).collect();
    let statuses: Vec<Value> = mine.iter().map(|container| container_status(container)).collect();
    let phase = match sandbox.state() {
        PodSandboxState::SandboxReady => "Running",
        PodSandboxState::SandboxNotready => "Succeeded",
    };
    let created = Timestamp::from_nanosecond(i128::from(sandbox.created_at)).unwrap_or_default().to_string();
    serde_json::from_value(json!({
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "labels": sandbox.labels,
            "creationTimestamp": created,
        },
        "spec": {"containers": specs},
        "status": {"phase": phase, "podIP": ip, "startTime": created, "containerStatuses": statuses},
    }))
    .with_context(|| format!("describe the sandbox {}", sandbox.id))
}

fn container_status(container: &Container) -> Value {
    let metadata = container.metadata.clone().unwrap_or_default();
    let state = match container.state() {
        ContainerState::ContainerRunning => json!({"running": {}}),
        ContainerState::ContainerCreated => json!({"waiting": {"reason": "ContainerCreating"}}),
        // The list does not say how it ended.
        ContainerState::ContainerExited => json!({"terminated": {"exitCode": 0, "reason": "Exited"}}),
        ContainerState::ContainerUnknown => json!({"waiting": {"reason": "Unknown"}}),
    };
    let running = container.state() == ContainerState::ContainerRunning;
    json!({
        "name": metadata.name,
        "containerID": format!("podwright://{}", container.id),
        "image": container.image.clone().unwrap_or_default().image,
        "imageID": container.image_ref,
        "ready": running,
        "started": running,
        "restartCount": metadata.attempt,
        "state": state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::{ContainerMetadata, PodSandboxMetadata};

    #[test]
    fn a_sandbox_and_its_containers_are_a_pod() {
        let sandbox = PodSandbox {
            id: "s1".into(),
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                namespace: "default".into(),
                uid: "u1".into(),
                attempt: 0,
            }),
            created_at: 1_700_000_000_000_000_000,
            ..PodSandbox::default()
        };
        let container = |sandbox: &str, name: &str, state: ContainerState| Container {
            pod_sandbox_id: sandbox.into(),
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 2 }),
            state: state.into(),
            ..Container::default()
        };
        let containers = [
            container("s1", "a", ContainerState::ContainerRunning),
            container("s2", "b", ContainerState::ContainerRunning),
        ];
        let pod = pod(&sandbox, Some("10.85.0.2".into()), &containers).unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web"));
        let status = pod.status.unwrap();
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(status.pod_ip.as_deref(), Some("10.85.0.2"));
        let containers = status.container_statuses.unwrap();
        assert_eq!(containers.len(), 1);
        assert_eq!((containers[0].ready, containers[0].restart_count), (true, 2));
    }
}

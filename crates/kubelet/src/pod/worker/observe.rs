//! What CRI tells of one pod.

use std::collections::HashMap;

use cri::v1;
use cri::v1::{ContainerState, PodSandboxState};
use tonic::Status;

use super::Worker;
use crate::cri_requests::{CONTAINER_NAME, POD_UID, on_host_network};
use crate::pod::container_details::Details;
use crate::pod::plan::{ObservedContainer, ObservedPod, ObservedSandbox, ObservedState};
use crate::time::boot_of_wall;

impl Worker {
    /// Lists the pod's sandboxes and containers by its uid.
    pub(super) async fn observe(&self) -> Result<ObservedPod, Status> {
        let selector = HashMap::from([(POD_UID.to_owned(), self.pod.uid.clone())]);
        let mut runtime = self.runtime();
        let filter = v1::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
        let listed =
            runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?.into_inner();
        let mut seen = ObservedPod::default();
        for sandbox in listed.items {
            let ready = sandbox.state() == PodSandboxState::SandboxReady;
            let ips = match ready {
                true if on_host_network(&self.pod) => self.node_ips(),
                true => self.ips(&sandbox.id).await?,
                false => Vec::new(),
            };
            seen.sandboxes.push(ObservedSandbox {
                attempt: sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
                ready,
                ips,
                created_at: sandbox.created_at,
                id: sandbox.id,
            });
        }
        seen.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        if seen.sandboxes.is_empty() {
            return Ok(seen);
        }
        let filter = v1::ContainerFilter { label_selector: selector, ..Default::default() };
        let listed =
            runtime.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?.into_inner();
        for container in listed.containers {
            let name = container.labels.get(CONTAINER_NAME).cloned().unwrap_or_default();
            if let Some(observed) = self.container(container).await? {
                seen.containers.entry(name).or_default().push(observed);
            }
        }
        for attempts in seen.containers.values_mut() {
            attempts.sort_by_key(|container| std::cmp::Reverse(container.attempt));
        }
        Ok(seen)
    }

    async fn ips(&self, sandbox: &str) -> Result<Vec<String>, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        let status =
            self.runtime().pod_sandbox_status(request).await?.into_inner().status.unwrap_or_default();
        let network = status.network.unwrap_or_default();
        let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        Ok(all.filter(|ip| !ip.is_empty()).collect())
    }

    /// A pod on the node's network has the node's addresses.
    pub(super) fn node_ips(&self) -> Vec<String> {
        self.node.config.node_ips.iter().map(ToString::to_string).collect()
    }

    /// One that was removed since the list is nothing.
    async fn container(&self, listed: v1::Container) -> Result<Option<ObservedContainer>, Status> {
        let request = v1::ContainerStatusRequest { container_id: listed.id.clone(), verbose: false };
        let status = match self.runtime().container_status(request).await {
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
            other => other?.into_inner().status.unwrap_or_default(),
        };
        let stop_signal = match status.stop_signal() {
            v1::Signal::RuntimeDefault => String::new(),
            signal => signal.as_str_name().to_owned(),
        };
        let state = match status.state() {
            ContainerState::ContainerRunning => ObservedState::Running { started_at: status.started_at },
            ContainerState::ContainerExited => ObservedState::Exited {
                code: status.exit_code,
                reason: status.reason,
                message: status.message,
                started_at: status.started_at,
                finished_at: status.finished_at,
                ended: boot_of_wall(status.finished_at),
            },
            ContainerState::ContainerCreated | ContainerState::ContainerUnknown => ObservedState::Created,
        };
        let user = status.user.and_then(|user| user.linux);
        let details =
            Details { user: user.map(|user| (user.uid, user.gid, user.supplemental_groups)), stop_signal };
        Ok(Some(ObservedContainer {
            id: listed.id,
            sandbox: listed.pod_sandbox_id,
            attempt: listed.metadata.map_or(0, |metadata| metadata.attempt),
            image_id: status.image_ref,
            image: listed.image.map(|image| image.user_specified_image).unwrap_or_default(),
            details,
            state,
        }))
    }
}

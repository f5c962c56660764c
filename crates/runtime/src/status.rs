//! What CRI tells of sandboxes and containers, from their records: pure.

use cri::v1;
use cri::v1::{ContainerState, PodSandboxState};

use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::spec;

/// PodSandboxStatus.
pub(crate) fn sandbox(record: &SandboxRecord) -> v1::PodSandboxStatus {
    let mut ips =
        record.network.iter().flat_map(cni::AddResult::container_ips).map(|ip| ip.addr().to_string());
    let ip = ips.next().unwrap_or_default();
    let additional_ips = ips.map(|ip| v1::PodIp { ip }).collect();
    v1::PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        network: Some(v1::PodSandboxNetworkStatus { ip, additional_ips }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(spec::namespace_options(&record.config)) }),
        }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// An entry of ListPodSandbox.
pub(crate) fn sandbox_summary(record: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

fn sandbox_state(record: &SandboxRecord) -> PodSandboxState {
    match record.phase {
        SandboxPhase::Ready => PodSandboxState::SandboxReady,
        SandboxPhase::Creating | SandboxPhase::Stopping | SandboxPhase::NotReady => {
            PodSandboxState::SandboxNotready
        }
    }
}

/// ContainerStatus.
pub(crate) fn container(record: &ContainerRecord) -> v1::ContainerStatus {
    let mut status = v1::ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: container_state(&record.phase).into(),
        created_at: record.created_at,
        image: record.config.image.clone(),
        image_ref: record.image_id.clone(),
        image_id: record.image_id.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.clone(),
        log_path: record.log_path.clone(),
        resources: resources(record),
        user: Some(v1::ContainerUser { linux: Some(record.user.clone()) }),
        stop_signal: record.config.stop_signal,
        ..Default::default()
    };
    match &record.phase {
        ContainerPhase::Created | ContainerPhase::Starting => {}
        ContainerPhase::Running { started_at, .. } => status.started_at = *started_at,
        ContainerPhase::Exited(exit) => {
            status.started_at = exit.started_at;
            status.finished_at = exit.finished_at;
            status.exit_code = exit.code;
            status.reason.clone_from(&exit.reason);
            status.message.clone_from(&exit.message);
        }
    }
    status
}

/// An entry of ListContainers.
pub(crate) fn container_summary(record: &ContainerRecord) -> v1::Container {
    v1::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_id.clone(),
        image_id: record.image_id.clone(),
        state: container_state(&record.phase).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

pub(crate) fn container_state(phase: &ContainerPhase) -> ContainerState {
    match phase {
        ContainerPhase::Created | ContainerPhase::Starting => ContainerState::ContainerCreated,
        ContainerPhase::Running { .. } => ContainerState::ContainerRunning,
        ContainerPhase::Exited(_) => ContainerState::ContainerExited,
    }
}

fn resources(record: &ContainerRecord) -> Option<v1::ContainerResources> {
    let linux = record.config.linux.as_ref()?.resources.clone()?;
    Some(v1::ContainerResources { linux: Some(linux), windows: None })
}

//! What the records of a node say while no agent runs: pods may well go on, and here is what was last known.

use std::path::{Path, PathBuf};

use anyhow::Context;
use cri::v1::{Container, ContainerState, PodSandbox, PodSandboxState};
use k8s_openapi::api::core::v1::Pod;
use runtime::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use serde::de::DeserializeOwned;

use super::report::Report;
use super::sandboxes::pod;
use crate::agent::node_object;
use crate::node::Node;

/// Reads the records; nothing is changed.
pub(crate) fn report(node: &Node) -> anyhow::Result<Report> {
    let trouble = ("AgentNotRunning".to_owned(), "the agent is not running".to_owned());
    let mut report = Report { node: node_object(node, Some(trouble)), ..Report::default() };
    for (sandbox, containers) in records(node)? {
        report.pods.push(recorded_pod(sandbox, &containers)?);
    }
    Ok(report)
}

/// A sandbox and its containers.
pub(crate) type Recorded = (SandboxRecord, Vec<ContainerRecord>);

/// Every sandbox, as the runtime wrote them down.
pub(crate) fn records(node: &Node) -> anyhow::Result<Vec<Recorded>> {
    let mut found = Vec::new();
    for directory in directories(&node.state.join("sandboxes"))? {
        let Some(sandbox) = read(&directory) else { continue };
        let containers = directories(&directory.join("containers"))?;
        found.push((sandbox, containers.iter().filter_map(|directory| read(directory)).collect()));
    }
    Ok(found)
}

fn recorded_pod(record: SandboxRecord, containers: &[ContainerRecord]) -> anyhow::Result<Pod> {
    let ip = record
        .network
        .as_ref()
        .and_then(|network| network.ips.first())
        .map(|ip| ip.address.addr().to_string());
    let state = match record.phase {
        SandboxPhase::Ready => PodSandboxState::SandboxReady,
        SandboxPhase::Creating | SandboxPhase::Stopping | SandboxPhase::NotReady => {
            PodSandboxState::SandboxNotready
        }
    };
    let sandbox = PodSandbox {
        id: record.id,
        metadata: record.config.metadata,
        state: state.into(),
        created_at: record.created_at,
        labels: record.config.labels,
        ..PodSandbox::default()
    };
    let containers: Vec<Container> = containers.iter().map(recorded_container).collect();
    pod(&sandbox, ip, &containers)
}

fn recorded_container(record: &ContainerRecord) -> Container {
    let state = match record.phase {
        ContainerPhase::Created | ContainerPhase::Starting => ContainerState::ContainerCreated,
        ContainerPhase::Running { .. } => ContainerState::ContainerRunning,
        ContainerPhase::Exited(_) => ContainerState::ContainerExited,
    };
    Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_id.clone(),
        state: state.into(),
        created_at: record.created_at,
        ..Container::default()
    }
}

/// The directories below `parent`, by name; none when it does not exist.
fn directories(parent: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", parent.display())),
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    Ok(found)
}

/// A record; none when it is not there or was not finished.
fn read<T: DeserializeOwned>(directory: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(directory.join("record.json")).ok()?).ok()
}

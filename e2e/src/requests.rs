//! CRI requests as a kubelet would send them, to be changed by stories where they differ.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, DnsConfig, ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    RunPodSandboxRequest, SecurityProfile, StartContainerRequest, StopContainerRequest,
    runtime_service_client::RuntimeServiceClient, security_profile::ProfileType,
};
use tonic::transport::Channel;

use crate::image;

/// The client of stories.
pub type Runtime = RuntimeServiceClient<Channel>;

/// A pod with a log directory below `directory` and the namespaces that a kubelet asks for by default.
#[must_use]
pub fn pod(directory: &Path, name: &str) -> PodSandboxConfig {
    let logs = directory.join("logs").join(name);
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.display().to_string(),
        dns_config: Some(DnsConfig {
            servers: vec!["192.0.2.53".into()],
            searches: vec!["default.svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        }),
        labels: HashMap::from([("io.kubernetes.pod.name".to_owned(), name.to_owned())]),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(runtime_default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A busybox container that runs `command`, with the limits and the security context of an ordinary pod.
#[must_use]
pub fn container(name: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: image::BUSYBOX.to_owned(), ..Default::default() }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 512,
                memory_limit_in_bytes: 64 << 20,
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(runtime_default()),
                no_new_privs: true,
                masked_paths: ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
                    .map(str::to_owned)
                    .into(),
                readonly_paths: ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).into(),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() }
}

/// RunPodSandbox; gives the sandbox's id.
///
/// # Errors
/// What the server said.
pub async fn run_pod(runtime: &mut Runtime, pod: &PodSandboxConfig) -> Result<String> {
    std::fs::create_dir_all(&pod.log_directory).context("create the pod's log directory")?;
    let request = RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
    Ok(runtime.run_pod_sandbox(request).await.context("RunPodSandbox")?.into_inner().pod_sandbox_id)
}

/// CreateContainer; gives the container's id.
///
/// # Errors
/// What the server said.
pub async fn create(
    runtime: &mut Runtime,
    pod_id: &str,
    pod: &PodSandboxConfig,
    container: &ContainerConfig,
) -> Result<String> {
    let request = CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(container.clone()),
        sandbox_config: Some(pod.clone()),
    };
    Ok(runtime.create_container(request).await.context("CreateContainer")?.into_inner().container_id)
}

/// StartContainer.
///
/// # Errors
/// What the server said.
pub async fn start(runtime: &mut Runtime, id: &str) -> Result<()> {
    let request = StartContainerRequest { container_id: id.to_owned() };
    runtime.start_container(request).await.context("StartContainer").map(drop)
}

/// StopContainer with a grace period in seconds.
///
/// # Errors
/// What the server said.
pub async fn stop(runtime: &mut Runtime, id: &str, timeout: i64) -> Result<()> {
    let request = StopContainerRequest { container_id: id.to_owned(), timeout };
    runtime.stop_container(request).await.context("StopContainer").map(drop)
}

/// ContainerStatus.
///
/// # Errors
/// What the server said.
pub async fn status(runtime: &mut Runtime, id: &str) -> Result<ContainerStatus> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let response = runtime.container_status(request).await.context("ContainerStatus")?.into_inner();
    response.status.context("a status")
}

/// ExecSync with a time limit of 30 s.
///
/// # Errors
/// What the server said.
pub async fn exec(runtime: &mut Runtime, id: &str, command: &[&str]) -> Result<ExecSyncResponse> {
    let request = ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        timeout: 30,
    };
    Ok(runtime.exec_sync(request).await.context("ExecSync")?.into_inner())
}

/// Creates, starts and awaits the end of a container; gives its final status and its log's text.
///
/// # Errors
/// What the server said, or that the container did not end within 60 s.
pub async fn run_to_end(
    runtime: &mut Runtime,
    pod_id: &str,
    pod: &PodSandboxConfig,
    container: &ContainerConfig,
) -> Result<(ContainerStatus, String)> {
    let id = create(runtime, pod_id, pod, container).await?;
    start(runtime, &id).await?;
    let status = exited(runtime, &id).await?;
    Ok((status, log_of(pod, container)?))
}

/// Waits (60 s at most) until the container has exited.
///
/// # Errors
/// What the server said, or that it still runs.
pub async fn exited(runtime: &mut Runtime, id: &str) -> Result<ContainerStatus> {
    for _ in 0..3000 {
        let status = status(runtime, id).await?;
        if status.state() == ContainerState::ContainerExited {
            return Ok(status);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    bail!("container {id} still runs after 60 s")
}

/// The container's lines, without the prefix of CRI and put together where they were split: between the parts of one there may be lines
/// of the other stream.
///
/// # Errors
/// When the log cannot be read, or a line is not in the CRI format.
pub fn log_of(pod: &PodSandboxConfig, container: &ContainerConfig) -> Result<String> {
    let path = Path::new(&pod.log_directory).join(&container.log_path);
    let raw = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    whole_lines(&raw)
}

fn whole_lines(raw: &str) -> Result<String> {
    let mut text = String::new();
    let mut begun: BTreeMap<&str, String> = BTreeMap::new();
    for line in raw.lines() {
        let [_time, stream, tag, content] = <[&str; 4]>::try_from(line.splitn(4, ' ').collect::<Vec<_>>())
            .map_err(|_| anyhow!("{line:?}"))?;
        let begun = begun.entry(stream).or_default();
        begun.push_str(content);
        if tag == "F" {
            text.push_str(&std::mem::take(begun));
            text.push('\n');
        }
    }
    text.extend(begun.into_values());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_split_is_whole_though_the_other_stream_spoke_meanwhile() {
        let raw = "t stdout F out\nt stdout P xx\nt stderr F err\nt stdout P x\nt stdout F x x\nt stderr P unfinished\n";
        assert_eq!(whole_lines(raw).unwrap(), "out\nerr\nxxxx x\nunfinished");
        assert!(whole_lines("t stdout F\n").is_err());
    }
}

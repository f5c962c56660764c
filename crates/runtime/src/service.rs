//! The two CRI services: from gRPC to the runtime and back, nothing more.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use cri::v1;
use cri::v1::image_service_server::ImageService;
use cri::v1::runtime_service_server::RuntimeService;
use serde_json::json;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, async_trait};

use crate::error::Error;
use crate::images::{Auth, Image, ImageError, ImageId};
use crate::listing::{in_pieces, wants_container, wants_sandbox};
use crate::record::SandboxPhase;
use crate::runtime::{Runtime, now_ns};
use crate::stats::descriptors;
use crate::{handlers, inspect, status};

/// RuntimeService.
pub(crate) struct Pods(pub(crate) Arc<Runtime>);

/// ImageService.
pub(crate) struct Images(pub(crate) Arc<Runtime>);

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The version of CRI that we speak: what kubelet and crictl ask for.
const API_VERSION: &str = "v1";

/// Calls that are not served: each says so.
macro_rules! unimplemented {
    ($($method:ident($request:ty) -> $response:ty: $what:literal;)*) => {
        // As async_trait writes it out: it does not see through a macro.
        $(fn $method<'life0, 'async_trait>(
            &'life0 self,
            _request: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<$response>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(std::future::ready(Err(Status::unimplemented(concat!("podwright does not serve ", $what, " yet")))))
        })*
    };
}

/// A message's part that must be there.
fn needed<T>(part: Option<T>, what: &str) -> Result<T, Error> {
    part.ok_or_else(|| Error::Invalid(format!("the request has no {what}")))
}

#[async_trait]
impl RuntimeService for Pods {
    type StreamPodSandboxesStream = Events<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = Events<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = Events<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Events<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Events<v1::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Events<v1::ContainerEventResponse>;

    async fn version(&self, _request: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "podwright".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: API_VERSION.to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = needed(request.config, "config")?;
        let runtime = self.0.clone();
        // A client that goes away does not leave a half-made sandbox.
        let made = tokio::spawn(async move { runtime.run_sandbox(config, request.runtime_handler).await });
        let pod_sandbox_id = joined(made).await?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let (runtime, id) = (self.0.clone(), request.into_inner().pod_sandbox_id);
        joined(tokio::spawn(async move { runtime.stop_sandbox(&id).await })).await?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let (runtime, id) = (self.0.clone(), request.into_inner().pod_sandbox_id);
        joined(tokio::spawn(async move { runtime.remove_sandbox(&id).await })).await?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.0.index().sandbox(&request.pod_sandbox_id)?;
        let record = sandbox.record();
        let containers = self.0.index().containers_of(&sandbox.id);
        let info = match request.verbose {
            true => inspect::sandbox(&record, self.0.network_check(&record).await),
            false => HashMap::new(),
        };
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(status::sandbox(&record)),
            info,
            containers_statuses: containers
                .iter()
                .map(|container| status::container(&container.record()))
                .collect(),
            timestamp: now_ns(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = self.0.sandbox_summaries(&request.into_inner().filter.unwrap_or_default());
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.0.sandbox_summaries(&request.into_inner().filter.unwrap_or_default());
        let message = |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes };
        Ok(Response::new(in_pieces(items, message)))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = needed(request.config, "config")?;
        let sandbox = needed(request.sandbox_config, "sandbox_config")?;
        let runtime = self.0.clone();
        let id = request.pod_sandbox_id;
        let made = tokio::spawn(async move { runtime.create_container(&id, config, sandbox).await });
        Ok(Response::new(v1::CreateContainerResponse { container_id: joined(made).await? }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let (runtime, id) = (self.0.clone(), request.into_inner().container_id);
        joined(tokio::spawn(async move { runtime.start_container(&id).await })).await?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        self.0.stop_container(&request.container_id, request.timeout).await?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let (runtime, id) = (self.0.clone(), request.into_inner().container_id);
        joined(tokio::spawn(async move { runtime.remove_container(&id).await })).await?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let containers = self.0.container_summaries(&request.into_inner().filter.unwrap_or_default());
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = self.0.container_summaries(&request.into_inner().filter.unwrap_or_default());
        let message = |containers| v1::StreamContainersResponse { containers };
        Ok(Response::new(in_pieces(items, message)))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.0.index().container(&request.container_id)?;
        let record = container.record();
        let info = if request.verbose {
            let spec = std::fs::read(container.directory.join("config.json")).unwrap_or_default();
            inspect::container(&record, &serde_json::from_slice(&spec).unwrap_or_default())
        } else {
            HashMap::new()
        };
        Ok(Response::new(v1::ContainerStatusResponse { status: Some(status::container(&record)), info }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.0.reopen_log(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        Ok(Response::new(self.0.exec_sync(&request.container_id, request.cmd, request.timeout).await?))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        Ok(Response::new(v1::ExecResponse { url: self.0.exec_url(request.into_inner()).await? }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        Ok(Response::new(v1::AttachResponse { url: self.0.attach_url(request.into_inner()).await? }))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        Ok(Response::new(v1::PortForwardResponse {
            url: self.0.port_forward_url(request.into_inner()).await?,
        }))
    }

    async fn update_runtime_config(
        &self,
        _request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        // The pod CIDR is in the network's configuration; containerd accepts and ignores it likewise without a template.
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let loaded = self.0.cni.status().await;
        let network = match &loaded {
            Ok(()) => condition("NetworkReady", "", ""),
            Err(error) => condition(
                "NetworkReady",
                "NetworkPluginNotReady",
                &format!("network plugin is not ready: {error}"),
            ),
        };
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            let loaded = loaded.err().map_or_else(|| "OK".to_owned(), |error| error.to_string());
            info = inspect::runtime(&self.0.config, self.0.cni.config_dump(), &loaded);
        }
        let user_namespaces = self.0.has_user_namespaces().await;
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions: vec![condition("RuntimeReady", "", ""), network] }),
            info,
            runtime_handlers: handlers::all(user_namespaces),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: user_namespaces,
            }),
        }))
    }

    async fn get_container_events(
        &self,
        _request: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(Box::pin(self.0.events.subscribe())))
    }

    async fn runtime_config(
        &self,
        _request: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let linux = needed(request.linux, "linux resources")?;
        let (runtime, id) = (self.0.clone(), request.container_id);
        joined(tokio::spawn(async move { runtime.update_container(&id, linux).await })).await?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        self.0.update_sandbox(request.into_inner())?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        let stats = self.0.container_stats(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let stats = self.0.list_container_stats(filter).await?;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = self.0.list_container_stats(filter).await?;
        let message = |container_stats| v1::StreamContainerStatsResponse { container_stats };
        Ok(Response::new(in_pieces(items, message)))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let stats = self.0.sandbox_stats(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let stats = self.0.list_sandbox_stats(filter).await?;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = self.0.list_sandbox_stats(filter).await?;
        let message = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Ok(Response::new(in_pieces(items, message)))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors: descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let pod_metrics = self.0.list_sandbox_metrics().await?;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let items = self.0.list_sandbox_metrics().await?;
        let message = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        Ok(Response::new(in_pieces(items, message)))
    }

    unimplemented! {
        checkpoint_container(v1::CheckpointContainerRequest) -> v1::CheckpointContainerResponse: "checkpoints: it has no way to dump the memory of processes";
    }
}

impl Runtime {
    fn sandbox_summaries(&self, filter: &v1::PodSandboxFilter) -> Vec<v1::PodSandbox> {
        let records = self.index().sandboxes().into_iter().map(|sandbox| sandbox.record());
        records
            .filter(|record| record.phase != SandboxPhase::Creating)
            .map(|record| status::sandbox_summary(&record))
            .filter(|item| wants_sandbox(filter, item))
            .collect()
    }

    fn container_summaries(&self, filter: &v1::ContainerFilter) -> Vec<v1::Container> {
        let records = self.index().containers().into_iter().map(|container| container.record());
        records
            .map(|record| status::container_summary(&record))
            .filter(|item| wants_container(filter, item))
            .collect()
    }
}

#[async_trait]
impl ImageService for Images {
    type StreamImagesStream = Events<v1::StreamImagesResponse>;

    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let images = self.listed(request.into_inner().filter);
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.listed(request.into_inner().filter);
        Ok(Response::new(in_pieces(images, |images| v1::StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let wanted = needed(request.image, "image")?.image;
        // A missing image is no error.
        let image = self.0.images.get(&wanted);
        let mut info = HashMap::new();
        if let Some(image) = image.as_ref().filter(|_| request.verbose) {
            let facts = json!({ "chainID": image.chain_ids.last(), "imageSpec": image.config });
            info.insert("info".to_owned(), facts.to_string());
        }
        Ok(Response::new(v1::ImageStatusResponse { image: image.map(|image| image_of(&image)), info }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let wanted = needed(request.image, "image")?.image;
        let auth = request.auth.map(|auth| Auth {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            server_address: auth.server_address,
            identity_token: auth.identity_token,
            registry_token: auth.registry_token,
        });
        let image_ref = self.pull(&wanted, auth).await.map_err(Error::from)?;
        tracing::info!(image = wanted, id = image_ref, "pulled image");
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        let wanted = needed(request.into_inner().image, "image")?.image;
        self.0.images.remove(&wanted).await.map_err(Error::from)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        let usage = self.0.images.usage();
        let one = v1::FilesystemUsage {
            timestamp: now_ns(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.path.display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: usage.used_bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![one.clone()],
            container_filesystems: vec![one],
        }))
    }
}

impl Images {
    /// Pulls with each login in turn while another one may help; the first is for the image most of all, so its failure is told.
    async fn pull(&self, wanted: &str, brought: Option<Auth>) -> Result<ImageId, ImageError> {
        let mut first = None;
        for auth in self.0.config.node_logins.tries(brought, wanted) {
            let progress = |progress| tracing::debug!(?progress, "pulling");
            match self.0.images.pull(wanted, auth, progress).await {
                Ok(id) => return Ok(id),
                // Some registries hide what a login may not read.
                Err(error @ (ImageError::AuthDenied { .. } | ImageError::NotFound { .. })) => {
                    tracing::debug!(error = host::error::chain(&error), "a login did not help");
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(first.expect("a pull is tried at least once"))
    }

    fn listed(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let wanted = filter.and_then(|filter| filter.image).unwrap_or_default().image;
        let images = if wanted.is_empty() {
            self.0.images.list()
        } else {
            self.0.images.get(&wanted).into_iter().collect()
        };
        images.iter().map(|image| image_of(image)).collect()
    }
}

/// A call that goes on when its client has gone.
async fn joined<T>(task: tokio::task::JoinHandle<Result<T, Error>>) -> Result<T, Status> {
    match task.await {
        Ok(result) => result.map_err(Status::from),
        Err(error) => Err(Status::internal(format!("the call ended early: {error}"))),
    }
}

fn condition(kind: &str, reason: &str, message: &str) -> v1::RuntimeCondition {
    v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status: reason.is_empty(),
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn image_of(image: &Image) -> v1::Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let name = user.split(':').next().unwrap_or_default();
    let uid = name.parse::<i64>().ok();
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_none() { name.to_owned() } else { String::new() },
        spec: Some(v1::ImageSpec { image: String::new(), ..Default::default() }),
        pinned: image.pinned,
    }
}

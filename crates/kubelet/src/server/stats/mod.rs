//! What the node and its pods use, read when somebody asks: from the runtime by CRI, and from /proc.

mod node;
pub(super) mod summary;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cri::v1 as crv1;
use cri::v1::image_service_client::ImageServiceClient;
use tonic::Status;

use self::node::{Node, Sample};
use self::summary::{Extent, Summary};
use super::query::Query;
use super::respond::{self, Answer};
use super::{Server, pods};

/// What is remembered between two questions.
#[derive(Debug, Default)]
pub(super) struct Stats {
    last: Mutex<Option<Sample>>,
}

impl Server {
    /// `/stats/summary`.
    pub(super) async fn stats_summary(&self, query: Option<&str>) -> Answer {
        let query = Query::parse(query.unwrap_or_default());
        let extent = match query.first("only_cpu_and_memory") {
            Some("true") => Extent::CpuAndMemory,
            _ => Extent::Everything,
        };
        match self.summary(extent).await {
            Ok(summary) => respond::json(&summary),
            Err(status) => respond::of_runtime(&status),
        }
    }

    /// What everything uses.
    pub(super) async fn summary(&self, extent: Extent) -> Result<Summary, Status> {
        let sandboxes = self.sandbox_stats().await?;
        let mut node = self.node();
        if extent == Extent::Everything {
            self.add_images(&mut node).await;
        }
        let pods = pods::all(&self.report.borrow(), &self.desired.borrow());
        Ok(summary::summary(&self.node_name, &node, sandboxes, &pods, extent))
    }

    /// What the sandboxes use.
    pub(super) async fn sandbox_stats(&self) -> Result<Vec<crv1::PodSandboxStats>, Status> {
        let request = crv1::ListPodSandboxStatsRequest { filter: None };
        Ok(self.runtime().list_pod_sandbox_stats(request).await?.into_inner().stats)
    }

    fn node(&self) -> Node {
        let mut last = self.stats.last.lock().unwrap_or_else(PoisonError::into_inner);
        node::read(&self.root_dir, &self.cgroup_root, &mut last)
    }

    /// Without an answer nothing is told of images.
    async fn add_images(&self, node: &mut Node) {
        let mut images = ImageServiceClient::new(self.cri.clone());
        let Ok(told) = images.image_fs_info(crv1::ImageFsInfoRequest {}).await else { return };
        let Some(first) = told.into_inner().image_filesystems.into_iter().next() else { return };
        node.images_used = first.used_bytes.map(|value| value.value);
        node.images = first.fs_id.and_then(|id| node::file_system(Path::new(&id.mountpoint)));
    }
}

//! Metrics for Prometheus and metrics-server. Only what is true is told: a name of upstream's without a value behind it is left out.

mod cadvisor;
mod exposition;
mod own;
mod probes;
mod resource;

use cri::v1 as crv1;
use hyper::StatusCode;
use hyper::header::HeaderValue;

use self::own::Running;
pub(super) use self::own::{Own, count_starts};
use super::respond::{self, Answer};
use super::stats::summary::Extent;
use super::{Server, route};
use crate::downward::Capacity;

const FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

fn answer(page: String) -> Answer {
    respond::with(StatusCode::OK, FORMAT, page)
}

impl Server {
    /// `/metrics…`.
    pub(super) async fn metrics(&self, which: route::Metrics) -> Answer {
        match which {
            route::Metrics::Own => self.own_metrics().await,
            route::Metrics::Resource => {
                let summary = self.summary(Extent::CpuAndMemory).await;
                if let Err(error) = &summary {
                    tracing::warn!(error = error.message(), "the runtime does not tell what pods use");
                }
                answer(resource::page(summary.ok().as_ref()))
            }
            route::Metrics::Probes => answer(probes::page(&self.probes.list())),
            route::Metrics::Cadvisor => self.cadvisor_metrics().await,
        }
    }

    async fn cadvisor_metrics(&self) -> Answer {
        let mut runtime = self.runtime();
        let asked = async {
            let descriptors = runtime.list_metric_descriptors(crv1::ListMetricDescriptorsRequest {}).await?;
            let metrics = runtime.list_pod_sandbox_metrics(crv1::ListPodSandboxMetricsRequest {}).await?;
            let stats = self.sandbox_stats().await?;
            Ok((descriptors.into_inner().descriptors, metrics.into_inner().pod_metrics, stats))
        };
        match asked.await {
            Ok((descriptors, metrics, stats)) => {
                let capacity = Capacity::of_node(&self.root_dir, &self.cgroup_root);
                answer(cadvisor::page(&descriptors, &metrics, &stats, &capacity))
            }
            Err(status) => respond::of_runtime(&status),
        }
    }

    async fn own_metrics(&self) -> Answer {
        let request = crv1::ListContainersRequest { filter: None };
        let containers = match self.runtime().list_containers(request).await {
            Ok(listed) => listed.into_inner().containers,
            Err(status) => return respond::of_runtime(&status),
        };
        answer(self.own.page(&self.node_name, &Running::of(&containers)))
    }
}

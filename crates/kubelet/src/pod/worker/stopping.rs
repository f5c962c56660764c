//! Stopping containers, each in a task of its own: the worker goes on telling statuses meanwhile.

use std::time::Duration;

use cri::v1;

use super::{News, Worker};
use crate::events::Kind;
use crate::pod::plan::{Kill, StopReason};
use crate::time::BootTime;

/// What even a container without grace has left. Upstream: kuberuntime's minimumGracePeriodInSeconds.
const LEAST: Duration = Duration::from_secs(2);

impl Worker {
    /// Tells once that a container is to end, and why; from then on its deadline stands.
    pub(super) fn announce(&mut self, id: &str, name: &str, kill: Kill) {
        let message = match kill.why {
            StopReason::PodDeleted | StopReason::SandboxChanged => format!("Stopping container {name}"),
            StopReason::FailedLiveness => {
                format!("Container {name} failed liveness probe, will be restarted")
            }
            StopReason::FailedStartup => format!("Container {name} failed startup probe, will be restarted"),
            StopReason::FailedPostStart => "FailedPostStartHook".to_owned(),
            StopReason::Changed => format!("Container {name} definition changed, will be restarted"),
        };
        if self.announced.insert(id.to_owned()) {
            self.node.reporter.event(&self.pod, Kind::Normal, "Killing", &message);
        }
        self.memory.kills.insert(id.to_owned(), kill);
    }

    /// Begins to stop a container.
    pub(super) fn stop(&mut self, id: String, kill: Kill) {
        self.memory.busy.insert(id.clone(), kill.deadline);
        let (mut runtime, news) = (self.runtime(), self.tasks.news.clone());
        let pod = self.pod.name.clone();
        self.tasks.running.spawn(async move {
            let left = kill.deadline.since(BootTime::now()).max(LEAST);
            let timeout = i64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
            let request = v1::StopContainerRequest { container_id: id.clone(), timeout };
            if let Err(status) = runtime.stop_container(request).await {
                tracing::warn!(pod, container = id, error = status.message(), "stop a container");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            // The worker is gone: so is what it would do about it.
            let _ = news.send(News::Stopped { id }).await;
        });
    }
}

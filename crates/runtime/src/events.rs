//! GetContainerEvents: what the kubelet lives on.

use std::sync::Arc;

use cri::v1::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::runtime::{Runtime, now_ns};
use crate::state::{Container, Sandbox};
use crate::status;

/// How many events a slow subscriber may be behind before its stream ends.
const BACKLOG: usize = 4096;

/// Sends events to whoever listens. By reference: room for all of them is made at the start, and an event is large.
#[derive(Debug)]
pub(crate) struct Events(broadcast::Sender<Arc<ContainerEventResponse>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Every event from now on. A subscriber that is too slow gets an error: it must list again.
    pub(crate) fn subscribe(
        &self,
    ) -> impl Stream<Item = Result<ContainerEventResponse, Status>> + Send + 'static {
        BroadcastStream::new(self.0.subscribe()).map(|event| {
            event.map(Arc::unwrap_or_clone).map_err(|BroadcastStreamRecvError::Lagged(missed)| {
                Status::resource_exhausted(format!("{missed} events were lost: read faster, and list again"))
            })
        })
    }
}

impl Runtime {
    /// Tells that a container was made, started, stopped or removed, with the statuses as they are now.
    pub(crate) fn tell_container(&self, container: &Container, kind: ContainerEventType) {
        self.tell(&container.id, kind, &container.sandbox);
    }

    /// Tells that a sandbox was made, started, stopped or removed: its id stands where a container's would, as in
    /// containerd.
    pub(crate) fn tell_sandbox(&self, sandbox: &Sandbox, kind: ContainerEventType) {
        self.tell(&sandbox.id, kind, sandbox);
    }

    fn tell(&self, id: &str, kind: ContainerEventType, sandbox: &Sandbox) {
        if self.events.0.receiver_count() == 0 {
            return;
        }
        let containers = self.index().containers_of(&sandbox.id);
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now_ns(),
            pod_sandbox_status: Some(status::sandbox(&sandbox.record())),
            containers_statuses: containers
                .iter()
                .map(|container| status::container(&container.record()))
                .collect(),
        };
        // Without a listener nobody needs it.
        let _ = self.events.0.send(Arc::new(event));
    }
}

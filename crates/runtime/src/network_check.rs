//! Whether running pods still have the network that they were given: CNI's CHECK. Nothing follows from it but words.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cni::{Checked, CniError};
use cri::v1::NamespaceMode;

use crate::network;
use crate::record::{SandboxPhase, SandboxRecord};
use crate::runtime::Runtime;
use crate::spec::namespace_options;

/// Whoever inspects a sandbox waits so long at most: crictl gives up after 2 s.
const PATIENCE: Duration = Duration::from_secs(1);

impl Runtime {
    /// Says in the log which of the sandboxes lost their network while nobody looked.
    pub(crate) async fn tell_of_broken_networks(self: Arc<Self>, ids: BTreeSet<String>) {
        let records = || {
            let sandboxes = ids.iter().filter_map(|id| self.index().sandbox(id).ok());
            sandboxes.map(|sandbox| sandbox.record()).filter(is_connected).collect::<Vec<_>>()
        };
        let then = records();
        let found = self.check(&then).await;
        // One that was stopped meanwhile has none to lose.
        let still: BTreeSet<String> = records().into_iter().map(|record| record.id).collect();
        let both = then.iter().zip(found).filter(|(record, _)| still.contains(&record.id));
        for (record, found) in both {
            match found {
                Ok(checked) => tracing::debug!(sandbox = record.id, ?checked, "the pod's network"),
                Err(error) => tracing::warn!(
                    sandbox = record.id,
                    pod = network::pod_name(record),
                    error = error.chain(),
                    "a running pod has lost its network; a new pod in its place gets one"
                ),
            }
        }
    }

    /// For `crictl inspectp`: `intact`, or what is the matter. Nothing of a sandbox without a network of its own.
    pub(crate) async fn network_check(&self, record: &SandboxRecord) -> Option<String> {
        if !is_connected(record) {
            return None;
        }
        let records = std::slice::from_ref(record);
        let Ok(found) = tokio::time::timeout(PATIENCE, self.check(records)).await else {
            return Some(format!("unknown: not checked within {} s", PATIENCE.as_secs()));
        };
        found.into_iter().next().map(|found| match found {
            Ok(Checked::Intact) => "intact".to_owned(),
            Ok(Checked::Skipped(why)) => format!("unknown: {why}"),
            Err(error) => format!("broken: {}", error.chain()),
        })
    }

    async fn check(&self, records: &[SandboxRecord]) -> Vec<Result<Checked, CniError>> {
        let attachment = |record: &SandboxRecord| {
            let process = record.supervisor.as_ref().filter(|process| process.is_alive());
            network::attachment(record, process)
        };
        self.cni.check(&records.iter().map(attachment).collect::<Vec<_>>()).await
    }
}

fn is_connected(record: &SandboxRecord) -> bool {
    record.phase == SandboxPhase::Ready && namespace_options(&record.config).network() != NamespaceMode::Node
}

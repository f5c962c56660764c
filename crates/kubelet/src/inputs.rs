//! What others tell the kubelet while it runs, beside the pods that are wanted. A node of its own needs none of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use tokio::sync::watch;

use crate::tokens::TokenSource;

/// What others tell the kubelet.
#[derive(Clone)]
pub struct Inputs {
    /// Where tokens of service accounts come from: an API server. Without one, pods that want a token are refused by name.
    pub tokens: Option<Arc<dyn TokenSource>>,
    /// The Services whose addresses containers get as variables; nothing until they were read once.
    pub services: watch::Receiver<Option<Arc<Vec<v1::Service>>>>,
    /// The node as its cluster has it; nothing before it was heard of once.
    pub node: watch::Receiver<Option<Arc<v1::Node>>>,
    /// The handler that each RuntimeClass names; nothing before they were listed once.
    pub runtime_classes: watch::Receiver<Option<Arc<BTreeMap<String, String>>>>,
}

impl Inputs {
    /// What a node has that nobody tells anything: no tokens, no Services.
    #[must_use]
    pub fn none() -> Self {
        Self {
            tokens: None,
            services: watch::channel(Some(Arc::default())).1,
            node: watch::channel(None).1,
            runtime_classes: watch::channel(Some(Arc::default())).1,
        }
    }

    /// Whether there is an API server: it alone gives tokens.
    pub(crate) fn is_cluster(&self) -> bool {
        self.tokens.is_some()
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Inputs").field("is_cluster", &self.is_cluster()).finish_non_exhaustive()
    }
}

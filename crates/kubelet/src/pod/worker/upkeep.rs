//! What changes in the volumes of a running pod: objects and tokens reach their files.

use super::{News, Worker};
use crate::pod::plan::{ObservedPod, WorkerState};
use crate::time::BootTime;
use crate::volumes::Contents;

impl Worker {
    /// When a token of the pod is due. A sandbox that is still to come fetches its own.
    pub(super) fn next_token(&self) -> Option<BootTime> {
        self.node.inputs.tokens.as_ref()?;
        let runs = self.state == WorkerState::Syncing && self.memory.sandbox_held.is_none();
        runs.then(|| self.tokens.next(&self.pod, BootTime::now())).flatten()
    }

    /// Begins to ask for tokens that are due. What is running is not kept waiting for them.
    pub(super) fn follow_tokens(&mut self, seen: &ObservedPod) {
        let Some(source) = &self.node.inputs.tokens else { return };
        if seen.sandboxes.is_empty() || self.next_token().is_none_or(|due| due > BootTime::now()) {
            return;
        }
        let asking = self.tokens.ask(&self.pod, source);
        let news = self.tasks.news.clone();
        self.tasks.running.spawn(async move {
            // The worker is gone: so is what it would do about it.
            let _ = news.send(News::Tokens(asking.await)).await;
        });
    }

    /// Waits for the tokens that the volumes of a new sandbox hold.
    pub(super) async fn fetch_tokens(&mut self) {
        let Some(source) = self.node.inputs.tokens.clone() else { return };
        let answers = self.tokens.ask(&self.pod, &source).await;
        self.tokens.take(answers);
    }

    /// Brings the files of a pod that is wanted up to date. What is not known to be there yet takes nothing away.
    pub(super) fn refresh_volumes(&mut self) {
        if self.state == WorkerState::Syncing
            && self.used.is_known
            && let Err(message) = self.set_up_volumes()
        {
            tracing::warn!(pod = self.pod.name, message, "volumes could not be updated");
        }
    }

    /// Makes the pod's volumes what they should be now.
    pub(super) fn set_up_volumes(&self) -> Result<(), String> {
        let desired = self.node.desired.borrow().clone();
        let facts = self.facts(&[]);
        let contents = Contents { objects: &desired.objects, facts: &facts, tokens: &self.tokens };
        self.node.volumes.set_up(&self.pod, contents)
    }
}

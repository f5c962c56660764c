//! One watch of the API server: its events, what is known by them, and what it is told when it cannot go on.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::NamespaceResourceScope;
use kube::api::ListParams;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use serde::de::DeserializeOwned;

use crate::program::chain;
use crate::source::cluster::{Change, SELECTOR, Store};

/// So many objects are asked for at once: each page is reduced before the next one comes.
const PAGE: u32 = 500;
/// How often an API server that is away, or refuses, is asked whether it answers now.
const ASK: Duration = Duration::from_secs(3);

/// See the module.
pub(super) struct Watched<K, V> {
    pub(super) stream: BoxStream<'static, watcher::Result<Event<K>>>,
    pub(super) store: Store<V>,
    what: &'static str,
    trouble: Option<Trouble>,
    api: Api<K>,
    /// Comes when the API server answers again. A watch that goes on where it broke off has nothing to tell.
    pub(super) answer: Option<BoxFuture<'static, ()>>,
}

/// Why nothing comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// The node's credentials are not enough.
    Forbidden,
    /// The API server is away, or says something else.
    Silent,
}

impl<K, V> Watched<K, V>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
    V: PartialEq,
{
    pub(super) fn new(client: &Client, what: &'static str) -> Self {
        let config = watcher::Config::default().labels(SELECTOR).page_size(PAGE);
        let api = Api::<K>::all(client.clone());
        let stream = watch(api.clone(), config).backoff(Patience::default()).boxed();
        Self { stream, store: Store::default(), what, trouble: None, api, answer: None }
    }

    /// Takes an event in, or remembers what is the matter.
    pub(super) fn take(
        &mut self,
        event: watcher::Result<Event<K>>,
        reduce: impl FnOnce(&K) -> Option<V>,
    ) -> Change {
        match event {
            Ok(event) => {
                // The beginning of a list is no answer yet.
                if !matches!(event, Event::Init) {
                    self.answers();
                }
                self.store.take(event, reduce)
            }
            Err(error) => {
                self.failed(&error);
                Change::Nothing
            }
        }
    }

    fn failed(&mut self, error: &watcher::Error) {
        let trouble = match code(error) {
            // An expired watch lists again by itself: no trouble unless that fails.
            Some(410) => return,
            Some(403) => Trouble::Forbidden,
            _ => Trouble::Silent,
        };
        tracing::debug!(watch = self.what, error = chain(error), "no answer from the API server");
        self.trouble = Some(trouble);
        self.answer.get_or_insert_with(|| Box::pin(until_it_answers(self.api.clone())));
    }

    /// Whether nothing comes because the API server is away.
    pub(super) fn is_silent(&self) -> bool {
        self.trouble == Some(Trouble::Silent)
    }

    /// The API server answers, as this watch has told or [`answer`](Self::answer).
    pub(super) fn answers(&mut self) {
        (self.trouble, self.answer) = (None, None);
    }

    /// What an administrator has to do, for a report.
    pub(super) fn forbidden(&self) -> Option<String> {
        (self.trouble == Some(Trouble::Forbidden)).then(|| forbidden(self.what))
    }
}

/// Asks the API server again and again, until it lets objects be listed.
async fn until_it_answers<K: Clone + DeserializeOwned + Debug>(api: Api<K>) {
    loop {
        tokio::time::sleep(ASK).await;
        if api.list_metadata(&ListParams::default().limit(1)).await.is_ok() {
            return;
        }
    }
}

fn forbidden(what: &str) -> String {
    format!(
        "Services are not served: this node may not list and watch {what}; an administrator grants it with: kubectl apply -f deploy/rbac.yaml"
    )
}

/// The API server's answer as an HTTP status.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => match error {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        },
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::NoResourceVersion => None,
    }
}

/// How long to wait after a failure: twice as long each time. Over when the API server has told something: two events,
/// because one says that a list begins, even of a list that fails.
#[derive(Debug, Default)]
struct Patience {
    failures: u32,
    events: u32,
}

impl Patience {
    const FIRST: Duration = Duration::from_millis(250);
    const LAST: Duration = Duration::from_secs(10);
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = Self::FIRST * 2_u32.pow(self.failures.min(10));
        (self.failures, self.events) = (self.failures.saturating_add(1), 0);
        Some(wait.min(Self::LAST))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.events += 1;
        if self.events > 1 {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_longer_and_longer_until_the_server_has_really_told_something() {
        let mut patience = Patience::default();
        let mut waits = |begins: usize| {
            (0..begins).for_each(|_| patience.reset());
            patience.next().unwrap().as_millis()
        };
        // A list begins, and fails.
        assert_eq!([1, 1, 1, 1].map(&mut waits), [250, 500, 1000, 2000]);
        assert_eq!([1, 1, 1].map(&mut waits), [4000, 8000, 10_000]);
        assert_eq!(waits(1), 10_000);
        assert_eq!([3, 1].map(waits), [250, 500]);
    }
}

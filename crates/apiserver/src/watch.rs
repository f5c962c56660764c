//! One watch: its events, and what is the matter when it cannot go on.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use host::error::chain;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use serde::de::DeserializeOwned;

/// How often an API server that is away, or refuses, is asked whether it answers now.
const ASK: Duration = Duration::from_secs(3);

/// See the module.
pub struct Watch<K> {
    events: BoxStream<'static, watcher::Result<Event<K>>>,
    api: Api<K>,
    what: &'static str,
    ask: Duration,
    trouble: Option<Trouble>,
    /// Comes when the API server answers again. A watch that goes on where it broke off has nothing to tell.
    answer: Option<BoxFuture<'static, ()>>,
}

/// Why nothing comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The node's credentials are not enough.
    Forbidden,
    /// The API server is away, or says something else.
    Silent {
        /// What was met last.
        error: String,
    },
}

/// What a watch has come to.
#[derive(Debug)]
pub enum Heard<K> {
    /// Something about objects.
    Event(Event<K>),
    /// Nothing but whether the API server answers: see [`Watch::trouble`].
    State,
}

impl<K> Watch<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Watches what `config` selects; `what` names it in logs.
    pub fn new(api: Api<K>, config: watcher::Config, what: &'static str) -> Self {
        let events = watch(api.clone(), config).backoff(Patience::default()).boxed();
        Self { events, api, what, ask: ASK, trouble: None, answer: None }
    }

    /// What comes next; none when the watch has ended by itself, which it never does. Nothing is lost when this is not awaited to
    /// its end.
    pub async fn next(&mut self) -> Option<Heard<K>> {
        tokio::select! {
            event = self.events.next() => Some(match event? {
                Ok(event) => {
                    // The beginning of a list is no answer yet.
                    if !matches!(event, Event::Init) {
                        self.answers();
                    }
                    Heard::Event(event)
                }
                Err(error) => {
                    self.failed(&error);
                    Heard::State
                }
            }),
            () = come(&mut self.answer) => {
                self.answers();
                Some(Heard::State)
            }
        }
    }

    /// What is the matter, if anything is.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    fn answers(&mut self) {
        (self.trouble, self.answer) = (None, None);
    }

    fn failed(&mut self, error: &watcher::Error) {
        let trouble = match code(error) {
            // An expired watch lists again by itself: no trouble unless that fails.
            Some(410) => return,
            Some(403) => Trouble::Forbidden,
            _ => Trouble::Silent { error: chain(error) },
        };
        tracing::debug!(watch = self.what, error = chain(error), "no answer from the API server");
        self.trouble = Some(trouble);
        self.answer.get_or_insert_with(|| Box::pin(until_it_answers(self.api.clone(), self.ask)));
    }
}

impl<K> Debug for Watch<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client holds credentials.
        f.debug_struct("Watch")
            .field("what", &self.what)
            .field("trouble", &self.trouble)
            .finish_non_exhaustive()
    }
}

/// Asks the API server again and again, until it lets objects be listed.
async fn until_it_answers<K: Clone + DeserializeOwned + Debug>(api: Api<K>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if api.list_metadata(&ListParams::default().limit(1)).await.is_ok() {
            return;
        }
    }
}

/// Never, where there is nothing to wait for.
async fn come(awaited: &mut Option<BoxFuture<'static, ()>>) {
    match awaited {
        Some(awaited) => awaited.await,
        None => std::future::pending().await,
    }
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
    use std::convert::Infallible;

    use hyper::{Request, Response};
    use k8s_openapi::api::core::v1::Node;
    use kube::Client;
    use kube::client::Body;

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

    /// Lists nodes, breaks the first watch off, and says nothing in the next one.
    fn flapping() -> Client {
        let watches = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let answer = move |request: Request<Body>| {
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let nth = watches.fetch_add(usize::from(is_watch), std::sync::atomic::Ordering::Relaxed);
            async move {
                let (code, body) = match (is_watch, nth) {
                    (false, _) => (
                        200,
                        r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}"#,
                    ),
                    (true, 0) => (
                        503,
                        r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"it starts","reason":"ServiceUnavailable","code":503}"#,
                    ),
                    (true, _) => return std::future::pending().await,
                };
                let body = Body::from(body.as_bytes().to_vec());
                Ok::<_, Infallible>(Response::builder().status(code).body(body).expect("a response"))
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn a_watch_that_goes_on_in_silence_is_out_of_trouble_when_the_server_lets_objects_be_listed() {
        let mut watch = Watch::<Node>::new(Api::all(flapping()), watcher::Config::default(), "nodes");
        watch.ask = Duration::from_millis(10);
        let mut troubles = Vec::new();
        while troubles.len() < 2 {
            if let Heard::State = watch.next().await.expect("it goes on") {
                troubles.push(watch.trouble().cloned());
            }
        }
        let [Some(Trouble::Silent { error }), None] = &troubles[..] else { panic!("{troubles:?}") };
        assert!(error.contains("it starts"), "{error}");
    }
}

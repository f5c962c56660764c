//! Tokens of service accounts for the volumes of one pod: which are wanted, when they are asked for again, and the ones that
//! there are. Where they come from is a [`TokenSource`]; how they reach files is the business of `volumes`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::core::v1::ServiceAccountTokenProjection;

use crate::pod::model::Pod;
use crate::time::{BootTime, wall_ns};

/// Upstream: pkg/kubelet/token/token_manager.go.
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);
/// What the API takes at least, and gives without being asked. Upstream: pkg/apis/core/v1/defaults.go.
const LEAST_SECONDS: i64 = 600;
const DEFAULT_SECONDS: i64 = 3600;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after a refusal the source is not asked again.
const RETRY: Duration = Duration::from_secs(10);

/// Gives tokens of service accounts: an API server, by its TokenRequest.
pub trait TokenSource: Send + Sync {
    /// A token that is bound to the pod.
    ///
    /// # Errors
    /// What the source said.
    fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Token, String>>;
}

/// Whose token is wanted, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// Of pod and service account.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// Whom the token is for; the API server itself where none is named.
    pub audience: Option<String>,
    /// How long it is to live, in seconds.
    pub expiration_seconds: i64,
}

/// A token. Its text is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What goes into the file.
    pub text: String,
    /// When it ends, in nanoseconds since 1970.
    pub expires: i64,
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// What makes two tokens of one pod the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenKey {
    audience: Option<String>,
    expiration_seconds: i64,
}

impl TokenKey {
    pub(crate) fn of(projection: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: projection.audience.clone().filter(|audience| !audience.is_empty()),
            expiration_seconds: projection.expiration_seconds.unwrap_or(DEFAULT_SECONDS).max(LEAST_SECONDS),
        }
    }
}

/// Which tokens the pod's volumes hold.
pub(crate) fn wanted(pod: &Pod) -> Vec<TokenKey> {
    let volumes = pod.source.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let parts =
        volumes.filter_map(|volume| volume.projected.as_ref()).flat_map(|projected| &projected.sources);
    let mut keys: Vec<TokenKey> =
        parts.flatten().filter_map(|part| part.service_account_token.as_ref()).map(TokenKey::of).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// How long after it came a token is asked for again: after 80 % of its life, or a day.
fn renewal(received: i64, expires: i64) -> Duration {
    let life = u64::try_from(expires.saturating_sub(received)).unwrap_or(0);
    Duration::from_nanos(life / 5 * 4).min(LONGEST_USE)
}

#[derive(Clone, Debug)]
struct Held {
    token: Token,
    /// On the planner's clock: a wall clock that is set moves nothing.
    renew_at: BootTime,
}

/// What a source said to each request.
pub(crate) type Answers = Vec<(TokenKey, Result<Token, String>)>;

/// The tokens of one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    held: BTreeMap<TokenKey, Held>,
    /// Why there is none.
    refused: BTreeMap<TokenKey, String>,
    /// Not before then is the source asked again.
    retry_at: Option<BootTime>,
}

impl Tokens {
    /// The text of one.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn get(&self, key: &TokenKey) -> Result<&str, String> {
        self.held.get(key).map(|held| held.token.text.as_str()).ok_or_else(|| {
            let why = self.refused.get(key).map_or("nobody gives tokens here", String::as_str);
            format!("failed to fetch token: {why}")
        })
    }

    /// When the next of the pod's tokens is due, on the planner's clock; never without tokens.
    pub(crate) fn next(&self, pod: &Pod, now: BootTime) -> Option<BootTime> {
        self.next_of(&wanted(pod), now)
    }

    fn next_of(&self, wanted: &[TokenKey], now: BootTime) -> Option<BootTime> {
        let renewal = |key: &TokenKey| self.held.get(key).map_or(now, |held| held.renew_at.max(now));
        let due = wanted.iter().map(renewal).min()?;
        Some(self.retry_at.map_or(due, |retry| due.max(retry)))
    }

    /// Asks for every token of the pod that is missing or to be renewed.
    pub(crate) fn ask(
        &mut self,
        pod: &Pod,
        source: &Arc<dyn TokenSource>,
    ) -> impl Future<Output = Answers> + Send + use<> {
        let now = BootTime::now();
        let fresh = |key: &TokenKey| self.held.get(key).is_some_and(|held| now < held.renew_at);
        let due: Vec<TokenKey> = wanted(pod).into_iter().filter(|key| !fresh(key)).collect();
        // Until the answers are there.
        self.retry_at = Some(now.after(PATIENCE * 2));
        let asked = due.into_iter().map(|key| {
            let (source, request) = (source.clone(), request(pod, &key));
            async move {
                let answer = tokio::time::timeout(PATIENCE, source.token(request)).await;
                (key, answer.unwrap_or_else(|_| Err("no answer in time".to_owned())))
            }
        });
        join_all(asked.collect::<Vec<_>>())
    }

    /// Takes what was said. A token that could not be renewed stays until it has ended.
    pub(crate) fn take(&mut self, answers: Answers) {
        let wall = wall_ns();
        self.retry_at = None;
        for (key, answer) in answers {
            match answer {
                Ok(token) => {
                    let renew_at = BootTime::now().after(renewal(wall, token.expires));
                    self.refused.remove(&key);
                    self.held.insert(key, Held { token, renew_at });
                }
                Err(error) => {
                    self.retry_at = Some(BootTime::now().after(RETRY));
                    self.held.retain(|known, held| *known != key || held.token.expires > wall);
                    self.refused.insert(key, error);
                }
            }
        }
    }
}

fn request(pod: &Pod, key: &TokenKey) -> TokenRequest {
    let account = pod.source.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    TokenRequest {
        namespace: pod.namespace.clone(),
        service_account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()),
        pod_name: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        audience: key.audience.clone(),
        expiration_seconds: key.expiration_seconds,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;
    use crate::pod::model::tests::pod_of;

    const SECOND: i64 = 1_000_000_000;

    /// Answers from a list, the last first.
    struct Answers(Mutex<Vec<Result<Token, String>>>, Mutex<Vec<TokenRequest>>);

    impl TokenSource for Answers {
        fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Token, String>> {
            self.1.lock().expect("a lock").push(request);
            let answer = self.0.lock().expect("a lock").pop();
            Box::pin(async move { answer.unwrap_or_else(|| Err("no answer".into())) })
        }
    }

    fn pod() -> Pod {
        let token = |audience: &str, seconds: i64| json!({ "serviceAccountToken": { "path": "t", "audience": audience, "expirationSeconds": seconds } });
        pod_of(json!({
            "serviceAccountName": "robot",
            "containers": [{ "name": "a", "image": "i" }],
            "volumes": [
                { "name": "v", "projected": { "sources": [token("", 3607), token("vault", 60)] } },
                { "name": "w", "projected": { "sources": [token("", 3607)] } },
            ],
        }))
    }

    #[test]
    fn a_token_is_renewed_after_most_of_its_life_or_a_day() {
        for (life, expect) in [(3600, 2880), (600, 480), (7 * 86_400, 86_400), (-5, 0)] {
            assert_eq!(renewal(0, life * SECOND), Duration::from_secs(expect), "{life}");
        }
    }

    #[test]
    fn tokens_are_wanted_once_for_each_audience_and_life() {
        let keys = wanted(&pod());
        let seconds: Vec<i64> = keys.iter().map(|key| key.expiration_seconds).collect();
        assert_eq!(seconds, [3607, 600], "one for the API server, one of the least life");
        let tokens = Tokens::default();
        assert_eq!(tokens.next_of(&keys, BootTime(7)), Some(BootTime(7)), "at once");
        assert_eq!(tokens.next_of(&[], BootTime(7)), None);
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_renewed_is_kept_until_it_ends() {
        let wall = wall_ns();
        let token = |text: &str, life: i64| Ok(Token { text: text.into(), expires: wall + life * SECOND });
        let answers = vec![Err("down".into()), Err("down".into()), token("b", 1), token("a", 3600)];
        let answers = Arc::new(Answers(Mutex::new(answers), Mutex::default()));
        let source: Arc<dyn TokenSource> = answers.clone();
        let mut tokens = Tokens::default();
        let answers_now = tokens.ask(&pod(), &source).await;
        tokens.take(answers_now);
        let asked = answers.1.lock().expect("a lock").clone();
        assert_eq!((asked[0].service_account.as_str(), asked[0].pod_uid.as_str()), ("robot", "u"));
        assert_eq!(asked[1].audience.as_deref(), Some("vault"));
        let keys = wanted(&pod());
        // The second is due at once, the first is not.
        tokens.held.values_mut().for_each(|held| held.renew_at = BootTime::now());
        tokens.held.values_mut().last().expect("two").token.expires = wall;
        let answers_now = tokens.ask(&pod(), &source).await;
        tokens.take(answers_now);
        assert_eq!(tokens.get(&keys[0]), Ok("a"));
        assert_eq!(tokens.get(&keys[1]), Err("failed to fetch token: down".into()), "it has ended");
        assert!(tokens.next_of(&keys, BootTime::now()) > Some(BootTime::now()), "not at once again");
    }

    #[test]
    fn a_token_is_never_printed() {
        assert!(!format!("{:?}", Token { text: "secret".into(), expires: 1 }).contains("secret"));
    }
}

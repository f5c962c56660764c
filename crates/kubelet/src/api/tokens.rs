//! Tokens of service accounts by the API server's TokenRequest.

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1 as auth;
use k8s_openapi::api::core::v1;
use kube::api::PostParams;
use kube::{Api, Client};

use super::source::chain;
use crate::tokens::{Token, TokenRequest, TokenSource};

/// What binds a pod is told to the node, and to what the API server allows nodes by, at the same time: a node that asks for the pod's token
/// at once can be early. It asks again, after pauses that double, for so long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(320);

/// The API server that a client reaches.
pub struct ApiTokens(Client);

impl ApiTokens {
    /// Asks with the node's own credentials: it may have tokens of the pods that are bound to it, and no others.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

impl TokenSource for ApiTokens {
    fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Token, String>> {
        let accounts = Api::<v1::ServiceAccount>::namespaced(self.0.clone(), &request.namespace);
        Box::pin(async move {
            let (asked, parameters) = (asked(&request), PostParams::default());
            let mut pause = FIRST_PAUSE;
            let answer = loop {
                let answer =
                    accounts.create_token_request(&request.service_account, &parameters, &asked).await;
                match answer {
                    Err(error) if may_be_early(&error) && pause <= LAST_PAUSE => {
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                    answer => break answer.map_err(|error| chain(&error))?,
                }
            };
            let status = answer.status.unwrap_or_default();
            let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
                return Err("the API server answered without a token".to_owned());
            };
            let expires = i64::try_from(expires.0.as_nanosecond()).unwrap_or(i64::MAX);
            Ok(Token { text, expires })
        })
    }
}

/// Whether the API server does not know yet that the pod is this node's, or that there is the pod.
fn may_be_early(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

fn asked(request: &TokenRequest) -> auth::TokenRequest {
    let pod = auth::BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(request.pod_name.clone()),
        uid: Some(request.pod_uid.clone()),
    };
    auth::TokenRequest {
        spec: Some(auth::TokenRequestSpec {
            audiences: Some(request.audience.iter().cloned().collect()),
            bound_object_ref: Some(pod),
            expiration_seconds: Some(request.expiration_seconds),
        }),
        ..auth::TokenRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use hyper::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// What a node is told whose first `refusals` requests are refused with `code`, and how often it asked.
    async fn asks(refusals: u32, code: u16) -> (Result<Token, String>, u32) {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let answer = move |_: Request<Body>| {
            let is_refused = count.fetch_add(1, Ordering::Relaxed) < refusals;
            async move {
                let body = if is_refused { refusal(code) } else { token() };
                let answer = Response::builder().status(if is_refused { code } else { 201 });
                Ok::<_, std::convert::Infallible>(
                    answer.body(Body::from(body.to_string().into_bytes())).unwrap(),
                )
            }
        };
        let client = Client::new(tower::service_fn(answer), "default");
        let request = TokenRequest {
            namespace: "n".to_owned(),
            service_account: "default".to_owned(),
            pod_name: "p".to_owned(),
            pod_uid: "u".to_owned(),
            audience: None,
            expiration_seconds: 3607,
        };
        let got = ApiTokens::new(client).token(request).await;
        (got, asked.load(Ordering::Relaxed))
    }

    fn refusal(code: u16) -> Value {
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Forbidden",
            "message": "node requested token bound to a pod scheduled on a different node" })
    }

    fn token() -> Value {
        json!({ "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": { "audiences": [] },
            "status": { "token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z" } })
    }

    #[tokio::test]
    async fn a_node_that_asks_too_early_asks_again() {
        for code in [403, 404] {
            let (got, asked) = asks(3, code).await;
            assert_eq!((got.map(|token| token.text), asked), (Ok("t".to_owned()), 4));
        }
    }

    #[tokio::test]
    async fn what_stays_refused_is_an_error_and_other_refusals_are_one_at_once() {
        let (got, asked) = asks(u32::MAX, 403).await;
        assert!(got.is_err_and(|error| error.contains("a different node")));
        assert_eq!(asked, 7);
        assert_eq!(asks(u32::MAX, 422).await.1, 1);
    }
}

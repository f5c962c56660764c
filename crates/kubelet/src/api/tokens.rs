//! Tokens of service accounts by the API server's TokenRequest.

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1 as auth;
use k8s_openapi::api::core::v1;
use kube::api::PostParams;
use kube::{Api, Client};

use super::source::chain;
use crate::tokens::{Token, TokenRequest, TokenSource};

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
            let answer = accounts.create_token_request(&request.service_account, &parameters, &asked).await;
            let status = answer.map_err(|error| chain(&error))?.status.unwrap_or_default();
            let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
                return Err("the API server answered without a token".to_owned());
            };
            let expires = i64::try_from(expires.0.as_nanosecond()).unwrap_or(i64::MAX);
            Ok(Token { text, expires })
        })
    }
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

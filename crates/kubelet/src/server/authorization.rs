//! What callers may: the API server is asked, about a subresource of the node for each path. Upstream: pkg/kubelet/server/auth.go.

use std::fmt;
use std::time::Duration;

use hyper::Method;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::cache::Answers;

/// How long the API server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `authorization` of a KubeletConfiguration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorization {
    /// Whoever was authenticated may do everything.
    AlwaysAllow,
    /// The API server is asked.
    Webhook {
        /// How long a yes holds.
        authorized_ttl: Duration,
        /// How long a no holds.
        unauthorized_ttl: Duration,
    },
}

/// What a request is in the API server's words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    verb: &'static str,
    /// Any of them will do, in this order.
    subresources: Vec<&'static str>,
}

/// The words for a request: pure.
pub(super) fn attributes(method: &Method, path: &str) -> Attributes {
    let verb = match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    let below =
        |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let fine =
        [("/pods", "pods"), ("/healthz", "healthz"), ("/configz", "configz"), ("/runningpods", "pods")];
    let fine = fine.into_iter().find(|(root, _)| below(root)).map(|(_, name)| name);
    let coarse = [
        ("/stats", "stats"),
        ("/metrics", "metrics"),
        ("/logs", "log"),
        ("/checkpoint", "checkpoint"),
        ("/statusz", "statusz"),
        ("/flagz", "configz"),
    ];
    let coarse = coarse.into_iter().find(|(root, _)| below(root)).map_or("proxy", |(_, name)| name);
    Attributes { verb, subresources: fine.into_iter().chain([coarse]).collect() }
}

/// Why a caller may not.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The API server says no; the message is upstream's.
    Forbidden(String),
    /// The API server says nothing.
    Unknown(String),
}

/// Asks, and remembers.
pub(super) struct Authorizer {
    webhook: Option<Webhook>,
    node_name: String,
}

struct Webhook {
    reviews: Api<SubjectAccessReview>,
    authorized_ttl: Duration,
    unauthorized_ttl: Duration,
    /// By user, verb and subresource, in JSON.
    known: Answers<String, bool>,
}

impl Authorizer {
    pub(super) fn new(config: &Authorization, client: Client, node_name: String) -> Self {
        let webhook = match *config {
            Authorization::AlwaysAllow => None,
            Authorization::Webhook { authorized_ttl, unauthorized_ttl } => {
                let known = Answers::default();
                Some(Webhook { reviews: Api::all(client), authorized_ttl, unauthorized_ttl, known })
            }
        };
        Self { webhook, node_name }
    }

    /// Whether the caller may.
    pub(super) async fn may(&self, user: &UserInfo, attributes: &Attributes) -> Result<(), Denied> {
        let Some(webhook) = &self.webhook else { return Ok(()) };
        let name = user.username.as_deref().unwrap_or_default();
        for subresource in &attributes.subresources {
            let spec = self.question(user, attributes.verb, subresource);
            match webhook.ask(spec).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(
                        error,
                        user = name,
                        subresource,
                        "the API server does not say what a caller may"
                    );
                    return Err(Denied::Unknown(format!(
                        "Authorization error (user={name}, verb={}, resource=nodes, subresource={subresource})",
                        attributes.verb
                    )));
                }
            }
        }
        Err(Denied::Forbidden(format!("Forbidden (user={name}, {attributes})\n")))
    }

    fn question(&self, user: &UserInfo, verb: &str, subresource: &str) -> SubjectAccessReviewSpec {
        SubjectAccessReviewSpec {
            user: user.username.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                name: Some(self.node_name.clone()),
                resource: Some("nodes".into()),
                subresource: Some(subresource.into()),
                verb: Some(verb.into()),
                version: Some("v1".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        }
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "verb={}, resource=nodes, subresource(s)=[{}]",
            self.verb,
            self.subresources.join(" ")
        )
    }
}

impl Webhook {
    async fn ask(&self, spec: SubjectAccessReviewSpec) -> Result<bool, String> {
        let key = serde_json::to_string(&spec).map_err(|error| error.to_string())?;
        let ask = async {
            let allowed = self.review(spec).await?;
            Ok((allowed, if allowed { self.authorized_ttl } else { self.unauthorized_ttl }))
        };
        self.known.get(key, ask).await
    }

    async fn review(&self, spec: SubjectAccessReviewSpec) -> Result<bool, String> {
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let parameters = PostParams::default();
        let answer = tokio::time::timeout(PATIENCE, self.reviews.create(&parameters, &review)).await;
        let review =
            answer.map_err(|_| "it does not answer".to_owned())?.map_err(|error| error.to_string())?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_a_subresource_of_the_node() {
        for (path, expect) in [
            ("/pods", "get [pods proxy]"),
            ("/runningpods/", "get [pods proxy]"),
            ("/healthz/ping", "get [healthz proxy]"),
            ("/configz", "get [configz proxy]"),
            ("/metrics", "get [metrics]"),
            ("/metrics/cadvisor", "get [metrics]"),
            ("/stats/summary", "get [stats]"),
            ("/logs/", "get [log]"),
            ("/checkpoint/n/p/c", "get [checkpoint]"),
            ("/exec/n/p/c", "get [proxy]"),
            ("/containerLogs/n/p/c", "get [proxy]"),
            ("/metricsx", "get [proxy]"),
            ("/podsx", "get [proxy]"),
            ("/", "get [proxy]"),
        ] {
            let Attributes { verb, subresources } = attributes(&Method::GET, path);
            assert_eq!(format!("{verb} [{}]", subresources.join(" ")), expect, "{path}");
        }
        assert_eq!(attributes(&Method::POST, "/exec/n/p/c").verb, "create");
        assert_eq!(attributes(&Method::HEAD, "/pods").verb, "");
    }

    #[test]
    fn a_refusal_reads_as_upstreams() {
        let text = attributes(&Method::GET, "/pods").to_string();
        assert_eq!(text, "verb=get, resource=nodes, subresource(s)=[pods proxy]");
    }
}

//! Finding the cluster: by a token, or by a file that somebody trusted gave. Nothing of an answer is believed before it was
//! checked. Upstream: cmd/kubeadm/app/discovery/{token,file}.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use k8s_openapi::jiff::fmt::rfc2822;
use kube::client::Body;
use kube::config::Kubeconfig;
use kube::{Client, Config};

use super::cluster_info::{Cluster, Verdict, judge};
use super::error::JoinError;
use super::pin::{CaPin, any_matches};
use super::token::BootstrapToken;
use super::trouble::{self, Trouble};
use crate::certificates::{Leaf, now};
use crate::time::BootTime;

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const WHAT: &str = "read ConfigMap kube-public/cluster-info";

/// How long until the next try, as kubeadm.
const AGAIN: Duration = Duration::from_secs(5);

/// One answer may take so long.
const ANSWER: Duration = Duration::from_secs(10);

/// How the cluster's authority is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is one of these.
    Pinned(Vec<CaPin>),
    /// By the token's signature alone: everybody who knows the token can forge a cluster.
    TokenOnly,
}

/// A cluster that was found, and whose credentials ask it for more.
pub struct Found {
    /// The cluster.
    pub cluster: Cluster,
    /// A client with the token.
    pub client: Client,
}

/// Finds the cluster of which an API server is reached at `endpoint` (`HOST:PORT`); tries for as long as `patience`.
///
/// # Errors
/// When nobody answers, or the answer is not that of the cluster which the token and the pins are for.
pub async fn by_token(
    endpoint: &str,
    token: &BootstrapToken,
    trust: &Trust,
    patience: Duration,
) -> Result<Found, JoinError> {
    let url = format!("https://{endpoint}");
    let end = BootTime::now().after(patience);
    let unverified = client(&url, None, None, Verify::Nothing)?;
    let (payload, theirs) = repeat(end, || signed(&unverified, endpoint, token)).await?;
    let cluster = read(&payload)?;
    check_authority(&cluster, theirs)?;
    if let Trust::Pinned(pins) = trust {
        let certificates = cluster.certificates();
        if !any_matches(pins, &certificates) {
            let found: Vec<String> =
                certificates.iter().filter_map(CaPin::of).map(|pin| pin.to_string()).collect();
            return Err(JoinError::PinMismatch { found: found.join(", ") });
        }
        let verified = client(&url, Some(&cluster), None, Verify::Authority)?;
        let again = repeat(end, || signed(&verified, endpoint, token)).await;
        let (again, _) = again.map_err(|error| with_their_clock(error, theirs))?;
        if again != payload {
            let cause = "it tells of another cluster than it did at first".to_owned();
            return Err(JoinError::Untrusted { server: endpoint.to_owned(), cause });
        }
    }
    let client = client(&cluster.server, Some(&cluster), Some(token), Verify::Authority)?;
    Ok(Found { cluster, client })
}

/// Takes the cluster from a kubeconfig that was given by somebody trusted. The user in it asks for more, or else the bearer
/// of `token`.
///
/// # Errors
/// When the file is not that of a cluster, or there are no credentials.
pub async fn by_file(path: &std::path::Path, token: Option<&BootstrapToken>) -> Result<Found, JoinError> {
    let unusable =
        |cause: String| JoinError::Unusable { what: format!("the discovery file {}", path.display()), cause };
    let file = Kubeconfig::read_from(path).map_err(|error| unusable(error.to_string()))?;
    let cluster = Cluster::of(&file).map_err(|cause| unusable(cause.to_owned()))?;
    check_authority(&cluster, None)?;
    if let Some(token) = token {
        let client = client(&cluster.server, Some(&cluster), Some(token), Verify::Authority)?;
        return Ok(Found { cluster, client });
    }
    if file.auth_infos.is_empty() {
        return Err(unusable("it names no user; give a token with --token".to_owned()));
    }
    let client = crate::api::connect(path).await.map_err(|error| unusable(crate::api::chain(&error)))?;
    Ok(Found { cluster, client })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verify {
    Authority,
    Nothing,
}

fn client(
    url: &str,
    cluster: Option<&Cluster>,
    token: Option<&BootstrapToken>,
    verify: Verify,
) -> Result<Client, JoinError> {
    let unusable = |cause: String| JoinError::Unusable { what: format!("the URL {url}"), cause };
    let mut config = Config::new(url.parse().map_err(|_| unusable("it is no URL".to_owned()))?);
    // None would be the machine's own, and an error on a machine that has none. Who verifies nothing needs none.
    let authorities = cluster.iter().flat_map(|cluster| cluster.certificates());
    config.root_cert = Some(authorities.map(|one| one.as_ref().to_vec()).collect());
    config.accept_invalid_certs = verify == Verify::Nothing;
    config.auth_info.token = token.map(|token| token.bearer().into());
    let made = crate::api::client::client(&config).map_err(|error| unusable(crate::api::chain(&error)))?;
    Ok(made.0)
}

/// One try: what to do next.
enum Try<T> {
    Done(T),
    /// It may get better by itself; what is told when it does not.
    Later(JoinError),
    Never(JoinError),
}

async fn repeat<T>(end: BootTime, one: impl AsyncFn() -> Try<T>) -> Result<T, JoinError> {
    loop {
        match one().await {
            Try::Done(done) => return Ok(done),
            Try::Never(error) => return Err(error),
            Try::Later(error) if BootTime::now().after(AGAIN) > end => return Err(error),
            Try::Later(error) => tracing::info!("{error}; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The kubeconfig in cluster-info, if it is signed with the token; and the server's clock.
async fn signed(client: &Client, endpoint: &str, token: &BootstrapToken) -> Try<(String, Option<i64>)> {
    let server = || endpoint.to_owned();
    let answer = tokio::time::timeout(ANSWER, cluster_info(client)).await;
    let Ok(answer) = answer else {
        return Try::Later(JoinError::Unreachable {
            server: server(),
            cause: "it does not answer".to_owned(),
        });
    };
    let (info, date) = match answer {
        Ok(answer) => answer,
        Err(Trouble::Status(code @ (401 | 403 | 404), cause)) => {
            let cause = format!("{code} {cause}");
            return Try::Never(JoinError::NoClusterInfo { server: server(), cause });
        }
        Err(trouble @ (Trouble::Clock(_) | Trouble::Untrusted(_))) => {
            return Try::Never(trouble.tell(endpoint, WHAT, None));
        }
        Err(trouble) => return Try::Later(trouble.tell(endpoint, WHAT, None)),
    };
    let id = || token.id().to_owned();
    match judge(&info, token) {
        Verdict::Signed(payload) => Try::Done((payload, date)),
        // A token that was made just now is signed for within seconds.
        Verdict::Unsigned => Try::Later(JoinError::TokenUnknown { id: id() }),
        Verdict::Forged => Try::Never(JoinError::TokenWrong { id: id() }),
        Verdict::Empty => {
            let cause = "it holds no kubeconfig".to_owned();
            Try::Never(JoinError::NoClusterInfo { server: server(), cause })
        }
    }
}

/// Asks by hand: the server's clock is in a header.
async fn cluster_info(client: &Client) -> Result<(ConfigMap, Option<i64>), Trouble> {
    let request = Request::get(CLUSTER_INFO).body(Body::empty());
    let request = request.map_err(|error| Trouble::Unreachable(error.to_string()))?;
    let answer = client.send(request).await.map_err(|error| trouble::of(&error))?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let date = headers.get("date").and_then(|date| date.to_str().ok()).and_then(seconds);
    let body = answer.into_body().collect().await.map_err(|error| trouble::of(&error))?.to_bytes();
    if !status.is_success() {
        let told = serde_json::from_slice::<Status>(&body).ok().and_then(|status| status.message);
        let reason = || status.canonical_reason().unwrap_or_default().to_owned();
        return Err(Trouble::Status(status.as_u16(), told.unwrap_or_else(reason)));
    }
    let info = serde_json::from_slice(&body);
    info.map(|info| (info, date))
        .map_err(|error| Trouble::Status(404, format!("the answer is no ConfigMap: {error}")))
}

/// RFC 9110 §5.6.7, as every server writes it today.
fn seconds(date: &str) -> Option<i64> {
    rfc2822::parse(date).ok().map(|time| time.timestamp().as_second())
}

fn read(payload: &str) -> Result<Cluster, JoinError> {
    let unusable =
        |cause: String| JoinError::Unusable { what: "the kubeconfig in cluster-info".to_owned(), cause };
    let file = Kubeconfig::from_yaml(payload).map_err(|error| unusable(error.to_string()))?;
    Cluster::of(&file).map_err(|cause| unusable(cause.to_owned()))
}

/// An authority out of its time is a matter of clocks, and is told before TLS fails by it.
fn check_authority(cluster: &Cluster, theirs: Option<i64>) -> Result<(), JoinError> {
    let ours = now();
    match Leaf::of(&cluster.authority).map(|leaf| leaf.validity) {
        Some(validity) if !validity.holds_at(ours) => Err(JoinError::Clock {
            what: "the certificate of the cluster's authority".to_owned(),
            validity: Some(validity),
            ours,
            theirs,
        }),
        _ => Ok(()),
    }
}

fn with_their_clock(error: JoinError, clock: Option<i64>) -> JoinError {
    match error {
        JoinError::Clock { what, validity, ours, theirs } => {
            JoinError::Clock { what, validity, ours, theirs: theirs.or(clock) }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_s_clock_is_read_from_its_answer() {
        assert_eq!(seconds("Thu, 26 Nov 2026 09:16:49 GMT"), Some(1_795_684_609));
        assert_eq!(seconds("yesterday"), None);
    }
}

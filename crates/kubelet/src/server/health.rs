//! `/healthz`: with the rest of the API, and alone on a loopback port without TLS (`healthzPort`).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::query::Query;
use super::respond::{Answer, text};
use super::{Server, ServerError};

/// Who sends no request in this time is not served.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once; more wait.
const AT_ONCE: usize = 64;

/// Serves `GET /healthz` to everyone until `stop` resolves: it says that the process works.
///
/// # Errors
/// When the port is not free.
pub async fn run(address: SocketAddr, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source: io::Error| ServerError::Listen { address, source })?;
    tokio::select! {
        never = accept(listener) => match never {},
        () = stop => Ok(()),
    }
}

async fn accept(listener: TcpListener) -> Infallible {
    // Aborted when dropped.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= AT_ONCE {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(async move {
                    let service =
                        service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(alone(&request)));
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
                    let serving = http.serve_connection(TokioIo::new(stream), service);
                    // A client that goes away is its own affair.
                    let _ = tokio::time::timeout(PATIENCE, serving).await;
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

fn alone(request: &Request<Incoming>) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz" | "/healthz/ping") => text(StatusCode::OK, "ok"),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// One thing that is looked at.
struct Check {
    name: &'static str,
    is_well: bool,
}

/// Upstream: k8s.io/apiserver/pkg/server/healthz. Pure.
fn verdict(checks: &[Check], only: Option<&str>, is_verbose: bool) -> (StatusCode, String) {
    let asked: Vec<&Check> =
        checks.iter().filter(|check| only.is_none_or(|only| only == check.name)).collect();
    if asked.is_empty() {
        return (StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
    }
    let is_well = asked.iter().all(|check| check.is_well);
    if is_well && (only.is_some() || !is_verbose) {
        return (StatusCode::OK, "ok".to_owned());
    }
    let lines = asked.iter().map(|check| match check.is_well {
        true => format!("[+]{} ok\n", check.name),
        false => format!("[-]{} failed: reason withheld\n", check.name),
    });
    let lines: String = lines.collect();
    match is_well {
        true => (StatusCode::OK, format!("{lines}healthz check passed\n")),
        false => (StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}healthz check failed\n")),
    }
}

impl Server {
    /// `/healthz` and `/healthz/CHECK`.
    pub(super) fn healthz(&self, check: Option<&str>, query: Option<&str>) -> Answer {
        let checks = [
            Check { name: "ping", is_well: true },
            // The kubelet's loop holds the other end as long as it runs.
            Check { name: "syncloop", is_well: self.report.has_changed().is_ok() },
        ];
        let is_verbose = Query::parse(query.unwrap_or_default()).first("verbose").is_some();
        let (status, words) = verdict(&checks, check, is_verbose);
        text(status, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_named() {
        let checks = |is_well| [Check { name: "ping", is_well: true }, Check { name: "syncloop", is_well }];
        assert_eq!(verdict(&checks(true), None, false), (StatusCode::OK, "ok".to_owned()));
        let (status, words) = verdict(&checks(true), None, true);
        assert_eq!(
            (status, words.as_str()),
            (StatusCode::OK, "[+]ping ok\n[+]syncloop ok\nhealthz check passed\n")
        );
        let (status, words) = verdict(&checks(false), None, false);
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(words, "[+]ping ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n");
        assert_eq!(verdict(&checks(false), Some("ping"), false).0, StatusCode::OK);
        assert_eq!(verdict(&checks(true), Some("other"), false).0, StatusCode::NOT_FOUND);
    }
}

//! Requests to a Service, one connection each, and the count of who answered.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who answered how often.
pub(crate) type Answers = BTreeMap<String, u32>;

/// Sends `count` requests to `address`, each over a new connection.
pub(crate) async fn send(address: SocketAddr, count: u32) -> anyhow::Result<Answers> {
    let mut answers = Answers::new();
    for number in 1..=count {
        let name = tokio::time::timeout(PATIENCE, request(address))
            .await
            .unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()))
            .with_context(|| format!("request {number} of {count} to {address}"))?;
        *answers.entry(name).or_default() += 1;
    }
    Ok(answers)
}

async fn request(address: SocketAddr) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    drop(tokio::spawn(connection));
    let request = Request::get("/")
        .header(hyper::header::HOST, address.to_string())
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("send")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), 4096).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?.to_bytes();
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    if status != StatusCode::OK {
        bail!("answered {status}: {text}");
    }
    Ok(text)
}

/// The count as a small chart.
pub(crate) fn render(title: &str, answers: &Answers) -> String {
    let total: u32 = answers.values().sum();
    let width = answers.keys().map(String::len).max().unwrap_or(0);
    let mut text = format!("{total} requests to {title}\n");
    for (name, count) in answers {
        let _ = writeln!(text, "  {name:<width$}  {count:>3}  {}", "#".repeat(*count as usize));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_shows_each_pod_and_its_share() {
        let answers = Answers::from([("web-1".to_owned(), 2), ("web-10".to_owned(), 1)]);
        let expect = "3 requests to ClusterIP 10.96.0.1:80\n  web-1     2  ##\n  web-10    1  #\n";
        assert_eq!(render("ClusterIP 10.96.0.1:80", &answers), expect);
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address_and_the_request() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = format!("{:#}", send(address, 3).await.expect_err("nobody listens"));
        assert!(error.contains(&format!("request 1 of 3 to {address}")), "{error}");
    }
}

//! Asking the agent of a node.

use std::io::ErrorKind;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{IMAGE, STATUS, STOP, SocketPath};
use crate::image::wire;
use crate::node::Node;
use crate::status::report::Report;

/// A connection to a running agent.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects; `None` when no agent runs.
    pub(crate) async fn connect(node: &Node) -> anyhow::Result<Option<Self>> {
        let path = node.admin_socket();
        let socket = match SocketPath::new(&path) {
            Ok(socket) => UnixStream::connect(socket.as_path()).await,
            Err(error) => Err(error),
        };
        let stream = match socket {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("connect to the agent at {}", path.display()));
            }
        };
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("greet the agent")?;
        // Its errors come back from the requests.
        drop(tokio::spawn(connection));
        Ok(Some(Self { sender }))
    }

    /// What the agent knows of its node.
    pub(crate) async fn status(&mut self) -> anyhow::Result<Report> {
        let response = self.send(Method::GET, STATUS, Bytes::new()).await?;
        let body = response.into_body().collect().await.context("read the agent's status")?.to_bytes();
        serde_json::from_slice(&body).context("understand the agent's status")
    }

    /// Ends the agent; its pods keep running.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.send(Method::POST, STOP, Bytes::new()).await.map(drop)
    }

    /// Has work on images done, and hands each line of the answer to `hear`.
    pub(crate) async fn image(
        &mut self,
        request: &wire::Request,
        hear: impl FnMut(wire::Update),
    ) -> anyhow::Result<()> {
        let body = serde_json::to_vec(request).context("encode the request")?;
        let response = self.send(Method::POST, IMAGE, body.into()).await?;
        lines(response.into_body(), hear).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "podwright")
            .body(Full::new(body))
            .context("build the request")?;
        let response = self.sender.send_request(request).await.context("ask the agent")?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await.context("read the agent's refusal")?.to_bytes();
            bail!("the agent answered {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(response)
    }
}

/// Reads one JSON value per line until the agent has no more to say.
async fn lines<T: DeserializeOwned>(mut body: Incoming, mut hear: impl FnMut(T)) -> anyhow::Result<()> {
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the agent went away in the middle of its answer")?;
        rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            hear(serde_json::from_slice(&line).context("understand the agent's answer")?);
        }
    }
    if rest.is_empty() { Ok(()) } else { bail!("the agent's answer ends in the middle of a line") }
}

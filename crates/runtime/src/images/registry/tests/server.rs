//! A web server on the loopback that answers exactly, rightly or wrongly, what a test says.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }
}

/// Bytes to send, and what to do then.
pub(super) enum Reply {
    Close(Vec<u8>),
    Hang(Vec<u8>),
}

impl Reply {
    pub(super) fn ok(media_type: &str, body: &[u8]) -> Self {
        Self::with("200 OK", &format!("Content-Type: {media_type}\r\n"), body)
    }

    pub(super) fn status(status: &str, body: &str) -> Self {
        Self::with(status, "", body.as_bytes())
    }

    pub(super) fn with(status: &str, headers: &str, body: &[u8]) -> Self {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        Self::Close([head.as_bytes(), body].concat())
    }
}

/// A running server; it ends with the test's runtime.
pub(super) struct Server {
    pub(super) authority: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) fn requests(&self) -> Vec<Request> {
        self.log.lock().expect("log").clone()
    }
}

pub(super) async fn serve(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let authority = listener.local_addr().expect("address").to_string();
    let log = Arc::new(Mutex::new(Vec::new()));
    let (answer, requests) = (Arc::new(answer), Arc::clone(&log));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
            tokio::spawn(async move { connection(stream, &*answer, &requests).await });
        }
    });
    Server { authority, log }
}

async fn connection(
    mut stream: TcpStream,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
    log: &Mutex<Vec<Request>>,
) {
    let mut bytes = Vec::new();
    let request = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        if let Some(request) = parse(&bytes) {
            break request;
        }
    };
    log.lock().expect("log").push(request.clone());
    match answer(&request) {
        Reply::Close(bytes) => {
            // A client that has seen enough may hang up first.
            let _sent = stream.write_all(&bytes).await;
            let _closed = stream.shutdown().await;
        }
        Reply::Hang(bytes) => {
            stream.write_all(&bytes).await.expect("send");
            std::future::pending::<()>().await;
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Request> {
    let text = std::str::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(key, value)| (key.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length =
        headers.iter().find(|(key, _)| key == "content-length").and_then(|(_, value)| value.parse().ok());
    (body.len() >= length.unwrap_or(0)).then(|| Request { method, path, headers, body: body.to_owned() })
}

//! A listener that gives the same short answer to everyone. Ends when dropped.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::{Answer, Question, State, now};

/// Who sends no request in this time is not served.
const PATIENCE: Duration = Duration::from_secs(5);
/// More connections wait.
const AT_ONCE: usize = 64;

/// See the module.
pub(super) struct Server {
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Listens and answers, in the current tokio runtime.
    pub(super) fn start(question: Question, state: watch::Receiver<Arc<State>>) -> io::Result<Self> {
        let mut opened = Err(io::ErrorKind::AddrNotAvailable.into());
        for address in question.addresses() {
            opened = listen(address);
            if opened.is_ok() {
                break;
            }
        }
        let listener = opened?;
        let task = tokio::spawn(async move { serve(listener, Arc::new(question), state).await });
        Ok(Self { task })
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.task.is_finished()
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve(listener: TcpListener, question: Arc<Question>, state: watch::Receiver<Arc<State>>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let answering = converse(stream, Arc::clone(&question), state.clone());
                connections.spawn(async move {
                    // A client that asks nothing or goes away is its own business.
                    let _ = tokio::time::timeout(PATIENCE, answering).await;
                    drop(place);
                });
            }
            // Out of file descriptors: later there may be some.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: TcpStream, question: Arc<Question>, state: watch::Receiver<Arc<State>>) {
    let answering = service_fn(|request: Request<Incoming>| {
        let known = Arc::clone(&state.borrow());
        let answer = question.answer(request.uri().path(), &known, Instant::now(), now());
        async move { Ok::<_, Infallible>(response(answer)) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let server = server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    // What goes wrong with one client's connection is that client's business.
    let _ = server.serve_connection(TokioIo::new(stream), answering).await;
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let kind = if answer.status == 404 { "text/plain; charset=utf-8" } else { "application/json" };
    let mut response = Response::builder()
        .status(answer.status)
        .header("Content-Type", kind)
        .header("X-Content-Type-Options", "nosniff");
    if let Some(weight) = answer.weight {
        response = response.header("X-Load-Balancing-Endpoint-Weight", weight.to_string());
    }
    response.body(Full::new(answer.body.into())).unwrap_or_default()
}

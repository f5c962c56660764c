//! The web server of the built-in demo image: answers with the name of its pod. As pid 1 it does what an init
//! must: it reaps what is left to it, and ends at once on SIGTERM. One thread.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::WebArgs;
use crate::{node, output};

/// Serves until SIGTERM or SIGINT.
pub(crate) fn main(args: &WebArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("start the event loop")?
        .block_on(serve(args.port))
}

async fn serve(port: u16) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = signal(SignalKind::child())?;
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(_) => {
            TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("listen on port {port}"))?
        }
    };
    output::line(&format!("{} answers on port {port}", node::host_name()));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(connection(stream))),
                Err(error) => output::note(&format!("accept: {error}")),
            },
            _ = child.recv() => reap(),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

async fn connection(stream: TcpStream) {
    let answer = service_fn(async |request| Ok::<_, Infallible>(answer(&request)));
    // A peer that goes away in the middle is its own affair.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, _) => (StatusCode::OK, format!("{}\n", node::host_name())),
        (_, _) => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

/// Takes the exit of every child that ended: as pid 1 nobody else does.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn answers_with_the_name_of_the_host() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let reply = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move { connection(listener.accept().await.unwrap().0).await });
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).await.unwrap();
            reply
        });
        assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
        assert!(reply.ends_with(&format!("{}\n", node::host_name())), "{reply}");
    }
}

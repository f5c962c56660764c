//! A TCP connection, or why there is none in the words that users know from Go.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

/// Connects within the time limit.
pub(super) async fn dial(address: SocketAddr, timeout: Duration) -> Result<TcpStream, String> {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", words(&error))),
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// The system's words without what Rust adds: `connection refused`.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_told_as_go_tells_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        dial(address, Duration::from_secs(5)).await.expect("somebody listens");
        drop(listener);
        let error = dial(address, Duration::from_secs(5)).await.expect_err("nobody listens");
        assert_eq!(error, format!("dial tcp {address}: connect: connection refused"));
    }
}

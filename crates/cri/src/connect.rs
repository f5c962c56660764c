//! Reaching a CRI server: over its unix socket, or in memory when it lives in this process.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use crate::MAX_MESSAGE_SIZE;
use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::runtime_service_client::RuntimeServiceClient;

/// Why no connection to a CRI endpoint could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint is neither a path nor a `unix://` URL.
    #[error("CRI endpoint {endpoint:?} is not a path or unix:// URL")]
    UnsupportedEndpoint {
        /// What was given.
        endpoint: String,
    },
    /// Nothing answers on the socket.
    #[error("connect to the CRI socket {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the transport said.
        source: tonic::transport::Error,
    },
}

/// Connects to the CRI server behind `endpoint`: a path, or `unix://` and a path, as crictl and kubelet take it.
///
/// # Errors
/// When the endpoint has another form, or nothing listens there now.
pub async fn connect(endpoint: &str) -> Result<Channel, ConnectError> {
    let path = socket_path(endpoint)?;
    let socket = path.clone();
    local_endpoint()
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|source| ConnectError::Connect { path, source })
}

/// A channel to a server in this process, and the stream of connections that the server must be given
/// ([`serve`](crate::serve()) takes it as `extra`). The channel connects at its first call.
#[must_use]
pub fn connect_in_memory() -> (Channel, mpsc::Receiver<DuplexStream>) {
    let (connections, incoming) = mpsc::channel(4);
    let channel = local_endpoint().connect_with_connector_lazy(tower::service_fn(move |_| {
        let connections = connections.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(256 << 10);
            connections
                .send(theirs)
                .await
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused))?;
            Ok::<_, std::io::Error>(TokioIo::new(ours))
        }
    }));
    (channel, incoming)
}

fn socket_path(endpoint: &str) -> Result<PathBuf, ConnectError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !Path::new(path).is_absolute() {
        return Err(ConnectError::UnsupportedEndpoint { endpoint: endpoint.to_owned() });
    }
    Ok(PathBuf::from(path))
}

/// The URI is never resolved: the connector decides where the bytes go.
fn local_endpoint() -> Endpoint {
    Endpoint::from_static("http://cri.local")
}

/// A client of the RuntimeService that takes messages as large as servers send them.
#[must_use]
pub fn runtime_client(channel: &Channel) -> RuntimeServiceClient<Channel> {
    RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_SIZE)
}

/// The same of the ImageService.
#[must_use]
pub fn image_client(channel: &Channel) -> ImageServiceClient<Channel> {
    ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_a_path_and_a_unix_url() {
        for endpoint in ["/run/podwright/podwright.sock", "unix:///run/podwright/podwright.sock"] {
            let path = socket_path(endpoint).expect("a valid endpoint");
            assert_eq!(path, Path::new("/run/podwright/podwright.sock"));
        }
    }

    #[test]
    fn refuses_tcp_and_relative_endpoints_by_name() {
        for endpoint in ["tcp://127.0.0.1:1", "podwright.sock", "unix://relative", ""] {
            let error = socket_path(endpoint).expect_err("not an endpoint");
            assert!(error.to_string().contains(endpoint), "{error}");
        }
    }
}

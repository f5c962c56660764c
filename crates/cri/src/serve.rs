//! Serving CRI on a unix socket, and to connections made in memory.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::MAX_MESSAGE_SIZE;
use crate::v1::image_service_server::{ImageService, ImageServiceServer};
use crate::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};

/// Why the CRI server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process answers on the socket.
    #[error("socket {} is in use by another process; stop it or give another --listen", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{} is no socket, and is left alone; give another --listen", path.display())]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket could not be created.
    #[error("listen on {}", path.display())]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The gRPC server ended with an error.
    #[error("serve CRI")]
    Serve(#[source] tonic::transport::Error),
}

/// Creates the socket at `path` (directories 0711, socket 0600), replacing one that nobody listens on any more.
///
/// # Errors
/// When another process listens there, something else than a socket is there, or the path cannot be created.
pub fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let fail = |source| ServeError::Bind { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ServeError::InUse { path: path.to_owned() });
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NotSocket { path: path.to_owned() });
        }
        Ok(_) => std::fs::remove_file(path).map_err(fail)?,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Serves both CRI services on `listener` and on the connections that arrive from `extra` (see
/// [`connect_in_memory`](crate::connect_in_memory)) until `stop` resolves and the calls under way have ended.
///
/// # Errors
/// When the transport fails; a client's bad bytes only end that client's connection.
pub async fn serve<R, I>(
    listener: UnixListener,
    extra: mpsc::Receiver<DuplexStream>,
    runtime: R,
    images: I,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError>
where
    R: RuntimeService,
    I: ImageService,
{
    let sockets = UnixListenerStream::new(listener).map(|accepted| accepted.map(Connection::Socket));
    let memory = ReceiverStream::new(extra).map(|stream| Ok(Connection::Memory(stream)));
    let runtime = RuntimeServiceServer::new(runtime)
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE);
    let images = ImageServiceServer::new(images)
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE);
    Server::builder()
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(sockets.merge(memory), stop)
        .await
        .map_err(ServeError::Serve)
}

/// One client: on the socket, or in this process.
enum Connection {
    Socket(UnixStream),
    Memory(DuplexStream),
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_flush(cx),
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let (socket, file) = (dir.path().join("s.sock"), dir.path().join("precious"));
        drop(bind(&socket).expect("new"));
        let listening = bind(&socket).expect("nobody listens");
        assert!(matches!(bind(&socket), Err(ServeError::InUse { .. })));
        drop(listening);
        std::fs::write(&file, "mine").expect("written");
        assert!(matches!(bind(&file), Err(ServeError::NotSocket { .. })));
        assert_eq!(std::fs::read_to_string(&file).expect("still there"), "mine");
    }
}

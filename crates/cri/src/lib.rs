//! CRI v1: the messages generated from `proto/cri-v1.proto`, how to connect to a server, and how to serve one.
//!
//! Nothing else: what a call means is decided in `runtime` (our server) and in `kubelet` (the client).

mod connect;
mod serve;

pub use connect::{ConnectError, connect, connect_in_memory, image_client, runtime_client};
pub use serve::{ServeError, bind, serve};

/// The largest gRPC message either side accepts, in bytes; what kubelet and containerd use (16 MiB).
pub const MAX_MESSAGE_SIZE: usize = 16 << 20;

/// The generated messages, clients and servers of package `runtime.v1`.
#[expect(missing_docs, reason = "generated: the documentation stands in proto/cri-v1.proto")]
#[allow(clippy::all, clippy::too_many_lines, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

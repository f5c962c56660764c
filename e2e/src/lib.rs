//! What the root stories share: machines made of namespaces, images made from this machine's own files, our node and
//! the field's own daemons on them.
//!
//! Nothing here decides whether a story passes; the stories stand in `tests/`.

pub mod bundle;
pub mod cluster;
pub mod containerd;
pub mod cri_server;
pub mod critest;
pub mod daemon;
pub mod image;
pub mod lab;
pub mod node;
pub mod parts;
pub mod program;
pub mod registry;
pub mod requests;
pub mod stories;
pub mod story;
pub mod systemd;
pub mod test_host;
pub mod uml;

pub use cri_server::CriServer;
pub use lab::Lab;
pub use node::Node;
pub use story::Story;
pub use test_host::{Daemon, TestHost};

//! The per-pod supervisor: owns the pod's namespaces, its containers' output and their exit status, and outlives the agent.
//! Single-threaded; decides nothing about pods.
//!
//! `setup` turns a fresh process into a supervisor, `server` is its event loop, `requests` what an agent can ask of it.

mod attach;
mod child;
mod clock;
mod container;
mod exec;
pub mod frame;
mod launcher;
mod lines;
mod log;
mod output;
mod owned;
mod pause;
mod peer;
pub mod protocol;
mod requests;
mod server;
mod setup;
mod sys;
mod sysctl;

/// Runs a supervisor; the binary calls this first when `argv[0]` is [`protocol::ARGV0`]. Its standard input is a socket
/// on which the agent sends [`protocol::Setup`].
pub fn main() -> ! {
    let Some(pod) = setup::run() else { std::process::exit(1) };
    server::Server::new(pod).run();
    std::process::exit(0)
}

//! The per-pod supervisor: owns the pod's namespaces, its containers' output and their exit status, and outlives the agent.
//! Single-threaded; decides nothing about pods.

mod clock;
pub mod frame;
mod lines;
mod log;
pub mod protocol;
mod sysctl;

/// Runs a supervisor; the binary calls this first when `argv[0]` is [`protocol::ARGV0`].
pub fn main() -> ! {
    std::process::exit(1)
}

//! Runs one container from an OCI runtime spec, and the per-pod supervisor.
//!
//! `plan` turns a spec into a [`plan::LaunchPlan`] (pure, everything unsupported is refused by name), `launch` carries it out,
//! `probe` finds out whether the kernel can do it, `seccomp` makes and compiles system call filters, `cli` is runc's command line.

pub mod cli;
pub mod console;
pub mod launch;
pub mod plan;
pub mod probe;
pub mod seccomp;
pub mod signal;
pub mod supervisor;

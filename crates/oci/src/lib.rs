//! Runs one container from an OCI runtime spec, and the per-pod supervisor.

pub mod supervisor;

//! The binary: CLI, config, wiring, signals, shutdown. No logic.

fn main() {}

//! Implements CRI: images, sandboxes, containers, logs.

pub mod supervisor;

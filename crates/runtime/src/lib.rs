//! Implements CRI: images, sandboxes, containers, logs.

pub mod images;
pub mod supervisor;

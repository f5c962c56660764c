//! Implements CRI: images, sandboxes, containers, logs.

//! Debian docker-registry.

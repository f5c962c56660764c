//! CNI client and the bundled bridge, host-local and loopback plugins.

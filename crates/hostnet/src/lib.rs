//! The door to the network: netlink and the one netfilter writer.

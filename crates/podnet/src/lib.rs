//! Pods of other nodes: Node objects become routes, or a VXLAN where nodes are not neighbours.
//!
//! It knows nothing of pods, only of the ranges that nodes have.

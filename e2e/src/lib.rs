//! Stories that need root, on real peers: the harness they share.

//! Makes the pods on this node match what a manifest directory asks for.

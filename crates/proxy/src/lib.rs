//! Services and endpoints into netfilter rules.

//! Watches of the API server by those that serve a cluster's network: what comes, what is the matter while nothing comes, and
//! when an outage began and is over.
//!
//! It knows no object and says nothing itself: what an outage means is for whoever watches to say. The kubelet's own watches
//! are its own, as a pod has to be told of more exactly.

mod outage;
mod watch;

pub use outage::{News, Outage};
pub use watch::{Heard, Trouble, Watch};

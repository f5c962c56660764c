//! What each part of the agent is configured with: the node's paths and names, in each part's own words.

use hostnet::netfilter::{Family, Writer, WriterConfig, WriterHandle};

/// The one writer of netfilter rules in this process.
pub(crate) fn netfilter() -> WriterHandle {
    Writer::spawn(WriterConfig { family: Family::V4 })
}

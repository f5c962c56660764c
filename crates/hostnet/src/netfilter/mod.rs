//! Netfilter rules as values, their difference, and the one task that programs them.
//!
//! Owners (the proxy, the CNI client) submit the whole of what they want; [`render_restore`] finds what changed, and the
//! [`Writer`] hands that to one `iptables-restore --noflush`.

mod programs;
mod render;
mod ruleset;
mod writer;

pub use programs::{Backend, ProgramError, Programs};
pub use render::{parse_saved, render_restore};
pub use ruleset::{Family, Hook, Position, Ruleset, Table};
pub use writer::{Owner, WriteError, Writer, WriterConfig, WriterHandle};

//! Netfilter rules as values, their difference, and the one task that programs them.
//!
//! Owners (the proxy, the CNI client) submit the whole of what they want; [`render_restore`] finds what changed, and the
//! [`Writer`] hands that to one `iptables-restore --noflush`. What somebody else flushes is put back within seconds.

mod programmed;
mod programs;
mod render;
mod ruleset;
mod watch;
mod writer;

pub use programs::{Backend, ProgramError, Programs};
pub use render::{in_words_of, parse_saved, render_restore};
pub use ruleset::{Family, Hook, PerFamily, Position, Ruleset, Table};
pub use writer::{Owner, WriteError, Writer, WriterHandle};

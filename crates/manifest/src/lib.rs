//! v1 manifest files: strict decoding, one report per document, watching. It decides nothing about what pods and
//! Services mean; it says whether they are what an API server would accept, and fills in what that would fill in.
//!
//! ```text
//! paths ─► files ─► documents ─► values ─► typed objects ─► defaults ─► validation ─► Loaded
//!   └─ inotify ─► again, keeping the last good version of an object whose document broke
//! ```

mod decode;
mod defaults;
mod document;
mod files;
mod objects;
pub mod quantity;
pub mod resource;
mod text;
mod validate;
mod watch;
mod ways;

pub use defaults::{default_pod, default_service};
pub use objects::{Loaded, ObjectKey, Objects, Problem};
pub use watch::{WatchError, load, watch};

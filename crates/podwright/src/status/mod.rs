//! `podwright status`.

pub(crate) mod report;
mod table;

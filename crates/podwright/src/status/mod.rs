//! `podwright status`.

pub(crate) mod report;
pub(crate) mod table;

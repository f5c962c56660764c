//! Specs as golden values.

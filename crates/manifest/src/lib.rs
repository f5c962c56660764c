//! v1 manifest files: strict decoding, one report per document, watching.

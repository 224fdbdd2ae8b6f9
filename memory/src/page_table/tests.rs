//! Tests beside those under loom.

//! An in-memory source.

//! Tailwater.
pub mod config;
pub mod resume;
pub mod runtime;
pub mod wire;
